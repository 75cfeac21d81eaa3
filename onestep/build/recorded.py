"""The parts of a sampling: those of its configuration, or those that a run's record describes.

A record is untrusted. It chooses among the package's own parts by the names of their choices, and changes numbers and
names within them; ``_target_`` is compared with the package's own and never imported. A part is read at its first use:
what a sampling does not need can be anything.
"""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onestep.config import CONF, check_parts, compose
from onestep.engine.records import read_record
from onestep.reading import one_line

_PARTS = ("teacher", "sampler", "data", "features")
#: The groups of these parts and of what they refer to, by the keys of their choices.
_GROUPS = {name: name for name in (*_PARTS, "mixture", "degradation")}
#: The keys of the choices within a choice of data, as overrides: "+" for one that has no default.
_WITHIN = {
    "latents": ["data@data.images"],
    "paired": ["data@data.images", "+data@data.evaluation"],
    "paired_folders": ["data@data.high", "data@data.low"],
}
#: Where the package fetches from and writes to: the user's, never a record's.
_LOCATIONS = {"cache", "url"}
#: Arguments that name a program, which is run.
_PROGRAMS = {"sha256", "weights"}


class Parts:
    """The teacher, sampler, data and features by name, of ``config``, or of the run ``config.run`` where null.

    Raises:
        ValueError: if the run has no readable record; for an item, if its record is not one of the package's parts.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.record: dict[str, Any] = {}
        self._own: DictConfig | None = None
        if config.run is not None:
            self.file = Path(config.run) / "config.yaml"
            if not self.file.is_file():
                raise ValueError(
                    f"run={config.run}: it has no config.yaml; expected the folder that a training printed at its end"
                )
            self.record = read_record(Path(config.run))

    def __getitem__(self, name: str) -> Any:
        given, recorded = self.config.get(name), self.record.get(name)
        if given is not None or recorded is None:
            return given
        try:
            return self._recorded(name, recorded)
        except (ValueError, OmegaConfBaseException) as error:
            raise ValueError(f"{self.file}: {one_line(error, 300)}; give this part yourself: {name}=...") from error

    def describes(self, name: str, kind: type) -> bool:
        """True if a part is of class ``kind``; nothing is imported."""
        node = self.config.get(name) or self.record.get(name)
        target = node.get("_target_") if isinstance(node, dict | DictConfig) else None
        return target == f"{kind.__module__}.{kind.__name__}"

    def _recorded(self, name: str, recorded: Any) -> DictConfig:
        if not isinstance(recorded, dict):
            raise ValueError(f"{name}={one_line(recorded)} is an object of this run, which its folder does not hold")
        choices = self.record.get("choices")
        choices = choices if isinstance(choices, dict) else {}
        choice = choices.get(name)
        if not _is_registered(name, choice):
            raise ValueError(f"choices.{name}={one_line(choice)} is not one of this package's choices")
        if self._own is None:
            self._own = _compose_own(*_registered(choices))
        node = OmegaConf.create({name: _overlay(self._own[name], recorded, name)})
        check_parts(node)
        return node[name]


def _registered(choices: dict[Any, Any]) -> list[str]:
    """Those of a record's ``choices`` that are registered, as overrides."""
    groups = _GROUPS | dict.fromkeys(_WITHIN.get(str(choices.get("data")), ()), "data")
    found = {key: (group, choices.get(key.lstrip("+"))) for key, group in groups.items()}
    chosen = {key: choice for key, (group, choice) in found.items() if _is_registered(group, choice)}
    return [f"{key}={choice}" for key, choice in chosen.items()]


@cache
def _compose_own(*overrides: str) -> DictConfig:
    """The package's configuration, which is read alone: composed once for all runs of the same choices."""
    return compose("sample", overrides)


def _is_registered(group: str, choice: Any) -> bool:
    """True for the name of one of the package's own files of ``group``."""
    return isinstance(choice, str) and choice in {file.stem for file in (CONF / group).glob("*.yaml")}


def _overlay(own: DictConfig, recorded: dict[Any, Any], path: str) -> dict[str, Any]:
    """The values of ``own``, with those leaves of ``recorded`` that it declares.

    Raises:
        ValueError: naming the key of anything else in ``recorded``.
    """
    names = list(own)  # also those without a value, which are not "in" it
    unknown = [name for name in recorded if name not in names]
    if unknown:
        raise ValueError(f"{path}.{one_line(unknown[0])} is no key of this part")
    values: dict[str, Any] = {}
    for name in map(str, names):
        key, mine = f"{path}.{name}", _value(own, name)
        theirs = recorded.get(name, mine)
        if name in _LOCATIONS or (name == "path" and "sha256" in own):
            values[name] = mine
        elif OmegaConf.is_dict(mine) and theirs is not None:
            if theirs is not mine and not isinstance(theirs, dict):
                raise ValueError(f"{key}={one_line(theirs)}: expected a part")
            values[name] = _overlay(mine, {} if theirs is mine else theirs, key)
        elif name.startswith("_") or name in _PROGRAMS:
            if theirs != mine:
                raise ValueError(f"{key}={one_line(theirs)} is not this package's ({mine})")
            values[name] = mine
        else:
            values[name] = mine if theirs is mine else _plain(theirs, key)
    return values


def _value(own: DictConfig, name: str) -> Any:
    """The value of a key; "???" where it or what it refers to is not chosen."""
    try:
        value = own[name]
    except OmegaConfBaseException:
        return "???"
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_list(value) else value


def _plain(value: Any, key: str) -> Any:
    """A number, a text, or a list of these.

    Raises:
        ValueError: for anything else, also a text that OmegaConf would replace.
    """
    if isinstance(value, list):
        return [_plain(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str | int | float | bool | None) or (isinstance(value, str) and "${" in value):
        raise ValueError(f"{key}={one_line(value)}: expected a number, a text without ${{...}}, or a list of these")
    return value
