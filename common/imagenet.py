"""ImageNet's colour statistics, with which every network of the package and of the libraries reads images.

Values and their order are torchvision's (https://pytorch.org/vision/stable/models.html): RGB in [0, 1].
"""

from __future__ import annotations

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
