"""Before and during a run: how fast each stage is, what a run would be, whether features get better."""
