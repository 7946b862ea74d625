"""Centre crops and the vectors of their maps: read in order, normalised, of the vector that was asked for."""

import numpy as np
import pytest
import torch
from PIL import Image

from hapicl.common.errors import UserError
from hapicl.data.images.class_folders import class_folders
from hapicl.models.backbones.build import build_backbone
from hapicl.models.features import crop_batches, evaluation_vector, extract_features
from hapicl.models.preprocess import as_tensor, centre_crop, default_resize, normalize


@pytest.fixture
def folder(tmp_path):
    """Three images of two classes, one of them deeper."""
    for number, place in enumerate(("cat/a.png", "cat/c.png", "dog/deep/b.png")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 60), (80 * number, 100, 200)).save(tmp_path / place)
    return tmp_path


def test_crops_come_in_the_order_of_the_list(folder):
    batches = list(crop_batches(class_folders(folder), image_size=16, batch_size=2))
    assert [tuple(crops.shape) for crops, _ in batches] == [(2, 3, 16, 16), (1, 3, 16, 16)]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 1]
    assert [int(crops[0, 0, 8, 8]) for crops, _ in batches] == [0, 160]


def test_reading_crops_draws_nothing_from_the_generator_of_training(folder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(crop_batches(class_folders(folder), image_size=16))
    assert torch.equal(torch.rand(1), expected)


def test_the_centre_crop_is_the_centre_normalised():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 48:80] = 255  # a white band in the middle
    crop = normalize(centre_crop(as_tensor(pixels), crop=56))
    assert crop.shape == (3, 56, 56)
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(crop[:, 28, 28], white)
    assert crop[0, 28, 2] < 0
    assert default_resize(224) == 256


def test_features_are_the_mean_over_the_map_and_the_mode_is_put_back(folder):
    backbone = build_backbone("resnet18", image_size=32).train()
    images = class_folders(folder)
    features = extract_features(backbone, images, image_size=32, batch_size=2)
    assert features.values.shape == (3, 512)
    assert features.labels.tolist() == [0, 0, 1]
    assert backbone.training
    crops = torch.cat([normalize(crops) for crops, _ in crop_batches(images, image_size=32)])
    with torch.no_grad():
        expected = backbone.eval()(crops)["layer4"].mean((2, 3))
    torch.testing.assert_close(features.values, expected, rtol=1e-4, atol=1e-5)


def test_a_vit_has_two_vectors_and_a_resnet_one():
    vit = build_backbone("vit_tiny_patch16_224", image_size=32, stem="patch16").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = vit(images)
        assert torch.equal(evaluation_vector(vit, images, "class"), maps["class"])
        torch.testing.assert_close(evaluation_vector(vit, images, "mean"), maps["patches"].mean((2, 3)))
    with pytest.raises(UserError, match="no class token"):
        evaluation_vector(build_backbone("resnet18", image_size=32), images, "class")
