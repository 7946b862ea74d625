"""`--weights`: every method continues a file, slow copies start as equals, a resume is exact."""

import json

import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from small_run import draw_images, write_box_masks

from hapicl import cli
from hapicl.common.errors import UserError
from hapicl.engine.checkpoint import load_checkpoint
from hapicl.engine.distributed import World
from hapicl.pretrain.components import assemble
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.methods.registry import METHODS
from hapicl.pretrain.train import pretrain

VIT_METHODS = {"siameseim", "mae", "hapicl_vit"}
SMALL = {"image_size": 32, "batch_size": 4, "workers": 0, "device": "cpu", "steps": 3}
WIDTHS = {
    "byol": {"hidden": 32},
    "densecl": {"warm_up_steps": 0},
    "harl": {"hidden": 32},
    "jigsaw": {"permutations": 10, "hidden": 16},
    "moco_v3": {"hidden": 64, "dim": 32},
    "hapicl_vit": {"hidden": 64, "dim": 32, "pixel_hidden": 64, "pixel_dim": 16},
    "siameseim": {"mask_pattern": "random"},
    "mae": {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, their masks, and two weight files as torchvision and timm save them."""
    root = tmp_path_factory.mktemp("start")
    draw_images(root / "images")
    write_box_masks(root / "images", root / "masks.h5")
    torch.manual_seed(7)
    model = torchvision.models.resnet18(weights=None)
    for statistics in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        statistics.running_mean.uniform_(-0.1, 0.1)
    torch.save(model.state_dict(), root / "resnet18.pth")
    torch.save(timm.create_model("test_vit").state_dict(), root / "test_vit.pth")
    return root


def settings(folder, name="simclr", **changes):
    vit = name in VIT_METHODS
    file = folder / ("test_vit.pth" if vit else "resnet18.pth")
    options = {"method": name, "masks": str(folder / "masks.h5"), "weights": str(file), **SMALL}
    options |= {"arch": "test_vit", "stem": "patch8"} if vit else {}
    return resolve(options | {"config": WIDTHS.get(name, {})} | changes)[0]


def without_fc(file):
    return {
        name: value
        for name, value in torch.load(file, weights_only=True).items()
        if not name.startswith(("fc.", "head.")) and "num_batches" not in name
    }


@pytest.mark.parametrize("steps", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_saved_network_is_continued_by_every_method(folder, tmp_path, name, steps):
    asked = settings(folder, name, out=str(tmp_path / "run"), steps=steps)
    components = assemble(asked, World())
    with components.loader:
        check_start(components, folder)
    assert pretrain(asked, show=False).step == steps
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["weights"]["fraction"] == 1.0
    assert len(config["weights"]["sha256"]) == 64
    log = (tmp_path / "run" / "train.log").read_text()
    assert "matched (100.0%)" in log


def check_start(components, folder):
    """The backbone holds the file, and whatever copies it holds the same."""
    own = components.backbone.export_state()
    if components.settings.arch == "resnet18":
        for name, value in without_fc(folder / "resnet18.pth").items():
            assert torch.equal(own[name], value), name
    else:
        stored = torch.load(folder / "test_vit.pth", weights_only=True)
        assert torch.equal(own["blocks.1.mlp.fc1.weight"], stored["blocks.1.mlp.fc1.weight"])
    for copied in (getattr(components.method, name, None) for name in ("key_backbone", "target_backbone")):
        if copied is not None:
            for name, value in copied.export_state().items():
                assert torch.equal(value, own[name]), name


def test_the_features_of_the_first_step_are_the_files(folder):
    components = assemble(settings(folder, stem="imagenet"), World())
    model = torchvision.models.resnet18(weights=None)
    model.load_state_dict(torch.load(folder / "resnet18.pth", weights_only=True))
    model.fc = torch.nn.Identity()
    with components.loader, torch.no_grad():
        images = next(components.loader.batches(0)).views[0]
        ours = components.backbone.eval()(images)["layer4"].mean((2, 3))
        torch.testing.assert_close(ours, model.eval()(images), rtol=1e-5, atol=1e-6)


def test_heads_start_as_those_of_a_run_from_random_weights(folder):
    states = []
    for weights in (None, str(folder / "resnet18.pth")):
        components = assemble(settings(folder, weights=weights), World())
        with components.loader:
            states.append(components.method.head.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


@pytest.mark.parametrize(("name", "places"), [("byol", ("bn2",)), ("moco_v3", ("bn2",))])
def test_residual_blocks_of_a_file_were_set_to_the_identity(folder, name, places):
    components = assemble(settings(folder, name), World())
    with components.loader:
        state = components.backbone.export_state()
    assert all(state[f"layer1.0.{place}.weight"].abs().min() > 0 for place in places)


def test_a_continued_run_resumes_exactly_and_checks_the_file(folder, tmp_path):
    weights = tmp_path / "w.pth"
    weights.write_bytes((folder / "resnet18.pth").read_bytes())

    def asked(out, **changes):
        fixed = {"weights": str(weights), "out": str(tmp_path / out), "steps": 4}
        return settings(folder, "moco_v2", **(fixed | changes))

    pretrain(asked("whole"), show=False)
    pretrain(asked("parts", stop_after=2), show=False)
    moved = tmp_path / "moved.pth"
    weights.rename(moved)
    resumed, _ = resolve({"resume": str(tmp_path / "parts"), "weights": str(moved)})
    pretrain(resumed.replace(workers=0, device="cpu"), show=False)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt")["module"] for name in ("whole", "parts"))
    assert [name for name, value in whole.items() if not torch.equal(value, parts[name])] == []

    pretrain(asked("other", stop_after=1, weights=str(moved)), show=False)
    state = torch.load(moved, weights_only=True)
    torch.save({**state, "conv1.weight": state["conv1.weight"] * 2}, weights)
    with pytest.raises(UserError, match=r"another training: it started from .*moved\.pth \(sha256 .*w\.pth"):
        pretrain(asked("other", resume="auto"), show=False)
    with pytest.raises(UserError, match=r"started from .*, and is given random weights"):
        pretrain(asked("other", resume="auto", weights=None), show=False)


def test_the_weights_name_their_backbone_and_stem(folder, tmp_path):
    masks = str(folder / "masks.h5")
    found, notes = resolve({"masks": masks, "weights": "torchvision:resnet34", "image_size": 64})
    assert (found.arch, found.stem) == ("resnet34", "auto")
    assert "arch resnet34, as the weights say" in notes
    pretrain(settings(folder, stem="imagenet", out=str(tmp_path / "first"), steps=1), show=False)
    first = {"masks": masks, "weights": str(tmp_path / "first")}
    found, notes = resolve(first | {"image_size": 128})
    assert (found.arch, found.stem) == ("resnet18", "imagenet")
    assert "arch resnet18, stem imagenet, as the weights say" in notes
    with pytest.raises(UserError, match=r"stem imagenet\) gives 2 x 2 .*or --set stem=auto"):
        resolve(first | {"image_size": 64})
    assert resolve(first | {"image_size": 64}, overrides=["stem=auto"])[0].stem == "auto"
    # what the user states wins, and does not match
    stated = {"masks": masks, "weights": str(folder / "resnet18.pth"), "arch": "resnet50"}
    with pytest.raises(UserError, match="of resnet50 matched"):
        pretrain(resolve(stated | {"out": str(tmp_path / "no"), **SMALL})[0], show=False)
    assert not (tmp_path / "no").exists()


def test_the_command_takes_weights_and_says_what_matched(folder):
    words = ["pretrain", "--masks", str(folder / "masks.h5"), "--method", "simclr", "--image-size", "32"]
    words += ["--weights", str(folder / "resnet18.pth"), "--dry-run", "--workers", "0", "--device", "cpu"]
    done = CliRunner().invoke(cli.command_line, [*words, "--batch-size", "4"])
    assert done.exit_code == 0, done.output
    assert '"matched": 100' in done.output
    done = CliRunner().invoke(cli.command_line, [*words[:8], "nothing.pth"])
    assert "no weight file nothing.pth" in str(done.exception)  # cli.main says it, with exit code 2
