"""Types of settings with their ranges, and the check of a value against such a type.

A parameter that a configuration names has one of these types, or a combination such as ``Count | None``,
``list[Positive]`` or ``Literal["png", "npz"]``. Nothing else states its range.
"""

import difflib
import functools
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BeforeValidator, ValidationError, WithJsonSchema

from onestep.annotations import OBJECT, adapter, alternatives, describe, is_plain, shown

#: Integers from 1, and from 0.
Count = Annotated[int, Ge(1), Le(2**31)]
NonNegativeInt = Annotated[int, Ge(0), Le(2**31)]
#: Numbers of images, which can be trillions.
Images = Annotated[int, Ge(1), Le(2**48)]
NonNegativeImages = Annotated[int, Ge(0), Le(2**48)]
#: Samples and lengths of loops that end in reasonable time; batches, sides of images and layers that fit into memory.
Samples = Annotated[int, Ge(1), Le(10**8)]
Steps = Annotated[int, Ge(1), Le(10_000)]
BatchSize = Annotated[int, Ge(1), Le(2**20)]
Side = Annotated[int, Ge(1), Le(2**14)]
Width = Annotated[int, Ge(1), Le(2**14)]
#: Numbers of classes; 0 for none.
Classes = Annotated[int, Ge(0), Le(10**6)]
#: Seeds of random numbers: torch's rng on the CPU and numpy's take 32 bits.
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
#: Finite numbers: of either sign, above 0, and from 0.
Number = Annotated[float, Ge(-(10**12)), Le(10**12)]
Positive = Annotated[float, Gt(0), Le(10**12)]
NonNegative = Annotated[float, Ge(0), Le(10**12)]
#: Learning rates and weights of a loss, from 0 and above 0; scales of classifier-free guidance, and of either sign.
Rate = Annotated[float, Ge(0), Le(10**6)]
PositiveRate = Annotated[float, Gt(0), Le(10**6)]
Guidance = Annotated[float, Ge(0), Le(1000)]
AnyGuidance = Annotated[float, Ge(-1000), Le(1000)]
#: How many times larger a side becomes.
UpscaleFactor = Annotated[float, Gt(0), Le(64)]
#: [0, 1], (0, 1] and [0, 1).
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]


def _expanded(path: Any) -> Any:
    return os.path.expanduser(path) if isinstance(path, str | Path) else path


def _with_target(part: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in part:
        raise ValueError("no _target_")
    return part


#: Text that is not empty.
Text = Annotated[str, MinLen(1)]
#: A path, in which ``~`` is the home folder; an id on the Hugging Face hub is one too.
PathText = Annotated[str, MinLen(1), BeforeValidator(_expanded)]
#: The description of an object in a configuration.
Part = Annotated[dict[str, Any], AfterValidator(_with_target), WithJsonSchema(OBJECT)]
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


@dataclass(frozen=True, eq=False)
class ArgumentsOf:
    """Annotation of a mapping of arguments for a class that another argument names.

    Args:
        argument: the name of the other argument.
        classes: the classes by its values.
        given: arguments that the mapping must not contain.
    """

    argument: str
    classes: Mapping[str, Any]
    given: Sequence[str] = ()


def check_arguments(target: Any, arguments: Mapping[str, Any], path: str = "", partial: bool = False) -> dict[str, Any]:
    """The ``arguments`` of a class or function, converted to the types of its parameters.

    Args:
        target: the class or function; any argument is accepted without a type that this module knows.
        arguments: by name.
        path: the key of the arguments in the configuration.
        partial: accept that required arguments are missing.

    Raises:
        ValueError: for an unknown or missing argument, or a value out of its range, with the full key.
    """
    types = parameters(target)
    if types is None:
        return dict(arguments)
    signature = inspect.signature(target).parameters
    prefix = f"{path}." if path else ""
    if not partial and (missing := [name for name in types if _is_required(signature[name]) and name not in arguments]):
        raise ValueError(f"settings without a value: {', '.join(f'{prefix}{name}' for name in missing)}")
    converted: dict[str, Any] = {}
    for name, value in arguments.items():
        key = f"{prefix}{name}"
        if name not in types:
            raise ValueError(unknown_key(key, types))
        converted[name] = check(key, value, types[name])
        for mark in get_args(types[name])[1:]:
            if isinstance(mark, ArgumentsOf) and converted[name] is not None:
                choice = arguments.get(mark.argument, signature[mark.argument].default)
                for own in {*mark.given} & {*converted[name]}:
                    raise ValueError(f"{key}.{own}={shown(value[own])}: it follows from the other settings; remove it")
                converted[name] = check_arguments(mark.classes[choice], converted[name], key, partial=True)
    return converted


def check(name: str, value: Any, annotation: Any) -> Any:
    """The ``value`` of the setting ``name``, converted to its type ``annotation``.

    A whole float becomes an integer for an integer setting. Text is no number, and a number is no flag.

    Args:
        name: the full key, such as ``training.batch_size``.
        value: plain values, or lists and dicts of them, as YAML reads them.
        annotation: a type of this module, a combination of them, or a dataclass of them for a mapping. A function in
            Annotated gives the end of the message for a refused value.

    Raises:
        ValueError: in one line, with the name, the value and the range.
    """
    parts = alternatives(annotation)
    described = isinstance(value, dict) and "_target_" in value
    if Any in parts or (described and not all(map(is_plain, parts))):
        return value
    if value == {} and {Part, NoneType} <= {*parts}:  # a part that was not chosen, without its settings
        return None
    if is_dataclass(annotation) and isinstance(value, dict):
        return check_arguments(annotation, value, name)
    plain = _without_whole_floats(value)
    for part in filter(is_plain, parts):
        as_typed = tuple(plain) if get_origin(part) is tuple and isinstance(plain, list) else plain
        with suppress(ValidationError):
            converted = adapter(part).validate_python(as_typed)
            if isinstance(value, bool) <= isinstance(converted, bool):  # true equals the choice 1
                return converted
    raise ValueError(f"{name}={shown(value)}: expected {describe(annotation)}{_remedy(name, value, annotation)}")


def _is_required(one: inspect.Parameter) -> bool:
    return one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)


def unknown_key(full_key: str, valid: Iterable[str]) -> str:
    """The message for an unknown key, with the ``valid`` keys."""
    parent, _, key = full_key.rpartition(".")
    choices = sorted(set(valid))
    guess = difflib.get_close_matches(key, choices, n=1)
    hint = f"; did you mean {guess[0]!r}?" if guess else "."
    return f"unknown key {full_key!r}{hint} The keys of {parent or 'the configuration'} are: {', '.join(choices)}"


@functools.cache
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
    if target.__module__.startswith("torch.optim."):
        hints |= OPTIMIZER
    return {name: hints.get(name, Any) for name in signature.parameters}


def checked(target: _Target) -> _Target:
    """Decorator of a class or function: its plain arguments are checked and converted, for users of Python.

    Raises:
        ValueError: at a call, see :func:`check_arguments`.
    """
    function: Any = getattr(target, "__init__") if isinstance(target, type) else target  # noqa: B009  # for mypy
    signature = inspect.signature(function)
    plain = [name for name, annotation in (parameters(function) or {}).items() if is_plain(annotation)]

    @functools.wraps(function)
    def checking(*arguments: Any, **keywords: Any) -> Any:
        given = signature.bind(*arguments, **keywords)
        values = {key: given.arguments[key] for key in plain if key in given.arguments}
        given.arguments |= check_arguments(function, values, partial=True)
        return function(*given.args, **given.kwargs)

    if not isinstance(target, type):
        return cast(_Target, checking)
    setattr(target, "__init__", checking)  # noqa: B010  # for mypy
    return target


def _remedy(name: str, value: Any, annotation: Any) -> str:
    """The end of the message for a refused ``value``."""
    flags = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, bool)]
    if flags and any(words in describe(annotation) for words in ("text", "one of")):
        text = "yes" if flags[0] else "no"
        return f'; YAML reads no, off, yes and on as false and true: quote such a text, as {name}: "{text}"'
    if isinstance(value, dict) and {Part, NoneType} <= {*alternatives(annotation)}:
        return f"; without a choice leave out its settings: {' '.join(f'~{name}.{key}' for key in value)}"
    return "".join(mark(value) for mark in get_args(annotation)[1:] if inspect.isfunction(mark))


def _without_whole_floats(value: Any) -> Any:
    """The ``value`` with integers for whole floats; a type of floats makes them floats again."""
    if isinstance(value, list | tuple):
        return type(value)(map(_without_whole_floats, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value
