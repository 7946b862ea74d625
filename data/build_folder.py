"""The folder in which a long build keeps its finished parts, so that an interrupted one goes on.

A build never writes into its final file. Each part of it is a small file of its own, written whole into
`<out>.parts/` beside a `plan.json`; a killed build loses only the parts it was working on. Machines that
share a disk can work on disjoint parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..common.atomic_files import atomic_write
from ..common.errors import UserError
from ..common.locks import hold
from .path_keys import encode_path


def paths_digest(paths: Iterable[str]) -> str:
    """Digest of a list of paths, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(encode_path(path) + b"\0")
    return digest.hexdigest()


class BuildFolder:
    """The folder `<out>.parts` of an unfinished build: a plan, finished parts, locks."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".parts")

    def part_path(self, index: int) -> Path:
        """Where a part is, or will be."""
        return self.path / f"part-{index:06d}.h5"

    def plan(self) -> dict[str, Any] | None:
        """Return the plan written there, None if there is none.

        Raises:
            UserError: if it cannot be read.
        """
        try:
            plan: dict[str, Any] = json.loads((self.path / "plan.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(
                f"{self.path}/plan.json cannot be read ({error.strerror}); put that right, or choose another "
                "--out"
            ) from error
        except ValueError as error:
            raise UserError(f"{self.path}/plan.json is damaged ({error}); delete {self.path}") from error
        return plan

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write the plan."""
        with atomic_write(self.path / "plan.json") as part:
            part.write_text(json.dumps(plan, indent=1, sort_keys=True))

    def go_on(self, plan: dict[str, Any], difference: Callable[[dict[str, Any]], str], holds: str) -> None:
        """Write the plan of a new build, or see that the parts that are there are of the same one.

        Args:
            plan: what is to be built.
            difference: what sets the plan that is there apart from this one, in words; empty if nothing does.
            holds: what the parts are, such as "an unfinished pack with", before those words.

        Raises:
            UserError: if they are of another build.
        """
        begun = self.plan()
        if begun is None:
            self.write_plan(plan)
        elif different := difference(begun):
            raise UserError(
                f"{self.path} holds {holds} {different}; give what it was begun with, or choose another --out"
            )

    def finished(self) -> list[int]:
        """Return the numbers of the parts that are there, ascending."""
        return sorted(int(path.stem.removeprefix("part-")) for path in self.path.glob("part-*.h5"))

    def remove_parts(self) -> None:
        """Delete the finished parts and the plan; the folder and its locks stay."""
        for path in [self.path / "plan.json", *self.path.glob("part-*.h5")]:
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete what is in the folder; `locked` removes the empty folder with its lock.

        Raises:
            UserError: if that is not allowed; the final file stands by then.
        """
        try:
            for path in self.path.iterdir():
                if not path.name.endswith("lock"):  # deleted by who holds it, or another could slip in
                    path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(
                f"cannot delete {self.path}, which is not needed any more: {error.strerror}"
            ) from error

    @contextmanager
    def locked(self, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Hold the folder: alone, or with other shards but no second process on the same shard.

        What lies in a folder without a plan is deleted on leaving, and an empty folder too.

        Raises:
            UserError: if another process holds it, or the folder cannot be made.
        """
        advice = "wait for it, or choose another --out"
        with ExitStack() as stack:
            stack.callback(self._remove_empty)
            stack.enter_context(hold(self.path / "lock", f"{self.out}", advice=advice, shared=bool(shard)))
            if shard:
                name = f"shard-{shard[0]}-of-{shard[1]}"
                what = f"shard {shard[0]} of {shard[1]} of {self.out}"
                stack.enter_context(hold(self.path / f"{name}.lock", what, advice=advice))
            try:
                yield
            finally:
                if not (self.path / "plan.json").exists():
                    self.remove()

    def _remove_empty(self) -> None:
        """Remove the folder itself, unless something is in it."""
        with suppress(OSError):
            self.path.rmdir()
