"""How the methods draw their views: published photometric policies and the config fields they share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ....common.errors import UserError
from ....data.loading.batch import PhotometricPolicy, ViewPolicy

# MoCo v2, arXiv 2003.04297: also DenseCL's
MOCO_V2 = PhotometricPolicy()
# SimCLR, arXiv 2002.05709, appendix A, strength 1
SIMCLR = PhotometricPolicy(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
# BYOL, arXiv 2006.07733, table 6: the two views differ in blur and solarisation
BYOL_FIRST = PhotometricPolicy(saturation=0.2, blur=1.0)
BYOL_SECOND = PhotometricPolicy(saturation=0.2, blur=0.1, solarize=0.2)
# PIRL, arXiv 1912.01991 (VISSL's configs): jitter always, then one extra with probability 0.66
PIRL = PhotometricPolicy(jitter=1.0, hue=0.2, grey=0.2, blur=0.0, pirl_extra=0.66)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Crop and photometric settings of the (two) image views."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    hflip: float = 0.5
    vflip: float = 0.0
    photometric: PhotometricPolicy = field(default_factory=lambda: MOCO_V2)

    def __post_init__(self) -> None:
        """Check the numbers."""
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1,
            f"crop_scale {low}, {high}: give two shares of the area, 0 < low <= high <= 1",
        )
        for name in ("hflip", "vflip"):
            require_share(name, getattr(self, name))
        for entry in fields(self):
            if isinstance(policy := getattr(self, entry.name), PhotometricPolicy):
                _check_photometric(entry.name, policy)

    def view(self, image_size: int, photometric: PhotometricPolicy | None = None) -> ViewPolicy:
        """Give the policy of one view of `image_size` pixels, with another photometric policy if given."""
        return ViewPolicy(
            size=image_size,
            scale=self.crop_scale,
            hflip=self.hflip,
            vflip=self.vflip,
            photometric=photometric or self.photometric,
        )


def _check_photometric(name: str, policy: PhotometricPolicy) -> None:
    """Refuse probabilities outside [0, 1] and strengths that cannot be."""
    for chance in ("jitter", "grey", "blur", "solarize", "pirl_extra"):
        require_share(f"{name}.{chance}", getattr(policy, chance))
    for strength in ("brightness", "contrast", "saturation"):
        value = getattr(policy, strength)
        require(value >= 0, f"{name}.{strength} {value}: give 0 or more")
    require(0 <= policy.hue <= 0.5, f"{name}.hue {policy.hue}: give a number from 0 to 0.5")
    low, high = policy.blur_sigma
    require(0 < low <= high, f"{name}.blur_sigma {low}, {high}: give two widths in pixels, 0 < low <= high")


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_share(name: str, value: float) -> None:
    """Refuse what is not in [0, 1]."""
    require(0 <= value <= 1, f"{name} {value}: give a number from 0 to 1")


def require_positive(name: str, value: float) -> None:
    """Refuse zero and less."""
    require(value > 0, f"{name} {value}: give a number above 0")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse what is not among the choices."""
    require(value in choices, f"{name} {value!r}: choose one of {', '.join(choices)}")
