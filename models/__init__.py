"""Networks and what hangs on them: backbones, heads, decoders, and the one reader of weights."""

from .registry import register

__all__ = ["register"]
