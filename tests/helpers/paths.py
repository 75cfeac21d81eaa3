"""Folders of the repository."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
#: Data that other programs wrote, and numbers that were recorded.
REFERENCE = Path(__file__).parents[1] / "reference"
