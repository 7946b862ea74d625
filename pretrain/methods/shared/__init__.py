"""Terms and views that several methods share."""
