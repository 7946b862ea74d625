"""Features of a folder of images as a file, and what they say at once: neighbours and near-duplicates."""
