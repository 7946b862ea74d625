"""A ViT of width 48 and depth 2, methods on it, and batches for them."""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from hapicl.data.geometry import ViewGeometry
from hapicl.data.loading.batch import Batch
from hapicl.models.backbones.vit import ViTBackbone
from hapicl.pretrain.methods.base import Context, Method
from hapicl.pretrain.methods.registry import method_class

SIDE, PATCH, GRID = 48, 8, 6
SMALL = {
    "siameseim": {},
    "mae": {"decoder_dim": 48, "decoder_depth": 2, "decoder_heads": 3},
    "moco_v3": {"hidden": 64, "dim": 32},
    "hapicl_vit": {"hidden": 64, "dim": 32, "pixel_hidden": 64, "pixel_dim": 16},
}


def small_vit(image_size: int = SIDE) -> ViTBackbone:
    trunk = VisionTransformer(
        img_size=image_size,
        patch_size=PATCH,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=0,
        global_pool="",
    )
    return ViTBackbone(trunk)


def small_method(name: str, *, image_size: int = SIDE, total_steps: int = 10, **config: Any) -> Method:
    torch.manual_seed(0)
    kind = method_class(name)
    context = Context(data_set_size=64, batch_size=8, total_steps=total_steps, steps_per_epoch=8, seed=1)
    return kind(kind.Config(**(SMALL[name] | config)), context, small_vit(image_size))


def batch_for(method: Method, *, images: int = 8, seed: int = 0, step: int = 0) -> Batch:
    """Smooth random pictures, so that there is something to predict, with what the method asks for."""
    draw = torch.Generator().manual_seed(seed)
    needs = type(method).needs(method.config, method.backbone, image_size=SIDE)

    def geometry() -> ViewGeometry:
        corners = torch.randint(0, 20, (2, images), generator=draw)
        extents = torch.randint(20, 60, (2, images), generator=draw)
        flips = torch.rand(2, images, generator=draw) < 0.5
        return ViewGeometry(*corners, *extents, *flips)

    def view() -> torch.Tensor:
        coarse = torch.randn(images, 3, 6, 6, generator=draw)
        return torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")

    masks = {}
    if needs.grid is not None:
        occupancy = tuple(torch.rand(images, GRID, GRID, generator=draw) for _ in needs.views)
        masks = {"occupancy": occupancy, "has_mask": torch.ones(images, dtype=torch.bool)}
    return Batch(
        index=torch.arange(images),
        image_size=torch.full((images, 2), 80),
        views=tuple(view() for _ in needs.views),
        geometry=tuple(geometry() for _ in needs.views),
        photometric=(),
        step=step,
        **masks,
    )


def train(method: Method, batch: Batch, steps: int, lr: float = 2e-3) -> list[float]:
    """Losses of AdamW steps on one batch."""
    optimizer = torch.optim.AdamW([value for value in method.parameters() if value.requires_grad], lr=lr)
    losses = []
    for step in range(steps):
        loss = method(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step, steps)
        losses.append(loss.item())
    return losses
