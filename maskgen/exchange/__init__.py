"""Masks from and to other forms: trees of files, COCO annotations."""
