"""The training engine: processes, optimisers, the loop, checkpoints and the journal; it knows no method."""
