"""Files of features: npz or Parquet by suffix, written part by part and read whole.

    npz       `paths` (N,) text, `features` (N, C) or (N, C, S, S) float32, `about` JSON
    Parquet   columns `path` and `features` (a list of C or C*S*S float32); `about` in the schema's metadata

`about` says what made them (weights, vector, size of the images ...) and which images could not be read, with
the reason. Nothing in a file depends on when or in how many sittings it was made.
Shape legend: N images, C channels, S map cells per side.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.atomic_files import atomic_write
from ...common.errors import UserError
from ...common.terminal.printable import printable

FORMAT = "hapicl features"
Values = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureFile:
    """What a file holds."""

    paths: list[str]  # N, relative to the image root
    values: Values  # (N, C) or (N, C, S, S)
    about: dict[str, Any]


def check_kind(path: Path) -> None:
    """Refuse a name whose kind is not known here, or whose library is missing.

    Raises:
        UserError: says what to do.
    """
    if path.suffix not in _WRITERS:
        raise UserError(f"--out {path}: features are written as {' or '.join(_WRITERS)}; give such a name")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"--out {path} needs pyarrow: pip install hapicl[parquet], or give a name with .npz")


def write_features(
    path: Path, paths: Sequence[str], shape: tuple[int, ...], chunks: Iterable[Values], about: dict[str, Any]
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: the file; its suffix chooses the kind.
        paths: N, relative.
        shape: of one image's features.
        chunks: (n, *shape) each, N in all, in the order of `paths`.
        about: JSON-able.

    Raises:
        UserError: if it cannot be written.
    """
    text = json.dumps({"format": FORMAT, "shape": list(shape), **about}, sort_keys=True)
    with atomic_write(path) as part:
        _WRITERS[path.suffix](part, paths, shape, chunks, text)


def read_features(path: Path) -> FeatureFile:
    """Read a file of features.

    Raises:
        UserError: if it is missing, damaged, or holds other things.
    """
    check_kind(path)
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no file of `hapicl embed`, or damaged ({error})") from error


def _write_npz(
    part: Path, paths: Sequence[str], shape: tuple[int, ...], chunks: Iterable[Values], about: str
) -> None:
    """As numpy.savez does, but one chunk at a time in memory."""
    with zipfile.ZipFile(part, "w") as archive:
        with archive.open(zipfile.ZipInfo("features.npy"), "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for values in chunks:
                file.write(np.ascontiguousarray(values, "<f4").tobytes())
        for name, array in (("paths", np.array(paths, dtype=np.str_)), ("about", np.array(about))):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _read_npz(path: Path) -> FeatureFile:
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        if about.get("format") != FORMAT:
            raise ValueError("another format")
        return FeatureFile(file["paths"].tolist(), file["features"], about)


def _write_parquet(
    part: Path, paths: Sequence[str], shape: tuple[int, ...], chunks: Iterable[Values], about: str
) -> None:
    """One row group for each chunk."""
    import pyarrow
    from pyarrow import parquet

    width = int(np.prod(shape))
    columns = {"path": pyarrow.string(), "features": pyarrow.list_(pyarrow.float32(), width)}
    schema = pyarrow.schema(columns, metadata={"hapicl": about})
    done = 0
    with parquet.ParquetWriter(part, schema) as writer:
        for values in chunks:
            names = [printable(path) for path in paths[done : done + len(values)]]  # Parquet's text is UTF-8
            flat = pyarrow.array(values.reshape(-1))
            lists = pyarrow.FixedSizeListArray.from_arrays(flat, width)
            writer.write_table(pyarrow.table([pyarrow.array(names), lists], schema=schema))
            done += len(values)


def _read_parquet(path: Path) -> FeatureFile:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(str(error).splitlines()[0]) from error
    about = json.loads((table.schema.metadata or {}).get(b"hapicl", b"{}"))
    if about.get("format") != FORMAT:
        raise ValueError("another format")
    flat = table["features"].combine_chunks().flatten().to_numpy()
    values = flat.reshape(len(table), *about["shape"]).astype(np.float32)
    return FeatureFile(table["path"].to_pylist(), values, about)


_Writer = Callable[[Path, Sequence[str], tuple[int, ...], Iterable[Values], str], None]
_WRITERS: dict[str, _Writer] = {".npz": _write_npz, ".parquet": _write_parquet}
