"""Stage two: backbones, losses, methods and the trainer. Imports only data."""
