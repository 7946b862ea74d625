"""Layers that rescale a map by a known factor."""

import pytest
import torch
from torch import nn

from hapicl.models.map_scales import FACTORS, rescaling


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("halve", [True, False])
def test_sizes_and_channels(factor: float, halve: bool) -> None:
    layers = rescaling(16, factor, nn.BatchNorm2d, halve=halve)
    channels = round(16 / max(factor, 1)) if halve else 16
    assert layers(torch.zeros(2, 16, 6, 8)).shape == (2, channels, 6 * factor, 8 * factor)


def test_the_same_map_and_the_largest_of_four_cells() -> None:
    values = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(rescaling(1, 1.0, nn.BatchNorm2d, halve=False)(values), values)
    halved = rescaling(1, 0.5, nn.BatchNorm2d, halve=False)(values)
    assert halved.flatten().tolist() == [5.0, 7.0, 13.0, 15.0]


def test_another_factor_is_an_error() -> None:
    with pytest.raises(ValueError, match="maps are rescaled by"):
        rescaling(16, 3.0, nn.BatchNorm2d, halve=False)
