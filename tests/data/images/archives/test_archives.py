"""Images in tar and zip archives: names, bytes and sizes as in the folder, or a line that says why."""

import io
import os
import pickle
import tarfile
import zipfile

import pytest

from hapicl.common.errors import UserError
from hapicl.data.images import open_images, open_originals
from hapicl.data.images.archives import index as index_module
from hapicl.data.images.archives import store as store_module
from hapicl.data.images.decode import ImageError
from hapicl.data.images.folder import Folder, find_images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache, a new one for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hapicl" / "archives"


def write_tar(path, files, **options):
    """A tar of name -> bytes."""
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def write_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    """A zip of name -> bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


@pytest.fixture
def files(photo_folder):
    """Name -> bytes of eight photographs."""
    return [(name, (photo_folder / name).read_bytes()) for name in find_images(photo_folder)]


def in_one_tar(tmp_path, files):
    return write_tar(tmp_path / "all.tar", files)


def in_three_shards(tmp_path, files):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):  # as WebDataset's: other members beside the images, in no order
        some = [(f"{name}.cls", b"3") for name, _ in files[number::3]] + files[number::3][::-1]
        write_tar(folder / f"train-{number:04d}.tar", some, format=tarfile.GNU_FORMAT)
    (folder / "sizes.json").write_text("{}")
    return folder


def in_a_zip(tmp_path, files):
    return write_zip(tmp_path / "all.zip", files)


def in_tar_and_zip(tmp_path, files):
    write_tar(tmp_path / "half-0.tar", [(f"./{name}", data) for name, data in files[::2]])
    write_zip(tmp_path / "half-1.zip", files[1::2], zipfile.ZIP_STORED)
    return str(tmp_path / "half-*")


@pytest.mark.parametrize("packed", [in_one_tar, in_three_shards, in_a_zip, in_tar_and_zip])
def test_an_archive_gives_what_its_folder_gives(tmp_path, photo_folder, files, packed, monkeypatch):
    folder, source = Folder(photo_folder), packed(tmp_path, files)
    store = open_images(source)
    monkeypatch.setattr(store_module, "_OPEN_FILES", 1)  # archives beyond it are closed and opened again
    assert store.paths() == folder.paths()
    for path in [*folder.paths(), *folder.paths()[::-1]]:
        assert store.read(path) == folder.read(path)
        assert store.image_size(path) == folder.image_size(path)
        assert store.file_bytes(path) == folder.file_bytes(path)
    assert open_images(store.location).paths() == folder.paths()  # as a mask file records it
    with pytest.raises(ImageError, match="not in"):
        store.read_bytes("nowhere.jpg")


def test_a_store_travels_to_other_processes_without_its_archives_being_walked_again(
    tmp_path, files, monkeypatch, cache
):
    store = open_originals(in_three_shards(tmp_path, files))
    name, data = files[0]
    assert store.read_bytes(name) == data
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(index_module, "_walk", None)
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    assert pickle.loads(sent).read_bytes(name) == data
    assert pickle.loads(sent) is pickle.loads(sent)  # a worker is sent it with every task
    assert open_originals(store.location).read_bytes(name) == data


def test_a_forked_worker_reads_at_places_of_its_own(tmp_path, files):
    store = open_originals(in_one_tar(tmp_path, files))
    first = store.read_bytes(files[0][0])
    child = os.fork()
    if child == 0:
        good = all(store.read_bytes(name) == data for name, data in files * 50)
        os._exit(0 if good else 1)
    for _ in range(50):
        assert all(store.read_bytes(name) == data for name, data in files)
    assert os.waitpid(child, 0)[1] == 0
    assert first == files[0][1]


def test_a_cache_that_cannot_be_written_or_is_damaged_costs_time_only(tmp_path, files, cache, caplog):
    source = in_one_tar(tmp_path, files)
    expected = open_originals(source).paths()
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-300])
    assert open_originals(source).paths() == expected
    kept.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert open_originals(source).paths() == expected
    assert "every process walks the archives anew" in caplog.text


def test_names_of_every_kind_of_tar_are_those_of_the_unpacked_folder(tmp_path, files):
    data = files[0][1]
    long, odd = "a" * 90 + "/" + "b" * 90 + ".jpg", "schön \udcff.jpg"
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        source = write_tar(tmp_path / f"{format}.tar", [(f"./{long}", data), (odd, data)], format=format,
                           encoding="utf-8", errors="surrogateescape")  # fmt: skip
        assert open_originals(source).paths() == sorted([long, odd], key=os.fsencode)


def test_a_zips_names_in_utf8_are_seen_without_the_flag_that_says_so(tmp_path, files):
    source = write_zip(tmp_path / "all.zip", [("fotos/schön.jpg", files[0][1])])
    source.write_bytes(source.read_bytes().replace(b"\x00\x08\x08\x00", b"\x00\x00\x08\x00"))
    with zipfile.ZipFile(source) as archive:
        assert archive.namelist() != ["fotos/schön.jpg"]
    assert open_originals(source).paths() == ["fotos/schön.jpg"]


def test_links_inside_a_tar_lead_to_their_images_and_others_are_rows_with_a_reason(tmp_path, files):
    with tarfile.open(write_tar(tmp_path / "all.tar", [("a/one.jpg", files[0][1])]), "a") as archive:
        for name, kind, target in [
            ("a/hard.jpg", tarfile.LNKTYPE, "a/one.jpg"),
            ("b/soft.jpg", tarfile.SYMTYPE, "../a/one.jpg"),
            ("b/out.jpg", tarfile.SYMTYPE, "/data/two.jpg"),
        ]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    store = open_originals(tmp_path / "all.tar")
    assert store.paths() == ["a/hard.jpg", "a/one.jpg", "b/out.jpg", "b/soft.jpg"]
    assert store.read_bytes("a/hard.jpg") == store.read_bytes("b/soft.jpg") == files[0][1]
    with pytest.raises(ImageError, match="a link to what is not in the archive"):
        store.read_bytes("b/out.jpg")


def test_what_is_no_image_or_hidden_is_left_out(tmp_path, files, caplog):
    data = files[0][1]
    names = ["plain", "x/._one.jpg", ".git/two.jpg", "notes.txt", "three.CR2", "four.JPG"]
    content = [(name, data) for name in names] + [("text without suffix", b"to whom it may concern")]
    assert open_originals(write_tar(tmp_path / "all.tar", content)).paths() == ["four.JPG", "plain"]
    assert "1 .cr2 images are left out" in caplog.text


def test_of_two_members_of_one_name_the_later_is_read_as_unpacking_would_leave_it(tmp_path, files):
    (_, first), (_, second) = files[:2]
    store = open_originals(write_tar(tmp_path / "all.tar", [("a.jpg", first), ("./a.jpg", second)]))
    assert store.paths() == ["a.jpg"]
    assert store.read_bytes("a.jpg") == second


def test_images_of_one_name_in_two_archives_are_called_by_their_archives_too(tmp_path, files, caplog):
    for number, (_, data) in enumerate(files[:2]):
        (tmp_path / "s").mkdir(exist_ok=True)
        write_tar(tmp_path / "s" / f"{number}.tar", [("0.jpg", data), (f"only{number}.jpg", data)])
    store = open_originals(tmp_path / "s")
    assert store.paths() == ["0/0.jpg", "0/only0.jpg", "1/0.jpg", "1/only1.jpg"]
    assert store.read_bytes("1/0.jpg") == files[1][1]
    assert "0.jpg is in more than one archive, so every image is called by its archive too" in caplog.text


def test_a_folder_with_images_stays_a_folder_whatever_archives_lie_beside_them(photo_folder, tmp_path, files):
    write_tar(photo_folder / "old.tar", files)
    assert isinstance(open_images(photo_folder), Folder)


@pytest.mark.parametrize("name", ["all.tar.gz", "all.tgz", "all.tar"])
def test_a_compressed_tar_is_refused_with_advice(tmp_path, files, name):
    source = write_tar(tmp_path / "plain", files)
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.add(source, "a.jpg")
    with pytest.raises(UserError, match=r"compressed as a whole.*unpack it, or make a plain \.tar"):
        open_originals(tmp_path / name).paths()


def cut_in_a_member(data):
    return data[: len(data) // 2]


def overwritten_in_a_header(data):
    return data[:512] + data[512:].replace(b"ustar", b"USTAR", 1).replace(b"0000644", b"XXXXXXX", 1)


def emptied(data):
    return b""


def of_something_else(data):
    return b"%PDF" + data[4:600]


@pytest.mark.parametrize(
    ("kind", "harm"),
    [
        ("tar", cut_in_a_member),
        ("tar", overwritten_in_a_header),
        ("tar", emptied),
        ("tar", of_something_else),
        ("zip", cut_in_a_member),
        ("zip", emptied),
    ],
)
def test_a_damaged_archive_is_refused_in_one_line_and_loses_no_image_in_silence(tmp_path, files, kind, harm):
    source = {"tar": in_one_tar, "zip": in_a_zip}[kind](tmp_path, files)
    source.write_bytes(harm(source.read_bytes()))
    with pytest.raises(UserError, match=rf"{source} is damaged, or no archive: .*copy it again") as refused:
        open_originals(source).paths()
    assert "\n" not in str(refused.value)


def test_a_damaged_or_encrypted_member_of_a_zip_is_an_image_with_a_reason(tmp_path, files):
    source = write_zip(tmp_path / "all.zip", files, zipfile.ZIP_STORED)
    name, data = files[2]
    place = source.read_bytes().index(data) + len(data) // 2
    with open(source, "r+b") as file:
        file.seek(place)
        file.write(bytes([file.read(1)[0] ^ 1]) if file.seek(place) else b"")
    store = open_originals(source)
    with pytest.raises(ImageError, match="wrong checksum"):
        store.read_bytes(name)
    assert store.read_bytes(files[3][0]) == files[3][1]
    packed = write_zip(tmp_path / "other.zip", [("a.jpg", data)], zipfile.ZIP_LZMA)
    with pytest.raises(ImageError, match="compressed by method 14"):
        open_originals(packed).read_bytes("a.jpg")
    secret = write_zip(tmp_path / "secret.zip", [("a.jpg", data)])
    directory = secret.read_bytes().index(b"PK\1\2")
    with open(secret, "r+b") as file:
        file.seek(directory + 8)
        file.write(b"\1")
    with pytest.raises(ImageError, match="sparse or encrypted"):
        open_originals(secret).read_bytes("a.jpg")


def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path, files):
    source = write_tar(tmp_path / "all.tar", [("../evil.jpg", files[0][1])])
    with pytest.raises(UserError, match="names a file outside itself"):
        open_originals(source).paths()


def test_an_archive_that_is_changed_or_gone_is_noticed_at_the_next_image(tmp_path, files):
    source = in_one_tar(tmp_path, files)
    store = open_originals(source)
    name, data = files[0]
    assert store.read_bytes(name) == data
    write_tar(source, files[::-1])
    with pytest.raises(UserError, match=r"all\.tar was changed since its images were listed"):
        store.read_bytes(name)
    later = open_originals(source)
    assert later.read_bytes(name) == data
    source.unlink()
    again = pickle.loads(pickle.dumps(open_originals(in_one_tar(tmp_path, files))))
    source.unlink()
    with pytest.raises(UserError, match="cannot read the archive"):
        again.read_bytes(name)


def test_places_that_are_no_images_are_refused_with_what_to_give(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is no archive of images; masks are made from the images themselves"):
        open_originals(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"no file fits it; give a pattern of \.tar or \.zip files"):
        open_images(str(tmp_path / "shards-*.tar"))
    with pytest.raises(UserError, match=r"notes\.txt fits it and is no archive"):
        open_images(str(tmp_path / "*.txt"))
    with pytest.raises(UserError, match="give a folder of images, tar or zip archives"):
        open_images(tmp_path / "nowhere.tar")
