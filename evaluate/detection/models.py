"""torchvision's detectors on our backbones, with detectron2's settings where torchvision's differ.

Shape legend: B images, R regions, C channels, S cells per side, K classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ...common.errors import UserError
from ...models.backbones.base import Backbone
from ...models.backbones.resnet import ResNetBackbone
from ...pretrain.methods.base import Output
from ..batches import TaskBatch
from .counted import count_draws
from .protocols import DetectorShape, DetectorSizes

RATIOS = (0.5, 1.0, 2.0)
LAYERS = ("layer1", "layer2", "layer3", "layer4")  # of a pyramid


class AlignedRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign with detectron2's half-pixel correction (`aligned=True`), from one map or a pyramid.

    A region goes to the level floor(4 + log2(sqrt(area) / 224)) of the pyramid (Lin et al., CVPR 2017,
    equation 1), where level 2 is the first map. torchvision's MultiScaleRoIAlign has no such correction, and
    it guesses the maps' scales from the largest image, which may be much smaller than what it is padded to.
    """

    def __init__(self, names: Sequence[str], size: int, trunk: nn.Module) -> None:
        """Pool from maps of a trunk.

        Args:
            names: of the maps, the largest first.
            size: side of the output, cells.
            trunk: what makes the maps; the size of the images it sees tells their scale.
        """
        super().__init__(featmap_names=list(names), output_size=size, sampling_ratio=0)
        self.padded = 0  # height of the images as the trunk saw them, pixels
        trunk.register_forward_pre_hook(self._see)

    def _see(self, trunk: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Note the height of the padded images."""
        self.padded = inputs[0].shape[2]

    def forward(
        self, maps: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Maps (B, C, S, S) and boxes (R, 4) per image to (sum of R, C, size, size)."""
        chosen = [maps[name] for name in self.featmap_names]
        image = torch.cat([values.new_full((len(values), 1), number) for number, values in enumerate(boxes)])
        # in float32 also under autocast: bfloat16 has no room for a box's fractions of a pixel
        rows = torch.cat([image, torch.cat(boxes)], dim=1).float()
        scales = [2.0 ** round(math.log2(each.shape[2] / self.padded)) for each in chosen]
        sides = (rows[:, 3] - rows[:, 1]).clamp(min=0) * (rows[:, 4] - rows[:, 2]).clamp(min=0)
        level = torch.floor(4 + torch.log2(sides.sqrt() / 224 + 1e-8)).clamp(2, len(chosen) + 1) - 2
        pooled = rows.new_zeros(len(rows), chosen[0].shape[1], *self.output_size)
        for number, (each, scale) in enumerate(zip(chosen, scales, strict=True)):
            here = torch.nonzero(level == number)[:, 0]
            found = roi_align(
                each.float(),
                rows[here],
                self.output_size,
                spatial_scale=scale,
                sampling_ratio=0,
                aligned=True,
            )
            pooled = pooled.index_put((here,), found)
        return pooled


class C4Trunk(nn.Module):
    """Everything up to `layer3`: the map the C4 detector proposes and pools from."""

    def __init__(self, backbone: ResNetBackbone) -> None:
        """Share the backbone's layers."""
        super().__init__()
        trunk = backbone.trunk
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        self.layers = nn.Sequential(trunk.layer1, trunk.layer2, trunk.layer3)
        self.out_channels = backbone.channels["layer3"]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to {"0": (B, C, S, S)}."""
        return {"0": self.layers(self.stem(images))}


class C4Head(nn.Module):
    """`layer4` on the pooled regions, MoCo's extra BatchNorm after it, then the mean over the cells."""

    def __init__(self, backbone: ResNetBackbone) -> None:
        """Share the backbone's `layer4`."""
        super().__init__()
        channels = backbone.channels["layer4"]
        self.layer4 = backbone.trunk.layer4
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C3, 14, 14) to (R, C4)."""
        pooled: Tensor = self.norm(self.layer4(regions)).mean(dim=(2, 3))
        return pooled


def build_detector(backbone: Backbone, shape: DetectorShape, *, classes: int, masks: bool) -> nn.Module:
    """Build torchvision's Faster or Mask R-CNN around a backbone, all layers trained.

    Args:
        backbone: with a pyramid of maps; for the C4 head a ResNet.
        shape: which detector.
        classes: K, without background.
        masks: also predict instance masks (not with the C4 head).

    Raises:
        UserError: for a backbone without those maps.
    """
    if not backbone.has_pyramid:
        raise UserError(
            "this detector needs a ResNet, or another backbone with maps layer1 to layer4 for images of any "
            "size; a plain ViT takes --protocol detect-small-vit or coco-vitdet"
        )
    common = shared_arguments(shape)
    if shape.head == "c4":
        if not isinstance(backbone, ResNetBackbone):
            raise UserError("the C4 detector needs a ResNet; choose a protocol with a feature pyramid")
        return _c4(backbone, shape, classes, common)
    return _pyramid(backbone, shape, classes, masks, common)


def shared_arguments(shape: DetectorSizes) -> dict[str, Any]:
    """Arguments of every detector of torchvision's."""
    return {
        "min_size": shape.short_sides,
        "max_size": shape.long_side,
        "box_batch_size_per_image": shape.regions,
    }


def _c4(backbone: ResNetBackbone, shape: DetectorShape, classes: int, common: dict[str, Any]) -> nn.Module:
    """Faster R-CNN on `layer3`; detectron2's R_50_C4 keeps 12000 / 6000 boxes before its suppression."""
    trunk = C4Trunk(backbone)
    anchors = AnchorGenerator((shape.anchors,), (RATIOS,))
    model: nn.Module = FasterRCNN(
        trunk,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(trunk.out_channels, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=12_000,
        rpn_pre_nms_top_n_test=6_000,
        rpn_post_nms_top_n_train=2_000,
        rpn_post_nms_top_n_test=1_000,
        box_roi_pool=AlignedRoIAlign(["0"], 14, trunk),
        box_head=C4Head(backbone),
        box_predictor=FastRCNNPredictor(backbone.channels["layer4"], classes + 1),
        **common,
    )
    return model


def _pyramid(
    backbone: Backbone, shape: DetectorShape, classes: int, masks: bool, common: dict[str, Any]
) -> nn.Module:
    """Faster or Mask R-CNN on a pyramid of `layer1` to `layer4`.

    In the 4conv1fc form pyramid and heads carry BatchNorm, as MoCo's COCO recipe has it.
    """
    norm = nn.BatchNorm2d if shape.head == "4conv1fc" else None
    trunk = _with_pyramid(backbone, shape.channels, norm)
    return rcnn_on_levels(trunk, shape, classes, norm=norm, masks=masks, common=common)


def rcnn_on_levels(
    trunk: nn.Module,
    shape: DetectorSizes,
    classes: int,
    *,
    norm: Callable[[int], nn.Module] | None,
    masks: bool,
    common: dict[str, Any],
    rpn_convolutions: int = 1,
) -> nn.Module:
    """Faster or Mask R-CNN with detectron2's numbers of boxes on a pyramid.

    Args:
        trunk: images to maps "0" to "3" and "pool" of `shape.channels` channels.
        shape: its sizes.
        classes: K, without background.
        norm: of the heads, whose box head then has four convolutions and one linear layer; None: two linear
            layers.
        masks: also predict instance masks.
        common: further arguments of torchvision's detectors.
        rpn_convolutions: before the proposals.
    """
    width = shape.channels
    anchors = AnchorGenerator(tuple((side,) for side in shape.anchors), (RATIOS,) * len(shape.anchors))
    levels = ["0", "1", "2", "3"]
    head = (
        TwoMLPHead(width * 7 * 7, shape.hidden)
        if norm is None
        else FastRCNNConvFCHead((width, 7, 7), [width] * 4, [shape.hidden], norm_layer=norm)
    )
    arguments: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(width, anchors.num_anchors_per_location()[0], rpn_convolutions),
        "rpn_pre_nms_top_n_train": 2_000,
        "rpn_pre_nms_top_n_test": 1_000,
        "rpn_post_nms_top_n_train": 1_000,  # where torchvision keeps 2,000
        "rpn_post_nms_top_n_test": 1_000,
        "box_roi_pool": AlignedRoIAlign(levels, 7, trunk),
        "box_head": head,
        "box_predictor": FastRCNNPredictor(shape.hidden, classes + 1),
        **common,
    }
    if not masks:
        plain: nn.Module = FasterRCNN(trunk, **arguments)
        return plain
    with_masks: nn.Module = MaskRCNN(
        trunk,
        mask_roi_pool=AlignedRoIAlign(levels, 14, trunk),
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(width, width, classes + 1),
        **arguments,
    )
    return with_masks


class MapsWithFPN(nn.Module):
    """Any backbone with a feature pyramid, as torchvision's `BackboneWithFPN` is a ResNet with one."""

    def __init__(self, backbone: Backbone, width: int, norm: type[nn.Module] | None) -> None:
        """Build the pyramid on `layer1` to `layer4`."""
        super().__init__()
        self.body, self.out_channels = backbone, width
        channels = [backbone.channels[name] for name in LAYERS]
        self.fpn = FeaturePyramidNetwork(channels, width, LastLevelMaxPool(), norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to maps "0" to "3" and "pool", each of `width` channels."""
        maps = self.body(images)
        levels: dict[str, Tensor] = self.fpn(
            OrderedDict((str(number), maps[name]) for number, name in enumerate(LAYERS))
        )
        return levels


def _with_pyramid(backbone: Backbone, width: int, norm: type[nn.Module] | None) -> nn.Module:
    """The trunk of a detector."""
    if not isinstance(backbone, ResNetBackbone):
        return MapsWithFPN(backbone, width, norm)
    trunk: nn.Module = BackboneWithFPN(
        backbone.trunk,
        return_layers={name: str(number) for number, name in enumerate(LAYERS)},
        in_channels_list=[backbone.channels[name] for name in LAYERS],
        out_channels=width,
        norm_layer=norm,
    )
    return trunk


class DetectionTask(nn.Module):
    """A detector as the training loop sees it: a batch in, the sum of its losses out."""

    def __init__(self, detector: nn.Module, *, seed: int = 0) -> None:
        """Hold the detector, whose draws depend on (seed, step, image) from now on."""
        super().__init__()
        self.detector = detector
        self._draws = count_draws(detector, seed)

    def forward(self, batch: TaskBatch) -> Output:
        """Loss of a batch of (images, list of (3, H, W) uint8; targets, list of dictionaries)."""
        images, targets = batch.values
        self._draws.begin(batch)
        losses: dict[str, Tensor] = self.detector([image.float() / 255 for image in images], targets)
        losses = self._draws.weighted(losses)
        total = torch.stack(list(losses.values())).sum()
        return Output(loss=total, loss_terms={name: value.detach() for name, value in losses.items()})
