"""What differs between operating systems: locks, processes, the processor, devices that are no CUDA device.

Nothing else of the package asks which system it runs on. What Linux alone has, others get in another way; the
docstrings say what was not run there.
"""
