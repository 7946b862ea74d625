import dataclasses
import logging
import multiprocessing
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from hapicl.common.errors import UserError
from hapicl.data.images.decode import image_size
from hapicl.data.images.folder import find_images
from hapicl.data.loading import stream, views, worker
from hapicl.data.loading.batch import NO_PHOTOMETRIC, JigsawPolicy, Needs, PhotometricPolicy, ViewPolicy
from hapicl.data.loading.loader import Loader, LoaderOptions, default_workers
from hapicl.data.loading.photometric import SIGMA
from hapicl.data.loading.worker import ChunkMaker
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import MaskRow, pack_mask, write_masks
from hapicl.pretrain.methods.registry import method_class

POLICY = ViewPolicy(size=32, photometric=PhotometricPolicy(solarize=0.2, pirl_extra=0.3))
PLAIN = Needs(views=(POLICY, POLICY))
MASKED = Needs(views=(POLICY, POLICY), grid=4)
FULL = Needs(
    views=(POLICY, ViewPolicy(size=24)), grid=4, jigsaw=JigsawPolicy(size=27, patch=7, scale=(0.6, 1.0))
)


def _mask_file(folder, out, *, leave_out=0, rows=None):
    """A mask file of a block in the middle of each image, without the last few images."""
    made = []
    paths = find_images(folder)
    for path in paths[: len(paths) - leave_out]:
        height, width = image_size(folder / path)
        mask = np.zeros((height, width), np.bool_)
        mask[height // 4 : -height // 4, width // 4 : -width // 4] = True
        made.append((rows or {}).get(path) or pack_mask(path, mask, (height, width), confidence=0.9))
    write_masks(out, made, {"recipe": {"name": "made by hand"}, "image_root": str(folder)})
    return out


@pytest.fixture
def masked_folder(flat_folder, tmp_path):
    """A folder of 12 images and its mask file."""
    return flat_folder, _mask_file(flat_folder, tmp_path / "masks.h5")


def _tensors(batch):
    found = []
    batch.map_tensors(lambda tensor: found.append(tensor.clone()) or tensor)
    return found


def _same(first, second):
    return all(torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(second), strict=True))


def _run(folder, masks, needs=FULL, *, epochs=2, first=(0, 0), **settings):
    """All batches from a first one on, by (epoch, step)."""
    settings = {"batch_size": 4, "seed": 7, "workers": 0, **settings}
    with Loader(folder, masks, needs, LoaderOptions(**settings)) as loader:
        return {
            (epoch, batch.step): batch
            for epoch in range(first[0], epochs)
            for batch in loader.batches(epoch, first[1] if epoch == first[0] else 0)
        }


def test_a_batch_holds_what_the_method_needs_and_nothing_else(masked_folder):
    batch = _run(*masked_folder)[0, 0]
    assert [tuple(view.shape) for view in batch.views] == [(4, 3, 32, 32), (4, 3, 24, 24)]
    assert all(view.dtype == torch.float32 for view in batch.views)
    assert [tuple(cells.shape) for cells in batch.occupancy] == [(4, 4, 4)] * 2
    assert batch.has_mask.all()
    assert batch.fallback.shape == (4, 2)
    assert batch.patches.shape == (4, 9, 3, 7, 7)
    assert batch.patches.dtype == torch.float32
    assert batch.permutation.shape == (4, 9)
    assert batch.geometry[0].top.shape == (4,)
    plain = _run(*masked_folder, PLAIN)[0, 0]
    assert plain.occupancy == ()
    assert plain.has_mask is None
    assert plain.patches is None


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(masked_folder):
    batches = _run(*masked_folder, PLAIN)
    orders = [torch.cat([batches[epoch, step].index for step in range(3)]).tolist() for epoch in range(2)]
    assert [sorted(order) for order in orders] == [list(range(12))] * 2
    assert orders[0] != orders[1]
    assert not _same(batches[0, 0], batches[1, 0])


def test_the_last_incomplete_batch_is_dropped(flat_folder):
    loader = Loader(flat_folder, None, PLAIN, LoaderOptions(batch_size=5, seed=0, workers=0))
    assert loader.steps_per_epoch == 2
    assert [len(batch) for batch in loader.batches(0)] == [5, 5]
    assert len(loader.paths) == 12
    assert loader.paths[0] == "image_00.png"


@pytest.fixture
def start_method(request):
    """How Python starts processes, put back afterwards."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("start_method", ["fork", "spawn"], indirect=True)
def test_workers_make_the_same_batches_as_this_process(masked_folder, start_method):
    expected = _run(*masked_folder)
    got = _run(*masked_folder, workers=2 if start_method == "fork" else 1)
    assert got.keys() == expected.keys()
    assert all(_same(got[key], expected[key]) for key in expected)


def test_resuming_in_an_epoch_gives_the_same_batches(masked_folder):
    expected = _run(*masked_folder)
    for workers in (0, 1):
        got = _run(*masked_folder, first=(0, 2), workers=workers)
        assert list(got) == [(0, 2), (1, 0), (1, 1), (1, 2)]
        assert all(_same(batch, expected[key]) for key, batch in got.items())


def test_going_back_restarts_the_stream(masked_folder):
    with Loader(*masked_folder, PLAIN, LoaderOptions(batch_size=4, seed=7, workers=1)) as loader:
        first = next(iter(loader.batches(0)))
        next(iter(loader.batches(0, 2)))
        assert _same(first, next(iter(loader.batches(0))))
        assert loader.wait_seconds > 0


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_same_global_batch(masked_folder, world_size):
    whole = _run(*masked_folder)
    parts = [_run(*masked_folder, rank=rank, world_size=world_size) for rank in range(world_size)]
    for key, batch in whole.items():
        for number, view in enumerate(batch.views):
            torch.testing.assert_close(torch.cat([part[key].views[number] for part in parts]), view)
        assert torch.equal(torch.cat([part[key].index for part in parts]), batch.index)
        assert torch.equal(torch.cat([part[key].permutation for part in parts]), batch.permutation)


def test_the_mask_file_alone_names_the_images(masked_folder):
    folder, masks = masked_folder
    assert _same(_run(None, masks)[0, 0], _run(folder, masks)[0, 0])


def test_missing_masks_are_an_error_that_counts_and_names_them(flat_folder, tmp_path):
    masks = _mask_file(flat_folder, tmp_path / "masks.h5", leave_out=3)
    with pytest.raises(UserError, match=r"no mask for 3 of the images: image_09.*--missing-masks skip"):
        _run(flat_folder, masks)
    skipped = _run(flat_folder, masks, missing_masks="skip", epochs=1)
    assert sorted(torch.cat([batch.index for batch in skipped.values()]).tolist())[-1] == 8
    kept = _run(flat_folder, masks, missing_masks="instance-only", epochs=1)
    for batch in kept.values():
        assert torch.equal(batch.has_mask, batch.index < 9)
        assert (batch.occupancy[0][~batch.has_mask] == 0).all()
        assert not batch.fallback[~batch.has_mask].any()


def test_a_method_that_uses_no_masks_trains_on_images_without_one(flat_folder, tmp_path):
    masks = _mask_file(flat_folder, tmp_path / "masks.h5", leave_out=3)
    assert len(_run(flat_folder, masks, PLAIN, epochs=1)) == 3


def test_statuses_empty_full_low_confidence_and_unreadable(flat_folder, tmp_path, caplog):
    names = find_images(flat_folder)
    sizes = {name: image_size(flat_folder / name) for name in names}
    block = np.zeros((8, 8), np.bool_)
    block[2:6, 2:6] = True
    rows = {
        names[0]: pack_mask(names[0], np.zeros((8, 8), np.bool_), sizes[names[0]]),
        names[1]: pack_mask(names[1], np.ones((8, 8), np.bool_), sizes[names[1]]),
        names[2]: pack_mask(names[2], block, sizes[names[2]], confidence=0.1, low_confidence=0.5),
        names[3]: MaskRow(path=names[3], reason="empty file"),
    }
    masks = _mask_file(flat_folder, tmp_path / "masks.h5", rows=rows)
    with caplog.at_level(logging.WARNING):
        batch = _run(flat_folder, masks, epochs=1, batch_size=11)[0, 0]
    assert "1 images" in caplog.text
    assert "image_03.png" in caplog.text
    slot = {int(index): number for number, index in enumerate(batch.index)}
    assert batch.has_mask.all()
    assert (batch.occupancy[0][slot[0]] == 0).all()
    assert batch.fallback[slot[0]].all()
    assert (batch.occupancy[0][slot[1]] == 1).all()
    assert not batch.fallback[slot[1]].any()


def _flagged(folder, out, *positions):
    """A mask file of all images, flagged low_confidence at some positions."""
    rows = {}
    for position in positions:
        path = find_images(folder)[position]
        height, width = image_size(folder / path)
        mask = np.tri(height, width, dtype=np.bool_)
        rows[path] = pack_mask(path, mask, (height, width), confidence=0.1, low_confidence=0.5)
    return _mask_file(folder, out, rows=rows)


def test_an_image_whose_mask_is_flagged_was_kept_without_its_mask(flat_folder, tmp_path):
    masks = _flagged(flat_folder, tmp_path / "masks.h5", 2, 7)
    options = LoaderOptions(batch_size=10, seed=7, workers=0, use_low_confidence=False)
    with Loader(flat_folder, masks, FULL, options) as loader:
        (batch,) = loader.batches(0)
        paths = find_images(flat_folder)
        assert list(loader.paths) == [path for path in paths if path not in {paths[2], paths[7]}]
    assert batch.has_mask.all()
    assert (loader.selection.low_confidence, loader.selection.left_out) == (2, 0)
    # and so where images without any mask are trained on
    options = dataclasses.replace(options, missing_masks="instance-only")
    with Loader(flat_folder, masks, FULL, options) as loader:
        assert len(loader.paths) == 10
    kept = dataclasses.replace(options, use_low_confidence=True)
    with Loader(flat_folder, masks, FULL, kept) as loader:
        assert len(loader.paths) == 12
        assert loader.selection.has_mask.all()


def test_a_method_that_reads_no_masks_keeps_images_whose_mask_is_flagged(flat_folder, tmp_path):
    masks = _flagged(flat_folder, tmp_path / "masks.h5", 2, 7)
    options = LoaderOptions(batch_size=12, seed=7, workers=0, use_low_confidence=False)
    with Loader(None, masks, PLAIN, options) as loader:
        assert (len(loader.paths), loader.selection.low_confidence) == (12, 0)


def test_a_file_whose_masks_are_all_flagged_leaves_nothing_to_train_on(flat_folder, tmp_path):
    masks = _flagged(flat_folder, tmp_path / "masks.h5", *range(12))
    with pytest.raises(UserError, match=r"flags every mask of the 12 images low_confidence; keep them with"):
        _run(flat_folder, masks, use_low_confidence=False)


def test_a_mask_of_an_image_of_another_size_is_refused(masked_folder):
    folder, masks = masked_folder
    Image.new("RGB", (33, 44)).save(folder / "image_05.png")
    with pytest.raises(UserError, match=r"image_05.png is 44 x 33 pixels now but its mask"):
        _run(folder, masks)


def test_an_image_that_breaks_during_the_run_is_replaced_counted_and_logged(masked_folder, caplog):
    folder, masks = masked_folder
    (folder / "image_05.png").write_bytes(b"no image any more")
    (folder / "image_06.png").write_bytes((folder / "image_06.png").read_bytes()[:300])
    for workers in (0, 1):
        caplog.clear()
        with Loader(folder, masks, MASKED, LoaderOptions(batch_size=12, seed=1, workers=workers)) as loader:
            batch = next(iter(loader.batches(0)))
            assert loader.replaced == 3  # 5 fails, then 6 in its place, then 6 itself
        # both failures are replaced by image 7
        assert sorted(batch.index.tolist()) == [0, 1, 2, 3, 4, 7, 7, 7, 8, 9, 10, 11]
        assert "image_05.png" in caplog.text
        assert "image_06.png" in caplog.text
        assert torch.isfinite(batch.views[0]).all()


def test_large_files_are_not_all_held_at_once_and_the_batches_stay_the_same(masked_folder, monkeypatch):
    expected = _run(*masked_folder, epochs=1)
    monkeypatch.setattr(worker, "AHEAD_BYTES", 1000)
    got = _run(*masked_folder, epochs=1)
    assert all(_same(got[key], expected[key]) for key in expected)


def test_an_image_that_replaces_one_with_a_mask_keeps_nothing_of_it(flat_folder, tmp_path):
    masks = _mask_file(flat_folder, tmp_path / "masks.h5", leave_out=6)
    damaged = flat_folder / "image_05.png"
    damaged.write_bytes(damaged.read_bytes()[:-40])  # its header is whole, so it is drawn before it fails
    batch = _run(flat_folder, masks, missing_masks="instance-only", epochs=1, batch_size=12)[0, 0]
    assert 5 not in batch.index
    replaced = batch.index == 6
    assert replaced.sum() == 2
    assert not batch.has_mask[replaced].any()
    assert all((cells[replaced] == 0).all() for cells in batch.occupancy)
    assert torch.equal(batch.views[0][replaced][0], batch.views[0][replaced][1])


def test_a_folder_that_vanishes_during_the_run_stops_it(masked_folder):
    folder, masks = masked_folder
    with Loader(folder, masks, MASKED, LoaderOptions(batch_size=4, seed=1, workers=1)) as loader:
        shutil.rmtree(folder)
        with pytest.raises(UserError, match="12 images in a row cannot be used"):
            list(loader.batches(0))


def _kill_one(loader):
    worker = loader._chunks._chunks._workers[0]
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # dead, and its death still to be told


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced_and_the_batches_stay_the_same(masked_folder, workers, caplog):
    expected = _run(*masked_folder, epochs=3)
    got = {}
    options = LoaderOptions(batch_size=4, seed=7, workers=workers)
    with Loader(*masked_folder, FULL, options) as loader:
        for epoch in range(3):
            for batch in loader.batches(epoch):
                got[epoch, batch.step] = batch
                if (epoch, batch.step) in ((0, 1), (2, 0)):
                    _kill_one(loader)
    assert got.keys() == expected.keys()
    assert all(_same(got[key], expected[key]) for key in expected)
    assert caplog.text.count("a loader worker died") == 2
    assert "epoch 0, batch 2 (DataLoader worker (pid" in caplog.text
    assert "--workers" in caplog.text


def test_the_death_of_a_worker_is_not_raised_in_the_middle_of_a_step(masked_folder):
    """torch raises it in a signal's handler: in an update, or while a checkpoint is written."""
    with Loader(*masked_folder, MASKED, LoaderOptions(batch_size=4, seed=1, workers=1)) as loader:
        batches = loader.batches(0)
        next(batches)
        _kill_one(loader)
        for _ in range(100):
            time.sleep(0.001)  # a signal would be handled here
        assert len(next(batches)) == 4


def test_workers_that_die_again_and_again_end_the_run_in_a_clear_error(masked_folder):
    with Loader(*masked_folder, MASKED, LoaderOptions(batch_size=4, seed=1, workers=1)) as loader:
        everything = (batch for epoch in range(5) for batch in loader.batches(epoch))
        with pytest.raises(UserError, match=r"3 loader workers died within 100 steps.*--workers.*--resume"):
            [_kill_one(loader) for _ in everything]
        assert len(next(iter(loader.batches(0)))) == 4  # asked again, it starts anew


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_worker_that_died_while_sending_is_replaced_whatever_torch_says_meanwhile(
    masked_folder, error, caplog
):
    class Broken:
        def __next__(self):
            raise error

        def _shutdown_workers(self):
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    loader = Loader(*masked_folder, MASKED, LoaderOptions(batch_size=4, seed=1, workers=0))
    loader._chunks._next, loader._chunks._chunks = (0, 0), Broken()
    assert len(list(loader.batches(0))) == 3
    assert re.search(r"a loader worker died at epoch 0, batch 0 \((EOFError|.*reset by peer)\)", caplog.text)


def test_an_error_of_the_program_in_a_worker_is_no_death(masked_folder, monkeypatch):
    def fails(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(ChunkMaker, "_draw", fails)
    with (
        Loader(*masked_folder, MASKED, LoaderOptions(batch_size=4, seed=1, workers=1)) as loader,
        pytest.raises(RuntimeError, match="a bug"),
    ):
        next(loader.batches(0))


def test_workers_that_give_nothing_end_in_a_clear_error(masked_folder, monkeypatch):
    monkeypatch.setattr(stream, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(stream, "WORKER_TIMEOUT", 0.1)
    monkeypatch.setattr(ChunkMaker, "_cut", lambda *_: time.sleep(0.3) or True)
    with (
        Loader(*masked_folder, MASKED, LoaderOptions(batch_size=4, seed=1, workers=1)) as loader,
        pytest.raises(UserError, match=r"have given nothing for 0.1 seconds.*--resume"),
    ):
        next(loader.batches(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_file_cut_short_during_a_run_ends_it_in_a_clear_error(masked_folder, workers):
    options = LoaderOptions(batch_size=4, seed=1, workers=workers)
    with Loader(*masked_folder, MASKED, options) as loader:
        batches = (batch for epoch in range(20) for batch in loader.batches(epoch))
        next(batches)
        os.truncate(masked_folder[1], 100)
        with pytest.raises(UserError, match=r"masks.h5 was changed while it was in use"):
            list(batches)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 13}, "does not fit 12 images"),
        ({"batch_size": 0}, "does not fit"),
        ({"batch_size": 4, "world_size": 3}, "cannot be shared by 3 processes"),
    ],
)
def test_batches_that_cannot_be_are_refused(flat_folder, settings, message):
    with pytest.raises(UserError, match=message):
        Loader(flat_folder, None, PLAIN, LoaderOptions(seed=0, workers=0, **settings))


def test_missing_inputs_say_what_to_give(tmp_path, flat_folder):
    with pytest.raises(UserError, match="needs masks"):
        Loader(flat_folder, None, MASKED, LoaderOptions(batch_size=2, seed=0))
    with pytest.raises(UserError, match="give --images"):
        Loader(None, None, PLAIN, LoaderOptions(batch_size=2, seed=0))
    with pytest.raises(UserError, match="no images at"):
        Loader(tmp_path / "nowhere", None, PLAIN, LoaderOptions(batch_size=2, seed=0))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no images found"):
        Loader(empty, None, PLAIN, LoaderOptions(batch_size=2, seed=0))


def test_limit_takes_the_first_paths(masked_folder):
    with Loader(*masked_folder, MASKED, LoaderOptions(batch_size=2, seed=0, workers=0, limit=4)) as loader:
        assert list(loader.paths) == [f"image_0{number}.png" for number in range(4)]
        assert loader.steps_per_epoch == 2


def test_scaled_decoding_changes_the_crops_not_at_all_and_the_pixels_hardly(tmp_path, monkeypatch):
    import skimage.data

    folder = tmp_path / "large"
    folder.mkdir()
    picture = Image.fromarray(skimage.data.astronaut()).resize((900, 900))
    for number in range(4):
        picture.save(folder / f"{number}.jpg", quality=95)
    calm = Needs(views=(ViewPolicy(size=64, scale=(0.5, 1.0)),))
    settings = {"batch_size": 4, "seed": 0, "augment": False, "epochs": 1}
    reduced = _run(folder, None, calm, **settings)[0, 0]
    monkeypatch.setattr(views, "shortest_side", lambda *_: 10**6)  # so every reduction is too much
    full = _run(folder, None, calm, **settings)[0, 0]
    assert all(torch.equal(a, b) for a, b in zip(reduced.geometry[0], full.geometry[0], strict=True))
    difference = (reduced.views[0].float() - full.views[0].float()).abs()
    assert 0 < difference.mean() < 4  # of 255; the reduced decode was taken, and is close


def test_reader_may_be_given_open(masked_folder):
    folder, masks = masked_folder
    assert _same(_run(folder, MaskReader(masks))[0, 0], _run(folder, masks)[0, 0])


def test_default_workers_respect_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers(torch.device("cuda")) == 15
    assert default_workers(torch.device("cuda"), 8) == 1
    assert default_workers(torch.device("cpu")) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert default_workers(torch.device("cpu")) == 1


def test_odd_originals_load(odd_originals):
    with Loader(odd_originals, None, PLAIN, LoaderOptions(batch_size=13, seed=0, workers=0)) as loader:
        for batch in loader.batches(0):
            assert torch.isfinite(batch.views[0]).all()
        assert loader.replaced == 0


def test_views_and_patches_are_blurred_by_their_share_of_224_pixels(flat_folder):
    policy = PhotometricPolicy(blur=1.0)
    needs = Needs(
        views=(ViewPolicy(size=32, photometric=policy), ViewPolicy(size=56, photometric=policy)),
        jigsaw=JigsawPolicy(size=27, image_size=24, patch=7, photometric=policy, photometric_per_patch=False),
    )
    with Loader(flat_folder, None, needs, LoaderOptions(batch_size=12, seed=0, workers=0)) as loader:
        (batch,) = loader.batches(0)
    for rows, side in zip(batch.photometric, (32, 56), strict=True):
        assert 0.1 * side / 224 < rows[:, SIGMA].min() < rows[:, SIGMA].max() < 2 * side / 224
    patches = batch.patch_photometric
    assert patches[..., SIGMA].max() < 2 * 24 / 224
    assert torch.equal(patches, patches[:, :1].expand_as(patches))  # one draw for all patches of an image


def test_a_view_is_cut_with_the_filter_that_its_method_names(flat_folder):
    views = tuple(
        ViewPolicy(size=32, photometric=NO_PHOTOMETRIC, crop_filter=name, same_geometry_as=first)
        for name, first in (("bilinear", None), ("bicubic", 0), ("bilinear", 0))
    )
    with Loader(
        flat_folder, None, Needs(views=views), LoaderOptions(batch_size=12, seed=0, workers=0)
    ) as loader:
        (batch,) = loader.batches(0)
    bilinear, bicubic, again = batch.views
    assert torch.equal(bilinear, again)
    assert not torch.equal(bilinear, bicubic)
    for name, expected in (("mae", "bicubic"), ("siameseim", "bicubic"), ("moco_v3", "bilinear")):
        assert method_class(name).Config().crop_filter == expected
