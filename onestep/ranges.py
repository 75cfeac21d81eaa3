"""Types of settings with their ranges, and the check of a value against such a type.

A parameter that a configuration names has one of these types, or a combination such as ``Count | None``,
``list[Positive]`` or ``Literal["png", "npz"]``. Nothing else states its range.
"""

import functools
import inspect
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

#: Integers from 1, and from 0.
Count = Annotated[int, Ge(1), Le(2**31)]
NonNegativeInt = Annotated[int, Ge(0), Le(2**31)]
#: Numbers of images, which can be trillions.
Images = Annotated[int, Ge(1), Le(2**48)]
NonNegativeImages = Annotated[int, Ge(0), Le(2**48)]
#: Lengths of loops that end in reasonable time, and sides of images.
Steps = Annotated[int, Ge(1), Le(100_000)]
Side = Annotated[int, Ge(1), Le(2**14)]
#: Seeds of random numbers: torch's rng on the CPU and numpy's take 32 bits.
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
#: Finite numbers: of either sign, above 0, and from 0.
Number = Annotated[float, Ge(-(10**12)), Le(10**12)]
Positive = Annotated[float, Gt(0), Le(10**12)]
NonNegative = Annotated[float, Ge(0), Le(10**12)]
#: Learning rates and factors of a loss.
Rate = Annotated[float, Ge(0), Le(10**6)]
#: [0, 1], (0, 1] and [0, 1).
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Flag = bool
#: Text that is not empty.
Text = Annotated[str, MinLen(1)]
#: A path, in which ``~`` is the home folder; an id on the Hugging Face hub is one too.
PathText = Annotated[str | Path, AfterValidator(os.path.expanduser)]
#: Channels, height and width.
ImageShape = tuple[Side, Side, Side]

#: The arguments of torch's optimisers, which have no annotations of this module.
OPTIMIZER = {
    "lr": Rate,
    "betas": tuple[Decay, Decay],
    "eps": Fraction,
    "weight_decay": Rate,
    "momentum": Decay,
    "dampening": Decay,
    **dict.fromkeys(("amsgrad", "nesterov", "maximize", "capturable", "differentiable"), bool),
    **dict.fromkeys(("fused", "foreach"), bool | None),
}

_Target = TypeVar("_Target", bound=Callable[..., Any])


def check(name: str, value: Any, annotation: Any) -> Any:
    """The ``value`` of the setting ``name``, converted to its type ``annotation``.

    A whole float becomes an integer for an integer setting. Text is no number, and a number is no flag.

    Args:
        name: the full key, such as ``training.batch_size``.
        value: plain values, or lists and dicts of them, as YAML reads them.
        annotation: a type of this module, or a combination of them.

    Raises:
        ValueError: in one line, with the name, the value and the range.
    """
    alternatives = _alternatives(annotation)
    if Any in alternatives:
        return value
    plain = _without_whole_floats(value)
    for part in filter(is_plain, alternatives):
        as_typed = tuple(plain) if get_origin(part) is tuple and isinstance(plain, list) else plain
        with suppress(ValidationError):
            return _adapter(part).validate_python(as_typed)
    raise ValueError(f"{name}={shown(value)}: expected {describe(annotation)}")


def parameters(target: Any) -> dict[str, Any] | None:
    """The arguments of a class or function with their types, ``Any`` without one; None if it takes any."""
    signature = inspect.signature(target)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return None
    function = getattr(target, "__init__") if isinstance(target, type) else target  # noqa: B009  # for mypy
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # another package's annotations, such as names for type checkers alone
        hints = {}
    return {name: hints.get(name, Any) for name in signature.parameters}


def is_plain(annotation: Any) -> bool:
    """True for a type of values that YAML has; False for objects, which a configuration describes by ``_target_``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return is_plain(get_args(annotation)[0])
    if origin in (list, tuple, Sequence, Union, UnionType):
        return all(is_plain(part) for part in get_args(annotation))
    return origin in (Literal, dict, Mapping) or annotation in (bool, int, float, str, Path, NoneType)


def checked(target: _Target) -> _Target:
    """Decorator of a class: its plain arguments are checked and converted by their annotations, for users of Python.

    Raises:
        ValueError: at a call, see :func:`check`.
    """
    init: Any = target.__init__
    signature = inspect.signature(init)
    hints = parameters(init) or {}

    @functools.wraps(init)
    def checking(self: Any, *arguments: Any, **keywords: Any) -> None:
        bound = signature.bind(self, *arguments, **keywords)
        for name, value in bound.arguments.items():
            if is_plain(hints[name]):
                bound.arguments[name] = check(name, value, hints[name])
        init(*bound.args, **bound.kwargs)

    setattr(target, "__init__", checking)  # noqa: B010  # for mypy
    return target


def describe(annotation: Any) -> str:
    """The values of ``annotation`` in words, such as "an integer of at least 1, or null"."""
    parts = _alternatives(annotation)
    words = [_words(_adapter(part).json_schema()) if is_plain(part) else "a part with a _target_" for part in parts]
    return ", or ".join(dict.fromkeys(words))


def shown(value: Any) -> str:
    """A plain ``value`` as one types it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(item)}' for key, item in value.items())}}}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def _without_whole_floats(value: Any) -> Any:
    """The ``value`` with integers for whole floats; a type of floats makes them floats again."""
    if isinstance(value, list | tuple):
        return type(value)(map(_without_whole_floats, value))
    if isinstance(value, dict):
        return {key: _without_whole_floats(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
        least = f" of at least {schema['minItems']}" if "minItems" in schema else ""
        return f"a list{least}, each {_words(schema['items'])}"
    names = {"integer": "an integer", "number": "a number", "string": "text", "boolean": "true or false",
             "null": "null", "object": "a mapping"}  # fmt: skip
    return names.get(str(kind), "a value") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and".join(f" {word} {schema[bound]}" for bound, word in words.items() if bound in schema)
