"""detectron2's form of a ResNet: its names, and the pickle that its checkpointer reads."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from ...common.atomic_files import atomic_write
from ...models.weights import State

# torchvision's name of a part -> detectron2's (detectron2/modeling/backbone/resnet.py names its modules so)
DETECTRON_PARTS = {
    "layer1": "res2",
    "layer2": "res3",
    "layer3": "res4",
    "layer4": "res5",
    "bn1": "conv1.norm",
    "bn2": "conv2.norm",
    "bn3": "conv3.norm",
}


def detectron_name(name: str) -> str:
    """detectron2's name of a torchvision ResNet's tensor.

    `conv1.weight` is `stem.conv1.weight`, `layer1.0.bn1.bias` is `res2.0.conv1.norm.bias`,
    `layer1.0.downsample.0.weight` is `res2.0.shortcut.weight`.
    """
    parts = name.split(".")
    if parts[0] in {"conv1", "bn1"}:
        parts = ["stem", *parts]
    renamed = ".".join(DETECTRON_PARTS.get(part, part) for part in parts)
    return renamed.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def write_detectron(state: State, path: Path) -> None:
    """detectron2's pickle: {"model": {name: array}, ...}; `matching_heuristics` lets it find the prefix."""
    model = {
        detectron_name(name): value.numpy()
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    content = {"model": model, "__author__": "hapicl", "matching_heuristics": True}
    with atomic_write(path) as part:
        part.write_bytes(pickle.dumps(content, protocol=4))


class _ArraysOnly(pickle.Unpickler):
    """Reads back our own file without running anything but numpy's array constructors."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] != "numpy":
            raise pickle.UnpicklingError(f"{module}.{name} is no numpy array")
        return super().find_class(module, name)


def read_detectron(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a detectron2 pickle by name."""
    with open(path, "rb") as opened:
        return dict(_ArraysOnly(opened).load()["model"])
