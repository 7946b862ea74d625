"""Writing weight files: whole or not at all, and the same bytes for the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ..common.atomic_files import atomic_write

_ALIGNMENT = 8  # bytes; safetensors pads its header to it


def write_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors and what is said of them.

    Args:
        state: tensors by name, on any device.
        path: the file.
        metadata: texts by name, such as the backbone's.

    Raises:
        UserError: if it cannot be written.
    """
    tensors = {name: value.detach().contiguous().cpu() for name, value in state.items()}
    with atomic_write(path) as part:
        # by Python's own writing, which says that a disk is full; safetensors raises an error of its own
        part.write_bytes(sort_metadata(safetensors.torch.save(tensors, metadata=dict(metadata))))


def sort_metadata(content: bytes) -> bytes:
    """Put the metadata of a safetensors file in alphabetical order; it comes in another order each time."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
