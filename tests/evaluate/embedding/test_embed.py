"""`hapicl embed`: the numbers are those of the evaluation, whatever happens on the way."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exported import trained, written

from hapicl.cli import command_line
from hapicl.common.errors import UserError
from hapicl.data.images.class_folders import LabelledImages
from hapicl.evaluate.embedding import embed as module
from hapicl.evaluate.embedding.embed import EmbedSettings, embed
from hapicl.evaluate.embedding.files import read_features
from hapicl.models.features import extract_features


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    return written(trained("resnet18", 32, "stride1"), folder, "resnet18", 32)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts of twelve images."""
    monkeypatch.setattr(module, "PART_IMAGES", 5)


SMALL = EmbedSettings(batch_size=3)


def test_vectors_are_those_that_evaluations_take(weights: str, flat_folder: Path, tmp_path: Path) -> None:
    done = embed(weights, flat_folder, tmp_path / "f.npz", SMALL)
    assert (done.images, done.shape, done.unreadable) == (12, (512,), {})
    found = read_features(tmp_path / "f.npz")
    assert found.paths == sorted(path.name for path in flat_folder.iterdir())
    images = LabelledImages(root=flat_folder, paths=tuple(found.paths), labels=(0,) * 12, classes=("any",))
    expected = extract_features(trained("resnet18", 32, "stride1"), images, image_size=32)
    torch.testing.assert_close(torch.from_numpy(found.values), expected.values, rtol=1e-5, atol=1e-6)
    about = found.about
    assert (about["gives"], about["image_size"], about["weights"]["arch"]) == ("mean", 32, "resnet18")
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    suffix: str, weights: str, flat_folder: Path, tmp_path: Path
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pip install hapicl[parquet]")
    (flat_folder / "image_06.png").write_bytes(b"no image")
    whole, interrupted = tmp_path / f"whole.{suffix}", tmp_path / f"interrupted.{suffix}"
    embed(weights, flat_folder, whole, SMALL)

    seen: list[tuple[int, int, int]] = []

    def killed(*numbers: int) -> None:
        seen.append(numbers)
        if numbers[0] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(weights, flat_folder, interrupted, SMALL, progress=killed)
    assert not interrupted.exists()
    with pytest.raises(UserError, match="unfinished features of another --image-size"):
        embed(weights, flat_folder, interrupted, SMALL.replace(image_size=64))
    seen.clear()
    done = embed(weights, flat_folder, interrupted, SMALL, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(5, 12, 0), (10, 12, 1), (12, 12, 1)]
    assert interrupted.read_bytes() == whole.read_bytes()
    assert list(done.unreadable) == ["image_06.png"]
    assert "not an image" in done.unreadable["image_06.png"]
    found = read_features(interrupted)
    assert len(found.paths) == len(found.values) == 11
    assert found.about["unreadable"] == done.unreadable
    assert embed(weights, flat_folder, interrupted, SMALL).already_finished
    with pytest.raises(UserError, match="holds features of another kind"):
        embed(weights, flat_folder, interrupted, SMALL.replace(maps=True))


def test_parquet_is_read_by_others(weights: str, flat_folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install hapicl[parquet]")
    embed(weights, flat_folder, tmp_path / "f.parquet", SMALL)
    embed(weights, flat_folder, tmp_path / "f.npz", SMALL)
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["path", "features"]
    values = np.stack(table["features"].to_pylist()).astype(np.float32)
    assert np.array_equal(values, read_features(tmp_path / "f.npz").values)
    assert np.array_equal(values, read_features(tmp_path / "f.parquet").values)


def test_workers_and_maps(weights: str, flat_folder: Path, tmp_path: Path) -> None:
    settings = SMALL.replace(maps=True)
    for workers in (0, 2):
        embed(weights, flat_folder, tmp_path / f"{workers}.npz", settings, workers=workers)
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    maps = read_features(tmp_path / "0.npz")
    assert maps.values.shape == (12, 512, 4, 4)
    embed(weights, flat_folder, tmp_path / "v.npz", SMALL)
    vectors = read_features(tmp_path / "v.npz").values
    np.testing.assert_allclose(maps.values.mean((2, 3)), vectors, rtol=1e-4, atol=1e-5)


def test_a_vits_class_token_on_request(flat_folder: Path, tmp_path: Path) -> None:
    path = written(trained("vit_tiny_patch16_224", 32, "patch16"), tmp_path, "vit_tiny_patch16_224", 32)
    found = {}
    for vector in ("auto", "mean", "class"):
        embed(path, flat_folder, tmp_path / f"{vector}.npz", EmbedSettings(vector=vector))
        found[vector] = read_features(tmp_path / f"{vector}.npz").values
    assert np.array_equal(found["auto"], found["mean"])
    assert not np.allclose(found["class"], found["mean"])


def test_mistakes_are_one_line(
    weights: str, flat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"written as \.npz or \.parquet"):
        embed(weights, flat_folder, tmp_path / "f.csv")
    with pytest.raises(UserError, match="trained weights, not `random`"):
        embed("random", flat_folder, tmp_path / "f.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        embed(weights, tmp_path / "empty", tmp_path / "f.npz")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the images .* the first: a\.png: empty file"):
        embed(weights, tmp_path / "broken", tmp_path / "f.npz")
    (tmp_path / "other.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="is no file of `hapicl embed`"):
        embed(weights, flat_folder, tmp_path / "other.npz")
    monkeypatch.setattr("hapicl.evaluate.embedding.files.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install hapicl\[parquet\]"):
        embed(weights, flat_folder, tmp_path / "f.parquet")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(command_line, ["embed", *(str(argument) for argument in arguments)])


def test_the_command_shows_neighbours_and_lists_duplicates(
    weights: str, flat_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(flat_folder / "image_03.png", flat_folder / "same.png")
    (flat_folder / "z.png").write_bytes(b"")
    out, show = tmp_path / "f.npz", tmp_path / "page.html"
    words = (weights, "--images", flat_folder, "--out", out, "--show", show)
    answer = call(*words, "--neighbours", 3, "--duplicates", 0.99999)
    assert answer.exit_code == 0, answer.output + str(answer.exception)
    assert "written: 13 images, 512 numbers each" in answer.output
    assert "  z.png: empty file" in answer.output
    rows = (tmp_path / "page.duplicates.csv").read_text().splitlines()
    assert rows[0] == "cosine,first,second"
    assert rows[1].endswith(",image_03.png,same.png")
    html = show.read_text()
    assert "<td>z.png</td><td>empty file</td>" in html
    assert html.count("this one") >= 12
    assert 'src="http' not in html
    again = call(*words)
    assert "was already finished" in again.output
    assert "give --show" in call(weights, "--images", flat_folder, "--neighbours", 3).output
    assert "leave --maps out" in call(weights, "--images", flat_folder, "--maps", "--show", show).output
