"""Stage one: the foreground of every image, without labels, into one HDF5 file. Imports only data."""
