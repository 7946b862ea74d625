"""What the torture kills: small commands with an undisturbed result to compare with, and their exit codes."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import forked
import h5py
import numpy as np
import small_run
import torch
from PIL import Image

# documented exit codes after each signal; 0: it had just ended
LOOP = {signal.SIGTERM: {75}, signal.SIGINT: {75}, signal.SIGUSR1: {75}}
TOOL = {signal.SIGTERM: {143}, signal.SIGINT: {130}}  # as a shell counts signals
FINE_TUNING = {signal.SIGTERM: {75, 143}, signal.SIGINT: {75, 130}}  # outside of its loop as a tool


@dataclass(frozen=True)
class Subject:
    """One command on a folder of its own.

    Attributes:
        name: for the table.
        arguments: those of the command that writes into the folder given; the same again goes on.
        result: a digest of what it has written.
        codes: documented exit codes by signal.
        worker_codes: exit codes after the death of a worker; empty: there are none to kill.
        inside: a pattern of the files in the making that kills are aimed at.
        processes: of one run.
        prepare: is called in the child before the command.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], str]
    codes: dict[signal.Signals, set[int]]
    worker_codes: frozenset[int] = frozenset()
    inside: str | None = None
    processes: int = 1
    prepare: Callable[[], object] = lambda: None

    def start(self, folder: Path, errors: Path, *, imported: Path | None = None) -> list[int]:
        """Start the command's processes, as torchrun does where there are several.

        Args:
            folder: that the command writes into.
            errors: for stderr.
            imported: gains the names of the modules that the command has imported in the end.
        """
        command = forked.hapicl(self.arguments(folder))

        def call() -> None:
            self.prepare()
            try:
                command()
            finally:
                if imported is not None:
                    imported.write_text("\n".join(sys.modules))

        if self.processes == 1:
            return [forked.start(call, errors)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        group["WORLD_SIZE"] = group["LOCAL_WORLD_SIZE"] = str(self.processes)
        ranks = [str(rank) for rank in range(self.processes)]
        return [
            forked.start(call, errors, environment=group | {"RANK": rank, "LOCAL_RANK": rank})
            for rank in ranks
        ]


def make_subjects(data: Path) -> dict[str, Subject]:
    """Draw the data and describe every command."""
    images = small_run.draw_images(data / "images")
    masks = small_run.write_box_masks(images, data / "masks.h5")
    many = small_run.draw_images(data / "many", 60)
    _draw_classes(data / "classes")
    # a ViT of 0.4 million weights: saved after every step, yet most of the time goes into steps
    training = {"masks": masks, "steps": 12, "checkpoint_every": 1, "workers": 1, "method": "hapicl_vit"}
    heads = {"hidden": 64, "dim": 16, "pixel_hidden": 16, "pixel_dim": 8}
    given = small_run.OPTIONS | training | {"arch": "test_vit", "stem": "patch8", "config": heads}

    def pretrain(folder: Path) -> list[str]:
        return ["pretrain", *small_run.arguments(given | {"out": folder / "run"}), "--resume", "auto"]

    def two(folder: Path) -> list[str]:
        return [*pretrain(folder), "--workers", "0", "--steps", "8"]

    def evaluate(folder: Path) -> list[str]:
        parts = ["--train", str(data / "classes"), "--test", str(data / "classes"), "--fraction", "0.7"]
        size = ["--arch", "resnet18", "--image-size", "32", "--device", "cpu", "--no-report"]
        steps = ["--set", "epochs=6", "--set", "batch_size=6", "--keep-checkpoints"]
        return ["evaluate", "semi", "random", *parts, *size, *steps, "--out", str(folder / "semi.json")]

    def build(folder: Path) -> list[str]:
        where = ["--images", str(many), "--out", str(folder / "masks.h5")]
        return ["masks", "build", *where, "--recipe", "fast", "--workers", "2"]

    def pack(folder: Path) -> list[str]:
        where = ["--images", str(many), "--out", str(folder / "images.h5")]
        return ["data", "pack", *where, "--short-side", "32", "--workers", "2"]

    def weights(folder: Path) -> str:
        return _digest([(folder / "run/backbone.safetensors").read_bytes()])

    inside = "run/.*.part"
    subjects = [
        Subject("pretrain", pretrain, weights, LOOP, frozenset({0, 2}), inside),
        Subject("pretrain, two processes", two, weights, LOOP, inside=inside, processes=2),
        Subject("evaluate semi", evaluate, _fine_tuned, FINE_TUNING, prepare=_frequent_checkpoints),
        Subject("masks build", build, lambda folder: _columns(folder / "masks.h5"), TOOL, frozenset({0})),
        Subject(
            "data pack",
            pack,
            lambda folder: _columns(folder / "images.h5"),
            TOOL,
            frozenset({0}),
            prepare=_small_parts,
        ),
    ]
    return {subject.name: subject for subject in subjects}


def _draw_classes(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(9):
            pixels = generator.integers(level - 30, level + 30, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def _frequent_checkpoints() -> None:
    """Let fine-tuning save every other step: no option does that, as real ones are short."""
    from hapicl.evaluate.settings import Runtime

    Runtime.model_fields["checkpoint_every"].default = 2
    Runtime.model_rebuild(force=True)


def _small_parts() -> None:
    """Let the pack be made of several parts, as that of many images is."""
    from hapicl.data.images import pack_build

    pack_build.PART_IMAGES = 6


def _digest(pieces: Sequence[bytes]) -> str:
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(piece)
    return whole.hexdigest()


def _columns(path: Path) -> str:
    """Digest of every dataset; attributes also hold times."""
    with h5py.File(path) as file:
        return _digest([name.encode() + np.asarray(file[name]).tobytes() for name in sorted(file)])


def _fine_tuned(folder: Path) -> str:
    """Digest of the fine-tuned network."""
    state = torch.load(folder / "semi.runs/seed0/last.pt", weights_only=True)["module"]
    return _digest([name.encode() + state[name].numpy().tobytes() for name in sorted(state)])


def leftovers(folder: Path) -> list[str]:
    """Files in the making, locks and folders of unfinished work below a folder."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.startswith(".") or path.suffix in {".part", ".lock", ".parts"}
    )


def grow(images: Path, draw: random.Random) -> None:
    """Add one image to a folder."""
    path = draw.choice(sorted(images.glob("*.png")))
    shutil.copy(path, images / f"added_{draw.randrange(10**6):06d}.png")
