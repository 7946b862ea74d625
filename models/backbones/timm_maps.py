"""Any of timm's networks that gives intermediate maps, as a backbone: `timm:NAME`.

Shape legend: B images, C channels, S map cells per side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm import create_model, is_model, list_models
from torch import Tensor, nn
from torch.nn import functional

from ...common.errors import UserError, did_you_mean
from .base import Backbone, Stem
from .names import TIMM

CELLS = 4  # per side of the last map, at least
DILATED = (16, 8)  # strides that some of timm's networks can be lowered to
LEVELS = 4  # maps that are kept, the last ones


class TimmBackbone(Backbone):
    """timm's network without what follows its last map; maps `layer1` to `layer4` of a pyramid.

    The last four of timm's feature maps are named as torchvision names a ResNet's (usually of strides 4, 8,
    16 and 32); a network whose maps are all of one stride gives `layer4` alone. Parameters keep timm's names.
    """

    def __init__(
        self,
        name: str,
        trunk: Any,
        stem: str,
        *,
        own_stride: int,
        image_size: int,
        fixed_size: bool,
        in_channels: int = 3,
    ) -> None:
        """Take over a model of timm, made without a classifier.

        Args:
            name: timm's.
            trunk: with `feature_info` and `forward_intermediates`.
            stem: the name to build it again with.
            own_stride: of timm's last map, where nothing is dilated.
            image_size: side of the images it is for, pixels.
            fixed_size: whether it takes no other size.
            in_channels: of the images.
        """
        super().__init__()
        infos = list(trunk.feature_info)
        flat = infos[0]["reduction"] == infos[-1]["reduction"]
        self._indices = list(range(len(infos)))[-1 if flat else -LEVELS :]
        levels = {f"layer{LEVELS + 1 + place}": infos[place] for place in range(-len(self._indices), 0)}
        # what no map comes from would never be trained, and several processes would wait for its gradient
        trunk.prune_intermediate_layers(self._indices, prune_norm=True, prune_head=True)
        self.trunk = trunk
        self.channels = {name: int(info["num_chs"]) for name, info in levels.items()}
        self.last = f"layer{LEVELS}"
        self._strides = {name: int(info["reduction"]) for name, info in levels.items()}
        # last module of each stage; where all maps are alike every one of them ends a stage
        ends = {f"block{place}": info for place, info in enumerate(infos, start=1)} if flat else levels
        self._ends = {name: str(info["module"]) for name, info in ends.items()}
        self.stride = self._strides[self.last]
        self.name, self.stem, self.image_size, self.fixed_size = name, stem, image_size, fixed_size
        self.own_stride, self.in_channels = own_stride, in_channels
        self._cells: dict[int, dict[str, int]] = {}

    def stride_of(self, level: str) -> int:
        """Timm says it of every map."""
        return self._strides[level]

    @torch.no_grad()
    def cells_per_side(self, image_size: int, level: str | None = None) -> int:
        """Cells per side of a map of square images, seen on a blank one: networks round differently."""
        if image_size not in self._cells:
            modes = {module: module.training for module in self.modules()}
            self.eval()
            device = next(self.parameters()).device
            maps = self(torch.zeros(1, self.in_channels, image_size, image_size, device=device))
            for module, mode in modes.items():
                module.training = mode
            self._cells[image_size] = {name: int(values.shape[-1]) for name, values in maps.items()}
        return self._cells[image_size][level or self.last]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) to the maps, each (B, C, S, S).

        Raises:
            UserError: for images of another size, where the network is bound to one.
        """
        if self.fixed_size and tuple(images.shape[2:]) != (self.image_size, self.image_size):
            raise UserError(
                f"timm's {self.name} is built for images of {self.image_size} x {self.image_size} pixels "
                f"and takes no others, such as {images.shape[2]} x {images.shape[3]}; choose another backbone"
            )
        maps = self.trunk.forward_intermediates(
            images, indices=self._indices, output_fmt="NCHW", intermediates_only=True
        )
        return dict(zip(self.channels, maps, strict=True))

    def at_stride(self, stride: int) -> Backbone:
        """Built anew with timm's dilation, of the same weights."""
        if self.stride <= stride:
            return self
        other = build_timm(
            TIMM + self.name,
            image_size=self.image_size,
            stem=f"stride{stride}",
            in_channels=self.in_channels,
        )
        other.load_state_dict(self.state_dict())
        other.inputs = self.inputs
        return other.to(next(self.parameters()).device).train(self.training)

    def stages(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """`stem`, all before the first map's last module, and then what leads to each map.

        The stages are `layer1` to `layer4`, or `block1` and on where all maps are of one stride.
        """
        names = list(self._ends)
        found: dict[str, list[nn.Module | nn.Parameter]] = {name: [] for name in ("stem", *names)}
        place, inside = -1, False  # -1: the stem
        for name, part in _parts(self.trunk):
            ends = [number for number, stage in enumerate(names) if _within(name, self._ends[stage])]
            if ends:
                place, inside = ends[0], True
            elif inside:  # behind a stage's last module: of the next one
                place, inside = min(place + 1, len(names) - 1), False
            found["stem" if place < 0 else names[place]].append(part)
        return found

    def export_state(self) -> dict[str, Tensor]:
        """Weights under timm's names, without what follows the last map."""
        return {name: value.detach() for name, value in self.trunk.state_dict().items()}

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample tables of relative positions of another window to this one's (bicubic, as Swin's code)."""
        own = self.export_state()
        changed = {
            name: _resample_table(value, own[name].shape[0])
            for name, value in state.items()
            if name.endswith("relative_position_bias_table")
            and name in own
            and value.shape[1:] == own[name].shape[1:]
            and value.shape[0] != own[name].shape[0]
        }
        return {**state, **changed}


def _resample_table(table: Tensor, rows: int) -> Tensor:
    """((2W - 1)^2, heads), of windows of side W, to another number of rows."""
    before, after = (round(count**0.5) for count in (table.shape[0], rows))
    square = table.T.reshape(1, -1, before, before)
    return functional.interpolate(square, (after, after), mode="bicubic").reshape(-1, rows).T


def _parts(trunk: nn.Module) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Modules without children, and parameters of modules with some, by name, in timm's order."""
    for name, module in trunk.named_modules():
        if not any(True for _ in module.children()):
            yield name, module
        else:
            yield from module.named_parameters(name, recurse=False)


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def build_timm(arch: str, *, image_size: int, stem: Stem = "auto", in_channels: int = 3) -> TimmBackbone:
    """Build a backbone of timm by name.

    Args:
        arch: `timm:NAME`, with or without the tag of weights.
        image_size: side of the training views, pixels.
        stem: `strideN`, the stride of the last map; `auto` takes the network's own where it leaves 4 x 4
            cells, else the largest smaller one that timm has for it.
        in_channels: of the images.

    Raises:
        UserError: for an unknown name, a network that gives no maps, or one whose map is too small for the
            images.
    """
    name = arch.removeprefix(TIMM).partition(".")[0]
    if not is_model(name):
        hint = did_you_mean(name, list_models(), prefix=TIMM)
        raise UserError(f"timm has no model {name!r}{hint}")
    with torch.device("meta"):
        sample: Any = create_model(name, pretrained=False, num_classes=0)
    if not getattr(sample, "feature_info", None) or not hasattr(sample, "prune_intermediate_layers"):
        raise UserError(f"timm's {name} gives no maps; choose another, such as --arch timm:convnext_atto")
    own = int(sample.feature_info[-1]["reduction"])
    fixed = bool(sample.pretrained_cfg.get("fixed_input_size"))
    wanted = _chosen_stride(name, stem, own, image_size)
    trunk = _create(name, own, wanted, image_size if fixed else None, in_channels)
    if trunk is None:
        raise UserError(f"timm's {name} has no form whose last map is of stride {wanted}; its own is {own}")
    return TimmBackbone(
        name,
        trunk,
        f"stride{wanted}",
        own_stride=own,
        image_size=image_size,
        fixed_size=fixed,
        in_channels=in_channels,
    )


def _chosen_stride(name: str, stem: str, own: int, image_size: int) -> int:
    """The stride that a stem means."""
    if stem != "auto":
        if stem not in {f"stride{stride}" for stride in (own, *DILATED)}:
            raise UserError(f"unknown stem {stem!r} of timm's {name}; choose auto or stride{own}")
        return int(stem.removeprefix("stride"))
    if image_size >= CELLS * own:
        return own
    for stride in DILATED:
        if stride < own and image_size >= CELLS * stride and _has_stride(name, own, stride):
            return stride
    smallest = min(
        (stride for stride in DILATED if stride < own and _has_stride(name, own, stride)), default=own
    )
    raise UserError(
        f"--image-size {image_size} leaves timm's {name} a map under {CELLS} x {CELLS} cells, its smallest "
        f"stride being {smallest}; use at least {CELLS * smallest} pixels"
    )


def _has_stride(name: str, own: int, stride: int) -> bool:
    """Whether timm can lower a network to a stride."""
    with torch.device("meta"):
        return _create(name, own, stride, None) is not None


def _create(name: str, own: int, stride: int, image_size: int | None, in_channels: int = 3) -> Any:
    """A network of a stride, for one image size if it is bound to one; None if timm has no such form."""
    options: dict[str, Any] = {"in_chans": in_channels}
    options |= {} if image_size is None else {"img_size": image_size}
    if stride == own:
        return create_model(name, pretrained=False, num_classes=0, **options)
    try:
        trunk: Any = create_model(name, pretrained=False, num_classes=0, output_stride=stride, **options)
    except (TypeError, AssertionError, ValueError, NotImplementedError):  # timm's ways to say no
        return None
    return trunk if trunk.feature_info[-1]["reduction"] == stride else None
