"""What the trainer sees: the first batch's views and masks, kept in the run folder for the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..data.batch import Batch
from ..data.files import whole_file
from .knn import IMAGENET_MEAN, IMAGENET_STD

VIEWS = "views.npz"
KEPT = 8  # samples


def save_views(folder: Path, batch: Batch) -> None:
    """Write a few samples as `views.npz`: uint8 views (N, V, S, S, 3) and occupancy (N, V, G, G) in [0, 1].

    Args:
        folder: the run folder.
        batch: normalised float views, as the method gets them.
    """
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    sizes = {view.shape[-1] for view in batch.views}
    if not batch.views or len(sizes) > 1:
        return
    views = torch.stack([view[:KEPT].float().cpu() for view in batch.views], dim=1)
    pixels = ((views * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2)
    content = {"views": pixels.numpy()}
    if batch.occupancy:
        content["occupancy"] = torch.stack([grid[:KEPT].cpu() for grid in batch.occupancy], dim=1).numpy()
    with whole_file(folder / VIEWS) as part, open(part, "wb") as stream:
        np.savez_compressed(stream, **content)  # type: ignore[arg-type]
