"""Pictures: denormalised pixels, grey where hidden, frames and heat in the right cell."""

import numpy as np
import torch

from hapicl.models.preprocess import to_pixels
from hapicl.pretrain.methods.shared import pictures


def test_pixels_undo_the_normalisation() -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = torch.tensor([10, 128, 255])
    images = ((wanted / 255 - mean) / std).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert to_pixels(images).tolist() == [[[[10, 128, 255]] * 4] * 4]


def test_hidden_cells_are_grey_and_others_untouched() -> None:
    pixels = np.full((1, 6, 6, 3), 9, np.uint8)
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 5] = True  # row 1, column 2
    got = pictures.hide(pixels, mask)
    assert (got[0, 2:4, 4:6] == 128).all()
    assert (got == 128).sum() == 2 * 2 * 3


def test_the_frame_lies_around_its_cell() -> None:
    got = pictures.mark_cell(np.zeros((1, 12, 12, 3), np.uint8), 4, 3)
    assert (got[0, 4, 4:8] == (255, 0, 0)).all()
    assert (got[0, 5:7, 5:7] == 0).all()
    assert (got[0, :4] == 0).all()


def test_heat_is_bright_where_the_value_is_high() -> None:
    values = torch.tensor([[-1.0, 1.0, 0.0, -1.0]])
    brightness = pictures.heat(values, 4)[0].sum(-1).astype(int)
    assert brightness[0, 0] < brightness[2, 0] < brightness[0, 3]


def test_similarity_is_highest_at_the_chosen_cell_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(2, 9, 16, generator=draw)
    views = torch.randn(2, 3, 96, 96, generator=draw)
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    picture = pictures.similarity_picture(views, views, hidden, target, target)
    side, next_one = 2 * 96, 2 * 96 + pictures.GAP  # shown twice as large
    assert picture.shape == (next_one + side, 3 * next_one + side, 3)
    own, asked = (picture[:side, number * next_one :][:, :side] for number in (2, 3))
    brightness = own.sum(-1).astype(int)
    assert brightness[side // 2, side // 2] == brightness.max() > brightness[10, 10]
    assert np.array_equal(own, asked)
