"""Images of other channels than RGB, from TIFF files to weights that are continued, measured and exported."""

import json

import pytest
import safetensors.torch
import torch
import torchvision
from click.testing import CliRunner
from small_run import draw_images, write_box_masks
from small_tiffs import BANDS, draw_tiffs

from hapicl import cli
from hapicl.common.errors import UserError
from hapicl.data.images.inputs import Inputs
from hapicl.engine.checkpoint import load_checkpoint
from hapicl.engine.distributed import World
from hapicl.models.weights import load_backbone
from hapicl.pretrain.components import assemble
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.methods.registry import METHODS
from hapicl.pretrain.report.page import write_report
from hapicl.pretrain.train import pretrain

VIT_METHODS = {"siameseim", "mae", "hapicl_vit"}
CONFIGS = {
    "byol": {"hidden": 32},
    "harl": {"hidden": 32},
    "jigsaw": {"permutations": 10, "hidden": 16},
    "moco_v3": {"hidden": 64, "dim": 32},
    "hapicl_vit": {"hidden": 64, "dim": 32, "pixel_hidden": 64, "pixel_dim": 16},
    "mae": {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3},
    "siameseim": {"mask_pattern": "random"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("channels")
    draw_tiffs(root / "images")
    write_box_masks(root / "images", root / "masks.h5")
    torch.manual_seed(7)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), root / "rgb.pth")
    return root


def settings(folder, method="simclr", overrides=("band_range=0,10000",), **changes):
    vit = {"arch": "test_vit", "stem": "patch8"} if method in VIT_METHODS else {"arch": "resnet18"}
    options = {"method": method, "masks": str(folder / "masks.h5"), "in_channels": BANDS, **vit}
    options |= {"image_size": 32, "batch_size": 4, "workers": 0, "device": "cpu", "steps": 2}
    return resolve(options | {"config": CONFIGS.get(method, {})} | changes, overrides=overrides)[0]


def call(*words):
    """Exit code and output of a command, as `cli.main` gives them."""
    done = CliRunner().invoke(cli.command_line, [str(word) for word in words])
    if isinstance(done.exception, UserError):
        return 2, f"{done.output}error: {done.exception}"
    return done.exit_code, f"{done.output}{done.exception or ''}"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_on_five_channels(folder, method):
    components = assemble(settings(folder, method), World())
    with components.loader:
        batch = next(components.loader.batches(0))
    pixels = [*batch.views] if batch.patches is None else [*batch.views, batch.patches.flatten(0, 1)]
    assert {view.shape[1] for view in pixels} == {BANDS}
    components.method.before_training(list(components.loader.paths))
    components.method(batch).loss.backward()
    first = next(value for value in components.backbone.parameters() if value.ndim == 4)
    assert first.shape[1] == BANDS
    if first.requires_grad:  # SiameseIM keeps its patch embedding
        assert first.grad.abs().sum() > 0
    drawn = [view.photometric for view in components.needs.views]
    assert all(policy.saturation == policy.hue == policy.grey == 0 for policy in drawn)


def test_a_run_starts_from_rgb_weights_resumes_exactly_and_is_measured(folder, tmp_path):
    def asked(out, **changes):
        fixed = {"weights": str(folder / "rgb.pth"), "out": str(tmp_path / out), "steps": 4}
        return settings(folder, "hapicl_s", **(fixed | changes))

    pretrain(asked("whole"), show=False)
    pretrain(asked("parts", stop_after=2), show=False)
    pretrain(asked("parts", resume="auto"), show=False)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt")["module"] for name in ("whole", "parts"))
    assert [name for name, value in whole.items() if not torch.equal(value, parts[name])] == []
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["switched_off"] == ["grey", "hue", "saturation"]
    assert config["weights"]["fraction"] == 1.0
    assert len(config["settings"]["mean"]) == BANDS
    assert (
        "channels: grey, hue, saturation of the augmentation assume RGB and are off"
        in (tmp_path / "whole" / "train.log").read_text()
    )
    backbone, info = load_backbone(str(tmp_path / "whole"))
    assert (info.fraction, backbone.inputs.band_range) == (1.0, ((0, 10_000),))
    assert backbone.inputs.mean == tuple(config["settings"]["mean"])
    found, notes = resolve(
        {"masks": str(folder / "masks.h5"), "weights": str(tmp_path / "whole"), "image_size": 32}
    )
    assert found.inputs == backbone.inputs
    assert any("in_channels 5" in note for note in notes)
    write_report([str(tmp_path / "whole")], str(tmp_path / "report.html"))
    assert "features of random weights" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_statistics_are_those_of_the_images_and_unused_levels_are_said(folder, caplog):
    components = assemble(settings(folder, overrides=()), World())
    components.loader.close()
    assert "of the 256 levels that are kept of 0 to 65535 are used; --set band_range=0,4" in caplog.text
    scaled = assemble(settings(folder), World())
    with scaled.loader:
        every = [
            torch.from_numpy(scaled.loader.inputs.decode(path.read_bytes(), path.name)).flatten(0, 1) / 255
            for path in sorted((folder / "images").iterdir())
        ]
    mean = torch.stack([pixels.mean(0) for pixels in every]).mean(0)
    square = torch.stack([pixels.square().mean(0) for pixels in every]).mean(0)
    torch.testing.assert_close(torch.tensor(scaled.loader.inputs.mean), mean, atol=1e-5, rtol=1e-4)
    found = torch.tensor(scaled.loader.inputs.std)
    torch.testing.assert_close(found, (square - mean**2).sqrt(), atol=1e-5, rtol=1e-4)
    assert scaled.backbone.inputs.mean == scaled.settings.mean == scaled.loader.inputs.mean
    stated = settings(folder, mean=[0.5] * BANDS, std=[0.25] * BANDS)
    components = assemble(stated, World())
    components.loader.close()
    assert components.loader.inputs.mean == (0.5,) * BANDS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_channels": 4}, "5 bands, and in_channels=4 wants as many; choose some by bands"),
        ({"bands": "1,2,3,4,9"}, "5 bands, and bands asks for number 9"),
    ],
)
def test_other_bands_than_the_files_have_are_refused(folder, wrong, message):
    with pytest.raises(UserError, match=message):
        assemble(settings(folder, overrides=(), **wrong), World())


def test_files_of_many_bands_read_as_photographs_say_how_to_read_them(folder):
    components = assemble(settings(folder, overrides=(), in_channels=3), World())
    with components.loader, pytest.raises(UserError, match="no photograph; `pretrain --set in_channels=N`"):
        next(components.loader.batches(0))


def test_weights_of_other_channels_are_refused_unless_they_are_rgb(folder, tmp_path):
    pretrain(settings(folder, steps=1, out=str(tmp_path / "five")), show=False)
    weights = str(tmp_path / "five")
    with pytest.raises(UserError, match=r"of images of 5 channels, and in_channels is 4; only weights of 3"):
        assemble(settings(folder, weights=weights, in_channels=4, bands="1,2,3,4"), World())
    draw_images(tmp_path / "photos")
    rgb = {"weights": weights, "in_channels": 3, "band_range": None, "masks": None}
    with pytest.raises(UserError, match="of images of 5 channels, and in_channels is 3"):
        assemble(settings(folder, overrides=(), images=str(tmp_path / "photos"), **rgb), World())


def test_masks_are_built_of_three_bands_and_shown(folder, tmp_path):
    masks, where = tmp_path / "masks.h5", ("--images", folder / "images")
    code, output = call(
        "masks", "build", *where, "--out", tmp_path / "no.h5", "--workers", 1, "--recipe", "fast"
    )
    assert "no photograph" in output
    bands = ("--bands", "5,2,1", "--band-range", "0,10000", "--recipe", "fast", "--workers", 1)
    code, output = call("masks", "build", *where, "--out", masks, *bands)
    assert (code, "no photograph" in output) == (0, False), output
    assert call("masks", "show", masks, "--out", tmp_path / "sheet.png", "--sample", 2)[0] == 0
    assert call("masks", "info", masks)[1].count("bands=[5, 2, 1]") == 1
    code, output = call("masks", "build", *where, "--out", masks, "--recipe", "fast", "--workers", 1)
    assert code == 2
    code, output = call("masks", "refine", *where, "--masks", masks, "--out", tmp_path / "refined.h5")
    assert (code, "masks refine is of photographs" in output) == (2, True)
    wrong = call("masks", "build", *where, "--out", tmp_path / "no2.h5", "--bands", "1,2")
    assert (wrong[0], "masks are made of three bands, not 2" in wrong[1]) == (2, True)


def test_images_packed_give_the_batches_of_the_folder(folder, tmp_path):
    from hapicl.data.images.pack_build import pack_images

    pack_images(folder / "images", tmp_path / "images.h5", workers=1)
    batches = []
    for images in (folder / "images", tmp_path / "images.h5"):
        components = assemble(settings(folder, images=str(images)), World())
        with components.loader:
            batches.append(next(components.loader.batches(0)))
    assert torch.equal(batches[0].views[0], batches[1].views[0])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of one step."""
    run = tmp_path_factory.mktemp("runs") / "run"
    pretrain(settings(folder, steps=1, out=str(run)), show=False)
    return run


@pytest.fixture
def labelled(folder, tmp_path):
    """The images in folders of two classes."""
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        (tmp_path / "classes" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / str(number % 2) / path.name).symlink_to(path)
    return tmp_path / "classes"


def test_exports_tell_their_channels(trained, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("backbone.safetensors", "config.json"):
        (tmp_path / "run" / name).write_bytes((trained / name).read_bytes())
    file = tmp_path / "run" / "backbone.safetensors"
    with safetensors.safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    assert (about["in_channels"], about["band_range"]) == ("5", "[[0.0, 10000.0]]")
    (tmp_path / "alone").mkdir()
    moved = file.rename(tmp_path / "alone" / "w.safetensors")
    backbone, _ = load_backbone(str(moved))
    assert isinstance(backbone.inputs, Inputs)
    assert backbone(torch.zeros(1, BANDS, 32, 32))["layer4"].shape[0] == 1


def test_weights_of_five_channels_are_measured_by_what_reads_their_images(trained, labelled, tmp_path):
    where = ("--train", labelled, "--test", labelled, "--image-size", 32, "--no-report")
    for number, words in enumerate(
        [
            ("knn", trained, "--set", "k=3"),
            ("knn", "random", "--like", trained, "--set", "k=3"),
            ("linear", trained, "--set", "epochs=1", "--set", "batch_size=4"),
            ("semi", trained, "--fraction", 0.5, "--set", "epochs=1", "--set", "batch_size=4"),
        ]
    ):
        code, output = call("evaluate", *words, *where, "--out", tmp_path / f"{number}.json")
        assert (code, "top1" in output) == (0, True), output
    photographs = draw_images(tmp_path / "photos", 2)
    words = ("show-matches", trained, next(photographs.iterdir()), "--out", tmp_path / "x.png")
    code, output = call(*words, "--image-size", 32)
    assert (code, "show-matches reads photographs, and these weights take 5" in output) == (2, True), output


def test_timm_takes_an_export_and_libraries_of_rgb_do_not(trained, tmp_path):
    code, output = call("export", trained, "--to", "timm", "--out", tmp_path / "w")
    assert (code, "in_chans=5" in output) == (0, True), output
    for target in ("torchvision", "detectron2"):
        code, output = call("export", trained, "--to", target, "--out", tmp_path / "no")
        assert (code, "take 3 channels, and these weights 5; use --to timm or safet" in output) == (2, True)
