"""hapicl: pretraining that makes backbones good at dense vision tasks, from unlabelled photographs."""

__version__ = "0.1.0"
