"""What a checkpoint must tell before a run goes on from it."""

import pathlib

import pytest

from hapicl.common.errors import UserError
from hapicl.pretrain.resume import check_same_training

NOW = {
    "settings": {"masks": "m.h5", "stem": "stride1", "in_channels": 3},  # config.json had no channels once
    "data": {"images": 12, "paths_sha256": "a", "masks_digest": "b"},
    "total_steps": 4,
}


@pytest.mark.parametrize(
    "change",
    [
        {"total_steps": "4"},
        {"total_steps": 0},
        {"total_steps": True},
        {"total_steps": None},
        {"extended": 5},
        {"settings": []},
        {"data": None},
    ],
)
def test_a_checkpoint_whose_lengths_were_no_numbers_was_a_traceback(change):
    with pytest.raises(UserError, match=r"last\.pt does not say of which training it is; give a checkpoint"):
        check_same_training(NOW | change, NOW, pathlib.Path("last.pt"))


def test_a_stem_that_was_left_open_with_odd_settings_is_another_training():
    before = NOW | {"settings": {"masks": "m.h5", "stem": "auto", "arch": 3}}
    with pytest.raises(UserError, match="another training: arch was 3, is None; stem was 'auto'"):
        check_same_training(before, NOW, pathlib.Path("last.pt"))
    check_same_training(NOW, NOW, pathlib.Path("last.pt"))
