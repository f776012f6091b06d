"""``python -m service.cli`` is the command ``cdka``."""

from .program import main

if __name__ == "__main__":
    main()
