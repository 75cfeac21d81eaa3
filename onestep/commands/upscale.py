"""The words of ``onestep upscale``, whose photographs and output need no ``KEY=``, as settings."""

import re
from collections.abc import Sequence
from pathlib import Path

from onestep.entry import OPTIONS_WITH_NAME, OPTIONS_WITH_VALUE, quoted


def as_settings(words: Sequence[str]) -> list[str]:
    """The ``words`` with ``images=[...]`` for those that are no settings, and ``output=...`` for ``-o OUTPUT``.

    Raises:
        ValueError: for ``-o`` without a value, or a name that the configuration would replace.
    """
    images: list[str] = []
    others: list[str] = []
    left = iter(words)
    for word in left:
        if word == "-o":
            output = next(left, None)
            if output is None:
                raise ValueError("-o: expected a folder, or the name of a picture")
            others.append(f"output={quoted(output)}")
        elif word.startswith("-"):
            others += [word, *([next(left, "")] if word in OPTIONS_WITH_NAME | OPTIONS_WITH_VALUE else [])]
        elif re.match(r"\+*[A-Za-z_][\w./@]*=", word) and not Path(word).exists():
            others.append(word)
        else:
            images.append(word)
    if replaced := [name for name in images if "${" in name]:
        raise ValueError(f"{replaced[0]}: a value of the configuration would replace ${{...}}: give its folder instead")
    return [*others, *([f"images=[{','.join(map(quoted, images))}]"] if images else [])]
