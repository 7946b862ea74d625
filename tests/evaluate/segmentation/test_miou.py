import pytest
import torch

from hapicl.evaluate.segmentation.miou import class_iou, confusion_matrix, segmentation_metrics


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
