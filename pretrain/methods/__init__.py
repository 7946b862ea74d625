"""One method, one file. `registry.py` lists them by name."""
