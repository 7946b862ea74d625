"""Semantic segmentation: probe and fine-tuned networks, mean IoU."""
