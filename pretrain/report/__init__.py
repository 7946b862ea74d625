"""The page of a run: curves, views, features."""
