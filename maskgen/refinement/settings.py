"""What a user may set of the learned refinement."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ...common.config import Count, Fraction, PathText, Positive, Settings

STRIDE = 32  # of the deepest map; the side of the input is a multiple


class RefineSettings(Settings):
    """How the network is trained and how much it counts. Where each number was measured: docs/masks.md.

    Attributes:
        rounds: of training, each on the masks that the one before gave; a later one goes on from its network
            too, unless its images are so few that `least_steps` stretches it.
        train_images: at most so many images are learned from, drawn by counter; all get new masks.
        held_out: fraction of those images that is not trained on and tells whether the network has learned;
            the last of several rounds, which follows one that has, learns from them too.
        image_size: side of the square that an image is brought to for the network, pixels.
        width: channels of the first stage of a network from scratch; later stages have up to eight times.
        encoder: weights of a backbone to start from, as `hapicl evaluate` takes them (a run folder, a file of
            ours, torchvision or timm, `torchvision:NAME`, `timm:NAME`); None trains from scratch.
        epochs: how often each image is seen in a round.
        least_steps: the first round has at least so many steps, however few the images, the second twice, ...
        batch_size: images in a step.
        base_lr: peak learning rate of AdamW for 256 images.
        weight_decay: of AdamW.
        least_weight: an image counts in the loss by the confidence of its mask, at least this.
        network_weight: weight of the network's probability in the map; the heuristic map has the rest.
        seed: of the draws.
    """

    rounds: Annotated[int, Field(ge=1, le=8)] = 2
    train_images: Count = 2000
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    image_size: Annotated[int, Field(ge=32, le=512)] = 128
    width: Annotated[int, Field(ge=4, le=128)] = 16
    encoder: PathText | None = None
    epochs: Count = 20
    least_steps: Count = 300
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 16
    base_lr: Positive = 0.032
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    least_weight: Fraction = 0.1
    network_weight: Fraction = 0.8
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    @model_validator(mode="after")
    def _whole_cells(self) -> Self:
        """Refuse a side that the network cannot halve five times."""
        if self.image_size % STRIDE:
            raise ValueError(f"image_size {self.image_size} is no multiple of {STRIDE}")
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return every setting, ready for JSON."""
        return self.model_dump(mode="json")
