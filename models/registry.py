"""Backbones of a user's own, by name. Importing this file imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..common.errors import UserError
from .backbones.names import TIMM, usual_names

if TYPE_CHECKING:
    from .backbones.base import Backbone


class Build(Protocol):
    """Builds a backbone with random weights."""

    def __call__(self, *, image_size: int, stem: str) -> Backbone:
        """Build it for images of `image_size` pixels; `stem` is `auto` or what a backbone called its own.

        A network of other than three channels sets its `in_channels`, and the setting of that name is it.
        """


REGISTERED: dict[str, Build] = {}


def register(name: str, build: Build) -> None:
    """Make a network of your own known as `--arch NAME`, for pretraining, evaluation and export.

    It lasts as long as the process, so call it where the settings are made, before `pretrain`, and before
    weights of it are read.

    Args:
        name: not one of torchvision's or timm's that are known already.
        build: called with `image_size` and `stem`; gives a `hapicl.models.backbones.base.Backbone`.

    Raises:
        UserError: for a name that means something else.
    """
    if name in usual_names() or name.startswith(TIMM) or not name:
        raise UserError(f"{name!r} cannot be registered: the name is taken; choose another")
    REGISTERED[name] = build
