"""Masks and twenty steps from tar shards, from a zip and from URLs are those of the folder, to the bit."""

import tarfile
import zipfile

import pytest
from small_run import OPTIONS, draw_images

from hapicl.data.images.folder import find_images
from hapicl.data.masks.reader import MaskReader
from hapicl.engine.loggers.run_files import read_metrics
from hapicl.maskgen.building import build as build_module
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.building.pool import Runner
from hapicl.maskgen.building.worker import make_rows
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.train import pretrain

SMALL = {"method": "hapicl_s", "arch": "timm:test_resnet", "image_size": 128}  # a tenth of a ResNet-18's time


class HereRunner(Runner):
    """Runs tasks in this process."""

    def _stream(self, tasks, under_way):
        for task in tasks:
            under_way[task] = None
            yield make_rows(self.images, task, self.maker)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same twelve images in a folder, in three tar shards, in a zip, and by a URL."""
    root = tmp_path_factory.mktemp("places")
    folder = draw_images(root / "photos")
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    names = find_images(folder)
    (root / "shards").mkdir()
    for number in range(3):
        with tarfile.open(root / "shards" / f"{number}.tar", "w") as archive:
            for name in names[number::3]:
                archive.add(folder / name, name)
    with zipfile.ZipFile(root / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, name)
    return {
        "folder": str(folder),
        "shards": str(root / "shards"),
        "zip": str(root / "photos.zip"),
        "url": folder.as_uri(),
    }


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def masks(places, tmp_path_factory):
    out = tmp_path_factory.mktemp("masks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "Runner", HereRunner)
        for name, source in places.items():
            build_masks(source, out / f"{name}.h5", "fast")
    return out


@pytest.mark.parametrize("place", ["shards", "zip", "url"])
def test_masks_are_those_of_the_folder(masks, place):
    ours, theirs = MaskReader(masks / f"{place}.h5"), MaskReader(masks / "folder.h5")
    assert ours.content_digest == theirs.content_digest
    assert ours.attributes["blob_digest"] == theirs.attributes["blob_digest"]
    assert list(ours.paths) == list(theirs.paths)
    assert ours.reasons() == theirs.reasons()
    assert list(theirs.reasons()) == ["damaged.png"]


@pytest.fixture(scope="module")
def trained(places, masks, tmp_path_factory):
    """Train twenty steps; gives the weights' bytes and the losses."""

    def run(name, **changes):
        out = tmp_path_factory.mktemp(name) / "run"
        options = {**OPTIONS, **SMALL, "steps": 20, "log_every": 1, "logger": "none", "out": str(out)}
        pretrain(resolve({**options, **changes})[0], show=False)
        return (out / "backbone.safetensors").read_bytes(), [line["loss"] for line in read_metrics(out)]

    return run


def test_twenty_steps_are_those_of_the_folder(places, masks, trained):
    expected = trained("folder", masks=str(masks / "folder.h5"))
    assert len(expected[1]) == 20
    # the mask file names its archives; workers are forked from a process that has read of them
    assert trained("shards", masks=str(masks / "shards.h5"), workers=2) == expected
    # masks that were built from the folder serve the archive
    assert trained("zip", masks=str(masks / "folder.h5"), images=places["zip"]) == expected
