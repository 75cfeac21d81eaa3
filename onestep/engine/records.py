"""The records that a run's folder keeps, read as plain data."""

from pathlib import Path
from typing import Any

import yaml


def read_record(run: Path) -> dict[str, Any]:
    """The configuration that ``run/config.yaml`` keeps: plain values, whatever the file asks for.

    Raises:
        ValueError: if there is none, or it is no YAML of a mapping.
    """
    path = run / "config.yaml"
    try:
        record = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: no configuration of a run: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected the configuration of a run, got {type(record).__name__}")
    return record


def select(record: dict[str, Any], key: str) -> Any:
    """The value under ``key``, such as ``teacher.path``; None where a part of it is absent or an object's name."""
    value: Any = record
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
