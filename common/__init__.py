"""The ground floor: what every room may use; knows no image, mask or network, and imports nothing of ours."""
