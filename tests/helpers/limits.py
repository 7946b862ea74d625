"""A disk that is full, without one: files of this process may grow to so many bytes only."""

import resource
from contextlib import contextmanager


@contextmanager
def largest_file(size):
    """The kernel answers a write past `size` bytes with EFBIG, which is an OSError as ENOSPC is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
