"""What the annotation of a setting says: its alternatives, pydantic's check of each, and its values in words."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter

_KINDS = {"integer": "an integer", "number": "a number", "string": "text", "boolean": "true or false", "null": "null",
          "object": "a mapping"}  # fmt: skip
#: The schema of the description of an object in a configuration.
OBJECT = {"type": "object", "required": ["_target_"]}


def is_plain(annotation: Any) -> bool:
    """True for a type of values that YAML has; False for objects, which a configuration describes by ``_target_``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return is_plain(get_args(annotation)[0])
    if origin in (list, tuple, Sequence, Union, UnionType):
        return all(is_plain(part) for part in get_args(annotation))
    return origin in (Literal, dict, Mapping) or annotation in (bool, int, float, str, Path, NoneType)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The parts of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


@functools.cache
def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Pydantic's check of a plain annotation: without conversions of types, and without nan and inf."""
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def describe(annotation: Any) -> str:
    """The values of ``annotation`` in words, such as "an integer of at least 1, or null"."""
    parts = alternatives(annotation)
    words = (_words(adapter(part).json_schema() if is_plain(part) else OBJECT) for part in parts)
    return "a mapping" if is_dataclass(annotation) else ", or ".join(dict.fromkeys(words))


def shown(value: Any) -> str:
    """A plain ``value`` as one types it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(item)}' for key, item in value.items())}}}"
    if value in (None, ""):
        return "null" if value is None else "''"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(map(_words, schema["anyOf"])))
    if "enum" in schema:
        return f"one of {', '.join(map(shown, schema['enum']))}"
    if "const" in schema:
        return shown(schema["const"])
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])}, each {_words(schema['prefixItems'][0])}"
    kind = schema.get("type")
    if kind == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        size = "" if least is None else f" of {least}" if least == most else f" of at least {least}"
        return f"a list{size}, each {_words(schema['items'])}"
    if schema.get("minLength"):
        return "text that is not empty"
    if "required" in schema:
        return "a mapping with a _target_"
    return _KINDS.get(str(kind), "a value") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and".join(f" {word} {schema[bound]}" for bound, word in words.items() if bound in schema)
