"""Backbones as files that other toolkits load."""
