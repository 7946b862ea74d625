"""Images and masks on disk, the one geometry, and the loader that makes batches of them."""
