"""Images by URL, with fsspec's own file systems in memory and on disk standing in for an object store."""

import os
import pickle

import pytest

fsspec = pytest.importorskip("fsspec")

from hapicl.common.errors import UserError  # noqa: E402
from hapicl.data.images import open_images, open_originals  # noqa: E402
from hapicl.data.images.decode import ImageError  # noqa: E402
from hapicl.data.images.folder import Folder  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hapicl" / "remote"


@pytest.fixture
def bucket(photo_folder):
    """The eight photographs in fsspec's memory; gives the URL."""
    system = fsspec.filesystem("memory")
    system.put(str(photo_folder), "/bucket/photos", recursive=True)
    system.pipe("/bucket/photos/.hidden/x.jpg", b"x")
    system.pipe("/bucket/photos/readme.txt", b"x")
    yield "memory://bucket/photos"
    system.rm("/bucket", recursive=True)


def assert_same(store, folder):
    assert store.paths() == folder.paths()
    for path in folder.paths():
        assert store.read(path) == folder.read(path)
        assert store.image_size(path) == folder.image_size(path)
        assert store.file_bytes(path) == folder.file_bytes(path)


def test_a_folder_of_objects_gives_what_the_folder_gives_and_each_is_fetched_once(
    bucket, photo_folder, monkeypatch
):
    store, folder = open_images(bucket), Folder(photo_folder)
    assert store.location == bucket
    assert_same(store, folder)
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "get_file", None)  # whatever is fetched again fails
    assert_same(open_images(bucket), folder)
    assert_same(pickle.loads(pickle.dumps(store)), folder)


def test_the_same_through_a_url_of_files(photo_folder):
    assert_same(open_images(f"file://{photo_folder}"), Folder(photo_folder))


def test_a_copy_that_a_killed_process_left_half_written_is_fetched_again(bucket, photo_folder, cache):
    store = open_images(bucket)
    path = store.paths()[0]
    store.read(path)
    (copy,) = (file for file in cache.rglob("*") if file.is_file())
    copy.write_bytes(copy.read_bytes()[:100])
    assert open_images(bucket).read(path) == Folder(photo_folder).read(path)


def test_archives_by_url_are_fetched_whole_and_read_like_those_on_disk(photo_folder, tmp_path):
    import tarfile

    for number in range(2):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
            for path in Folder(photo_folder).paths()[number::2]:
                archive.add(photo_folder / path, path)
    system = fsspec.filesystem("memory")
    for number in range(2):
        system.put(str(tmp_path / f"s-{number}.tar"), f"/shards/s-{number}.tar")
    try:
        for url in ("memory://shards", "memory://shards/s-*.tar"):
            store = open_originals(url)
            assert store.location == url
            assert_same(store, Folder(photo_folder))
        assert len(open_originals("memory://shards/s-1.tar").paths()) == 4
    finally:
        system.rm("/shards", recursive=True)


def test_a_store_that_cannot_be_reached_ends_in_a_line_and_condemns_no_image(bucket, monkeypatch):
    store = open_originals(bucket)
    path = store.paths()[0]
    system = fsspec.filesystem("memory")

    def lost(*_, **__):
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(system), "get_file", lost)
    with pytest.raises(UserError, match="memory://bucket/photos cannot be read now: no answer") as refused:
        store.read_bytes(path)
    assert not isinstance(refused.value, ImageError)


def test_urls_of_nothing_or_of_unknown_kinds_are_refused(bucket):
    with pytest.raises(UserError, match="no files at memory://nowhere"):
        open_images("memory://nowhere")
    with pytest.raises(UserError, match="Protocol not known: foo"):
        open_images("foo://bar/x")
    with pytest.raises(UserError, match="fits files that are no archives"):
        open_images(f"{bucket}/*")
    store = open_originals(bucket)
    with pytest.raises(ImageError, match="not at memory://bucket/photos any more"):
        store.read_bytes("a/gone.jpg")


def test_a_forked_process_connects_anew(bucket, photo_folder):
    store = open_originals(bucket)
    path = store.paths()[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read_bytes(path) == (photo_folder / path).read_bytes() else 1)
    assert os.waitpid(child, 0)[1] == 0
