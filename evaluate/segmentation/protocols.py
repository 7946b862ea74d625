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

from ...common.config import Count, CountOrZero, NotNegative, Positive, Settings
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


class FcnProtocol(Settings):
    """Parameters of a fine-tuned FCN."""

    head: Literal["densecl", "moco"]
    output_stride: Literal[8, 16, 32]  # what dilating layer4 and layer3 can reach
    crop: ImageSize
    steps: CountOrZero
    batch_size: Count
    lr: Positive  # at this batch size
    weight_decay: NotNegative
    schedule: Literal["poly", "steps"]
    auxiliary: NotNegative = 0.0  # weight of the loss on layer3
    scale: tuple[Positive, Positive] = (0.5, 2.0)  # least and most of the random resize

    @model_validator(mode="after")
    def _check_scale(self) -> FcnProtocol:
        """Refuse a range that is turned round, and images too large to hold."""
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is [least, most], not {list(self.scale)}")
        if self.scale[1] > 100:
            raise ValueError(f"scale enlarges images at most 100 times, not {self.scale[1]:g}")
        return self


PROTOCOLS: dict[str, ProbeProtocol | FcnProtocol] = {
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
}
