"""Images where they lie in archives: WebDataset's tar shards, and zip files, read at random by an index."""
