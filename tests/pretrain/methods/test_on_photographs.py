"""Methods that need no masks run on a plain flat folder, at 32 px, through the real loader."""

import pytest
import torch

from hapicl.common.errors import UserError
from hapicl.data.loading.loader import Loader, LoaderOptions
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain.config.settings import RunSettings
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.registry import method_class
from hapicl.pretrain.train import pretrain

CASES = [
    ("simclr", {}),
    ("moco_v2", {}),
    ("byol", {"hidden": 32}),
    ("densecl", {"warm_up_steps": 0}),
    ("densecl", {"matching": "geometry", "warm_up_steps": 0}),
    ("pirl", {}),
    ("pirl", {"transform": "rotation_jigsaw"}),
    ("npid", {}),
    ("jigsaw", {"permutations": 10, "hidden": 16}),
    ("rotation", {}),
]


@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_a_flat_folder_without_masks_is_enough(flat_folder, name, config):
    kind = method_class(name)
    settings = kind.Config(**config)
    backbone = build_backbone("resnet18", image_size=32)
    needs = kind.needs(settings, backbone, image_size=32)
    context = Context(data_set_size=12, batch_size=4, total_steps=10, steps_per_epoch=3)
    method = kind(settings, context, backbone)
    with Loader(flat_folder, None, needs, LoaderOptions(batch_size=4, seed=0, workers=0)) as loader:
        method.before_training(list(loader.paths))
        batch = next(iter(loader.batches(0)))
    output = method(batch)
    output.loss.backward()
    method.after_step(0, 10)
    assert torch.isfinite(output.loss)
    assert method.backbone.trunk.conv1.weight.grad.abs().max() > 0


def test_a_bank_is_not_resumed_on_another_folder(flat_folder, tmp_path):
    settings = {
        "method": "npid",
        "arch": "resnet18",
        "image_size": 32,
        "batch_size": 4,
        "steps": 4,
        "images": str(flat_folder),
        "out": str(tmp_path / "run"),
        "device": "cpu",
        "workers": 0,
    }
    pretrain(RunSettings(**settings, stop_after=2), show=False)
    (flat_folder / "image_03.png").rename(flat_folder / "renamed.png")
    with pytest.raises(UserError, match=r"image_03\.png.*renamed\.png"):
        pretrain(RunSettings(**settings, resume="auto"), show=False)
