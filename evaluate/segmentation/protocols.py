"""Parameters of the segmentation protocols, named by origin."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ...common.config import Count, CountOrZero, NotNegative, Positive, Settings, Width
from ...pretrain.config.settings import ImageSize


def _one_or_several(value: Any) -> Any:
    """One name, or a list of them."""
    return [value] if isinstance(value, str) else value


MapNames = Annotated[tuple[str, ...], BeforeValidator(_one_or_several), Field(min_length=1)]


class ProbeProtocol(Settings):
    """Parameters of `seg-probe`; our own choice, meant to be cheap and to need no tuning per backbone."""

    # which maps are probed, side by side where they are several; None: the backbone's last
    map: MapNames | None = None

    height: ImageSize = 224  # pixels, every image is resized to height x width whatever its shape
    width: ImageSize = 224
    steps: CountOrZero = 1000
    batch_size: Count = 16
    lr: Positive = 0.05  # at this batch size; cosine to 0
    weight_decay: NotNegative = 1e-4
    label_stride: ImageSize = 4  # training labels every so many pixels; tests use every pixel

    @model_validator(mode="after")
    def _check_stride(self) -> ProbeProtocol:
        """Refuse labels of no pixel."""
        if self.label_stride > min(self.height, self.width):
            size = f"height {self.height} and width {self.width}"
            raise ValueError(f"label_stride {self.label_stride} is larger than the images ({size}); lower it")
        return self

    @field_validator("map")
    @classmethod
    def _check_map(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Refuse the same map twice."""
        if names is not None and len(set(names)) < len(names):
            raise ValueError("name each map once")
        return names

    @model_serializer(mode="wrap")
    def _without_last_map(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `map` out where it is the last one: results from before there was a choice say the same."""
        values: dict[str, Any] = serialize(self)
        if self.map is None:
            del values["map"]
        return values


class FineTunedProtocol(Settings):
    """What the protocols share that train the backbone too, on random crops."""

    crop: ImageSize
    steps: CountOrZero
    batch_size: Count
    lr: Positive  # at this batch size
    weight_decay: NotNegative
    scale: tuple[Positive, Positive] = (0.5, 2.0)  # least and most of the random resize

    @model_validator(mode="after")
    def _check_scale(self) -> FineTunedProtocol:
        """Refuse a range that is turned round, and images too large to hold."""
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is [least, most], not {list(self.scale)}")
        if self.scale[1] > 100:
            raise ValueError(f"scale enlarges images at most 100 times, not {self.scale[1]:g}")
        return self


class FcnProtocol(FineTunedProtocol):
    """Parameters of a fine-tuned FCN; images are resized from their own size."""

    head: Literal["densecl", "moco"]
    output_stride: Literal[8, 16, 32]  # what dilating layer4 and layer3 can reach
    schedule: Literal["poly", "steps"]
    auxiliary: NotNegative = 0.0  # weight of the loss on layer3


FourMaps = Annotated[tuple[str, ...], Field(min_length=4, max_length=4)]


class UPerNetProtocol(FineTunedProtocol):
    """Parameters of a fine-tuned UPerNet; AdamW, linear warm-up, then linearly to 0."""

    batch_size: Annotated[int, Field(ge=2, le=10**12)]  # BatchNorm on a context of one cell needs two
    side: ImageSize  # short side of the images, pixels: in tests, and what `scale` multiplies in training
    # tests slide a window of `crop` pixels by this share of it, and take the mean where windows overlap
    stride: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    warmup_steps: CountOrZero
    layer_decay: Annotated[float, Field(gt=0, le=1)]  # of the rate, by stage from the last to the first
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1  # at a ViT's last block; other networks have none
    # None: layer1 to layer4, or of a ViT the blocks at 1/3, 1/2, 2/3 and all of its depth
    maps: FourMaps | None = None
    channels: Width | None = None  # of the head; None: those of the last map
    auxiliary: NotNegative = 0.4  # weight of the loss on the third map
    auxiliary_channels: Width = 256


PROTOCOLS: dict[str, ProbeProtocol | FcnProtocol | UPerNetProtocol] = {
    "seg-probe": ProbeProtocol(),
    # mmsegmentation's schedule_20k and fcn_r50-d8, as DenseCL names them
    "seg-densecl-fcn8": FcnProtocol(
        head="densecl",
        output_stride=8,
        crop=512,
        steps=20_000,
        batch_size=16,
        lr=0.01,
        weight_decay=5e-4,
        schedule="poly",
        auxiliary=0.4,
    ),
    # MoCo A.4: rate .003 for 16 images, divided by 10 at 70 % and 90 %, crops of 513 pixels
    "seg-moco-fcn16": FcnProtocol(
        head="moco",
        output_stride=16,
        crop=513,
        steps=30_000,
        batch_size=16,
        lr=0.003,
        weight_decay=1e-4,
        schedule="steps",
    ),
    # MAE on ADE20K by mmsegmentation's mae-base_upernet_8xb2-amp-160k_ade20k-512x512 and upernet_mae, whose
    # numbers these are (windows by BEiT's 341 pixels, as its first version had it); ViT-B. Not run by us
    "ade-upernet": UPerNetProtocol(
        crop=512,
        steps=160_000,
        batch_size=16,
        lr=1e-4,
        weight_decay=0.05,
        side=512,
        warmup_steps=1500,
        layer_decay=0.65,
    ),
    # our own choice: the same at small input, for sets of hundreds of images
    "seg-upernet-small": UPerNetProtocol(
        crop=192,
        steps=600,
        batch_size=8,
        lr=5e-4,
        weight_decay=0.05,
        side=192,
        warmup_steps=50,
        layer_decay=0.75,
        channels=128,
        auxiliary_channels=64,
    ),
}
