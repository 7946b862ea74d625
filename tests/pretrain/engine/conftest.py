"""Helpers of the engine's tests are importable by name, also in processes started by them."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
