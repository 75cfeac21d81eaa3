"""Train: distill a teacher into a one-step generator, as ``onestep train``. ``--help`` shows the choices."""

import sys

from onestep.commands import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
