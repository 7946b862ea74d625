"""timm's plain Vision Transformers as backbones, for any image and patch size.

Shape legend: B images, C width, S cells per side, N = S*S patches, K kept patches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from timm import create_model, list_models
from timm.layers.drop import DropPath
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from ...common.errors import UserError, did_you_mean
from ...data.positions import sincos_table
from ..tokens import initialise, take_tokens
from .base import Backbone, Stem, Watcher


class ViTBackbone(Backbone):
    """timm's Vision Transformer as a backbone; maps `patches` (B, C, S, S) and `class` (B, C).

    `maps` also gives the patches after each block, `block1` and on, before the last LayerNorm.
    Positions are the fixed 2-D sine-cosine table (zeros for the class token) and every linear layer starts
    with Xavier's uniform draw, as in MAE, MoCo v3 and SiameseIM. Parameters keep timm's names.
    """

    _watcher: Watcher | None = None

    def __init__(self, trunk: VisionTransformer, *, name_heads: bool = False) -> None:
        """Take over a model of timm, made without a head.

        Args:
            trunk: with a class token, position embeddings for it and every patch, and square patches.
            name_heads: whether the stem tells the attention heads, being others than its name's.
        """
        super().__init__()
        # timm types parts that some of its models lack as optional; `build_vit` has seen that they are there
        self.trunk: Any = trunk
        width = int(trunk.embed_dim)
        self.patch_size = int(trunk.patch_embed.patch_size[0])
        self.grid = int(trunk.patch_embed.grid_size[0])
        self.channels = {"patches": width, "class": width}
        self.last = "patches"
        self.stride = self.patch_size
        self.in_channels = int(trunk.patch_embed.proj.in_channels)
        self.heads = int(trunk.blocks[0].attn.num_heads)  # type: ignore[union-attr, arg-type]
        self.stem = f"patch{self.patch_size}" + (f"_heads{self.heads}" if name_heads else "")
        initialise(trunk)
        kernel = self.trunk.patch_embed.proj.weight
        nn.init.xavier_uniform_(kernel.view(len(kernel), -1))
        assert trunk.cls_token is not None
        nn.init.normal_(trunk.cls_token, std=0.02)
        table = sincos_table(self.grid, width)
        table = torch.cat([table.new_zeros(1, width), table])[None]
        self.trunk.pos_embed = nn.Parameter(table.to(kernel.dtype), requires_grad=False)

    @property
    def width(self) -> int:
        """C, the width of a token."""
        return self.channels["patches"]

    def freeze_patch_embedding(self) -> None:
        """Keep the patch embedding as it starts (random in MoCo v3, arXiv 2104.02057, section 4.2)."""
        self.trunk.patch_embed.requires_grad_(False)

    @torch.no_grad()
    def initialise_as_moco_v3(self) -> None:
        """Draw what MoCo v3 draws otherwise than MAE and SiameseIM do (its vits.py).

        Queries, keys and values are drawn as three layers of their own (Xavier's bound of C and C instead of
        C and 3C), the class token is small (standard deviation 1e-6), and the patch embedding's bias is 0.
        Weights that came from a file stay.
        """
        if self.has_weights:
            return
        for block in self.trunk.blocks:
            for part in block.attn.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part)
        nn.init.normal_(self.trunk.cls_token, std=1e-6)
        if self.trunk.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.trunk.patch_embed.proj.bias)

    def prepare_fine_tuning(self, drop_path: float) -> None:
        """Train the positions too, and drop residual branches at random: for dense tasks at other sizes.

        Args:
            drop_path: chance that an image goes without a branch of the last block; it grows evenly from 0 at
                the first (Huang et al., arXiv 1603.09382, as in BEiT's, MAE's and ViTDet's fine-tuning).
        """
        self.trunk.pos_embed.requires_grad_(True)
        blocks = self.trunk.blocks
        for place, block in enumerate(blocks):
            rate = drop_path * place / max(1, len(blocks) - 1)
            block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)

    def embeddings(self) -> list[nn.Parameter]:
        """The class token and the positions."""
        return [self.trunk.cls_token, self.trunk.pos_embed]

    def drop_final_norm(self) -> None:
        """Take the LayerNorm after the last block away, for good: the export then holds none.

        timm makes such a model with `create_model(..., final_norm=False)`.
        """
        self.trunk.norm = nn.Identity()

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile block by block in place, so that `tokens` gains too, which the masked methods call."""
        for block in self.trunk.blocks:
            block.compile(*arguments, **options)

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode the class token and the patches, all of them or the kept ones.

        Args:
            images: (B, in_channels, H, W), normalised; sides that are no multiple of the patch are padded
                with zeros at the right and the bottom, other sizes than the backbone's get resampled
                positions.
            keep: (B, K) indices of patches, row-major; None keeps all.

        Returns:
            (B, 1 + K, C), the class token first, patches in the order of `keep`.
        """
        values = self._first_tokens(images, keep)
        for block in self.trunk.blocks:
            values = block(values)
        normalised: Tensor = self.trunk.norm(values)
        if self._watcher is not None:
            self._watcher(lambda other: other.tokens(images, keep), normalised)
        return normalised

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of all tokens that are computed, (B, 1 + K, C), for masked methods make no maps."""
        self._watcher = watcher

    def _first_tokens(self, images: Tensor, keep: Tensor | None) -> Tensor:
        """What the first block reads, (B, 1 + K, C)."""
        patches, positions = self.embed(images)
        patches = patches + positions[:, 1:]
        if keep is not None:
            patches = take_tokens(patches, keep)
        # not len(images), which would fix B in a graph that torch exports
        first = (self.trunk.cls_token + positions[:, :1]).expand(images.shape[0], -1, -1)
        values: Tensor = self.trunk.norm_pre(torch.cat([first.to(patches.dtype), patches], dim=1))
        return values

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) to `patches` (B, C, S, S), row-major cells, and `class` (B, C)."""
        values = self.tokens(images)
        return {"patches": self._as_map(values, images), "class": values[:, 0]}

    @property
    def map_names(self) -> tuple[str, ...]:
        """The map after each block, and `patches`, which the last LayerNorm has passed."""
        return (*(f"block{number}" for number in range(1, len(self.trunk.blocks) + 1)), "patches")

    def maps(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """(B, 3, H, W) to the named maps, (B, C, S, S) each; blocks behind the last of them are not run."""
        self.check_maps(names)
        found: dict[str, Tensor] = {}
        values = self._first_tokens(images, None)
        for name, part in zip(self.map_names, (*self.trunk.blocks, self.trunk.norm), strict=True):
            values = part(values)
            if name in names:
                found[name] = self._as_map(values, images)
            if len(found) == len(set(names)):
                break
        return {name: found[name] for name in names}

    def _as_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """The patches of (B, 1 + N, C) tokens as a map (B, C, S, S)."""
        rows, columns = (-(-side // self.patch_size) for side in images.shape[2:])
        return tokens[:, 1:].transpose(1, 2).reshape(images.shape[0], -1, rows, columns)

    def stages(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """`stem` (patches, positions, class token), `block1` and on, and the last `norm`."""
        trunk = self.trunk
        blocks = {f"block{number}": [block] for number, block in enumerate(trunk.blocks, start=1)}
        stem = [trunk.patch_embed, trunk.cls_token, trunk.pos_embed, trunk.norm_pre]
        return {"stem": stem, **blocks, "norm": [trunk.norm]}

    def export_state(self) -> dict[str, Tensor]:
        """Weights under timm's names, without a head."""
        return {name: value.detach() for name, value in self.trunk.state_dict().items()}

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make this backbone and weights that are about to be loaded fit each other.

        A file without the final LayerNorm was trained without it, so it is dropped here too; positions of
        another grid are resampled (bicubic) to this one, and a patch embedding of another patch size so that
        it gives nearly the same tokens of resized patches (FlexiViT, arXiv 2212.08013, section 3.4).

        Args:
            state: tensors under timm's names; not changed.

        Returns:
            The tensors to load.
        """
        if "blocks.0.norm1.weight" in state and "norm.weight" not in state:
            self.drop_final_norm()
        kernel, own = state.get("patch_embed.proj.weight"), self.trunk.patch_embed.proj.weight
        if kernel is not None and kernel.dim() == 4 and kernel.shape[2:] != own.shape[2:]:
            state = {**state, "patch_embed.proj.weight": resample_patch_embed(kernel, list(own.shape[2:]))}
        stored = state.get("pos_embed")
        if stored is None or stored.shape[1] == self.grid**2 + 1 or stored.dim() != 3:
            return state
        return {**state, "pos_embed": resample_abs_pos_embed(stored, [self.grid, self.grid])}

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, N, C) without positions, and the positions (1, 1 + N, C) of this image size."""
        height, width = images.shape[2:]
        bottom, right = -height % self.patch_size, -width % self.patch_size
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom))
        embedding = self.trunk.patch_embed
        cells = embedding.proj(images)
        positions: Tensor = self.trunk.pos_embed
        if cells.shape[2:] != (self.grid, self.grid):
            positions = resample_abs_pos_embed(positions, list(cells.shape[2:]))
        return embedding.norm(cells.flatten(2).transpose(1, 2)), positions


def build_vit(arch: str, *, image_size: int, stem: Stem = "auto", in_channels: int = 3) -> ViTBackbone:
    """Build a ViT by timm's name, for any image and patch size.

    Args:
        arch: such as `vit_tiny_patch16_224`; the numbers in the name are defaults only.
        image_size: side of the training views, pixels.
        stem: `patchP` for patches of P pixels; `auto` takes the name's. `patchP_headsH` sets the attention
            heads too: weights have the same names and shapes with any number, so what rebuilds a network
            from its stem must find it there. MoCo v3's ViT-S has 12 heads, timm's 6.
        in_channels: of the images.

    Raises:
        UserError: for an unknown name, a ViT of another make, a stem of another form, an image size that is
            no multiple of the patch, or heads that do not divide the width.
    """
    if arch not in known_vits():
        hint = did_you_mean(arch, known_vits()) or "; try vit_tiny_patch16_224"
        raise UserError(f"timm has no Vision Transformer {arch!r}{hint}")
    sizes: dict[str, Any] = {"img_size": image_size, "global_pool": "", "num_classes": 0}
    sizes["in_chans"] = in_channels
    heads = None
    if stem != "auto":
        found = re.fullmatch(r"patch([1-9]\d*)(?:_heads([1-9]\d*))?", stem)
        if not found:
            raise UserError(
                f"a ViT's stem is its patch size, such as patch8 or patch16 (or patch16_heads12, with the "
                f"attention heads), not {stem!r}"
            )
        sizes["patch_size"], heads = int(found[1][:9]), found[2] and int(found[2][:9])
        _check_divides(image_size, sizes["patch_size"])
    if heads:
        width = int(create_model(arch, pretrained=False, depth=0, **sizes).num_features)  # type: ignore[arg-type]
        if width % heads:
            raise UserError(f"{heads} heads do not divide the width of {arch}, {width}; take a divisor")
        sizes["num_heads"] = heads
    trunk: Any = create_model(arch, pretrained=False, **sizes)
    if not _is_plain(trunk):
        raise UserError(
            f"{arch} is no plain Vision Transformer with a class token and position embeddings; choose one "
            "such as vit_tiny_patch16_224, vit_small_patch16_224 or vit_base_patch16_224"
        )
    _check_divides(image_size, trunk.patch_embed.patch_size[0])
    return ViTBackbone(trunk, name_heads=heads is not None)


def _check_divides(image_size: int, patch: int) -> None:
    """Refuse images that are cut into patches with a rest."""
    if image_size % patch:
        raise UserError(
            f"--image-size {image_size} is no multiple of the patch of {patch} pixels; choose another size, "
            "or another patch by --set stem=patchP"
        )


def _is_plain(trunk: Any) -> bool:
    """Whether a timm model has a class token and one learnable position for it and for every patch."""
    return (
        type(trunk) is VisionTransformer
        and bool(trunk.has_class_token)
        and trunk.num_reg_tokens == 0
        and trunk.pos_embed is not None
        and not trunk.no_embed_class
        and trunk.embed_dim % 4 == 0
    )


def require_vit(backbone: Backbone, method: str) -> ViTBackbone:
    """Refuse other backbones for a method that is made of tokens.

    Raises:
        UserError: if it is no ViT.
    """
    if not isinstance(backbone, ViTBackbone):
        raise UserError(
            f"{method} masks patches and so needs a Vision Transformer, such as --arch vit_tiny_patch16_224"
        )
    return backbone


def known_vits() -> list[str]:
    """Names under which timm keeps Vision Transformers, of any make."""
    return [name for module in ("vision_transformer", "deit") for name in list_models(module=module)]
