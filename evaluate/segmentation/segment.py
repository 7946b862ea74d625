"""`evaluate segment`: what a backbone is worth for semantic segmentation, in mean IoU without void pixels.

`seg-probe`, the project's headline: the backbone is frozen, images are resized to one size, their maps are
computed once, and a 1x1 convolution on the map is trained with cross-entropy for a fixed number of steps;
`map` names another map than the last, or several that are joined.
`seg-densecl-fcn8` and `seg-moco-fcn16` fine-tune a dilated ResNet with an FCN head: DenseCL's protocol
(arXiv 2011.09157, section 4.1: mmsegmentation's fcn_r50-d8, 20k iterations) and MoCo's (arXiv 1911.05722,
appendix A.4, 30k iterations). BatchNorm normalises over the whole batch, synchronised where several
processes share it. Differences from both: no photometric distortion; tests at the image's own size, one
scale. Maps are enlarged bilinearly to the label's own size, where the IoU is counted.
`ade-upernet` fine-tunes a plain ViT as MAE is measured on ADE20K (arXiv 2111.06377, section 5, by
mmsegmentation's configuration), `seg-upernet-small` a ViT or any pyramid at small input. Differences: as
above, but tests slide a window over images resized to one short side; crops are taken whatever classes they
hold (mmsegmentation draws again where one fills three quarters); losses are means over the pixels that count;
the ViT has no table of relative positions and no layer scale.
Shape legend: B images, C channels, K classes, H and W pixels, S map cells per side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels

from ...common.errors import UserError
from ...engine.optimizers import OptimizerSettings
from ...engine.schedule import ScheduleSettings
from ...models.backbones.base import Backbone
from ...models.preprocess import normalize
from ...models.stage_rates import fine_tuning_groups
from ..batches import StoredSamples, TaskBatches, ordered_batches
from ..finetune import Curve, train
from ..processes import first_alone, gather_to_first, share, together
from ..result import Outcome
from ..settings import Runtime, parameters
from .data import LabelledPixels
from .measure import measure_segmentation
from .models import FcnSegmenter, SegProbe, joined_maps
from .protocols import FcnProtocol, FineTunedProtocol, ProbeProtocol, UPerNetProtocol
from .samples import ResizedSamples, SegmentationCrops
from .upernet import UPerNet, sliding_logits

MAPS_BATCH = 32  # images whose maps are computed together


def evaluate_segmentation(
    backbone: Backbone,
    train_data: LabelledPixels,
    test_data: LabelledPixels,
    protocol: ProbeProtocol | FcnProtocol | UPerNetProtocol,
    *,
    seed: int,
    runtime: Runtime,
    identity: dict[str, Any] | None = None,
) -> Outcome:
    """Train on `train_data`, measure on `test_data`.

    Args:
        backbone: fine-tuned in place by all protocols but `seg-probe`.
        train_data, test_data: with the same number of classes.
        protocol: one of `PROTOCOLS`, perhaps changed.
        seed: of the order, the augmentation and the heads.
        runtime: device, workers, run folder.
        identity: JSON-able, what the run folder must be of (weights' hash, data); part of the checkpoint.

    Returns:
        `miou`, `pixel_accuracy`, IoU per class, confusion, the loss curve and a few pictures.
    """
    config = {"protocol": parameters(protocol), "seed": seed, **(identity or {})}
    if isinstance(protocol, ProbeProtocol):
        logits_of, curve = _run_probe(backbone, train_data, protocol, seed, runtime, config)
    elif isinstance(protocol, FcnProtocol):
        logits_of, curve = _run_fcn(backbone, train_data, protocol, seed, runtime, config)
    else:
        logits_of, curve = _run_upernet(backbone, train_data, protocol, seed, runtime, config)
    return measure_segmentation(logits_of, test_data, runtime, curve)


def _run_probe(
    backbone: Backbone,
    data: LabelledPixels,
    protocol: ProbeProtocol,
    seed: int,
    runtime: Runtime,
    config: dict[str, Any],
) -> tuple[Callable[[Tensor], Tensor], Curve]:
    """Train the 1x1 convolution; give the function from an image to its logits, and the loss curve.

    Several processes share the maps and the tests; the training in between, which is short, is the first's.
    """
    names = protocol.map or (backbone.last,)
    backbone.check_maps(names)
    backbone.to(runtime.device).eval()
    found = _frozen_maps(backbone, names, data, protocol, runtime)

    def fit() -> tuple[dict[str, Tensor], Curve]:
        # in one line: a copy in float64 that had a name would stay through the training
        std, mean = torch.std_mean(found.tensors[0].double(), dim=(0, 2, 3))
        probe = SegProbe(mean.float(), std.float(), data.classes)
        curve = train(
            probe,
            TaskBatches(found, batch_size=protocol.batch_size, seed=seed, device=runtime.device),
            steps=protocol.steps,
            optimizer=_sgd(protocol),
            schedule=ScheduleSettings(name="cosine"),
            seed=seed,
            runtime=runtime,
            config=config,
        )
        return {name: value.cpu() for name, value in probe.state_dict().items()}, curve

    state, curve = first_alone(fit)
    probe = SegProbe(state["mean"].flatten(), state["std"].flatten(), data.classes)
    probe.load_state_dict(state)
    probe.to(runtime.device).eval()

    def logits_of(image: Tensor) -> Tensor:
        resized = pixels.resize(image, [protocol.height, protocol.width], antialias=True)
        return probe.logits(joined_maps(backbone, normalize(resized), names))

    return logits_of, curve


def _frozen_maps(
    backbone: Backbone,
    names: Sequence[str],
    data: LabelledPixels,
    protocol: ProbeProtocol,
    runtime: Runtime,
) -> StoredSamples:
    """The named maps (N, C, S, S) float32, joined, and labels (N, H, W), in the first process's memory.

    Raises:
        UserError: if they would fill more than half of the free memory.
    """
    maps: list[Tensor] = []
    labels: list[Tensor] = []
    mine = share(len(data), MAPS_BATCH)
    with (
        together(),
        torch.no_grad(),
        runtime.progress("maps of the training images", len(mine)) as advance,
    ):
        for images, reduced in ordered_batches(
            ResizedSamples(data, protocol),
            batch_size=MAPS_BATCH,
            indices=mine,
            workers=runtime.workers,
            device=runtime.device,
        ):
            found = joined_maps(backbone, normalize(images), names).cpu()
            needed = found[0].nbytes * len(data)
            free = psutil.virtual_memory().available
            if not maps and needed > free / 2:
                raise UserError(
                    f"the maps of {len(data)} training images take {needed / 2**30:.1f} GiB of "
                    f"{free / 2**30:.1f} GiB free; use fewer images, smaller ones (--set height=N "
                    "--set width=N) or a coarser map"
                )
            maps.append(found)
            labels.append(reduced.cpu())
            advance(len(images))
    parts = gather_to_first((maps, labels))
    none = [torch.empty(0)]  # on other processes than the first
    joined = (torch.cat([each for part in parts for each in part[kind]] or none) for kind in (0, 1))
    return StoredSamples(*joined)


def _sgd(protocol: ProbeProtocol | FcnProtocol) -> OptimizerSettings:
    """SGD with momentum .9 at the protocol's rate for its own batch size."""
    return OptimizerSettings(
        name="sgd",
        base_lr=protocol.lr * 256 / protocol.batch_size,
        momentum=0.9,
        weight_decay=protocol.weight_decay,
    )


def _run_fcn(
    backbone: Backbone,
    data: LabelledPixels,
    protocol: FcnProtocol,
    seed: int,
    runtime: Runtime,
    config: dict[str, Any],
) -> tuple[Callable[[Tensor], Tensor], Curve]:
    """Fine-tune; give the function from an image to its logits, and the loss curve."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FcnSegmenter(
            backbone,
            classes=data.classes,
            head=protocol.head,
            output_stride=protocol.output_stride,
            auxiliary=protocol.auxiliary,
        )
    schedule = (
        ScheduleSettings(name="poly", power=0.9)
        if protocol.schedule == "poly"
        else ScheduleSettings(name="steps", milestones=(0.7, 0.9))
    )
    curve = train(
        model,
        _crop_batches(data, protocol, seed, runtime),
        steps=protocol.steps,
        optimizer=_sgd(protocol),
        schedule=schedule,
        seed=seed,
        runtime=runtime,
        config=config,
    )
    return lambda image: model.logits(normalize(image)), curve


def _run_upernet(
    backbone: Backbone,
    data: LabelledPixels,
    protocol: UPerNetProtocol,
    seed: int,
    runtime: Runtime,
    config: dict[str, Any],
) -> tuple[Callable[[Tensor], Tensor], Curve]:
    """Fine-tune; give the function from an image to its logits, and the loss curve."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UPerNet(backbone, protocol, classes=data.classes)
    batches = _crop_batches(data, protocol, seed, runtime)
    curve = train(
        model,
        batches,
        steps=protocol.steps,
        optimizer=OptimizerSettings(
            name="adamw",
            base_lr=protocol.lr * 256 / protocol.batch_size,
            weight_decay=protocol.weight_decay,
        ),
        schedule=ScheduleSettings(
            name="poly", power=1.0, warmup_epochs=protocol.warmup_steps / batches.steps_per_epoch
        ),
        seed=seed,
        runtime=runtime,
        config=config,
        groups=fine_tuning_groups(model, backbone, protocol.layer_decay),
    )

    def logits_of(image: Tensor) -> Tensor:
        resized = pixels.resize(image, [protocol.side], antialias=True)
        stride = max(1, int(protocol.stride * protocol.crop))
        return sliding_logits(model.logits, normalize(resized), crop=protocol.crop, stride=stride)

    return logits_of, curve


def _crop_batches(
    data: LabelledPixels, protocol: FineTunedProtocol, seed: int, runtime: Runtime
) -> TaskBatches:
    """Training batches of a fine-tuned network."""
    return TaskBatches(
        SegmentationCrops(data, protocol),
        batch_size=protocol.batch_size,
        seed=seed,
        workers=runtime.workers,
        device=runtime.device,
    )
