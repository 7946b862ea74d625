"""The one reader of weights: files of ours and of other toolkits, hub names and run folders.

Matched keys are counted, and what did not load is an error.
"""

from .load import describe_weights, fill_backbone, load_backbone
from .match import MATCH_REQUIRED
from .read import State, file_hash
from .record import RANDOM, WeightsInfo

__all__ = [
    "MATCH_REQUIRED",
    "RANDOM",
    "State",
    "WeightsInfo",
    "describe_weights",
    "file_hash",
    "fill_backbone",
    "load_backbone",
]
