"""Hydra with checks: invalid configurations are rejected before anything runs, with the valid choices."""

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from onestep.folders import cache_folder
from onestep.ranges import OPTIMIZER, check, is_plain, parameters

#: The folder of all configuration files.
CONF = Path(__file__).parent / "conf"

OmegaConf.register_new_resolver("started", lambda pattern: datetime.now().strftime(pattern), use_cache=True)
OmegaConf.register_new_resolver("cache", cache_folder)
OmegaConf.register_new_resolver("folder_name", lambda text: folder_name(text))

_INSTANTIATE_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def folder_name(overrides: str) -> str:
    """A name for the folder of ``overrides`` without what a path or a command line would take apart.

    A name that is changed or cut ends in a hash, to stay unique.
    """
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", overrides)
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:8]
    return name if name == overrides and len(name) <= 200 else f"{name[:180]}_{digest}"


def accept_null(config_name: str, overrides: Sequence[str]) -> list[str]:
    """The ``overrides`` with ``GROUP=null`` in a form that Hydra accepts on the command line.

    It becomes ``GROUP=none``. It is removed if the group is null in the primary file ``config_name`` anyway.

    Raises:
        ValueError: for a group that needs a choice.
    """
    primary: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{config_name}.yaml"))
    defaults = [entry for entry in primary["defaults"] if isinstance(entry, dict)]
    unchosen = {group for entry in defaults for group, choice in entry.items() if choice is None}
    accepted = []
    for override in overrides:
        key, _, value = override.partition("=")
        choices = value.split(",")
        folder = CONF / key.lstrip("+").partition("@")[0]
        if "null" not in choices or not folder.is_dir():
            accepted.append(override)
        elif (folder / "none.yaml").is_file():
            accepted.append(f"{key}={','.join('none' if choice == 'null' else choice for choice in choices)}")
        elif key not in unchosen or len(choices) > 1:
            valid = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise ValueError(f"{override}: a choice is needed, one of {valid}")
    return accepted


def compose(config_name: str, overrides: Sequence[str], return_hydra_config: bool = False) -> DictConfig:
    """The configuration of a command for ``overrides``.

    Args:
        config_name: the primary file in :data:`CONF`.
        overrides: as on the command line.
        return_hydra_config: keep Hydra's own settings under ``hydra``.
    """
    of_command = GlobalHydra.instance().hydra  # the one that runs, if any
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            words = accept_null(config_name, add_recipe(config_name, overrides))
            config = hydra.compose(config_name, words, return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = of_command
    add_choices(config, config.hydra.runtime.choices)
    if not return_hydra_config:
        with open_dict(config):
            del config["hydra"]
    return config


def add_choices(config: DictConfig, choices: Mapping[str, Any]) -> None:
    """Add the ``choices`` by group to ``config``: a run's record names its parts by them."""
    with open_dict(config):
        config.choices = {group: choice for group, choice in choices.items() if not group.startswith("hydra/")}


def add_recipe(config_name: str, words: Sequence[str]) -> list[str]:
    """The ``words`` of a command line; for a training without teacher and experiment, with ``experiment=digits``."""
    if config_name != "train" or any(re.match(r"[+~]*(teacher|experiment)\b", word) for word in words):
        return list(words)
    # Next to another override: argparse accepts no options between overrides.
    place = next((i for i, word in enumerate(words) if "=" in word and not word.startswith("-")), len(words))
    return [*words[:place], "experiment=digits", *words[place:]]


def instantiate(node: Any, **objects: Any) -> Any:
    """Build the object that ``node`` describes, with plain lists and dicts as arguments.

    Args:
        node: a part of a configuration.
        objects: arguments that are already objects; they replace those of the same names.

    Raises:
        ValueError: the target's error for an invalid value.
    """
    try:
        return hydra.utils.instantiate(node, _convert_="all", **objects)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def explain(error: Exception) -> str:
    """The message of ``error``; for an unknown key of the configuration, with the existing keys."""
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        parent = cause.parent_node
        if OmegaConf.is_dict(parent):
            full_key = str(cause.full_key)
            return unknown_key(full_key, (str(key) for key in parent))
    if isinstance(error, InstantiationException) and (line := explain_failure(error.__cause__)):
        return line
    if "hydra/launcher/submitit" in str(error):
        return "hydra/launcher=slurm needs submitit: pip install 'onestep[slurm]'"
    return str(error)


def explain_failure(error: BaseException | None) -> str | None:
    """The line of an error of the machine, see :func:`onestep.engine.failures.explain_failure`; else None."""
    from onestep.engine import failures  # imports torch

    return failures.explain_failure(error) if error is not None else None


def unknown_key(full_key: str, valid: Iterable[str]) -> str:
    """The message for an unknown key, with the ``valid`` keys."""
    parent, _, key = full_key.rpartition(".")
    choices = sorted(set(valid) - _INSTANTIATE_KEYS)
    guess = difflib.get_close_matches(key, choices, n=1)
    hint = f"; did you mean {guess[0]!r}?" if guess else "."
    return f"unknown key {full_key!r}{hint} The keys of {parent or 'the configuration'} are: {', '.join(choices)}"


def check_additions(overrides: Iterable[str], config: DictConfig) -> None:
    """Reject new top-level keys, such as ``+imagez=3``, which nothing would read.

    Raises:
        ValueError: with the key and the valid keys.
    """
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if override.startswith("+") and "." not in key:
            raise ValueError(unknown_key(key, (str(name) for name in config if name != key)))


def check_config(config: DictConfig) -> None:
    """Check every argument of every ``_target_`` against its annotation, and convert it in place.

    Raises:
        ValueError: for a setting without a value, an unknown key, or a value out of its range, with the full key.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise ValueError(f"settings without a value: {', '.join(sorted(missing))}; give each as KEY=VALUE")
    _check_node(config, path="")


def _check_node(node: Any, path: str) -> None:
    if OmegaConf.is_list(node):
        for index, item in enumerate(node):
            _check_node(item, f"{path}[{index}]")
    if not OmegaConf.is_dict(node):
        return
    arguments = _arguments(node["_target_"], path) if "_target_" in node else None
    for key, value in node.items():
        name = f"{path}.{key}" if path else str(key)
        _check_node(value, name)
        if arguments is None or key in _INSTANTIATE_KEYS:
            continue
        if key not in arguments:
            raise ValueError(unknown_key(name, arguments))
        _check_argument(node, str(key), name, arguments[key])


def _check_argument(node: DictConfig, key: str, name: str, annotation: Any) -> None:
    value: Any = node[key]
    if OmegaConf.is_dict(value) and "_target_" in value and not is_plain(annotation):
        return
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    converted = check(name, plain, annotation)
    if repr(converted) != repr(plain):
        node[key] = list(converted) if isinstance(converted, tuple) else converted


def _arguments(target: str, path: str) -> dict[str, Any] | None:
    """The arguments of ``target`` with their types; None if it takes any."""
    try:
        found = parameters(get_object(target))
    except Exception as error:
        raise ValueError(f"{path}._target_={target} cannot be imported: {error}") from error
    if found is not None and target.startswith("torch.optim."):
        found |= {name: annotation for name, annotation in OPTIMIZER.items() if name in found}
    return found
