"""`python -m hapicl`: the same as the `hapicl` command."""

from .cli import main

if __name__ == "__main__":
    main()
