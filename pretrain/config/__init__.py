"""What a user sets: run settings, recipes, and how options are laid over each other."""
