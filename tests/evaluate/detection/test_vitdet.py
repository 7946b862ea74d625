"""ViTDet: parameters and names as published, the trunk against timm's, the pyramid, a known answer."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_vit import small_vit
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from hapicl.common.errors import UserError
from hapicl.evaluate.detection.data import DetectionSamples, LabelledObjects, voc_objects
from hapicl.evaluate.detection.detect import evaluate_detection, training_samples
from hapicl.evaluate.detection.models import AlignedRoIAlign
from hapicl.evaluate.detection.protocols import PROTOCOLS, ViTDetProtocol
from hapicl.evaluate.detection.vitdet import SimpleFeaturePyramid, build_vitdet
from hapicl.evaluate.settings import Request, Runtime, change, choose, parameters
from hapicl.models.backbones.build import build_backbone
from hapicl.models.stage_rates import fine_tuning_groups

TINY = {
    "shape.short_sides": "[64]",
    "shape.long_side": "64",
    "shape.channels": "16",
    "shape.hidden": "32",
    "shape.regions": "32",
    "shape.anchors": "[8, 16, 32, 48, 64]",
    "shape.window": "4",
    "shape.global_blocks": "1",
    "batch_size": "4",
    "warmup_steps": "5",
    "lr": "3e-3",
    "layer_decay": "1.0",
    "drop_path": "0.0",
}


@pytest.fixture
def data(squares: Path) -> tuple[LabelledObjects, LabelledObjects]:
    train = voc_objects(squares, "train")
    return train, voc_objects(squares, "test", train.classes)


def tiny(**changes: str) -> ViTDetProtocol:
    protocol = change(PROTOCOLS["detect-small-vit"], TINY | changes)
    assert isinstance(protocol, ViTDetProtocol)
    return protocol


def tiny_detector(*, masks: bool = False) -> nn.Module:
    return build_vitdet(small_vit(64), tiny().shape, drop_path=0.1, classes=2, masks=masks)


def test_a_vit_b_with_mask_heads_has_the_published_111_million_parameters() -> None:
    protocol = PROTOCOLS["coco-vitdet"]
    assert isinstance(protocol, ViTDetProtocol)
    with torch.device("meta"):
        backbone = build_backbone("vit_base_patch16_224", image_size=224)
        model = build_vitdet(backbone, protocol.shape, drop_path=0.1, classes=80, masks=True)
    trained = {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}
    # detectron2 keeps the positions of pretraining, 14 x 14, and resamples them for each image
    assert round(sum(trained.values()) / 1e6) == 111
    parts = {
        part: sum(count for name, count in trained.items() if name.startswith(part))
        for part in ("backbone.net.", "backbone.simfp_", "rpn.", "roi_heads.box", "roi_heads.mask")
    }
    assert sum(parts.values()) == sum(trained.values())
    width, out = 768, 256
    tables = 64 * 2 * (8 * 27 + 4 * 127)  # of heads of 64: eight blocks with windows of 14, four of 64
    blocks = 12 * (4 * width + 4 * (width * width + width) + 8 * width * width + 5 * width)
    positions, embedding = 197 * width, 3 * 16 * 16 * width + width
    assert parts["backbone.net."] == blocks + tables + positions + embedding
    enlarging = 4 * (width * 384 + 384 * 192 + width * 384) + 384 + 192 + 384 + 2 * 384
    levels = out * (192 + 384 + width + width) + 4 * 9 * out * out + 8 * 2 * out
    assert parts["backbone.simfp_"] == enlarging + levels
    assert parts["rpn."] == 2 * (9 * out * out + out) + out * 3 * 5 + 3 * 5
    # torchvision predicts the background's box too, and one mask more than there are classes
    assert parts["roi_heads.box"] == 4 * (9 * out * out + 2 * out) + 49 * out * 1024 + 1024 + 1025 * 5 * 81
    assert parts["roi_heads.mask"] == 4 * (9 * out * out + 2 * out) + 4 * out * out + out + 257 * 81


def test_the_trunk_has_detectron2s_names() -> None:
    assert {
        "backbone.net.pos_embed",
        "backbone.net.patch_embed.proj.weight",
        "backbone.net.blocks.1.attn.qkv.weight",
        "backbone.net.blocks.1.attn.rel_pos_h",
        "backbone.net.blocks.1.mlp.fc2.bias",
        "backbone.simfp_2.0.weight",
        "backbone.simfp_2.1.bias",
        "backbone.simfp_2.3.weight",
        "backbone.simfp_2.4.weight",
        "backbone.simfp_2.5.norm.bias",
        "backbone.simfp_3.1.norm.weight",
        "backbone.simfp_4.0.weight",
        "backbone.simfp_5.1.weight",
        "backbone.simfp_5.2.norm.weight",
        # the heads have torchvision's, as docs/evaluation.md sets them beside detectron2's
        "rpn.head.conv.1.0.weight",
        "rpn.head.cls_logits.weight",
        "roi_heads.box_head.3.0.weight",
        "roi_heads.box_head.0.1.bias",
        "roi_heads.box_head.5.weight",
        "roi_heads.mask_head.3.0.weight",
        "roi_heads.mask_head.0.1.bias",
        "roi_heads.mask_predictor.conv5_mask.weight",
        "roi_heads.mask_predictor.mask_fcn_logits.weight",
    } <= set(tiny_detector(masks=True).state_dict())


def test_the_trunk_gives_what_timms_own_vitdet_gives() -> None:
    # timm has ViTDet's trunk as the encoder of Segment Anything, with partitions and blocks of its own
    theirs = VisionTransformerSAM(
        img_size=64,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    ).eval()
    theirs.neck = nn.Identity()
    torch.manual_seed(0)
    shape = tiny(**{"shape.window": "3"}).shape
    ours = SimpleFeaturePyramid(small_vit(64), shape, 0.1).eval()
    with torch.no_grad():
        for value in ours.parameters():
            value.add_(0.05 * torch.randn_like(value))
    state = dict(ours.net.state_dict())
    state["pos_embed"] = state["pos_embed"][:, 1:].unflatten(1, (8, 8))
    missing = theirs.load_state_dict(state, strict=False).missing_keys
    assert missing == []
    with torch.no_grad():
        for images in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 48, 64)):
            torch.testing.assert_close(ours.last_map(images), theirs.forward_features(images))


def test_the_pyramid_has_strides_of_a_quarter_to_four_patches() -> None:
    model = tiny_detector()
    with torch.no_grad():
        maps = model.eval().backbone(torch.zeros(1, 3, 64, 64))  # type: ignore[operator, union-attr]
    assert {name: tuple(values.shape[1:]) for name, values in maps.items()} == {
        "0": (16, 32, 32),
        "1": (16, 16, 16),
        "2": (16, 8, 8),
        "3": (16, 4, 4),
        "pool": (16, 2, 2),
    }


def test_all_that_is_trained_gets_a_gradient_with_masks_and_without_an_object() -> None:
    model = tiny_detector(masks=True).train()
    square = torch.zeros(1, 64, 64, dtype=torch.uint8)
    square[:, 8:40, 8:40] = 1
    full = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([2]), "masks": square}
    empty = {name: values[:0] for name, values in full.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as --precision bf16
        losses = model([torch.rand(3, 64, 64)] * 2, [full, empty])
    torch.stack(list(losses.values())).sum().backward()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name for name, value in model.named_parameters() if value.grad is None} & trained == set()
    left_out = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert left_out == {"backbone.net.cls_token", "backbone.net.norm.weight", "backbone.net.norm.bias"}


def test_rates_fall_by_block_as_detectron2_takes_them() -> None:
    backbone = small_vit(64)
    model = build_vitdet(backbone, tiny().shape, drop_path=0.1, classes=1, masks=False)
    groups = fine_tuning_groups(model, backbone, 0.7)
    rate = {id(value): group.get("lr_scale", 1.0) for group in groups for value in group["params"]}
    named = dict(model.named_parameters())
    for name, power in (
        ("roi_heads.box_predictor.cls_score.weight", 0),
        ("backbone.simfp_2.0.weight", 0),
        ("backbone.net.blocks.1.attn.rel_pos_h", 1),
        ("backbone.net.blocks.0.mlp.fc1.weight", 2),
        ("backbone.net.patch_embed.proj.weight", 3),
        ("backbone.net.pos_embed", 3),
    ):
        assert rate[id(named[name])] == pytest.approx(0.7**power)


def test_regions_of_small_or_wide_images_were_pooled_at_another_scale_than_their_maps() -> None:
    # 32 x 40 pixels padded to 64 x 64: guessed from the image, a map of stride 4 is one of stride 2
    ramp = (torch.arange(16.0) + 0.5) * 4
    maps = {"0": ramp.expand(1, 1, 16, 16).contiguous()}
    trunk = nn.Identity()
    align = AlignedRoIAlign(["0"], 2, trunk)
    trunk(torch.zeros(1, 3, 64, 64))
    pooled = align(maps, [torch.tensor([[8.0, 8.0, 40.0, 24.0]])], [(32, 40)])
    torch.testing.assert_close(pooled[0, 0, 0], torch.tensor([16.0, 32.0]))


def test_jitter_ends_in_the_samples_of_the_published_protocol_alone(
    data: tuple[LabelledObjects, LabelledObjects],
) -> None:
    samples = training_samples(data[0], tiny(jitter="[0.5, 1.5]"))
    assert samples.sample(0, np.random.default_rng(0))[0].shape == (3, 64, 64)
    assert isinstance(samples.augment, partial)
    assert training_samples(data[0], tiny()).augment is None
    assert training_samples(data[0], PROTOCOLS["detect-small"]).augment is None
    assert isinstance(DetectionSamples(data[1], train=False).sample(0, np.random.default_rng(0))[0], Tensor)


def test_it_learns_squares(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    torch.manual_seed(0)
    outcome = evaluate_detection(small_vit(64), *data, tiny(steps="60"), seed=0, runtime=Runtime())
    assert outcome.metrics["ap50"] > 0.6


def test_a_protocol_for_vits_left_the_parameters_of_the_others_what_they_were() -> None:
    # tables put results with the same parameters into one column, and finished ones are known by them
    values = parameters(PROTOCOLS["detect-small"])
    assert values.keys() == {
        *("shape", "steps", "batch_size", "lr", "milestones", "warmup_steps"),
        *("headline", "weight_decay", "clip_norm", "masks"),
    }
    assert values["shape"].keys() == {
        *("head", "short_sides", "long_side", "anchors", "regions", "channels", "hidden")
    }


def test_image_size_keeps_vitdets_squares() -> None:
    request = Request(weights="random", protocol="detect-small-vit", image_size=96)
    shape = choose(PROTOCOLS, request).shape
    assert (shape.short_sides, shape.long_side) == ((96,), 96)
    shape = choose(PROTOCOLS, request.replace(protocol="detect-small")).shape
    assert (shape.short_sides, shape.long_side) == ((96,), 160)


def test_mistakes_are_named() -> None:
    shape = tiny().shape
    with pytest.raises(UserError, match="needs a plain Vision Transformer"):
        build_vitdet(build_backbone("resnet18", image_size=64), shape, drop_path=0, classes=1, masks=False)
    odd = build_backbone("test_vit", image_size=63, stem="patch7")
    with pytest.raises(UserError, match=r"not 7; --stem patch16"):
        build_vitdet(odd, shape, drop_path=0, classes=1, masks=False)
    with pytest.raises(UserError, match="anchors must hold 5 sides"):
        tiny(**{"shape.anchors": "[8, 16]"})
    with pytest.raises(UserError, match=r"unknown setting 'shape\.head'"):
        tiny(**{"shape.head": "c4"})
    with pytest.raises(UserError, match="lower bound first"):
        tiny(jitter="[2.0, 0.1]")
