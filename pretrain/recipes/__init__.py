"""Training recipes, one YAML file each: what to run, where the numbers come from, what to expect."""
