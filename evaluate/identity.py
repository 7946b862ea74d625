"""What makes a number the number it is: weights, protocol, parameters, data and seeds, and a hash of them.

Results are named by that hash, tables put results of one column together by it, and an existing result of
another content is never written over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZED_FILES = 1000  # whose size is part of a data set's identity; more would take minutes on a network disk
# where data lies and what its classes are called changes no number
NOT_COUNTED = frozenset({"root", "labels_root", "name", "list", "class_names"})
# of the weights: what changes a number; the rest says where they came from
WEIGHTS = ("kind", "arch", "stem", "sha256")


def files_hash(files: Sequence[Path], labels: Sequence[Any], root: Path | None = None) -> str:
    """Hash of a data set: every file's name and label, and the sizes of up to 1,000 of them, evenly spread.

    Args:
        files: in order.
        labels: one for each file, whatever JSON can hold.
        root: names are taken relative to it; None: the files' own names.
    """
    digest = hashlib.sha256()
    for file, label in zip(files, labels, strict=True):
        name = file.relative_to(root).as_posix() if root else file.name
        digest.update(f"{name}\0{json.dumps(label)}\n".encode("utf-8", "surrogateescape"))
    for place in np.unique(np.linspace(0, len(files) - 1, min(SIZED_FILES, len(files))).round().astype(int)):
        digest.update(f"{_bytes(files[place])}\n".encode())
    return digest.hexdigest()[:16]


def _bytes(file: Path) -> int:
    """Size of a file; -1 for a broken link, which whoever reads the file will name."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def data_identity(data: Any) -> Any:
    """What a result's `data` says without where it lies; results without a hash of files keep that too."""
    if not isinstance(data, dict):
        return data
    dropped = NOT_COUNTED if _has_files(data) else frozenset()
    return {key: data_identity(value) for key, value in data.items() if key not in dropped}


def _has_files(data: dict[str, Any]) -> bool:
    """Whether a record or one inside it carries the hash of its files."""
    return "files" in data or any(isinstance(value, dict) and _has_files(value) for value in data.values())


def content(
    *,
    task: str,
    protocol: str,
    parameters: dict[str, Any],
    data: dict[str, Any],
    image_size: int,
    seeds: Sequence[int],
    weights: Mapping[str, Any],
) -> str:
    """Hash of everything that changes a result's numbers, 64 hex digits.

    Args:
        task, protocol, parameters, data, image_size: of the evaluation.
        seeds: of the runs.
        weights: record of the first run's.
    """
    counted = {
        "task": task,
        "protocol": protocol,
        "parameters": parameters,
        "data": data_identity(data),
        "image_size": image_size,
        "seeds": list(seeds),
        "weights": {name: weights[name] for name in WEIGHTS},
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()
