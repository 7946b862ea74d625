"""The trainer: fits any module that gives a loss. Knows no method and no data format."""
