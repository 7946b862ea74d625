"""ViT backbones: timm agrees with the export, positions are fixed, kept tokens, other sizes."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from hapicl.common.errors import UserError
from hapicl.data.positions import sincos_table
from hapicl.models.backbones.build import build_backbone
from hapicl.models.backbones.vit import ViTBackbone
from hapicl.models.weights import load_backbone
from hapicl.models.write_weights import write_safetensors


def small(image_size: int = 48, stem: str = "patch8") -> ViTBackbone:
    torch.manual_seed(0)
    backbone = build_backbone("test_vit", image_size=image_size, stem=stem)
    assert isinstance(backbone, ViTBackbone)
    with torch.no_grad():  # no two tensors of the file may be alike, or a swapped name would pass
        for value in backbone.trunk.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return backbone.eval()


def images(count: int = 2, size: int = 48) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("arch", ["test_vit", "vit_tiny_patch16_224"])
def test_the_export_loads_into_timm_and_gives_the_same_features(arch: str, final_norm: bool) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(arch, image_size=32, stem="patch8").eval()
    assert isinstance(backbone, ViTBackbone)
    if not final_norm:
        backbone.drop_final_norm()
    theirs = timm.create_model(
        arch, img_size=32, patch_size=8, num_classes=0, final_norm=final_norm, pretrained=False
    ).eval()
    theirs.load_state_dict(backbone.export_state(), strict=True)
    with torch.no_grad():
        wanted = theirs.forward_features(images(size=32))
        got = backbone(images(size=32))
    torch.testing.assert_close(got["class"], wanted[:, 0])
    torch.testing.assert_close(got["patches"].flatten(2).transpose(1, 2), wanted[:, 1:])


def test_heads_are_part_of_the_stem_since_weights_do_not_tell_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny_patch16_224", image_size=64, stem="patch16_heads12").eval()
    assert (backbone.stem, backbone.trunk.blocks[1].attn.num_heads) == ("patch16_heads12", 12)
    about = {"arch": "vit_tiny_patch16_224", "stem": backbone.stem, "image_size": "64"}
    path = tmp_path / "backbone.safetensors"
    write_safetensors(backbone.export_state(), path, about)
    with torch.inference_mode():
        expected = backbone(images(size=64))["class"]
        assert torch.equal(load_backbone(str(path))[0](images(size=64))["class"], expected)
        others = load_backbone(str(path), stem="patch16")[0](images(size=64))["class"]
    assert not torch.allclose(others, expected)
    with pytest.raises(UserError, match="7 heads do not divide the width"):
        build_backbone("vit_tiny_patch16_224", image_size=64, stem="patch16_heads7")


def test_maps_have_their_stated_shapes() -> None:
    backbone = small()
    maps = backbone(images())
    assert maps["patches"].shape == (2, 64, 6, 6)
    assert maps["class"].shape == (2, 64)
    assert (backbone.last, backbone.stride, backbone.stem) == ("patches", 8, "patch8")
    assert backbone.channels == {"patches": 64, "class": 64}


def test_a_patch_lands_in_its_own_cell() -> None:
    """The linear part alone: one bright patch changes the embedding of exactly its cell."""
    backbone = small()
    dark, bright = torch.zeros(1, 3, 48, 48), torch.zeros(1, 3, 48, 48)
    bright[:, :, 16:24, 40:48] = 1  # row 2, column 5
    changed = (backbone.embed(bright)[0] - backbone.embed(dark)[0]).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 * 6 + 5]


def test_maps_of_blocks_are_what_the_blocks_give() -> None:
    backbone = small()
    with torch.no_grad():
        found = backbone.maps(images(), ["patches", "block1"])
        assert list(found) == ["patches", "block1"]
        torch.testing.assert_close(found["patches"], backbone(images())["patches"])
        first = backbone.trunk.blocks[0](backbone._first_tokens(images(), None))
        assert torch.equal(found["block1"].flatten(2).transpose(1, 2), first[:, 1:])


def test_blocks_behind_the_last_wanted_map_are_not_run() -> None:
    backbone, ran = small(), []
    backbone.trunk.blocks[-1].register_forward_hook(lambda *_: ran.append(1))
    backbone.maps(images(), ["block2"])
    assert len(backbone.trunk.blocks) > 2
    assert not ran


def test_a_map_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"no map 'blok2'; did you mean block2.*it has block1, .*, patches$"):
        small().maps(images(), ["blok2"])
    with pytest.raises(UserError, match="no map 'class'"):
        small().check_maps(["class"])


def test_positions_are_the_fixed_table() -> None:
    backbone = build_backbone("test_vit", image_size=48, stem="patch8")
    assert isinstance(backbone, ViTBackbone)
    position = backbone.trunk.pos_embed
    assert not position.requires_grad
    torch.testing.assert_close(position[0, 1:].double(), sincos_table(6, 64), rtol=0, atol=1e-6)
    assert not position[0, 0].any()


def test_kept_tokens_see_only_each_other() -> None:
    backbone = small()
    keep = torch.tensor([[7, 0, 30], [1, 2, 3]])
    changed = images()
    changed[0, :, 40:48, 40:48] += 5  # patch 35, kept by nobody
    with torch.no_grad():
        assert torch.equal(backbone.tokens(images(), keep), backbone.tokens(changed, keep))
        changed[0, :, 0:8, 0:8] += 5  # patch 0, kept by the first
        moved = (backbone.tokens(images(), keep) - backbone.tokens(changed, keep)).abs().amax((1, 2))
    assert moved[0] > 0
    assert moved[1] == 0


def test_keeping_all_in_order_is_keeping_none_out() -> None:
    backbone = small()
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.tokens(images(), torch.arange(36).expand(2, 36)), backbone.tokens(images())
        )


def test_compiling_reaches_the_path_of_kept_tokens() -> None:
    backbone, keep = small(), torch.tensor([[3, 0, 9], [1, 2, 3]])
    with torch.no_grad():
        wanted = backbone.tokens(images(), keep)
        seen = []

        def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
            seen.append(graph)
            return graph

        backbone.compile(backend=backend)
        names = set(backbone.state_dict())
        torch.testing.assert_close(backbone.tokens(images(), keep), wanted)
    assert seen
    assert names == set(small().state_dict())


def test_other_image_sizes_get_resampled_positions_and_padding() -> None:
    backbone = small()
    with torch.no_grad():
        assert backbone(images(1, 96))["patches"].shape == (1, 64, 12, 12)
        ragged = torch.randn(1, 3, 41, 60)
        padded = nn.functional.pad(ragged, (0, 4, 0, 7))
        assert torch.equal(backbone(ragged)["patches"], backbone(padded)["patches"])


def test_loading_at_another_size_resamples_the_positions() -> None:
    trained, wider = small(), small(96)
    wider.trunk.load_state_dict(wider.adapt(trained.export_state()))
    with torch.no_grad():
        torch.testing.assert_close(
            wider(images(1, 96))["patches"], trained(images(1, 96))["patches"], rtol=1e-4, atol=1e-4
        )


def test_loading_weights_without_final_norm_drops_it() -> None:
    trained, fresh = small(), small()
    trained.drop_final_norm()
    assert "norm.weight" not in trained.export_state()
    fresh.trunk.load_state_dict(fresh.adapt(trained.export_state()))
    with torch.no_grad():
        assert torch.equal(fresh(images())["patches"], trained(images())["patches"])


def test_a_frozen_patch_embedding_takes_no_gradient() -> None:
    backbone = small()
    backbone.freeze_patch_embedding()
    backbone(images())["patches"].square().sum().backward()
    assert all(value.grad is None for value in backbone.trunk.patch_embed.parameters())
    assert backbone.trunk.cls_token.grad is not None


@pytest.mark.parametrize(
    ("arch", "size", "stem", "message"),
    [
        ("vit_tinny_patch16_224", 64, "auto", "did you mean vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", 100, "auto", "no multiple of the patch of 16"),
        ("vit_tiny_patch16_224", 64, "imagenet", "such as patch8"),
        ("test_vit2", 64, "auto", "no plain Vision Transformer"),
        ("resnet7", 64, "auto", "vit_tiny_patch16_224"),
    ],
)
def test_a_wrong_backbone_ends_in_a_next_step(arch: str, size: int, stem: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(arch, image_size=size, stem=stem)
