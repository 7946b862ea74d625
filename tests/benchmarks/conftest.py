"""The scripts of benchmarks/ are importable by name, as they are to each other."""

import pathlib
import sys

from labelled_data import colour_folders, halves, squares

__all__ = ["colour_folders", "halves", "squares"]

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))
