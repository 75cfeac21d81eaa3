"""``python -m onestep``, the same as the command ``onestep``."""

from onestep.commands import main

if __name__ == "__main__":
    main()
