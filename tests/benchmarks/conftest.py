"""The scripts of benchmarks/ are importable by name, as they are to each other."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))
