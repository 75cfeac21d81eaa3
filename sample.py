"""Generate images with a trained generator or its teacher, as ``onestep sample``. ``--help`` shows the choices."""

import sys

from onestep.commands import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
