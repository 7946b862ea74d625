"""Names for arrays that every room passes around."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB, or (H, W) where said so
Mask = NDArray[np.bool_]  # (H, W), true where there is foreground
