"""What a method asks of its data, and what it gets: the contract between the loader and the methods.

A method states its `Needs`; the loader makes exactly that and hands over a `Batch`.
Shape legend: B images, C channels (3 of photographs), S view side in pixels, G occupancy cells per side, P
patch side in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ...common.config import Fraction, Settings, in_order
from ..geometry import ViewGeometry

Strength = Annotated[float, Field(ge=0, le=100)]
Sigma = Annotated[float, Field(gt=0, le=1000)]
Sigmas = Annotated[tuple[Sigma, Sigma], AfterValidator(in_order)]


CropFilter = Literal["bilinear", "bicubic"]


class PhotometricPolicy(Settings):
    """Probabilities and strengths of the photometric augmentation of one view.

    The four jitter strengths are torchvision's ColorJitter arguments; they are applied in a random order.
    """

    jitter: Fraction = 0.8
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grey: Fraction = 0.2
    blur: Fraction = 0.5
    # pixels of a view of 224; a view of S pixels is blurred with S / 224 of it
    blur_sigma: Sigmas = (0.1, 2.0)
    solarize: Fraction = 0.0
    # with this probability posterize (4 to 8 bits), sharpness, solarize and autocontrast, one after the other
    # (PIRL, VISSL's ImgPilRandomPhotometric)
    pirl_extra: Fraction = 0.0


NO_PHOTOMETRIC = PhotometricPolicy(jitter=0.0, grey=0.0, blur=0.0)


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """How one view is drawn: a random resized crop to `size` pixels, flips, then photometric."""

    size: int = 224
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    crop_filter: CropFilter = "bilinear"  # of the resize to `size`, antialiased
    photometric: PhotometricPolicy = field(default_factory=PhotometricPolicy)
    # take the geometry of this earlier view instead of drawing one (SiameseIM's same-view ablation)
    same_geometry_as: int | None = None


@dataclass(frozen=True, kw_only=True)
class JigsawPolicy:
    """PIRL's Jigsaw view: its own crop to `size`, cut into grid x grid cells, one patch in each.

    `image_size` is the side of the views that it stands beside, pixels; patches are blurred as those are.
    `photometric_per_patch` draws the photometric augmentation for each patch (PIRL) or once for all (Jigsaw).
    """

    size: int = 255
    image_size: int = 224
    patch: int = 64
    grid: int = 3
    scale: tuple[float, float] = (0.6, 1.0)
    hflip: float = 0.5
    photometric: PhotometricPolicy = field(default_factory=PhotometricPolicy)
    photometric_per_patch: bool = True


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs of a batch; the loader makes only that.

    `grid` asks for occupancy grids of grid x grid cells for each view (None: masks are not read).
    `min_foreground` with `redraws` redraws a crop until the foreground covers that share of it; the last
    draw is kept; 0 turns it off.
    """

    views: tuple[ViewPolicy, ...]
    grid: int | None = None
    min_foreground: float = 0.3
    redraws: int = 5
    jigsaw: JigsawPolicy | None = None

    @property
    def masks(self) -> bool:
        """Whether masks must be there."""
        return self.grid is not None


MissingMasks = Literal["error", "skip", "instance-only"]


@dataclass(kw_only=True)
class Batch:
    """One batch of samples: uint8 views from the workers, float32 after `photometric.augment`.

    Every tensor's first dimension is B; tuples hold one entry per view of `Needs.views`.
    """

    index: Tensor  # (B,) int64, position in the sorted path list
    image_size: Tensor  # (B, 2) int32, height and width of the upright original, pixels
    views: tuple[Tensor, ...]  # (B, C, S, S) uint8 from the workers; float32 normalised after `augment`
    geometry: tuple[ViewGeometry, ...]  # fields (B,)
    # (B, n) float32 drawn parameters, see photometric.py; they stay on the host, as `patch_photometric`
    photometric: tuple[Tensor, ...]
    occupancy: tuple[Tensor, ...] = ()  # (B, G, G) float32 in [0, 1], share of foreground in each cell
    # (B,) bool; False where the image goes without (--missing-masks instance-only)
    has_mask: Tensor | None = None
    fallback: Tensor | None = None  # (B, views) bool: the last redraw was kept though under min_foreground
    patches: Tensor | None = None  # (B, cells, C, P, P) uint8, in reading order; float32 after `augment`
    patch_photometric: Tensor | None = None  # (B, cells, n) float32
    permutation: Tensor | None = None  # (B, cells) int64, a uniform draw of all permutations
    # (B,) int64 in 0..3, quarter turns; drawn whenever `jigsaw` or a method asks
    rotation: Tensor | None = None
    epoch: int = 0
    step: int = 0
    # images that could not be read and were replaced by the next of the path list (`index` says which),
    # as messages; the loader logs and counts them
    failures: tuple[str, ...] = ()

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `function` to every tensor, geometry fields included."""

        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, ViewGeometry):
                return ViewGeometry(*(apply(item) for item in value))
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            return value

        return Batch(**{entry.name: apply(getattr(self, entry.name)) for entry in dataclasses.fields(self)})

    def to(self, device: torch.device, *, non_blocking: bool = True) -> Batch:
        """Copy to a device."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Pin every tensor; torch's DataLoader calls this by name."""
        return self.map_tensors(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        """Return B."""
        return len(self.index)
