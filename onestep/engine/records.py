"""The records that a run's folder keeps, read as plain data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep.reading import read_yaml


def read_record(run: Path) -> dict[str, Any]:
    """The configuration that ``run/config.yaml`` keeps: plain values, whatever the file asks for.

    Raises:
        ValueError: if there is none, or it is no YAML of a mapping.
    """
    return read_yaml(run / "config.yaml")


def select(record: dict[str, Any], key: str) -> Any:
    """The value under ``key``, such as ``teacher.path``; None where a part of it is absent or an object's name."""
    value: Any = record
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def flatten(values: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their full keys; an empty mapping has none."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{prefix}{key}"
        flat |= flatten(value, separator, f"{full}{separator}") if isinstance(value, Mapping) else {full: value}
    return flat
