import pytest
import torch

from hapicl.evaluate.segmentation.miou import (
    class_counts,
    class_iou,
    confusion_matrix,
    miou_of_counts,
    segmentation_metrics,
)


def test_hand_computed_with_void() -> None:
    truth = torch.tensor([[0, 0, 1], [1, 255, 2]])
    predicted = torch.tensor([[0, 1, 1], [1, 2, 0]])
    confusion = confusion_matrix(truth, predicted, 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    # class 0: 1 / (2 + 2 - 1); class 1: 2 / (2 + 3 - 2); class 2: 0 / 1
    assert class_iou(confusion) == pytest.approx([1 / 3, 2 / 3, 0.0])
    metrics = segmentation_metrics(confusion)
    assert metrics == pytest.approx({"miou": 1 / 3, "pixel_accuracy": 3 / 5})


def test_a_class_nowhere_is_left_out_a_class_only_predicted_counts_zero() -> None:
    truth, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    confusion = confusion_matrix(truth, predicted, 4)
    assert class_iou(confusion) == [1.0, 0.5, 0.0, None]
    assert segmentation_metrics(confusion)["miou"] == pytest.approx(0.5)


def test_only_void_is_an_error() -> None:
    confusion = confusion_matrix(torch.full((3,), 255), torch.zeros(3, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="void"):
        segmentation_metrics(confusion)


def test_counts_of_images_add_up_to_the_confusion_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (5, 60), generator=generator)
    predicted = torch.randint(0, 5, (5, 60), generator=generator)  # class 5 occurs nowhere, 4 only here
    each = [confusion_matrix(one, other, 6) for one, other in zip(truth, predicted, strict=True)]
    counts = torch.stack([class_counts(matrix) for matrix in each])
    assert counts.shape == (5, 6, 3)
    whole = segmentation_metrics(torch.stack(each).sum(0))["miou"]
    assert miou_of_counts(counts.sum(0).numpy()) == pytest.approx(whole)
    one = segmentation_metrics(each[2])["miou"]
    assert miou_of_counts(counts.numpy())[2] == pytest.approx(one)
