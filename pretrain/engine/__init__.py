"""The trainer: loop, optimisers, checkpoints, journal, processes. Knows no method."""
