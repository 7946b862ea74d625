"""From a trained network to masks: its file, its probability, and the rows of a mask file.

Shape legend: h, w the working image, S side of the network's square input.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...common.errors import UserError
from ...common.types import Pixels
from ...data.images.store import OriginalImages
from ...data.masks.writer import MaskRow
from ...models.backbones.build import build_backbone
from ...models.weights import file_hash
from ...models.write_weights import write_safetensors
from ..building.worker import segmented_row
from ..pipeline import Foreground, binarize, empty_foreground, lacks_contrast, preprocess, saliency_map
from ..recipes import MaskRecipe, get_recipe
from .network import BackboneEncoder, ForegroundNetwork, StagesEncoder
from .samples import squared

RECIPE = "refined"
LARGER = 1.25  # side of the mirror image, against the squares that the network was trained on
DESCRIPTION = "foreground_network"  # key of the file's metadata, which holds JSON


@dataclass(frozen=True)
class NetworkFile:
    """A trained network and what it came from.

    Attributes:
        path: the file.
        digest: SHA-256 of the file.
        about: `image_size`, `network_weight`, how to build the network, and how it was trained.
    """

    path: str
    digest: str
    about: dict[str, Any]


def save_network(network: ForegroundNetwork, path: Path, about: dict[str, Any]) -> NetworkFile:
    """Write a network; the same network and words give the same bytes.

    Args:
        network: on any device.
        path: the file, ending in .safetensors.
        about: JSON-able; see `NetworkFile`. What builds the network again is added.
    """
    encoder = network.encoder
    if isinstance(encoder, StagesEncoder):
        build: dict[str, Any] = {"width": encoder.channels[0]}
    else:
        build = {"arch": encoder.arch, "stem": encoder.backbone.stem}
    text = json.dumps({**about, "build": build}, sort_keys=True)
    write_safetensors(network.state_dict(), path, {DESCRIPTION: text, "format": "pt"})
    return open_network(path)


def open_network(path: Path) -> NetworkFile:
    """Look at a network's file.

    Raises:
        UserError: if it is missing, or no network of `masks refine`.
    """
    if not path.is_file():
        raise UserError(f"no network {path}; `hapicl masks refine` writes one beside its masks")
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        about = json.loads(metadata[DESCRIPTION])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no network of `hapicl masks refine`; give the .network.safetensors beside its masks"
        ) from error
    return NetworkFile(str(path.resolve()), file_hash(path), about)


def read_network(file: NetworkFile) -> ForegroundNetwork:
    """Build a network and fill it, as it was trained; on the CPU.

    Raises:
        UserError: if the file has changed since it was opened, or does not hold the whole network.
    """
    if file_hash(Path(file.path)) != file.digest:
        raise UserError(f"{file.path} was replaced while it was in use; start again")
    build, size = file.about["build"], int(file.about["image_size"])
    encoder: StagesEncoder | BackboneEncoder
    if "width" in build:
        encoder = StagesEncoder(int(build["width"]))
    else:
        encoder = BackboneEncoder(
            build_backbone(build["arch"], image_size=size, stem=build["stem"]), build["arch"]
        )
    network = ForegroundNetwork(encoder)
    try:
        network.load_state_dict(load_file(file.path))
    except RuntimeError as error:
        raise UserError(
            f"{file.path} does not hold the network that it describes (an earlier version's?); refine again"
        ) from error
    return network


def load_network(file: NetworkFile) -> ForegroundNetwork:
    """Read a network to predict with: on the CPU, in eval mode, its norms merged.

    Raises:
        UserError: as `read_network`.
    """
    network = read_network(file).eval()
    merge_norms(network)
    return network.to(memory_format=torch.channels_last)


def merge_norms(network: nn.Module) -> None:
    """Put each BatchNorm into the convolution before it: the same function, up to a tenth faster on a CPU."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for place, (first, second) in enumerate(itertools.pairwise(module)):
                # not a class of timm's that does more than normalise
                if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d:
                    module[place], module[place + 1] = fuse_conv_bn_eval(first, second), nn.Identity()


@torch.inference_mode()
def foreground_probability(work: Pixels, network: ForegroundNetwork, size: int) -> NDArray[np.float32]:
    """Mean of what the network says of an image and of its mirror image, a quarter larger.

    Args:
        work: (h, w, 3) uint8.
        network: in eval mode, on the CPU.
        size: side S of the squares it was trained on; an encoder of a fixed size sees both at S.

    Returns:
        (h, w) float32 in [0, 1].
    """
    larger = size if network.encoder.fixed_size else round(size * LARGER)
    likely = _said_of(squared(work, size), network)
    mirrored = _said_of(np.ascontiguousarray(squared(work, larger)[:, ::-1]), network)
    shape = (work.shape[1], work.shape[0])
    both = [cv2.resize(each, shape, interpolation=cv2.INTER_LINEAR) for each in (likely, mirrored[:, ::-1])]
    return np.asarray((both[0] + both[1]) / 2, np.float32)


def _said_of(square: Pixels, network: ForegroundNetwork) -> NDArray[np.float32]:
    """(S, S, 3) uint8 to (S, S) in [0, 1]."""
    values = torch.from_numpy(square).permute(2, 0, 1).float()[None] / 255
    likely = network(values.contiguous(memory_format=torch.channels_last)).sigmoid()[0, 0]
    return np.asarray(likely.numpy(), np.float32)


def refine(image: Pixels, network: ForegroundNetwork, recipe: MaskRecipe, size: int) -> Foreground:
    """Segment as `segment` does, with the network's probability averaged into the heuristic map.

    Args:
        image: (H, W, 3) uint8 RGB.
        network: trained on first masks of images of the same kind.
        recipe: `learned` is the weight of the probability.
        size: side S of the network's input.
    """
    work, lab = preprocess(image, recipe)
    if lacks_contrast(work):
        return empty_foreground(work)
    heuristic, superpixels = saliency_map(work, lab, recipe)
    likely = foreground_probability(work, network, size)
    mixed = (1 - recipe.learned) * heuristic + recipe.learned * likely
    return binarize(work, lab, mixed.astype(np.float32), superpixels, recipe)


@functools.lru_cache(maxsize=1)
def _network_of_worker(path: str, digest: str, about: str) -> ForegroundNetwork:
    """The network in a worker process, loaded once."""
    return load_network(NetworkFile(path, digest, json.loads(about)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: with another number its sums, and so some pixels, come out otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class NetworkRows:
    """Makes rows of a mask file by a network; a row maker for `build_rows`."""

    file: NetworkFile

    @property
    def recipe(self) -> MaskRecipe:
        """The recipe, with this network's weight in the map."""
        return get_recipe(RECIPE).replace(learned=float(self.file.about["network_weight"]))

    def as_dict(self) -> dict[str, Any]:
        """Return what the masks depend on: the recipe, the network, and how that was trained."""
        return self.recipe.as_dict() | {"network": self.file.digest, "trained": self.file.about}

    def row(self, images: OriginalImages, path: str) -> MaskRow:
        """Make one image's row; see `segmented_row`."""
        return segmented_row(images, path, self.recipe, self.find)

    def find(self, image: Pixels) -> Foreground:
        """Find the foreground of a decoded image."""
        about = json.dumps(self.file.about, sort_keys=True)
        network = _network_of_worker(self.file.path, self.file.digest, about)
        with one_thread():
            return refine(image, network, self.recipe, int(self.file.about["image_size"]))
