"""Stage two: methods, their losses and modules, the run around them."""
