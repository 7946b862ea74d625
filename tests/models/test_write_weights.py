"""Weight files: the same bytes each time, readable by safetensors itself, one line on a full disk."""

import pytest
import safetensors
import safetensors.torch
import torch
from limits import largest_file

from hapicl.common.errors import UserError
from hapicl.models.write_weights import write_safetensors

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.int64)}
METADATA = {
    name: f"value of {name}, ä" for name in ("stem", "arch", "method", "image_size", "hapicl", "format")
}


def test_the_same_weights_are_the_same_bytes(tmp_path):
    """The metadata came in another order each time, so equal runs gave files of another digest."""
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        write_safetensors(STATE, path, dict(reversed(METADATA.items())) if number % 2 else METADATA)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_safetensors_reads_what_was_written(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(STATE, path, METADATA)
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[name], value) for name, value in STATE.items())
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata() == METADATA
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    words = r"^cannot write .*w\.safetensors: File too large; free some"
    with largest_file(4096), pytest.raises(UserError, match=words):
        write_safetensors({"a": torch.ones(10_000)}, tmp_path / "w.safetensors", METADATA)
    assert list(tmp_path.iterdir()) == []
