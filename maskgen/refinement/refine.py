"""The command's work: learn from first masks in rounds, judge what was learned, make all masks anew.

What is unfinished lies in `<out>.learning/`: one folder a round (checkpoint, log), the networks of finished
rounds and the masks that the next one learns from. The same command goes on from there, whatever stopped it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.atomic_files import atomic_write, refuse_unwritable, remove_leftovers
from ...common.errors import UserError
from ...common.locks import LOCK, hold_folder
from ...common.randomness import counter_generator
from ...common.terminal.progress import show_progress
from ...data.images import open_originals
from ...data.images.store import OriginalImages
from ...data.masks.format import STATUSES, MaskStatus
from ...data.masks.reader import MaskReader
from ...data.masks.writer import join_masks
from ...engine.distributed import choose_device
from ..building.build import BuildInterrupted, BuildSummary, Progress, build_rows, summarize
from ..building.merge import describe
from ..building.settings import BuildSettings
from ..recipes import get_recipe, recorded_reader
from .agreement import Agreement, judge
from .prediction import RECIPE, NetworkFile, NetworkRows, open_network, read_network, save_network
from .samples import FirstMasks, read_first_masks
from .settings import RefineSettings
from .training import encoder_digest, new_network, steps_of_epochs, train_round

LEAST_IMAGES = 16  # fewer masks than this teach nothing
MOST_HELD_OUT = 400
_ROUND_SEEDS = 1000  # between the seeds of two rounds

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class RefineSummary:
    """What a refinement did.

    Attributes:
        build: of the mask file.
        network: the network's file; None where the first masks were kept.
        agreement: with the masks held out; None where nothing was trained.
        kept_because: why the first masks were kept; empty where they were not.
    """

    build: BuildSummary
    network: Path | None
    agreement: Agreement | None
    kept_because: str = ""


def refine_masks(
    images: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: RefineSettings | None = None,
    build_settings: BuildSettings | None = None,
    *,
    device: str = "auto",
    say: Say = lambda text: None,
    bar: Bar,
    show: bool = True,
) -> RefineSummary:
    """Train a network on first masks and make better ones; where it learns nothing, keep the first.

    Args:
        images: the image folder of the first masks, archives or a URL.
        masks: the first mask file, however it was made.
        out: the mask file to write; the network goes beside it (`network_path`).
        settings: of the training.
        build_settings: workers; the masks do not depend on it.
        device: where to train, `auto`, `cpu`, `cuda` ...; masks are made by workers on the CPU.
        say: takes sentences for the user.
        bar: gives a progress display for making masks.
        show: whether the training shows its progress.

    Returns:
        What was done.

    Raises:
        UserError: for files or settings that do not fit.
        BuildInterrupted: on a signal, after saving what is finished.
    """
    target, first = Path(out), MaskReader(masks)
    if target.resolve() == Path(masks).resolve():
        raise UserError(f"--out {out} is the file of the first masks; choose another name")
    if recorded_reader(first.recipe) is not None:
        raise UserError(
            f"{masks} is of bands of TIFF files; masks refine is of photographs, keep these masks"
        )
    refuse_unwritable(target)
    settings = settings or RefineSettings()
    return _Refinement(
        images=open_originals(images),
        first=first,
        out=target,
        settings=settings,
        encoder_digest=encoder_digest(settings),
        build_settings=build_settings or BuildSettings(),
        device=choose_device(device),
        say=say,
        bar=bar,
        show=show,
    ).run()


def network_path(out: Path) -> Path:
    """Where the network of a mask file goes: `refined.network.safetensors` beside `refined.h5`."""
    return out.with_name(f"{out.stem}.network.safetensors")


@dataclass(frozen=True, kw_only=True)
class _Refinement:
    """One call of `refine_masks`."""

    images: OriginalImages
    first: MaskReader
    out: Path
    settings: RefineSettings
    encoder_digest: str | None
    build_settings: BuildSettings
    device: torch.device
    say: Say
    bar: Bar
    show: bool

    @property
    def folder(self) -> Path:
        """Where unfinished work lies."""
        return self.out.with_name(self.out.name + ".learning")

    def run(self) -> RefineSummary:
        """Refine, with the folder of unfinished work held meanwhile and gone in the end."""
        with hold_folder(self.folder, advice="wait for it to end, or choose another --out"):
            remove_leftovers(self.folder)
            summary = self._refine()
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
        with suppress(OSError):  # gone with its lock, or another refinement has just begun in it
            self.folder.rmdir()
        return summary

    def _refine(self) -> RefineSummary:
        """Learn unless that is done, then make the masks."""
        start = time.monotonic()
        learned = self._finished_network()
        if learned is None:
            kept = self._kept_before()
            if kept:
                build = summarize(self.out, 0, start, already_finished=True)
                return RefineSummary(build, None, None, kept)
            paths = draw(usable_paths(self.first), self.settings)
            if len(paths) < LEAST_IMAGES:
                reason = f"{len(paths)} usable masks are too few to learn from (at least {LEAST_IMAGES})"
                return self._keep_first(reason, None, start)
            learned, agreement = self._learn(paths)
            if learned is None:
                reason = f"the network has not learned: {agreement.sentence()}"
                return self._keep_first(reason, agreement, start)
        agreement = Agreement(**learned.about["agreement"])
        self.say(agreement.sentence())
        with self.bar("masks") as progress:
            summary = build_rows(
                self.images, self.out, NetworkRows(learned), self.build_settings, progress=progress
            )
        return RefineSummary(summary, Path(learned.path), agreement)

    def _about(self) -> dict[str, Any]:
        """What the networks depend on."""
        settings = self.settings.as_dict()
        if self.encoder_digest is not None:  # a moved file of the same weights is the same encoder
            settings["encoder"] = self.encoder_digest
        return {"first_masks": self.first.content_digest, "settings": settings}

    def _finished_network(self) -> NetworkFile | None:
        """The network of an earlier call of the same command, if it is there."""
        path = network_path(self.out)
        if not path.exists():
            return None
        file = self._own_network(path)
        self.say(f"{path} is trained already")
        return file

    def _own_network(self, path: Path) -> NetworkFile:
        """Open a network that an earlier call has trained.

        Raises:
            UserError: if that call had other settings or other first masks.
        """
        file = open_network(path)
        if any(file.about.get(name) != value for name, value in self._about().items()):
            raise UserError(
                f"{path} was trained on other first masks or with other settings; choose another --out, or "
                "delete it"
            )
        return file

    def _kept_before(self) -> str:
        """Why an earlier call of the same command kept the first masks; empty where there is no file.

        Raises:
            UserError: if the file is another one, which must not be written over.
        """
        if not self.out.exists():
            return ""
        attributes = MaskReader(self.out).attributes
        if attributes.get("refinement") == self._about() and attributes.get("kept_first_masks"):
            return str(attributes["kept_first_masks"])
        raise UserError(
            f"{self.out} is there already and is not of this refinement; choose another --out, or delete it"
        )

    def _learn(self, paths: Sequence[str]) -> tuple[NetworkFile | None, Agreement]:
        """Train round after round; no network where the first one has not learned."""
        settings, reader = self.settings, self.first
        count = min(MOST_HELD_OUT, max(4, round(settings.held_out * len(paths))))
        agreement: Agreement | None = None
        for number in range(1, settings.rounds + 1):
            read = self._read(reader, paths)
            if len(read) < LEAST_IMAGES:
                raise UserError(
                    f"only {len(read)} of {len(paths)} images can be read in {self.images.location}; give "
                    "the folder of the images that the first masks were made of"
                )
            paths = read.paths
            if number == 1:
                judged = read.subset(np.arange(count))  # every round is judged by the first masks
            if agreement is not None and number == settings.rounds:
                # an image gains more where its own mask is learned from, so the last round holds none out
                file = self._round(number, read, agreement)
            else:
                file = self._round(number, read.subset(np.arange(count, len(read))), judged)
            agreement = Agreement(**file.about["agreement"])
            if not agreement.has_learned:
                return None, agreement
            if number < settings.rounds:
                self.say(f"round {number}: {agreement.sentence()}")
                reader = self._masks_of_round(number, file, paths)
        final = network_path(self.out)
        assert agreement is not None
        with atomic_write(final) as part:
            shutil.copyfile(file.path, part)
        return open_network(final), agreement

    def _read(self, reader: MaskReader, paths: Sequence[str]) -> FirstMasks:
        """Read what a round learns from."""
        with show_progress("reading images", len(paths)) as advance:
            return read_first_masks(
                self.images,
                reader,
                paths,
                work_size=get_recipe(RECIPE).work_size,
                size=self.settings.image_size,
                advance=advance,
            )

    def _round(self, number: int, train: FirstMasks, judged: FirstMasks | Agreement) -> NetworkFile:
        """Train one round, unless its network is there; among many images from the network of the one before.

        Args:
            number: of the round, from 1.
            train: what it learns from.
            judged: first masks that were held out, or where none are, how the round before was judged.
        """
        path = self._network_of_round(number)
        about = self._about() | {"rounds_done": number}
        if path.exists():
            return self._own_network(path)
        self.say(f"round {number} of {self.settings.rounds}: learning from {len(train)} images")
        seed = self.settings.seed + _ROUND_SEEDS * number
        # the first masks are the worst: a network that learns few of them for long shares their faults
        least_steps = self.settings.least_steps * number
        if number == 1 or steps_of_epochs(self.settings, len(train)) < least_steps:
            start = new_network(self.settings, seed)
        else:  # among many images of several kinds the rarer ones gain by it (docs/masks-tried.md)
            start = read_network(self._own_network(self._network_of_round(number - 1)))
        network, result = train_round(
            train,
            self.settings,
            start=start,
            device=self.device,
            folder=self.folder / f"round-{number}",
            config=about,
            seed=seed,
            least_steps=least_steps,
            show=self.show,
        )
        if result.stopped_by is not None:
            raise BuildInterrupted(
                f"stopped by {result.stopped_by} after step {result.step} of round {number}; run the same "
                "command again to continue",
                signal.Signals[result.stopped_by].value,
            )
        agreement = judged if isinstance(judged, Agreement) else judge(network, train, judged)
        about |= {
            "agreement": agreement.as_dict(),
            "image_size": self.settings.image_size,
            "network_weight": self.settings.network_weight,
            "trained_on": len(train),
            "steps": result.step,
            "torch": str(torch.__version__),
        }
        return save_network(network, path, about)

    def _network_of_round(self, number: int) -> Path:
        """Where the network of a round is kept until the last one is done."""
        return self.folder / f"round-{number}.safetensors"

    def _masks_of_round(self, number: int, file: NetworkFile, paths: Sequence[str]) -> MaskReader:
        """Make the masks that the next round learns from."""
        out = self.folder / f"round-{number}.h5"
        with self.bar(f"masks of round {number}") as progress:
            build_rows(
                self.images,
                out,
                NetworkRows(file),
                self.build_settings,
                paths=sorted(paths, key=os.fsencode),
                progress=progress,
            )
        return MaskReader(out)

    def _keep_first(self, reason: str, agreement: Agreement | None, start: float) -> RefineSummary:
        """Write the first masks as they are, and say why."""
        description = describe(
            self.first.recipe, self.first.image_root, kept_first_masks=reason, refinement=self._about()
        )
        join_masks(self.out, [self.first], description)
        return RefineSummary(summarize(self.out, 0, start), None, agreement, reason)


def usable_paths(reader: MaskReader) -> list[str]:
    """Images whose mask has two sides and, where that is known, a confidence above 0."""
    status, confidence = reader.column("status"), np.asarray(reader.column("confidence"))
    kinds = [STATUSES.index(kind) for kind in (MaskStatus.OK, MaskStatus.LOW_CONFIDENCE)]
    rows = np.flatnonzero(np.isin(status, kinds) & ~(confidence <= 0))
    return [reader.paths[int(row)] for row in rows]


def draw(paths: Sequence[str], settings: RefineSettings) -> list[str]:
    """The images to learn from, in an order drawn by counter; the first of them are held out."""
    order = counter_generator(settings.seed, 0, 0, 0, purpose="refine images").permutation(len(paths))
    return [paths[int(row)] for row in order[: settings.train_images]]
