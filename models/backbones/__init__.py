"""Backbones by name: networks that give feature maps by name."""
