"""Every number and flag that a configuration can set: it has a range, and bad values end in one line with its name.

The settings are those of the types: of each command, and of each part that a file of the configuration names.
"""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from onestep.build import schema
from onestep.config import CONF
from onestep.distillation.settings import GeneratorSettings
from onestep.ranges import OPTIMIZER, check, describe, is_plain, parameters

NAN, INF = float("nan"), float("inf")
NUMBER: tuple[Any, ...] = ("abc", "1", True, NAN, INF, -INF, 1e300, -1e300, ["a"], {"a": 1}, [[None]], "")
FLAG: tuple[Any, ...] = ("abc", "no", "off", "true", 0, 1, 1.5, NAN, None, [True], {"a": True})
COMMANDS = (schema._Train, schema._Pretrain, schema._PretrainFeatures, schema._Sample)


def targets() -> dict[str, set[str]]:
    """The arguments that the files set, by ``_target_``."""
    found: dict[str, set[str]] = {}

    def walk(node: Any) -> None:
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(value)
        if isinstance(node, dict) and "_target_" in node:
            found.setdefault(node["_target_"], set()).update(key for key in node if not key.startswith("_"))

    for file in CONF.rglob("*.yaml"):
        walk(OmegaConf.to_container(OmegaConf.load(file)))
    return found


def of_settings(settings: type, path: str) -> Iterator[tuple[str, Any]]:
    for name, annotation in (parameters(settings) or {}).items():
        if is_dataclass(annotation):
            yield from of_settings(annotation, f"{path}.{name}")  # type: ignore[arg-type]
        else:
            yield f"{path}.{name}", annotation


def settings() -> Iterator[tuple[str, Any]]:
    for command in COMMANDS:
        yield from of_settings(command, command.__name__)
    for target, names in targets().items():
        taken = parameters(get_object(target)) or {}
        taken |= OPTIMIZER if target.startswith("torch.optim.") else {}
        for name in names & taken.keys():
            yield f"{target}.{name}", taken[name]


SETTINGS = dict(settings())
NUMBERS = {name: kind for name, kind in SETTINGS.items() if is_plain(kind) and any(
    word in describe(kind) for word in ("integer", "number"))}  # fmt: skip
FLAGS = {name: kind for name, kind in SETTINGS.items() if kind is bool}


def test_what_there_is() -> None:
    """All numbers of the files are among the settings, and each has a type."""
    assert len(NUMBERS) > 140 and len(FLAGS) > 10
    assert not [name for name, kind in SETTINGS.items() if kind is Any]


@pytest.mark.parametrize("name", NUMBERS)
def test_bad_numbers(name: str) -> None:
    texts = "text" in describe(NUMBERS[name]) or "one of" in describe(NUMBERS[name])
    for value in NUMBER:
        if texts and isinstance(value, str):
            continue
        with pytest.raises(ValueError) as caught:
            check(name, value, NUMBERS[name])
        assert str(caught.value).startswith(f"{name}") and "expected" in str(caught.value)
        assert "\n" not in str(caught.value)
    words = describe(NUMBERS[name])
    assert ("at least" in words or "above" in words) and ("at most" in words or "below" in words), words


@pytest.mark.parametrize("name", FLAGS)
def test_bad_flags(name: str) -> None:
    for value in FLAG:
        with pytest.raises(ValueError, match="expected true or false"):
            check(name, value, bool)


@pytest.mark.parametrize("name", [name for name, kind in NUMBERS.items() if describe(kind).startswith("an integer")])
def test_whole_numbers(name: str) -> None:
    """``3.2e1`` is 32, as YAML's numbers go; ``2.5`` is refused."""
    for value in (1.0, 2.0, 3.2e1):
        try:
            exact = check(name, int(value), NUMBERS[name])
        except ValueError:
            continue
        assert check(name, value, NUMBERS[name]) == exact and isinstance(exact, int)
    with pytest.raises(ValueError, match="=2.5: expected an integer"):
        check(name, 2.5, NUMBERS[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"later_sigmas": 0.5}, r"later_sigmas=0\.5: expected a list, each a number above 0"),
        ({"later_sigmas": ["low"]}, r"later_sigmas=\[low\]: expected a list"),
        ({"gan_weight": -0.5}, r"gan_weight=-0\.5: expected a number of at least 0"),
    ],
)
def test_classes_check_their_arguments(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"sigma_init": 1, "later_sigmas": [], "gan_weight": 0.0, "regression_weight": 0.0}
    assert GeneratorSettings(**values).sigma_init == 1.0
    with pytest.raises(ValueError, match=message):
        GeneratorSettings(**(values | changes))
