"""What the progress bar and a log line show of the numbers."""

from hapicl.engine.loggers.run_logger import one_line

LINE = {
    "loss": 5.1,
    "loss/instance": 4.4,
    "loss/pixel": 0.7,
    "chance/pixel": 0.8,
    "similarity/positive": 0.3,
    "speed/samples_per_second": 31.0,
    "speed/data_wait_fraction": 0.05,
}


def test_a_line_shows_the_loss_its_terms_and_the_speed():
    assert one_line(LINE) == "loss 5.1  instance 4.4  pixel 0.7  31 samples/s  data wait 5%"


def test_a_knn_stands_beside_the_loss_not_in_its_place():
    assert one_line({"knn/accuracy": 0.25}) == "kNN 25.0%"
    assert one_line(LINE | {"knn/accuracy": 0.25}).startswith("loss 5.1  instance 4.4  pixel 0.7  kNN 25.0%")


def test_numbers_without_a_loss_are_shown_as_they_are():
    assert one_line({"miou": 0.5}) == "miou 0.5"
