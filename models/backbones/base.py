"""What every backbone is: a network that gives feature maps by name.

Shape legend: B images, C channels, S map cells per side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...common.errors import UserError, did_you_mean
from ...data.images.inputs import RGB, Inputs

# how the image enters: a ResNet's has a name; a ViT's is its patch, "patch8" for 8 x 8 pixels, so any text
Stem = Literal["auto", "imagenet", "no_pool", "stride1"] | str
# what stands for a whole image: the mean over the cells of the last map, or a ViT's class token
Vector = Literal["mean", "class"]
# told of what a backbone has computed: how another backbone computes the same, and the values
Watcher = Callable[[Callable[[Any], Tensor], Tensor], None]


class Backbone(nn.Module):
    """A network that gives feature maps by name.

    `channels` maps each map's name to its channels; `last` names the map that heads and evaluation use by
    default; `stride` is image pixels per cell of `last`; `stem` is the name to build it again with;
    `in_channels` is how many channels its images have.
    """

    channels: dict[str, int]
    last: str
    stride: int
    stem: str
    in_channels: int = 3
    inputs: Inputs = RGB  # what it is trained to read of an image file, and how that is normalised
    # whether it starts from weights of a file: methods then leave their own initialisation out
    has_weights: bool = False
    fixed_size: bool = False  # whether it takes images of one size only
    # what `freeze` was told
    frozen: tuple[str, ...] = ()
    frozen_statistics: bool = False

    def stride_of(self, level: str) -> int:
        """Image pixels per cell of a map; backbones whose maps differ in it say so here."""
        return self.stride

    def cells_per_side(self, image_size: int, level: str | None = None) -> int:
        """Cells per side of a map of square images; a border that fills no whole cell gives one more.

        Args:
            image_size: side of the images, pixels.
            level: the map's name; None takes `last`.
        """
        return -(-image_size // self.stride_of(level or self.last))

    @property
    def has_pyramid(self) -> bool:
        """Whether it gives the four maps that detectors read, of images of any size."""
        return not self.fixed_size and {f"layer{level}" for level in (1, 2, 3, 4)} <= self.channels.keys()

    def at_stride(self, stride: int) -> Backbone:
        """A backbone of the same weights whose last map has this stride, or a smaller one it has already.

        Raises:
            UserError: where there is none.
        """
        if self.stride <= stride:
            return self
        raise UserError(f"this backbone gives no map of stride {stride}, only of {self.stride}")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) normalised images to maps (B, C, S, S) by name."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` from here on of every last map, (B, C, S, S), that is computed of images."""

        def tell(_: nn.Module, images: tuple[Any, ...], maps: dict[str, Tensor]) -> None:
            watcher(lambda other: other(*images)[self.last], maps[self.last])

        self.register_forward_hook(tell)

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the maps that `maps` gives, from the image on."""
        return tuple(name for name in self.channels if name != "class")

    def check_maps(self, names: Sequence[str]) -> None:
        """Refuse names of maps that there are not.

        Raises:
            UserError: names those that there are.
        """
        for name in names:
            if name not in self.map_names:
                raise UserError(
                    f"this backbone has no map {name!r}{did_you_mean(name, self.map_names)}; it has "
                    f"{', '.join(self.map_names)}"
                )

    def maps(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to the named maps, (B, C, S, S) each.

        Raises:
            UserError: for the name of no map.
        """
        self.check_maps(names)
        found = self(images)
        return {name: found[name] for name in names}

    def stages(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """Its parts by name, from the image on; every parameter belongs to one of them."""
        return {name: [child] for name, child in self.named_children()}

    def embeddings(self) -> list[nn.Parameter]:
        """Parameters that fine-tuning leaves without weight decay, though they are no biases or norms."""
        return []

    def freeze(self, names: Sequence[str], *, statistics: bool = False) -> None:
        """Keep stages as they are: no gradient, and always in evaluation mode; copies made later do the same.

        Args:
            names: of `stages`; those before them are usually named too.
            statistics: whether every BatchNorm keeps its running statistics and normalises by them, also in
                stages that train.

        Raises:
            UserError: for an unknown stage, or when nothing would be left to train.
        """
        stages = self.stages()
        for name in names:
            if name not in stages:
                raise UserError(
                    f"freeze: this backbone has no stage {name!r}{did_you_mean(name, stages)}; it has "
                    f"{', '.join(stages)}"
                )
            for part in stages[name]:
                part.requires_grad_(False)
        if not any(value.requires_grad for value in self.parameters()):
            raise UserError("freeze leaves nothing of the backbone to train; name fewer stages")
        self.frozen, self.frozen_statistics = tuple(names), statistics
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Change the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        stages = self.stages() if self.frozen else {}
        for part in (part for name in self.frozen for part in stages[name]):
            if isinstance(part, nn.Module):
                part.eval()
        if self.frozen_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def export_state(self) -> dict[str, Tensor]:
        """Weights under the names of the library that users load them with."""
        raise TypeError(f"{type(self).__name__} has no export")

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `state` (names as in `export_state`) made fit to be loaded here, such as at another size.

        Whoever loads weights calls this first; it may also change the backbone to match the file.
        """
        return state


def require_photographs(backbone: Backbone, task: str) -> None:
    """Refuse a backbone of other images where only photographs are read.

    Args:
        backbone: whose `inputs` are asked.
        task: what reads them, for the message.

    Raises:
        UserError: if it takes bands of TIFF files.
    """
    if not backbone.inputs.are_photographs:
        raise UserError(
            f"{task} reads photographs, and these weights take {backbone.in_channels} channels of TIFFs; "
            "measure them by `evaluate knn`, linear, semi or svm"
        )
