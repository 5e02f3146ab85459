"""``python -m bircher``: the same as the command ``bircher``."""

from bircher.cli import main

if __name__ == "__main__":
    main()
