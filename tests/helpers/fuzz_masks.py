"""Crafted mask files: whatever stands in one, every command ends well or in one clear line.

A case is a small valid file with one to three things made wrong: attributes, keys of its description and
recipe, columns that are missing, of another kind, shape or layout, values out of range, a cut end. Then
every command that reads mask files is given the case. A case fails if one of them raises anything but
`UserError`, or warns.

    python tests/helpers/fuzz_masks.py --cases 500             # some minutes; prints what failed, and a count
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import pathlib
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator

import click
import cv2
import h5py
import numpy as np
from click.testing import CliRunner

from hapicl.common.errors import UserError
from hapicl.data.geometry import ViewGeometry
from hapicl.data.images.folder import Folder
from hapicl.data.loading.selection import select_images
from hapicl.data.masks.reader import MaskReader
from hapicl.maskgen.building import build as build_module
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.building.pool import Runner
from hapicl.maskgen.building.worker import make_rows
from hapicl.maskgen.commands import masks
from hapicl.maskgen.refinement.refine import usable_paths
from hapicl.maskgen.refinement.samples import read_first_masks

Generator = np.random.Generator
COLUMNS = ("path", "image_size", "mask_size", "offset", "coverage", "confidence", "status", "crc32",
           "file_bytes", "reason_row", "reason", "blob")  # fmt: skip
NUMBERS = (-1, 0, 2, 1e308, -0.5, 10**30, float("nan"), float("inf"))
JSON_VALUES = (None, True, False, *NUMBERS, "", "x", "[bold]", "\ud800", [], [1], [[]], {}, {"name": []})
TEXTS = ("", "[1]", "null", "{}", "3", '"text"', "{", '{"recipe": {}}', "[" * 500, "1" * 5000, "\0")
PLAIN_TYPES = ("i1", "<i4", ">i8", "<u8", "<f4", "<f8", "<c8", "?", "S1", "S40")
SPECIAL_TYPES = {
    "text": h5py.string_dtype(),
    "ragged": h5py.vlen_dtype(np.int32),
    "compound": np.dtype([("a", "i4"), ("b", "f4")]),
    "enum": h5py.enum_dtype({"a": 1}),
    "reference": h5py.ref_dtype,
}
LAYOUTS = ("gone", "group", "null", "chunked", "huge", "unwritten", "link", "nowhere", "external")
KEYS = (b"", b"/etc/passwd", b"../x.png", b"a/../../b", b"a\0b", b"\xff\xfe", b"a" * 300, b"[red]", b".")


class HereRunner(Runner):
    """Runs tasks in this process: the logic of a build without the cost of workers."""

    def _stream(self, tasks, under_way):
        for task in tasks:
            under_way[task] = None
            yield make_rows(self.images, task, self.maker)


@contextlib.contextmanager
def building_here() -> Iterator[None]:
    """Let builds make their masks in this process."""
    before, build_module.Runner = build_module.Runner, HereRunner
    try:
        yield
    finally:
        build_module.Runner = before


def make_base(folder: pathlib.Path) -> pathlib.Path:
    """Make six images of which one is none, their masks, and a truth for each; returns the mask file."""
    images, truth = folder / "images" / "a", folder / "truth" / "a"
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(5):
        picture = generator.integers(0, 90, (30 + number, 40, 3), dtype=np.uint8)
        cv2.circle(picture, (20, 15), 8, (40, 60, 220), -1)
        cv2.imwrite(str(images / f"{number}.png"), picture)
        cv2.imwrite(str(truth / f"{number}.png"), (picture[:, :, 2] > 180) * np.uint8(255))
    (images / "none.jpg").write_bytes(b"no image")
    with building_here():
        build_masks(folder / "images", folder / "base.h5", "fast")
    return folder / "base.h5"


def mutate(file: pathlib.Path, generator: Generator) -> str:
    """Make one to three things wrong in a mask file; returns what, in words."""
    made = []
    for _ in range(int(generator.integers(1, 4))):
        change = CHANGES[int(generator.integers(len(CHANGES)))]
        try:
            with h5py.File(file, "r+") as opened:
                made.append(change(opened, generator))
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            made.append(f"({change.__name__} on what is wrong already: {type(error).__name__})")
    if generator.random() < 0.05:
        size = file.stat().st_size
        length = int(generator.integers(0, size))
        with open(file, "r+b") as raw:
            raw.truncate(length)
        made.append(f"cut to {length} of {size} bytes")
    return "; ".join(made)


def _pick(generator: Generator, choices):
    return choices[int(generator.integers(len(choices)))]


def change_attribute(file: h5py.File, generator: Generator) -> str:
    name = _pick(generator, ("format", "version", "description", "content_digest", "blob_digest"))
    kind = _pick(generator, ("gone", "int", "float", "text", "bytes", "array", "empty", "huge", "texts"))
    values = {"int": 7, "float": float("nan"), "text": _pick(generator, TEXTS), "bytes": np.bytes_(b"x\xff"),
              "array": np.arange(6.0).reshape(2, 3), "empty": h5py.Empty("f4"), "huge": 2**63,
              "texts": ["a", "b"]}  # fmt: skip
    del file.attrs[name]
    if kind != "gone":
        file.attrs[name] = values[kind]
    return f"attribute {name} {kind} {values.get(kind)!r:.60}"


def change_description(file: h5py.File, generator: Generator) -> str:
    description = json.loads(file.attrs["description"])
    where = description
    if generator.random() < 0.5:
        where = description["recipe"]
        where.setdefault("trained", {"first_masks": "x"})
        where.setdefault("network", "0123")
    name = _pick(generator, [*sorted(where), "other"])
    if generator.random() < 0.3:
        where.pop(name, None)
        made = f"{name} gone"
    else:
        where[name] = _pick(generator, JSON_VALUES)
        made = f"{name} = {where[name]!r}"
    file.attrs["description"] = json.dumps(description)
    return f"description {made}"


def _values(file: h5py.File, name: str) -> np.ndarray:
    """A column; nothing of one that an earlier change lets claim more than any memory holds."""
    return file[name][...] if file[name].nbytes < 1 << 30 else np.zeros(0, file[name].dtype)


def change_kind(file: h5py.File, generator: Generator) -> str:
    name, kind = _pick(generator, COLUMNS), _pick(generator, (*PLAIN_TYPES, *SPECIAL_TYPES))
    old = _values(file, name)
    del file[name]
    if kind in SPECIAL_TYPES:
        file.create_dataset(name, shape=old.shape, dtype=SPECIAL_TYPES[kind])
    else:
        with np.errstate(all="ignore"), contextlib.suppress(ValueError):
            old = old.astype(kind)
        file.create_dataset(name, data=old)
    return f"{name} as {kind}"


def change_shape(file: h5py.File, generator: Generator) -> str:
    name = _pick(generator, COLUMNS)
    old = _values(file, name)
    shapes: dict[str, Callable] = {
        "scalar": lambda: np.zeros((), old.dtype),
        "nothing": lambda: np.zeros(0, old.dtype),
        "no rows": lambda: np.zeros((0, *old.shape[1:]), old.dtype),
        "a row more": lambda: np.concatenate([old, old[-1:]]),
        "a row less": lambda: old[:-1],
        "a column": lambda: old[..., None],
        "a row": lambda: old[None],
        "doubled": lambda: np.stack([old, old], axis=-1),
        "flat": lambda: old.ravel(),
        "transposed": lambda: np.ascontiguousarray(old.T),
    }
    kind = _pick(generator, sorted(shapes))
    del file[name]
    file.create_dataset(name, data=shapes[kind]())
    return f"{name} of shape {kind}"


def change_layout(file: h5py.File, generator: Generator) -> str:
    name, kind = _pick(generator, COLUMNS), _pick(generator, LAYOUTS)
    old = _values(file, name)
    below = old.shape[1:]
    del file[name]
    if kind == "group":
        file.create_group(name)
    elif kind == "null":
        file[name] = h5py.Empty(old.dtype)
    elif kind == "chunked":
        file.create_dataset(name, data=old, chunks=True, compression="gzip")
    elif kind == "huge":
        file.create_dataset(name, shape=(1 << 40, *below), dtype=old.dtype, chunks=(64, *below))
    elif kind == "unwritten":
        file.create_dataset(name, shape=old.shape, dtype=old.dtype)
    elif kind == "link":
        file[name] = h5py.SoftLink("/" + _pick(generator, COLUMNS))
    elif kind == "nowhere":
        file[name] = h5py.ExternalLink("nowhere.h5", "/x")
    elif kind == "external":
        other = [("/etc/hostname", 0, old.nbytes)]
        file.create_dataset(name, shape=old.shape, dtype=old.dtype, external=other)
    return f"{name} {kind}"


def change_values(file: h5py.File, generator: Generator) -> str:
    name = _pick(generator, COLUMNS)
    values = _values(file, name)
    if values.dtype.kind == "S":
        odd = [*KEYS, values[-1]]
        chosen = values.astype("S300")
    elif values.dtype.kind == "f":
        odd = [np.nan, np.inf, -np.inf, -1, 2, 1e38]
        chosen = values
    else:
        limits = np.iinfo(values.dtype)
        odd = [limits.min, limits.max, 0, 1, limits.max // 2, values.ravel()[0] if values.size else 0]
        chosen = values
    how = _pick(generator, ("one", "all", "reversed", "shuffled"))
    flat = chosen.reshape(-1)
    if how == "reversed":
        flat = flat[::-1]
    elif how == "shuffled":
        flat = generator.permutation(flat)
    elif how == "all":
        flat = np.full_like(flat, _pick(generator, odd))
    elif len(flat):
        flat[int(generator.integers(len(flat)))] = _pick(generator, odd)
    if chosen.dtype.kind == "S":
        flat = flat.astype(f"S{max(1, *map(len, flat.tolist()), 1)}")
    del file[name]
    file.create_dataset(name, data=flat.reshape(chosen.shape))
    return f"{name} {how}"


CHANGES = (change_attribute, change_description, change_kind, change_shape, change_layout, change_values)


def _train(file: pathlib.Path) -> None:
    """Read a file as training does: choose images, crop every mask."""
    reader = MaskReader(file)
    chosen = select_images(None, reader)
    for key in chosen.paths[chosen.has_mask].tolist():
        path = key.decode("utf-8", "surrogateescape")
        height, width = reader.image_size(path)
        reader.integral(path, (height, width)).crop(ViewGeometry(0, 0, height, width, True), 7)


def _learn(images: pathlib.Path, file: pathlib.Path) -> None:
    """Read a file as refinement does: choose images, read them and their masks."""
    reader = MaskReader(file)
    paths = usable_paths(reader)
    read_first_masks(Folder(images), reader, paths, work_size=64, size=32, advance=lambda done: None)


def uses(file: pathlib.Path, base: pathlib.Path, folder: pathlib.Path) -> dict[str, Callable[[], None]]:
    """Everything that reads a mask file, by name; `folder` is empty and may be written to."""
    images, truth = base.parent / "images", base.parent / "truth"

    def command(*arguments: object) -> Callable[[], None]:
        def call() -> None:
            result = CliRunner().invoke(masks, [str(argument) for argument in arguments])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception

        return call

    def update() -> None:
        shutil.copy(file, folder / "update.h5")
        command("build", "--images", images, "--out", folder / "update.h5", "--recipe", "fast", "--update")()

    return {
        "info": command("info", file),
        "info --json": command("info", file, "--json"),
        "verify": command("verify", file, "--images", images),
        "show .png": command("show", file, "--out", folder / "a.png", "--images", images),
        "show .html": command("show", file, "--out", folder / "a.html", "--images", images),
        "export": command("export", file, "--out", folder / "full"),
        "export --stored-size": command("export", file, "--out", folder / "stored", "--stored-size"),
        "score": command("score", file, "--truth", truth),
        "score --images": command("score", file, "--truth", truth, "--images", images, "--network", base),
        "merge": command("merge", file, base, "--out", folder / "merged.h5", "--images", images),
        "merge alone": command("merge", file, "--out", folder / "alone.h5"),
        "build --update": update,
        "refine": lambda: _learn(images, file),
        "training": lambda: _train(file),
    }


def failures(file: pathlib.Path, base: pathlib.Path, folder: pathlib.Path) -> Iterator[tuple[str, Exception]]:
    """Use a file in every way; yields what neither went well nor ended in a `UserError`."""
    for name, use in uses(file, base, folder).items():
        with warnings.catch_warnings(), building_here(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("error")
            try:
                use()
            except (UserError, click.ClickException):
                continue
            except Exception as error:  # noqa: BLE001 - that is what is being looked for
                yield name, error


def run_case(number: int, seed: int, base: pathlib.Path) -> tuple[str, list[tuple[str, Exception]]]:
    """Make and use one case; returns what was wrong with the file and what failed."""
    generator = np.random.default_rng((seed, number))
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "case.h5"
        shutil.copy(base, file)
        made = mutate(file, generator)
        work = pathlib.Path(scratch) / "work"
        work.mkdir()
        return made, list(failures(file, base, work))


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--traceback", action="store_true", help="print each failure's traceback")
    options = parser.parse_args()
    failed, kinds = 0, collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        base = make_base(pathlib.Path(scratch))
        assert not list(failures(base, base, pathlib.Path(tempfile.mkdtemp(dir=scratch))))
        for number in range(options.first, options.first + options.cases):
            made, found = run_case(number, options.seed, base)
            failed += bool(found)
            for name, error in found:
                told = f"{name}: {type(error).__name__}: {str(error)[:150]}"
                kinds[told] += 1
                print(f"case {number} ({made}): {told}", flush=True)
                if options.traceback:
                    traceback.print_exception(error)
    for kind, times in kinds.most_common():
        print(f"{times:5d} {kind}")
    print(f"{failed} of {options.cases} crafted files ended in a traceback or a warning")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
