"""A reader of files from others, with seeds to damage."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.stress.mutations import mutate_bytes

Mutate = Callable[[bytes, Random], bytes]


@dataclass
class Reader:
    """Reads the file ``path``, whose content is one of ``seeds`` after ``mutate``."""

    path: Path
    seeds: list[bytes]
    read: Callable[[], object]
    mutate: Mutate = mutate_bytes
