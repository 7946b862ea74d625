"""What a user sees while a command runs: names that any stream can print, progress, completion in shells."""
