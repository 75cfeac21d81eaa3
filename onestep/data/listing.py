"""The image files among the names in a folder or an archive."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from onestep.images import SUFFIXES

_OF_TOOLS = ("__macosx", "thumbs.db", "desktop.ini")


def files_below(root: Path) -> Iterator[str]:
    """The paths of all files below ``root``, relative to it, without hidden ones.

    Links are followed, and each folder is read once: a link to a folder above would have no end.
    """
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        for name in files:
            if not is_hidden(name):
                yield Path(folder, name).relative_to(root).as_posix()


def is_hidden(name: str) -> bool:
    """True for what tools add to a folder or an archive, such as ``.git/x``, ``__MACOSX/._x.png`` or ``Thumbs.db``."""
    parts = [part.casefold() for part in PurePosixPath(name).parts if part != ".."]
    return any(part.startswith(".") or part in _OF_TOOLS for part in parts)


def image_names(names: Iterable[str], place: str) -> list[str]:
    """The images among the ``names`` of files, sorted; a warning counts other files by their endings, but for JSON.

    Args:
        names: relative paths with ``/``.
        place: the folder or the archive, for the warning.
    """
    images, others = [], Counter[str]()
    for name in sorted({name for name in names if not is_hidden(name)}):
        if name.lower().endswith(SUFFIXES):
            images.append(name)
        elif not name.lower().endswith(".json"):  # labels and records
            others[PurePosixPath(name).suffix.lower() or "no ending"] += 1
    warn_of_others(others, place)
    return images


def warn_of_others(others: Counter[str], place: str) -> None:
    """One warning with the counts of files that are not read, by their endings; none without such files."""
    if others:
        counts = ", ".join(f"{count} with {ending}" for ending, count in others.most_common(10))
        warnings.warn(
            f"{place}: files that are not read as images: {counts}; images end in {', '.join(SUFFIXES)}", stacklevel=3
        )
