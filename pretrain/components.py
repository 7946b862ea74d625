"""What a run is built of: loader, backbone, method, and their description for config.json."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from dataclasses import dataclass
from typing import Any

import torch

from .. import __version__
from ..common.config import Settings, build
from ..common.errors import UserError
from ..common.system.devices import device_name
from ..data.loading.batch import Needs
from ..data.loading.loader import Loader, LoaderOptions
from ..data.loading.photometric import without_colour
from ..engine.batchnorm import synchronise_batch_norm
from ..engine.distributed import World
from ..engine.interfaces import LoopSettings
from ..models.backbones.base import Backbone
from ..models.backbones.build import build_backbone
from ..models.backbones.resnet import restore_lines
from ..models.weights import WeightsInfo, fill_backbone
from .config.settings import RunSettings
from .methods.base import Context, Method
from .methods.registry import method_class

DEFAULT_EPOCHS = 200.0


@dataclass(frozen=True)
class Components:
    """What a run is built of, before its first step."""

    settings: RunSettings
    world: World
    loader: Loader
    needs: Needs
    method: Method
    context: Context
    micro_batch: int  # global samples of one forward pass
    weights: WeightsInfo | None = None  # what the backbone started from; None: random
    switched_off: tuple[str, ...] = ()  # augmentations that assume RGB, where images are of other channels

    @property
    def backbone(self) -> Backbone:
        """The network that is exported."""
        assert isinstance(self.method.backbone, Backbone)
        return self.method.backbone


def assemble(settings: RunSettings, world: World) -> Components:
    """Build loader, backbone and method; the same seed gives the same initial weights everywhere."""
    kind = method_class(settings.method)
    config = build(kind.Config, settings.config, where="config.")
    torch.manual_seed(settings.seed)
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    backbone = build_backbone(
        settings.arch, image_size=settings.image_size, stem=settings.stem, inputs=settings.inputs
    )
    needs = kind.needs(config, backbone, image_size=settings.image_size)
    needs, switched_off = without_colour(needs, settings.inputs)
    # before the method copies it: slow encoders start as its equals
    weights = None if settings.weights is None else fill_backbone(backbone, settings.weights, settings.arch)
    if settings.freeze or settings.freeze_batchnorm:
        backbone.freeze(settings.freeze or (), statistics=bool(settings.freeze_batchnorm))
    loader = build_loader(settings, needs, world)
    backbone.inputs = loader.inputs  # with mean and deviation
    settings = settings.replace(mean=loader.inputs.mean, std=loader.inputs.std)
    steps_per_epoch = loader.steps_per_epoch // settings.grad_accum_steps
    if steps_per_epoch == 0:
        raise UserError(
            f"{len(loader.paths)} images hold no whole batch of {settings.batch_size}; lower --batch-size"
        )
    epochs = settings.epochs or DEFAULT_EPOCHS
    context = Context(
        data_set_size=len(loader.paths),
        batch_size=loader.batch_size,
        total_steps=settings.steps or max(1, round(epochs * steps_per_epoch)),
        steps_per_epoch=steps_per_epoch,
        seed=settings.seed,
    )
    method = kind(config, context, backbone)
    method = synchronise_batch_norm(method, world.device)
    return Components(
        settings=settings,
        world=world,
        loader=loader,
        needs=needs,
        method=method,
        context=context,
        micro_batch=loader.batch_size,
        weights=weights,
        switched_off=tuple(switched_off),
    )


def build_loader(settings: RunSettings, needs: Needs, world: World, *, every_image: bool = False) -> Loader:
    """Make the run's loader, for what its method needs or for another purpose."""
    return Loader(
        settings.images,
        settings.masks,
        needs,
        LoaderOptions(
            batch_size=settings.batch_size // settings.grad_accum_steps,
            seed=settings.seed,
            workers=settings.workers,
            rank=world.rank,
            world_size=world.size,
            missing_masks=settings.missing_masks,
            use_low_confidence=settings.use_low_confidence,
            limit=settings.limit,
            every_image=every_image,
            inputs=settings.inputs,
        ),
        device=world.device,
    )


def loop_settings(components: Components) -> LoopSettings:
    """Say to the loop what the run's settings mean."""
    settings = components.settings
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if components.world.device.type == "cuda" else "fp32"
    validate_every = settings.knn_every or components.context.steps_per_epoch
    return LoopSettings(
        total_steps=components.context.total_steps,
        schedule=settings.schedule,
        grad_accum_steps=settings.grad_accum_steps,
        clip_norm=settings.optimizer.clip_norm,
        precision=precision,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        keep_every=settings.keep_every,
        validate_every=validate_every if settings.knn_train else 0,
        stop_after=settings.stop_after,
        profile=settings.profile,
        seed=settings.seed,
        workers=components.loader.workers,
    )


def describe(components: Components) -> dict[str, Any]:
    """Everything that config.json holds, JSON-able."""
    backbone = components.backbone
    settings = components.settings.replace(config=components.method.config.model_dump(), stem=backbone.stem)
    digest = hashlib.sha256("\n".join(components.loader.paths).encode("utf-8", "surrogateescape")).hexdigest()
    masks = components.loader.masks
    return {
        "settings": settings.model_dump(mode="json"),
        "data": {
            "images": len(components.loader.paths),
            "paths_sha256": digest,
            "masks_digest": masks.content_digest if masks is not None and components.needs.masks else None,
        },
        "weights": components.weights and components.weights.record(),
        "restore": restore_lines(backbone.stem),  # Python for the library whose names the weights have
        "needs": _plain(dataclasses.asdict(components.needs)),
        "switched_off": list(components.switched_off),
        "total_steps": components.context.total_steps,
        "steps_per_epoch": components.context.steps_per_epoch,
        "lr": components.settings.optimizer.lr(components.settings.batch_size),
        "parameters": sum(value.numel() for value in components.method.parameters()),
        "environment": {
            "hapicl": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "machine": platform.platform(),
            "device": device_name(components.world.device),
            "processes": components.world.size,
            "workers": components.loader.workers,
        },
    }


def _plain(value: Any) -> Any:
    """Tuples to lists and settings to mappings, as JSON gives them back."""
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
