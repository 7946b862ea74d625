"""Tiny labelled data for every test of evaluation."""

from labelled_data import colour_folders, halves, squares

__all__ = ["colour_folders", "halves", "squares"]
