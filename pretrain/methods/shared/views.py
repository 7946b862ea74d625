"""How the methods draw their views: published photometric policies and the config fields they share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ....common.config import AreaRange, Fraction, Settings
from ....data.loading.batch import CropFilter, PhotometricPolicy, ViewPolicy

# MoCo v2, arXiv 2003.04297: also DenseCL's
MOCO_V2 = PhotometricPolicy()
# SimCLR, arXiv 2002.05709, appendix A, strength 1
SIMCLR = PhotometricPolicy(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
# BYOL, arXiv 2006.07733, table 6: the two views differ in blur and solarisation
BYOL_FIRST = PhotometricPolicy(saturation=0.2, blur=1.0)
BYOL_SECOND = PhotometricPolicy(saturation=0.2, blur=0.1, solarize=0.2)
# PIRL, arXiv 1912.01991 (VISSL, pirl_jigsaw_4node_resnet50.yaml): jitter always, extras in two of three
PIRL = PhotometricPolicy(jitter=1.0, hue=0.2, grey=0.2, blur=0.0, pirl_extra=0.66)
# NPID (VISSL, npid_8gpu_resnet.yaml); its first code had a crop of .2 to 1 and grey with probability .2
VISSL_NPID = PhotometricPolicy(jitter=1.0, hue=0.4, grey=0.0, blur=0.0)
# Jigsaw (VISSL, jigsaw_8gpu_resnet.yaml)
VISSL_JIGSAW = PhotometricPolicy(jitter=0.0, grey=0.66, blur=0.0)

# how often a crop without enough foreground is drawn again
Redraws = Annotated[int, Field(ge=0, le=100)]


class ViewConfig(Settings):
    """Crop and photometric settings of the (two) image views."""

    crop_scale: AreaRange = (0.2, 1.0)  # fractions of the image's area
    hflip: Fraction = 0.5
    vflip: Fraction = 0.0
    crop_filter: CropFilter = "bilinear"  # of the crop's resize
    photometric: PhotometricPolicy = MOCO_V2

    def view(self, image_size: int, photometric: PhotometricPolicy | None = None) -> ViewPolicy:
        """Give the policy of one view of `image_size` pixels, with another photometric policy if given."""
        return ViewPolicy(
            size=image_size,
            scale=self.crop_scale,
            hflip=self.hflip,
            vflip=self.vflip,
            crop_filter=self.crop_filter,
            photometric=photometric or self.photometric,
        )
