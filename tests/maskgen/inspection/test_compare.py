"""Two mask files side by side."""

import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from hapicl.common.errors import UserError
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import MaskRow, pack_mask, write_masks
from hapicl.maskgen.building.merge import describe
from hapicl.maskgen.commands import masks
from hapicl.maskgen.inspection.compare import compare_masks, show_comparison


def half(axis, size=(20, 30)):
    """The lower or the right half of a mask."""
    mask = np.zeros(size, bool)
    mask[size[0] // 2 :] = axis == 0
    if axis:
        mask[:, size[1] // 2 :] = True
    return mask


@pytest.fixture
def files(tmp_path):
    """a: the same twice; b: halves that share a quarter; c: the same at another size; d, e: in one file."""
    root = tmp_path / "images"
    root.mkdir()
    for name in "abcde":
        cv2.imwrite(str(root / f"{name}.png"), np.full((40, 60, 3), 90, np.uint8))
    first = {"a": half(0), "b": half(0), "c": half(1), "d": half(0)}
    second = {"a": half(0), "b": half(1), "c": half(1, (40, 60)), "e": half(0)}
    for name, rows in (("first", first), ("second", second)):
        packed = [pack_mask(f"{key}.png", mask, (40, 60)) for key, mask in rows.items()]
        packed.append(MaskRow(path="x.png", reason="broken"))
        write_masks(tmp_path / f"{name}.h5", packed, describe({"name": name}, str(root)))
    return tmp_path


def test_what_changed_by_hand(files):
    found = compare_masks(MaskReader(files / "first.h5"), MaskReader(files / "second.h5"))
    assert (found.images, found.only_first, found.only_second) == (3, 1, 1)
    assert found.unchanged == 2
    assert found.other == 1
    assert found.largest[0] == ("b.png", pytest.approx(1 / 3))
    assert found.agreement == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert found.coverage == (pytest.approx(0.5), pytest.approx(0.5))


def test_files_of_other_images_are_refused(files):
    write_masks(files / "other.h5", [pack_mask("z.png", half(0), (20, 30))], describe({}, "/nowhere"))
    with pytest.raises(UserError, match="no image in common"):
        compare_masks(MaskReader(files / "first.h5"), MaskReader(files / "other.h5"))


@pytest.mark.parametrize("name", ["changes.png", "changes.html"])
def test_the_largest_changes_are_shown(files, name):
    show_comparison(files / "first.h5", files / "second.h5", files / name)
    content = (files / name).read_bytes()
    if name.endswith(".png"):
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[1] > 3 * 150  # three pictures side by side
    else:
        assert b"0.500 -&gt; 0.500" in content or b"0.500 -> 0.500" in content


def test_the_commands_take_two_files(files):
    truth = files / "truth"
    truth.mkdir()
    for name in "abc":
        cv2.imwrite(str(truth / f"{name}.png"), half(1, (40, 60)).astype(np.uint8) * 255)

    def run(*arguments):
        return CliRunner().invoke(masks, [str(argument) for argument in arguments])

    plain = run("score", files / "first.h5", "--against", files / "second.h5")
    assert plain.exit_code == 0, plain.output
    assert "0.33  b.png" in plain.output
    both = run("score", files / "first.h5", "--against", files / "second.h5", "--truth", truth, "--json")
    scores = json.loads(both.stdout)["scores"]
    # against the right half: a scores 1/3 in both files, b 1/3 and then 1, c 1 in both
    assert scores[1]["iou"] - scores[0]["iou"] == pytest.approx((1 - 1 / 3) / 3, abs=0.03)
    assert run("score", files / "first.h5").exit_code == 2
    shown = run("show", files / "first.h5", "--against", files / "second.h5", "--out", files / "a.png")
    assert shown.exit_code == 0, shown.output
    assert "agreement under 0.5" in shown.output
