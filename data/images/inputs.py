"""What a network reads of an image file: photographs as RGB, or bands of TIFFs as any number of channels.

The loader's views are 8-bit, so values of more bits are mapped to 0..255 by a range that the user states, or
by the type's own. Shape legend: H, W pixels, N channels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from ...common.config import Settings, build
from ...common.imagenet import MEAN, STD
from ...common.plain_yaml import read_yaml
from ...common.types import Pixels
from .decode import MAX_PIXELS, UPRIGHT, ImageError, Reader
from .kinds import HEAD_BYTES, kind_of
from .tiff import MAX_BANDS, TiffError, read_bands, read_layout

MAX_CHANNELS = 512  # as many as OpenCV turns
RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}  # of types whose values have an agreed range


def _split(value: Any) -> Any:
    """`4,3,2` as a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """One `[low, high]`, or `low,high`, as a list of one pair."""
    value = _split(value)
    flat = isinstance(value, list | tuple) and len(value) == 2
    return [value] if flat and not any(isinstance(part, list | tuple) for part in value) else value


BandNumber = Annotated[int, Field(ge=1, le=MAX_BANDS)]
Bands = Annotated[tuple[BandNumber, ...], BeforeValidator(_split)]
BandRange = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_pairs)]
Deviation = Annotated[float, Field(gt=0)]


class Inputs(Settings):
    """How the values of a file become a network's channels.

    Photographs, the default, are read as RGB and normalised by ImageNet's statistics. With other channels,
    with `bands` or with `band_range`, files are TIFF, and statistics that nobody states are measured (see
    `loading/statistics.py`).
    """

    in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3  # of the network
    # numbers of a TIFF file's bands, from 1, in the order of the channels; None: the file has as many, all
    # are read
    bands: Bands | None = None
    # values that become 0 and 255, [low, high], or one such pair for each channel; None: the type's own
    band_range: BandRange | None = None
    # of each channel where 255 is 1; None: ImageNet's for photographs, else measured
    mean: tuple[float, ...] | None = None
    std: tuple[Deviation, ...] | None = None

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        """Refuse lists of another length than there are channels."""
        lists = {"bands": self.bands, "mean": self.mean, "std": self.std}
        for name, values in lists.items():
            if values is not None and len(values) != self.in_channels:
                raise ValueError(f"{name} has {len(values)} entries, and in_channels is {self.in_channels}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        if self.band_range is not None:
            if len(self.band_range) not in (1, self.in_channels):
                raise ValueError(
                    f"band_range has {len(self.band_range)} pairs, and in_channels is {self.in_channels}"
                )
            if any(low >= high for low, high in self.band_range):
                raise ValueError("band_range: the first of a pair is what becomes black, below the second")
        return self

    @property
    def are_photographs(self) -> bool:
        """Whether files are read as photographs."""
        return self.in_channels == 3 and self.bands is None and self.band_range is None

    @property
    def reader(self) -> Reader | None:
        """What decodes the files, for `decode_image`; None: as photographs."""
        return None if self.are_photographs else self

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel.

        Raises:
            ValueError: if nobody has stated or measured them.
        """
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        if not self.are_photographs:
            raise ValueError("mean and std of the channels have not been measured")
        return MEAN, STD

    def as_texts(self) -> dict[str, str]:
        """What differs from photographs as RGB, for a weight file's metadata; `inputs_of` reads it."""
        told = self.model_dump(mode="json", exclude_defaults=True)
        return {name: json.dumps(value) for name, value in told.items()}

    def decode(self, data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Pixels:
        """Decode a TIFF held in memory.

        Args:
            data: the encoded file.
            name: what to call it in an error.
            max_pixels: of three bytes; files that need more memory are refused.

        Returns:
            (H, W, N) uint8, upright, contiguous.

        Raises:
            ImageError: for what is no TIFF, damaged, too large, or has other bands than are asked for.
        """
        return self.scale(self.read_values(data, name, max_pixels=max_pixels), name)

    def scale(self, values: NDArray[Any], name: str) -> Pixels:
        """Map values as stored, (H, W, N), to 0..255 by the channels' ranges; what is no number is black.

        Raises:
            ImageError: if nobody has stated the range of a type that has none of its own.
        """
        ranges = self._ranges(values, name)
        if values.dtype == np.uint8 and set(ranges) == {RANGES["uint8"]}:
            return np.ascontiguousarray(values)
        low, high = np.array(ranges, np.float32).T
        scaled = np.nan_to_num((values.astype(np.float32) - low) * (255 / (high - low)))
        return np.ascontiguousarray(scaled.clip(0, 255).round().astype(np.uint8))

    def read_values(self, data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
        """The chosen bands as stored: (H, W, N) of the file's own type, upright.

        Raises:
            ImageError: as `decode`.
        """
        if (kind := kind_of(data[:HEAD_BYTES])) != "TIFF":
            raise ImageError(name, f"{kind or 'no image'}; in_channels and bands are of TIFF files")
        try:
            layout = read_layout(io.BytesIO(data))
            chosen = self._chosen(layout.bands, name)
            values = read_bands(data, 3 * max_pixels)
        except TiffError as error:
            raise ImageError(name, str(error)) from error
        values = values if chosen is None else values[:, :, chosen]
        return UPRIGHT[layout.orientation](values) if layout.orientation in UPRIGHT else values

    def _ranges(self, values: NDArray[Any], name: str) -> tuple[tuple[float, float], ...]:
        """The (low, high) of each channel, or one for all."""
        if self.band_range is not None:
            return self.band_range
        if values.dtype.name not in RANGES:
            raise ImageError(
                name, f"{values.dtype} has no agreed range; give the values of black and white as band_range"
            )
        return (RANGES[values.dtype.name],)

    def _chosen(self, bands: int, name: str) -> list[int] | None:
        """Places of the channels among a file's bands; None: they are all."""
        if self.bands is None and bands == self.in_channels:
            return None
        has = "1 band" if bands == 1 else f"{bands} bands"
        if self.bands is None:
            raise ImageError(
                name, f"{has}, and in_channels={self.in_channels} wants as many; choose some by bands"
            )
        if max(self.bands) > bands:
            raise ImageError(name, f"{has}, and bands asks for number {max(self.bands)}")
        return [number - 1 for number in self.bands]


RGB = Inputs()


def inputs_of(values: Mapping[str, Any]) -> Inputs:
    """The inputs that a run's settings, or a weight file's texts, describe; RGB where they say nothing.

    Raises:
        UserError: if they cannot be.
    """
    told = {name: values[name] for name in Inputs.model_fields if values.get(name) is not None}
    read = {name: read_yaml(value) if isinstance(value, str) else value for name, value in told.items()}
    return build(Inputs, read)
