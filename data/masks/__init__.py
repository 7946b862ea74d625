"""The mask file, the only contract between the two stages: its format, reader and writer."""
