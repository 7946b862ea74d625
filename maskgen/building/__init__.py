"""Building a mask file in parts by worker processes, through kills and restarts."""
