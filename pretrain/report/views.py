"""What the trainer saw and what the method draws, kept in the run folder for the report.

Shape legend: N samples, V views, S view side in pixels, G occupancy cells per side.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ...common.atomic_files import atomic_write
from ...common.errors import UserError
from ...common.page import Picture, encode_image
from ...data.images.inputs import RGB, Inputs
from ...data.loading.batch import Batch
from ...models.preprocess import to_pixels
from ..methods.base import Method

VIEWS = "views.npz"
PICTURES, CAPTIONS = "pictures", "captions.json"
KEPT = 8  # samples
OUTLINE = (255, 64, 64)  # of the mask, RGB
SHOWN_SIDE = 160  # a view of the report is at least so many pixels a side


def save_views(folder: Path, batch: Batch, inputs: Inputs = RGB) -> None:
    """Write a few samples as `views.npz`: uint8 views (N, V, S, S, 3) and occupancy (N, V, G, G) in [0, 1].

    Args:
        folder: the run folder.
        batch: normalised float views, as the method gets them.
        inputs: how they were normalised; of other channels than RGB the first ones are kept.
    """
    if not batch.views or len({view.shape[-1] for view in batch.views}) > 1:
        return
    content = {"views": to_pixels(torch.stack([view[:KEPT] for view in batch.views], dim=1), inputs)}
    if batch.occupancy:
        content["occupancy"] = torch.stack([grid[:KEPT].cpu() for grid in batch.occupancy], dim=1).numpy()
    with atomic_write(folder / VIEWS) as part, open(part, "wb") as stream:
        np.savez_compressed(stream, **content)  # type: ignore[arg-type]


def view_pictures(folder: Path) -> list[Picture]:
    """Give the kept views with the mask laid over them, the views of one sample side by side."""
    if not (folder / VIEWS).exists():
        return []
    try:
        with np.load(folder / VIEWS) as kept:
            views = kept["views"]
            occupancy = kept.get("occupancy")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{folder / VIEWS} is damaged ({error}); delete it to have the report without crops"
        ) from error
    pictures = []
    for number, sample in enumerate(views):
        grids = [None] * len(sample) if occupancy is None else list(occupancy[number])
        tiles = [_with_mask(enlarged(view), grid) for view, grid in zip(sample, grids, strict=True)]
        fractions = "" if occupancy is None else ", ".join(f"{grid.mean():.0%}" for grid in occupancy[number])
        caption = f"foreground {fractions}" if fractions else ""
        pictures.append(Picture(np.concatenate(tiles, axis=1), caption, alt="views of one image", lossy=True))
    return pictures


def enlarged(view: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A view of at least `SHOWN_SIDE` pixels a side, by whole multiples: its own pixels stay visible."""
    by = -(-SHOWN_SIDE // view.shape[0])
    return np.repeat(np.repeat(view, by, axis=0), by, axis=1)


def _with_mask(view: npt.NDArray[np.uint8], grid: npt.NDArray[np.float32] | None) -> npt.NDArray[np.uint8]:
    """Darken what is background by the cells' occupancy, and frame the foreground cells."""
    if grid is None:
        return view
    side = view.shape[0]
    fractions = cv2.resize(grid, (side, side), interpolation=cv2.INTER_NEAREST)[..., None]
    dimmed = (view * (0.35 + 0.65 * fractions)).astype(np.uint8)
    mask = (fractions[..., 0] >= 0.5).astype(np.uint8)
    edge = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
    dimmed[edge.astype(bool)] = OUTLINE
    return dimmed


def save_method_pictures(folder: Path, method: Method, batch: Batch) -> None:
    """Let the method draw what it has learnt on a few samples, and keep it for the report.

    Args:
        folder: the run folder.
        method: put in evaluation mode for the drawing.
        batch: a few augmented samples on the method's device.
    """
    was_training = method.training
    method.eval()
    with torch.no_grad():
        drawn = method.pictures(batch)
    method.train(was_training)
    captions = {}
    for number, (caption, pixels) in enumerate(drawn.items()):
        name = f"{number:02d}.png"
        with atomic_write(folder / PICTURES / name) as part:
            part.write_bytes(encode_image(pixels))
        captions[name] = caption
    if captions:
        with atomic_write(folder / PICTURES / CAPTIONS) as part:
            part.write_text(json.dumps(captions, indent=2) + "\n", encoding="utf-8")


def method_pictures(folder: Path) -> dict[str, bytes]:
    """Give the kept pictures as PNG bytes by caption."""
    captions = folder / PICTURES / CAPTIONS
    if not captions.exists():
        return {}
    named = json.loads(captions.read_text(encoding="utf-8"))
    return {caption: (folder / PICTURES / name).read_bytes() for name, caption in named.items()}
