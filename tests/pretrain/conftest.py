"""Helper modules beside these tests are importable by name, also in processes that the tests start."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
