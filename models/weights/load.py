"""Backbones with weights: built and filled, or filled where they stand."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch

from ...common.errors import UserError
from ...data.images.inputs import RGB, Inputs, inputs_of
from ..backbones.base import Backbone, Stem
from ..backbones.build import build_backbone
from ..backbones.resnet import RESNETS
from ..batch_statistics import has_batchnorm
from .match import best_match, counted, fill
from .read import State
from .record import RANDOM, WeightsInfo
from .sources import SUPERVISED, Source, arch_of_name, open_source


def load_backbone(
    spec: str,
    *,
    arch: str | None = None,
    image_size: int | None = None,
    stem: Stem | None = None,
    inputs: Inputs | None = None,
    seed: int = 0,
) -> tuple[Backbone, WeightsInfo]:
    """Build the backbone that `spec` names and fill it.

    Args:
        spec: `random`, `random-untouched` (the same weights), a weight file, a run folder,
            `torchvision:NAME`, `timm:NAME`, or `supervised:` and one of these (the same weights, named as the
            supervised row).
        arch: backbone's name; None takes it from the file (its metadata, the run's config.json beside it, or
            the shapes of its tensors) or from the name.
        image_size: side of the images it will see, pixels; None takes the file's, else 224. Decides the grid
            of a ViT's positions, and a ResNet's stem when neither `stem` nor the file does.
        stem: as in `build_backbone`; None takes the file's, else the image size's.
        inputs: as in `build_backbone`; None takes the file's, else RGB.
        seed: of the random initialisation (only `random` depends on it).

    Returns:
        The backbone in eval mode on the CPU, and what matched.

    Raises:
        UserError: for a missing or unreadable file, an architecture that nobody names (random weights need
            one), or under 95 % of matched keys.

    Examples:
        >>> import torch
        >>> backbone, info = load_backbone("random", arch="resnet18", image_size=64)
        >>> with torch.no_grad():
        ...     maps = backbone(torch.zeros(1, 3, 64, 64))
        >>> maps[backbone.last].shape
        torch.Size([1, 512, 4, 4])
    """
    if spec in RANDOM:
        if arch is None:
            raise UserError(f"{spec} weights are of which network? Give --arch (such as resnet50)")
        backbone = _build(arch, image_size or 224, stem or "auto", inputs or RGB, seed)
        digest = hashlib.sha256(f"random:{seed}".encode()).hexdigest()
        total = len(counted(backbone.export_state()))
        info = WeightsInfo(
            spec=spec,
            kind=spec if has_batchnorm(backbone) else "random",  # without BatchNorm there is one form
            arch=arch,
            stem=backbone.stem,
            sha256=digest,
            matched=total,
            total=total,
        )
        return backbone.eval(), info
    source = open_source(spec)
    arch = arch or source.described.get("arch") or _arch_of(source)
    stem = stem or told_stem({**source.described, "arch": arch})
    size = image_size or int(source.described.get("image_size", 224))
    backbone = _build(arch, size, stem or "auto", inputs or inputs_of(source.described), seed)
    info = _fill_from(backbone, source, spec, arch)
    return backbone.eval(), dataclasses.replace(info, stem_by_size=stem is None)


def fill_backbone(backbone: Backbone, spec: str, arch: str) -> WeightsInfo:
    """Fill a backbone that is to be trained on.

    The backbone remembers it, so that methods leave out the initialisation they would give to a fresh one.

    Args:
        backbone: changed in place; its mode stays.
        spec: as in `load_backbone`, not random.
        arch: the backbone's name, for messages.

    Raises:
        UserError: as `load_backbone`.
    """
    info = _fill_from(backbone, open_source(spec), spec, arch)
    backbone.has_weights = True
    return info


def describe_weights(spec: str) -> dict[str, Any]:
    """The network that weights are of: `arch`, `stem`, `image_size` and `method`, as far as known.

    Weights of other images than photographs also say which (the fields of `Inputs`).

    Nothing is downloaded for it.

    Raises:
        UserError: for a missing or unreadable file, or an unknown name.
    """
    arch = arch_of_name(spec)
    if arch is not None:
        return {"arch": arch}
    source = open_source(spec)
    arch = source.described.get("arch") or _shaped_like(source)
    if arch is None:
        return source.described
    described = {**source.described, "arch": arch}
    return described if (stem := told_stem(described)) is None else {**described, "stem": stem}


def told_stem(described: dict[str, Any]) -> Stem | None:
    """The stem that weights were trained with, as far as known.

    A run folder may say `auto`: that is the stem of the size it was trained at, whatever the size now.
    """
    stem: Stem | None = described.get("stem")
    if stem == "auto":
        if "image_size" not in described:
            return None
        with torch.device("meta"):
            stem = build_backbone(described["arch"], image_size=int(described["image_size"])).stem
    return stem


def _fill_from(backbone: Backbone, source: Source, spec: str, arch: str) -> WeightsInfo:
    """Copy the tensors and say what matched."""
    match = fill(backbone, source.states, source.place, arch)
    return WeightsInfo(
        spec=spec,
        kind="supervised" if spec.startswith(SUPERVISED) else "file",
        arch=arch,
        stem=backbone.stem,
        sha256=source.sha256,
        matched=match.matched,
        total=match.total,
        prefix=match.prefix,
        missing=match.missing,
        method=str(source.described.get("method", "")),
    )


def _build(arch: str, image_size: int, stem: str, inputs: Inputs, seed: int) -> Backbone:
    """Build with a random initialisation that depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_backbone(arch, image_size=image_size, stem=stem, inputs=inputs)


def _arch_of(source: Source) -> str:
    """The backbone that the file holds, told by its shapes."""
    arch = _shaped_like(source)
    if arch is None:
        raise UserError(
            f"{source.place} does not say which backbone it holds; give --arch (such as resnet50)"
        )
    return arch


def _shaped_like(source: Source) -> str | None:
    """The ResNet whose tensors, names and shapes, the file holds completely; None for any other."""
    for arch in RESNETS:
        with torch.device("meta"):
            reference = counted(build_backbone(arch, image_size=224, stem="imagenet").export_state())
        match, _ = best_match(source.states, reference)
        deeper = f"layer3.{_blocks(reference, 'layer3')}.conv1.weight"
        if len(match) == len(reference) and not any(
            name.endswith(deeper) for state in source.states for name in state
        ):
            return arch
    return None


def _blocks(reference: State, layer: str) -> int:
    """Residual blocks in a layer."""
    return len({name.split(".")[1] for name in reference if name.startswith(f"{layer}.")})
