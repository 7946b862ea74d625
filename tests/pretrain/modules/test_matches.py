from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from hapicl.cli import command_line
from hapicl.common.errors import UserError
from hapicl.data.geometry import ViewGeometry
from hapicl.data.positions import cell_centres, stack
from hapicl.evaluate.report.match_pictures import find_matches, matches_picture
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain.modules.matches import cell_distance, mutual, nearest_cells

FIRST = ViewGeometry(0, 0, 80, 80, False)
RIGHT_HALF_MIRRORED = ViewGeometry(0, 42, 80, 40, True)


def test_nearest_cells_follow_crop_and_flip():
    first, second = stack([FIRST]), stack([RIGHT_HALF_MIRRORED])
    match = nearest_cells(first, second, 2)[0].tolist()
    # cells of the first view are centred at x 20 and 60; of the second, mirrored, at x 72 and 52
    assert match == [1, 1, 3, 3]
    ours, theirs = cell_centres(first, 2)[0], cell_centres(second, 2)[0]
    for cell, found in enumerate(match):
        gaps = (theirs - ours[cell]).norm(dim=1)
        assert gaps[found] == gaps.min()


def test_distances_are_in_cells_of_the_first_view():
    first, second = stack([FIRST]), stack([FIRST._replace(left=20)])
    same_cell = torch.arange(16)[None]
    # cells are 20 pixels wide: the second view lies one cell further right
    distance = cell_distance(first, second, same_cell, 4)
    torch.testing.assert_close(distance, torch.ones(1, 16, dtype=torch.float64))
    assert not cell_distance(first, first, same_cell, 4).any()


def test_mutual_matches_choose_each_other():
    match, back = torch.tensor([[2, 2, 0]]), torch.tensor([[2, 0, 1]])
    assert mutual(match, back).tolist() == [[False, True, True]]


def test_a_picture_is_drawn_of_a_real_photograph(photographs):
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", image_size=128).eval()
    shown = find_matches(backbone, photographs["chelsea"].copy(), image_size=128, seed=1)
    assert (shown.grid, shown.match.shape) == (4, (16,))
    again = find_matches(backbone, photographs["chelsea"].copy(), image_size=128, seed=1)
    assert torch.equal(shown.match, again.match)
    picture = np.asarray(Image.open(io.BytesIO(matches_picture(shown))))
    assert picture.shape[0] > 400
    assert picture.shape[1] > 1000
    assert "4 x 4 cells" in shown.summary()


def test_a_map_of_one_cell_has_nothing_to_match(photographs):
    backbone = build_backbone("resnet18", image_size=128, stem="imagenet").eval()
    with pytest.raises(UserError, match="use at least 128"):
        find_matches(backbone, photographs["chelsea"].copy(), image_size=32)


def test_the_command_writes_the_picture(tmp_path, photo_folder):
    image = next(photo_folder.rglob("chelsea.jpg"))
    out = tmp_path / "new folder" / "matches.png"
    arguments = ["show-matches", "random", str(image), "--arch", "resnet18", "--out", str(out)]
    result = CliRunner().invoke(command_line, [*arguments, "--image-size", "64"])
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert "mutual" in result.output
