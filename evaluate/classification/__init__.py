"""Frozen features and fine-tuning for image classification."""
