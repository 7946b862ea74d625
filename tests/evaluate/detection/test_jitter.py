"""Large-scale jitter moves an image and its objects together."""

import numpy as np
import pytest
import torch

from hapicl.evaluate.detection.jitter import large_scale_jitter


@pytest.mark.parametrize("masks", [True, False])
def test_jitter_moves_image_boxes_and_masks_together(masks: bool) -> None:
    image = torch.full((3, 40, 60), 40, dtype=torch.uint8)
    image[:, 10:30, 20:50] = 220
    target = {"boxes": torch.tensor([[20.0, 10, 50, 30]]), "labels": torch.tensor([1])}
    if masks:
        target["masks"] = (image[:1] > 100).to(torch.uint8)
    left = 0
    for draw in range(30):
        moved, found = large_scale_jitter(
            image, target, np.random.default_rng(draw), side=48, scale=(0.1, 2.0)
        )
        assert moved.shape == (3, 48, 48)
        assert len(found["boxes"]) == len(found["labels"])
        bright = (moved[0] > 160).nonzero()
        if not len(found["boxes"]):
            assert len(bright) <= 60  # at most a thin rest of it
            continue
        left += 1
        seen = torch.cat([bright.amin(0).flip(0), bright.amax(0).flip(0) + 1]).float()
        torch.testing.assert_close(found["boxes"][0], seen, atol=2.0, rtol=0)
        if masks:
            assert found["masks"].shape == (1, 48, 48)
    assert left > 20
