"""The masks commands as a user types them, on photographs; and the promises about processes."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hapicl.common.errors import UserError
from hapicl.data.masks.reader import MaskReader
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.building.settings import BuildSettings
from hapicl.maskgen.commands import masks

TWO_WORKERS = BuildSettings(workers=2)
HAPICL = [sys.executable, "-m", "hapicl"]
# what takes long in each command that writes
WORK = (
    "building.build._Build.run",
    "building.merge.join_masks",
    "inspection.gallery.contact_sheet",
    "inspection.page.mask_cards",
    "refinement.refine._Refinement.run",
    "exchange.tree.resize_mask",
    "exchange.coco.read_coco",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Masks of 14 small pictures and two files that are none, built by two worker processes."""
    import skimage.data

    root = tmp_path_factory.mktemp("built") / "photo folder"
    (root / "sub").mkdir(parents=True)
    picture = Image.fromarray(skimage.data.astronaut()).resize((256, 256))
    for number in range(14):
        picture.rotate(number * 7).crop((20, 20, 200 + number, 180)).save(root / f"p{number:02d}.jpg")
    (root / "sub" / "text.JPEG").write_text("no image")
    (root / "sub" / "nothing.png").touch()
    out = root.parent / "masks.h5"
    summary = build_masks(root, out, "fast", TWO_WORKERS)
    return root, out, summary


def run(*arguments):
    return CliRunner().invoke(masks, [str(argument) for argument in arguments])


def digests(path):
    attributes = MaskReader(path).attributes
    return attributes["content_digest"], attributes["blob_digest"]


def test_a_mistyped_folder_is_told_before_kernels_are_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr("hapicl.maskgen.commands._row_maker", lambda *given: pytest.fail("kernels first"))
    answer = run("build", "--images", tmp_path / "photoz", "--out", tmp_path / "masks.h5")
    assert isinstance(answer.exception, UserError)
    assert "photoz" in str(answer.exception)


def test_a_finished_build_says_so_and_strict_counts_failures(built):
    root, out, summary = built
    assert summary.counts["unreadable"] == 2
    arguments = ("build", "--images", root, "--out", out, "--recipe", "fast")
    result = run(*arguments)
    assert result.exit_code == 0
    assert "already finished" in result.output
    assert "sub/nothing.png: empty file" in result.output
    assert run(*arguments, "--strict").exit_code == 1


def test_info_is_a_table_or_json(built):
    _, out, _ = built
    assert "16: " in run("info", out).output
    facts = json.loads(run("info", out, "--json").output)
    assert facts["images"] == 16
    assert facts["recipe"]["name"] == "fast"
    assert facts["counts"]["unreadable"] == 2
    assert 20 < facts["bytes_per_mask"] < 1500


def test_show_writes_a_picture_and_a_page(built, tmp_path):
    root, out, _ = built
    assert run("show", out, "--out", tmp_path / "g.png", "--sample", "4").exit_code == 0
    assert cv2.imread(str(tmp_path / "g.png")).shape[0] > 100
    first = (tmp_path / "g.png").read_bytes()
    run("show", out, "--out", tmp_path / "g.png", "--sample", "4")
    assert (tmp_path / "g.png").read_bytes() == first
    assert run("show", out, "--out", tmp_path / "one.png", "--paths", "p03.jpg").exit_code == 0
    assert run("show", out, "--out", tmp_path / "g.html", "--sample", "3").exit_code == 0
    page = (tmp_path / "g.html").read_text()
    for text in ("Random sample", "Lowest confidence", "Smallest coverage", "Largest coverage", "empty file"):
        assert text in page
    assert str(root) in page
    assert 'src="http' not in page


def test_show_explains_what_it_cannot_do(built, tmp_path):
    _, out, _ = built
    for arguments, message in (
        (("--out", tmp_path / "g.gif"), "ends in .png or .html"),
        (("--out", tmp_path / "g.png", "--paths", "none.jpg"), "no mask for"),
        (("--out", tmp_path / "g.png", "--images", tmp_path), "--images"),
    ):
        result = run("show", out, *arguments)
        assert result.exit_code != 0
        assert message in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--images", "{images}", "--recipe", "fast", "--out", "{wrong}"),
        ("merge", "{masks}", "--out", "{wrong}"),
        ("refine", "--images", "{images}", "--masks", "{masks}", "--out", "{wrong}"),
        ("show", "{masks}", "--out", "{wrong}.png"),
        ("show", "{masks}", "--out", "{wrong}.html"),
        ("export", "{masks}", "--out", "{wrong}"),
        ("import", "--from", "{json}", "--images", "{images}", "--out", "{wrong}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(built, tmp_path, monkeypatch, arguments):
    def no_work(*_, **__):
        raise AssertionError("the work has begun")

    for target in WORK:
        monkeypatch.setattr(f"hapicl.maskgen.{target}", no_work)
    (tmp_path / "file").touch()
    (tmp_path / "a.json").write_text("{}")
    root, out, _ = built
    places = {"images": root, "masks": out, "wrong": tmp_path / "file" / "x", "json": tmp_path / "a.json"}
    result = run(*(argument.format(**places) for argument in arguments))
    assert "a folder on the way is a file" in str(result.exception)
    assert isinstance(result.exception, UserError)


def test_export_verify_and_score_go_together(built, tmp_path):
    root, out, _ = built
    result = run("export", out, "--out", tmp_path / "tree")
    assert "wrote 14 masks" in result.output
    result = run("verify", out, "--images", root)
    assert result.exit_code == 0, result.output
    assert "14 masks and 14 image sizes checked: 0 problems" in result.output
    scores = json.loads(run("score", out, "--truth", tmp_path / "tree", "--json").output)
    assert scores["mean"]["iou"] == 1
    result = run("score", out, "--truth", tmp_path / "tree", "--images", root)
    assert result.exit_code == 0, result.output
    assert "14 images" in result.output
    assert (
        run("import", "--from", tmp_path / "tree", "--images", root, "--out", tmp_path / "i.h5").exit_code
        == 0
    )


def test_shards_and_merge_by_command(built, tmp_path):
    root, out, _ = built
    assert run("build", "--images", root, "--out", tmp_path / "m.h5", "--shard", "1").exit_code == 2
    result = run("build", "--images", root, "--out", tmp_path / "m.h5", "--recipe", "fast", "--shard", "1/1")
    assert "all part files are there" in result.output
    assert "16 images" in run("merge", "--out", tmp_path / "m.h5").output
    assert digests(tmp_path / "m.h5") == digests(out)
    assert "holds no part files" in str(run("merge", "--out", tmp_path / "m.h5").exception)


@pytest.mark.slow
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [*HAPICL, "masks", "build", "--images", str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: cannot read the image folder")
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder of 324 small pictures and the masks of a build that nothing disturbed.

    Six parts, of which two workers make two at a time: when the first is there, most of the work is left.
    """
    root = tmp_path_factory.mktemp("noise") / "images"
    root.mkdir()
    generator = np.random.default_rng(0)
    for index in range(324):
        picture = cv2.GaussianBlur(generator.integers(0, 255, (60, 80, 3), dtype=np.uint8), (0, 0), 5)
        cv2.imwrite(str(root / f"{index:03d}.jpg"), picture)
    build_masks(root, root.parent / "whole.h5", "quality", TWO_WORKERS)
    return root, root.parent / "whole.h5"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_to_the_same_file(noise, tmp_path, number):
    root, whole = noise
    command = [*HAPICL, "masks", "build", "--images", str(root), "--workers", "2", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "m.h5")], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "m.h5.parts" / "part-000000.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + 15)
    if number == signal.SIGTERM:
        assert len(MaskReader(tmp_path / "m.h5")) >= 64
    subprocess.run([*command, str(tmp_path / "m.h5")], check=True, capture_output=True)
    assert digests(tmp_path / "m.h5") == digests(whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_dask_workers_make_the_same_file(built, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra `dask`")
    root, out, _ = built
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        settings = BuildSettings(backend="dask", scheduler=cluster.scheduler_address)
        build_masks(root, tmp_path / "dask.h5", "fast", settings)
    assert digests(tmp_path / "dask.h5") == digests(out)


def test_a_worker_never_loads_torch():
    command = (
        "import hapicl.maskgen.building.worker, sys; "
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_workers_follow_the_cores_of_this_process():
    command = (
        "import os, sys; os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]});"
        "from hapicl.data.build_workers import default_workers; sys.exit(default_workers() != 1)"
    )
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_odd_originals_build_without_trouble(odd_originals, tmp_path):
    summary = build_masks(odd_originals, tmp_path / "m.h5", "fast", TWO_WORKERS)
    assert summary.images == 13
    assert summary.failures == {}


def test_looking_at_masks_compiled_the_kernels_that_make_them():
    """Half a minute on a new installation, for `masks info`."""
    program = (
        "import sys\n"
        "from hapicl.maskgen.inspection import compare, info, page, score, verify\n"
        "from hapicl.maskgen.exchange import coco, tree\n"
        "print('numba' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "False\n"
