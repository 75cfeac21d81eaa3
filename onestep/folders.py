"""Where files are: the bundled ones, the caches, and a folder of the process where caches cannot be written."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from onestep.assets import ASSETS


def cache_folder(name: str) -> str:
    """The package's cache ``name``, by the XDG standard: an empty or relative ``XDG_CACHE_HOME`` counts as none.

    It may start with ~, so that a run's record fits other users.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    return f"{home if os.path.isabs(home) else '~/.cache'}/onestep/{name}"


def asset_path(name: str) -> str:
    """The file or folder ``name`` of the bundled ones."""
    return str(ASSETS / name)


def is_cache_folder(folder: str | Path) -> bool:
    """True if ``folder`` is in the package's caches, and so a default rather than a choice of the user's."""
    root = os.path.expanduser(cache_folder(""))
    return os.path.expanduser(folder).startswith(root)


@cache
def process_folder() -> Path:
    """A folder that is deleted when the process ends.

    Raises:
        OSError: if there is no place for temporary files.
    """
    folder = Path(tempfile.mkdtemp(prefix="onestep_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
