"""Losses as pure functions of tensors; state (queues, banks, copies) lives in the methods.

Shape legend for the folder: B images, D embedding, C map channels, P cells, K queue or negative entries,
n bank rows, N tokens. Every loss works in float32 at least (bfloat16 and half inputs are raised, float64 is
kept) and normalises its inputs itself where the method does.
"""

from .bank import bank_info_nce, bank_nce, bank_scores
from .dense import dense_info_nce, match_cells
from .instance import info_nce, negative_cosine, nt_xent
from .pixel import PixelForm, cell_labels, pixel_contrast, pixel_terms
from .tokens import unigrad

__all__ = [
    "PixelForm",
    "bank_info_nce",
    "bank_nce",
    "bank_scores",
    "cell_labels",
    "dense_info_nce",
    "info_nce",
    "match_cells",
    "negative_cosine",
    "nt_xent",
    "pixel_contrast",
    "pixel_terms",
    "unigrad",
]
