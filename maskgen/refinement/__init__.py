"""Masks that learn from the first masks of the same images."""
