"""Refinement: what is learned from first masks, how it ends, and that interruptions change nothing."""

import contextlib
import os
import shutil
import signal

import cv2
import numpy as np
import pytest
import torch

from hapicl.common.errors import UserError
from hapicl.common.iou import iou
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import pack_mask, write_masks
from hapicl.maskgen.building import build as build_module
from hapicl.maskgen.building.build import BuildInterrupted, build_rows
from hapicl.maskgen.building.merge import describe
from hapicl.maskgen.building.pool import Runner
from hapicl.maskgen.building.settings import BuildSettings
from hapicl.maskgen.building.worker import make_rows
from hapicl.maskgen.inspection.score import score_masks
from hapicl.maskgen.refinement import refine as refine_module
from hapicl.maskgen.refinement import training
from hapicl.maskgen.refinement.prediction import NetworkRows, open_network
from hapicl.maskgen.refinement.refine import network_path, refine_masks
from hapicl.maskgen.refinement.settings import RefineSettings
from hapicl.models.backbones.build import build_backbone
from hapicl.models.write_weights import write_safetensors

SMALL = RefineSettings(
    rounds=1, image_size=32, width=4, epochs=1, least_steps=160, batch_size=8, base_lr=0.1, precision="fp32"
)


def scene(seed):
    """A red disc somewhere on green noise, and its truth."""
    generator = np.random.default_rng(seed)
    image = generator.normal((90, 130, 70), 12, (60, 80, 3))
    centre = int(generator.integers(25, 55)), int(generator.integers(20, 40))
    truth = cv2.circle(np.zeros((60, 80), np.uint8), centre, 14, 1, -1) > 0
    image[truth] = generator.normal((190, 70, 60), 12, (int(truth.sum()), 3))
    return np.clip(image, 0, 255).astype(np.uint8), truth


@pytest.fixture(scope="module")
def scenes():
    return {f"{number:02}.png": scene(number) for number in range(24)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes):
    root = tmp_path_factory.mktemp("scenes") / "images"
    root.mkdir()
    for name, (image, _) in scenes.items():
        cv2.imwrite(str(root / name), image[:, :, ::-1])
    return root


@pytest.fixture(scope="module")
def first(folder, scenes):
    """First masks, of which two are wrong and not sure of themselves."""
    rows = []
    for name, (_, truth) in scenes.items():
        wrong = name in ("03.png", "07.png")
        rows.append(
            pack_mask(name, ~truth if wrong else truth, truth.shape, confidence=0.1 if wrong else 0.9)
        )
    out = folder.parent / "first.h5"
    write_masks(out, rows, describe({"name": "made up"}, str(folder)))
    return out


class HereRunner(Runner):
    """Runs tasks in this process."""

    def _stream(self, tasks, under_way):
        for task in tasks:
            under_way[task] = None
            yield make_rows(self.images, task, self.maker)


@contextlib.contextmanager
def no_bar(title):
    """Show no progress."""
    yield lambda done, total, failures: None


def refined(folder, first, out, settings=SMALL, **options):
    """Refine in this process, on one thread."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "Runner", HereRunner)
        torch.set_num_threads(1)
        try:
            return refine_masks(folder, first, out, settings, device="cpu", bar=no_bar, show=False, **options)
        finally:
            torch.set_num_threads(threads)


def masks_digest(path):
    attributes = MaskReader(path).attributes
    return attributes["content_digest"], attributes["blob_digest"]


@pytest.fixture(scope="module")
def learned(folder, first, tmp_path_factory):
    """A refinement that is done; made once, since it is only looked at."""
    out = tmp_path_factory.mktemp("learned") / "refined.h5"
    said = []
    summary = refined(folder, first, out, say=said.append)
    return out, summary, said


def test_what_most_first_masks_agree_on_mends_the_others(learned, scenes):
    out, _, _ = learned
    reader = MaskReader(out)
    for name in ("03.png", "07.png"):
        assert iou(reader[name], scenes[name][1]) > 0.8
    assert np.mean([iou(reader[name], truth) for name, (_, truth) in scenes.items()]) > 0.9


def test_the_file_says_what_it_came_from_and_leaves_only_its_network(learned, first):
    out, summary, said = learned
    recipe = MaskReader(out).recipe
    file = open_network(network_path(out))
    assert recipe["name"] == "refined"
    assert recipe["network"] == file.digest
    assert recipe["trained"]["first_masks"] == MaskReader(first).content_digest
    assert recipe["trained"]["settings"] == SMALL.as_dict()
    assert sorted(path.name for path in out.parent.iterdir()) == ["refined.h5", "refined.network.safetensors"]
    assert summary.network == network_path(out)
    assert any("held out" in sentence for sentence in said)


def test_the_same_command_again_finds_all_done(learned, folder, first):
    out, _, _ = learned
    before = masks_digest(out)
    assert refined(folder, first, out).build.already_finished
    assert masks_digest(out) == before


def test_other_settings_or_first_masks_do_not_take_an_old_network(learned, folder, first):
    out, _, _ = learned
    with pytest.raises(UserError, match="other first masks or with other settings"):
        refined(folder, first, out, SMALL.replace(width=8))


def test_a_network_applied_by_a_build_gives_the_same_masks(learned, folder, tmp_path, monkeypatch):
    out, _, _ = learned
    monkeypatch.setattr(build_module, "Runner", HereRunner)
    torch.set_num_threads(2)  # sums come out otherwise on two threads; masks are made on one wherever that is
    build_rows(folder, tmp_path / "again.h5", NetworkRows(open_network(network_path(out))))
    assert masks_digest(tmp_path / "again.h5") == masks_digest(out)


@pytest.mark.slow  # starts worker processes
def test_two_workers_make_the_same_masks(learned, folder, tmp_path):
    out, _, _ = learned
    maker = NetworkRows(open_network(network_path(out)))
    build_rows(folder, tmp_path / "two.h5", maker, BuildSettings(workers=2))
    assert masks_digest(tmp_path / "two.h5") == masks_digest(out)


def test_a_killed_training_goes_on_to_the_same_bytes(learned, folder, first, tmp_path, monkeypatch):
    out, _, _ = learned

    class Killed(BaseException):
        pass

    own = training.Learner.after_step

    def dies(learner, step, total):
        if step == 37:
            raise Killed
        return own(learner, step, total)

    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 20)
    monkeypatch.setattr(training.Learner, "after_step", dies)
    with pytest.raises(Killed):
        refined(folder, first, tmp_path / "refined.h5")
    monkeypatch.setattr(training.Learner, "after_step", own)
    refined(folder, first, tmp_path / "refined.h5")
    assert masks_digest(tmp_path / "refined.h5") == masks_digest(out)


def test_a_signal_ends_training_with_a_checkpoint_and_says_how_to_go_on(
    learned, folder, first, tmp_path, monkeypatch
):
    out, _, _ = learned
    own = training.Learner.after_step

    def stops(learner, step, total):
        if step == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(learner, step, total)

    monkeypatch.setattr(training.Learner, "after_step", stops)
    with pytest.raises(BuildInterrupted, match="after step 12 of round 1; run the same command") as stopped:
        refined(folder, first, tmp_path / "refined.h5")
    assert stopped.value.number == signal.SIGTERM
    monkeypatch.setattr(training.Learner, "after_step", own)
    refined(folder, first, tmp_path / "refined.h5")
    assert masks_digest(tmp_path / "refined.h5") == masks_digest(out)


def test_a_damaged_checkpoint_is_named(folder, first, tmp_path):
    place = tmp_path / "refined.h5.learning" / "round-1"
    place.mkdir(parents=True)
    (place / "last.pt").write_bytes(b"PK no checkpoint")
    with pytest.raises(UserError, match="is damaged"):
        refined(folder, first, tmp_path / "refined.h5")


def test_two_rounds_learn_from_the_masks_of_the_first(folder, first, tmp_path):
    said = []
    settings = SMALL.replace(rounds=2)
    summary = refined(folder, first, tmp_path / "refined.h5", settings, say=said.append)
    assert [sentence.split(":")[0] for sentence in said[:3]] == ["round 1 of 2", "round 1", "round 2 of 2"]
    trained = MaskReader(tmp_path / "refined.h5").recipe["trained"]
    assert trained["rounds_done"] == 2
    assert trained["steps"] == 2 * SMALL.least_steps  # its masks are better, so it may learn them for longer
    held_out = int(said[1].split(" images that were held out")[0].split()[-1])
    assert trained["agreement"]["images"] == held_out > 0  # judged before they were learned from
    learned_from = [int(said[place].split()[-2]) for place in (0, 2)]
    assert learned_from == [len(MaskReader(first).paths) - held_out, len(MaskReader(first).paths)]
    assert summary.kept_because == ""


@pytest.mark.parametrize(("epochs", "goes_on"), [(120, True), (1, False)])
def test_a_later_round_of_many_images_goes_on_from_the_network_before(
    folder, first, tmp_path, monkeypatch, epochs, goes_on
):
    starts, ends = [], []

    def watched(*args, start, **options):
        starts.append({name: values.clone() for name, values in start.state_dict().items()})
        network, result = training.train_round(*args, start=start, **options)
        ends.append({name: values.clone() for name, values in network.state_dict().items()})
        return network, result

    monkeypatch.setattr(refine_module, "train_round", watched)
    settings = SMALL.replace(rounds=2, epochs=epochs)  # the second round has 3 steps an epoch, at least 320
    refined(folder, first, tmp_path / "refined.h5", settings)
    assert len(starts) == 2
    assert all(torch.equal(starts[1][name], ends[0][name]) for name in starts[1]) == goes_on
    assert not torch.equal(starts[0]["head.weight"], starts[1]["head.weight"])


def test_masks_that_follow_no_rule_are_kept_and_that_is_said(folder, scenes, tmp_path):
    generator = np.random.default_rng(5)
    rows = []
    for name in scenes:
        mask = np.zeros((60, 80), bool)
        top, left = generator.integers(0, 30), generator.integers(0, 40)
        mask[top : top + 30, left : left + 40] = True
        rows.append(pack_mask(name, mask, (60, 80), confidence=0.5))
    write_masks(tmp_path / "first.h5", rows, describe({"name": "no rule"}, str(folder)))
    summary = refined(folder, tmp_path / "first.h5", tmp_path / "refined.h5")
    assert "has not learned" in summary.kept_because
    assert summary.network is None
    reader = MaskReader(tmp_path / "refined.h5")
    assert masks_digest(tmp_path / "refined.h5") == masks_digest(tmp_path / "first.h5")
    assert reader.attributes["kept_first_masks"] == summary.kept_because
    assert not network_path(tmp_path / "refined.h5").exists()


def test_a_file_that_is_there_is_not_written_over(folder, first, tmp_path):
    shutil.copy(first, tmp_path / "refined.h5")
    with pytest.raises(UserError, match="is not of this refinement"):
        refined(folder, first, tmp_path / "refined.h5")
    assert masks_digest(tmp_path / "refined.h5") == masks_digest(first)


def test_a_folder_of_other_images_is_refused(first, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="only 0 of 24 images can be read"):
        refined(tmp_path / "images", first, tmp_path / "refined.h5")


def test_a_missing_encoder_is_refused_before_the_work(folder, first, tmp_path):
    with pytest.raises(UserError, match="no weight file"):
        refined(folder, first, tmp_path / "refined.h5", SMALL.replace(encoder=str(tmp_path / "none.pt")))


@pytest.mark.parametrize("arch", ["timm:test_resnet", "test_vit"])
def test_the_loop_takes_its_encoder_from_a_run_folder(folder, first, tmp_path, arch):
    run = tmp_path / "run"
    run.mkdir()
    backbone = build_backbone(arch, image_size=32, stem="patch8" if arch == "test_vit" else "auto")
    about = {"arch": arch, "stem": backbone.stem, "image_size": "32"}
    write_safetensors(backbone.export_state(), run / "backbone.safetensors", about)
    settings = SMALL.replace(encoder=str(run), least_steps=12)
    summary = refined(folder, first, tmp_path / "refined.h5", settings)
    (run / "backbone.safetensors").rename(tmp_path / "moved.safetensors")
    again = refined(  # the file elsewhere is the same encoder, so this is the same refinement
        folder,
        first,
        tmp_path / "refined.h5",
        settings.replace(encoder=str(tmp_path / "moved.safetensors")),
    )
    assert again.build.already_finished
    assert again.build.images == summary.build.images == 24


def test_too_few_masks_are_kept(folder, scenes, tmp_path):
    rows = [pack_mask(name, truth, truth.shape) for name, (_, truth) in list(scenes.items())[:9]]
    write_masks(tmp_path / "first.h5", rows, describe({"name": "few"}, str(folder)))
    summary = refined(folder, tmp_path / "first.h5", tmp_path / "refined.h5")
    assert "9 usable masks are too few" in summary.kept_because
    again = refined(folder, tmp_path / "first.h5", tmp_path / "refined.h5")
    assert again.build.already_finished
    assert again.kept_because == summary.kept_because


def test_saliency_of_refined_masks_is_scored_with_their_network(learned, folder, scenes, tmp_path):
    out, _, _ = learned
    for name, (_, truth) in scenes.items():
        cv2.imwrite(str(tmp_path / name), truth.astype(np.uint8) * 255)
    with pytest.raises(UserError, match="add --network FILE"):
        score_masks(out, tmp_path, images=folder)
    with pytest.raises(UserError, match="is no network"):
        score_masks(out, tmp_path, images=folder, network=out)
    assert score_masks(out, tmp_path, images=folder, network=network_path(out)).mean["s_measure"] > 0.8


def test_the_first_file_is_never_written_over(folder, first):
    with pytest.raises(UserError, match="choose another name"):
        refined(folder, first, first)
