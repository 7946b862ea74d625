"""The dry run of every method at every size of batch, and of every recipe as it stands."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from hapicl.common.errors import UserError
from hapicl.data.masks.writer import pack_mask, write_masks
from hapicl.engine.batchnorm import SplitBatchNorm
from hapicl.models.weights import WeightsInfo
from hapicl.pretrain import components
from hapicl.pretrain.config.recipe_files import load_recipe, recipe_names
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.diagnose import dry_run
from hapicl.pretrain.methods.registry import METHODS

IMAGES = 4096  # as many as the largest batch of a recipe
# what makes a method small enough for its sizes not to matter here
TINY = {"jigsaw": ["config.permutations=20"], "mae": ["config.decoder_depth=1"]}
ONE_VIEW = {"npid", "rotation", "jigsaw", "mae"}
VIT_METHODS = {"siameseim", "mae", "moco_v3", "hapicl_vit"}


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """A mask file of many images, which are one image under many names."""
    root = tmp_path_factory.mktemp("many")
    picture = root / "0000.png"
    Image.fromarray(np.full((16, 16, 3), 120, np.uint8)).save(picture)
    for number in range(1, IMAGES):
        os.link(picture, root / f"{number:04d}.png")
    mask = np.eye(16, dtype=bool)
    rows = [pack_mask(f"{number:04d}.png", mask, (16, 16), confidence=0.9) for number in range(IMAGES)]
    out = tmp_path_factory.mktemp("masks") / "masks.h5"
    write_masks(out, rows, {"image_root": str(root), "recipe": {"name": "diagonal"}})
    return str(out)


@pytest.mark.parametrize("batch_size", [8, 96, 1024])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_probe_of_two_images_did_not_split_into_batch_norm_groups(masks, method, batch_size):
    vit = method in VIT_METHODS
    arch, side = ("test_vit", 96) if vit else ("resnet18", 32)
    options = {"method": method, "masks": masks, "arch": arch, "image_size": side, "batch_size": batch_size}
    options |= {"device": "cpu", "workers": 0, "steps": 2}
    overrides = [*TINY.get(method, []), "stem=patch16" if vit else "stem=stride1"]
    settings, _ = resolve(options, recipe=f"{method}_small", overrides=overrides)
    report = dry_run.dry_run_report(settings)
    assert f"views per step: {(1 if method in ONE_VIEW else 2) * batch_size}" in report
    assert "estimated memory per process" in report


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_as_it_stands_passes_its_dry_run(masks, monkeypatch, name):
    # the probe's forward pass is of the test above; here, at full size, it would take minutes, and so would
    # weights
    monkeypatch.setattr(dry_run, "activation_bytes", lambda backbone, size: 0)
    # nor is anything downloaded
    info = {"kind": "file", "stem": "", "sha256": "0", "matched": 1, "total": 1}
    monkeypatch.setattr(
        components, "fill_backbone", lambda _, spec, arch: WeightsInfo(spec=spec, arch=arch, **info)
    )
    options = {"masks": masks, "device": "cpu", "workers": 0}
    if name.endswith("_continue"):
        with pytest.raises(UserError, match=f"recipe {name}: there are no weights to start from"):
            resolve(options, recipe=name)
        options |= {"weights": "torchvision:resnet50", "arch": load_recipe(name)["arch"]}
    settings, notes = resolve(options, recipe=name)
    assert not [note for note in notes if "no effect" in note]
    with torch.device("meta"):
        report = dry_run.dry_run_report(settings)
    assert f'"method": "{load_recipe(name)["method"]}"' in report


def test_the_probe_leaves_the_groups_and_the_statistics_as_they_were(masks):
    options = {
        "masks": masks,
        "arch": "resnet18",
        "image_size": 32,
        "device": "cpu",
        "workers": 0,
        "steps": 2,
    }
    settings, _ = resolve(options | {"batch_size": 128}, recipe="moco_v2_small")
    with dry_run.processes("cpu") as world, dry_run.assemble(settings, world).loader:
        assembled = dry_run.assemble(settings, world)
        norm = assembled.backbone.trunk.bn1
        assert dry_run.activation_bytes(assembled.backbone, 32) > 0
        assert isinstance(norm, SplitBatchNorm)
        assert norm.groups == 4
        assert torch.equal(norm.running_mean, torch.zeros(64))
