"""Hydra with checks: invalid configurations are rejected before anything runs, with the valid choices."""

import difflib
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError

from onestep.folders import asset_path, cache_folder
from onestep.ranges import check_arguments, parameters, unknown_key

#: The folder of all configuration files.
CONF = Path(__file__).parent / "conf"

OmegaConf.register_new_resolver("started", lambda pattern: datetime.now().strftime(pattern), use_cache=True)
OmegaConf.register_new_resolver("cache", cache_folder)
OmegaConf.register_new_resolver("asset", asset_path)
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
        ValueError: for a group that needs a choice, or an experiment of another command.
    """
    unchosen = _unchosen(config_name)
    accepted = []
    for override in overrides:
        key, _, value = override.partition("=")
        choices = value.split(",")
        folder = CONF / key.lstrip("+").partition("@")[0]
        if key == "experiment":
            _check_experiments(config_name, choices)
        if "null" not in choices or not folder.is_dir():
            accepted.append(override)
        elif (folder / "none.yaml").is_file():
            accepted.append(f"{key}={','.join('none' if choice == 'null' else choice for choice in choices)}")
        elif key not in unchosen or len(choices) > 1:
            valid = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise ValueError(f"{override}: a choice is needed, one of {valid}")
    return accepted


@cache
def _unchosen(config_name: str) -> set[str]:
    """The groups that are null in the primary file."""
    primary: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{config_name}.yaml"))
    defaults = [entry for entry in primary["defaults"] if isinstance(entry, dict)]
    return {group for entry in defaults for group, choice in entry.items() if choice is None}


def _check_experiments(config_name: str, choices: Sequence[str]) -> None:
    folders = {"pretrain": "pretrain/", "pretrain_features": "features/", "pretrain_invertible": "invertible/"}
    commands = {folder: name.replace("_", " ") for name, folder in folders.items()} | {"": "train"}
    own = folders.get(config_name, "")
    for choice in choices:
        folder = next((folder for folder in folders.values() if choice.startswith(folder)), "")
        if choice not in ("none", "null") and folder != own and (CONF / "experiment" / f"{choice}.yaml").is_file():
            raise ValueError(f"experiment={choice} is for onestep {commands[folder]}, not for onestep {commands[own]}")


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
    add_origin(config, config.hydra)
    if not return_hydra_config:
        with open_dict(config):
            del config["hydra"]
    return config


def add_origin(config: DictConfig, of_hydra: Any) -> None:
    """Add to ``config`` what Hydra's own settings ``of_hydra`` say of its origin.

    ``choices`` are those of each group: a run's record names its parts by them. ``given`` are the keys whose values the
    user gave, see :mod:`onestep.build.use`.
    """
    words: Any = OmegaConf.to_container(of_hydra.overrides.task)  # a list's items would be interpolated
    parsed = OverridesParser.create().parse_overrides(words)
    values = {one.get_key_element().lstrip("+"): one.value() for one in parsed if not one.is_delete()}
    with open_dict(config):
        config.choices = {key: value for key, value in of_hydra.runtime.choices.items() if not key.startswith("hydra/")}
        config.given = keys_of(values)


def keys_of(values: Mapping[str, Any]) -> list[str]:
    """The full keys of all ``values``, which may be nested."""
    return [
        full_key
        for key, value in values.items()
        for full_key in (
            [f"{key}.{inner}" for inner in keys_of(value)] if isinstance(value, Mapping) and value else [str(key)]
        )
    ]


def record_overrides(config: DictConfig) -> None:
    """Write what Hydra would write into ``.hydra`` of the command's folder, which now is this run's own.

    Hydra writes it at its start, over the record of another run that uses the folder, so that conf/ turns it off.
    """
    if not HydraConfig.initialized() or str(CONF) not in (it.path for it in HydraConfig.get().runtime.config_sources):
        return  # called from Python
    from onestep.files import write_text  # imports torch

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir) / ".hydra"
    own = OmegaConf.create({"hydra": hydra_config})
    for name, node in (("config", config), ("hydra", own), ("overrides", hydra_config.overrides.task)):
        write_text(folder / f"{name}.yaml", OmegaConf.to_yaml(node))


def add_recipe(config_name: str, words: Sequence[str]) -> list[str]:
    """The ``words`` of a command line, with the recipe of a training that chooses neither teacher nor experiment.

    It is ``digits`` for an objective of the user, which is trained as it is, and ``digits_regression`` without one.
    """
    if config_name != "train" or any(re.match(r"[+~]*(teacher|experiment)\b", word) for word in words):
        return list(words)
    # Next to another override: argparse accepts no options between overrides.
    place = next((i for i, word in enumerate(words) if "=" in word and not word.startswith("-")), len(words))
    recipe = "digits" if any(re.match(r"[+~]*objective\b", word) for word in words) else "digits_regression"
    return [*words[:place], f"experiment={recipe}", *words[place:]]


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
        cause, key = error.__cause__, re.search(r"full_key: (\S+)", str(error))
        if not isinstance(cause, ValueError):
            raise
        named = key is None or re.search(rf"\b{re.escape(key[1])}\b", str(cause))
        raise (cause if named else ValueError(f"{key[1]}: {cause}")) from None  # type: ignore[index]


def explain(error: Exception) -> str:
    """The message of ``error``; for an unknown key of the configuration, with the existing keys."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return unknown_choice(group, choice)
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        parent = cause.parent_node
        if OmegaConf.is_dict(parent):
            full_key = str(cause.full_key)
            group = full_key.rpartition(".")[0]
            if not parent:
                return f"{full_key} has no effect: {group} is none; choose {group}=..., or leave it out"
            return unknown_key(full_key, (str(key) for key in parent if key not in _INSTANTIATE_KEYS))
    if isinstance(error, InstantiationException) and (line := explain_failure(error.__cause__)):
        return line
    if isinstance(error, InterpolationKeyError) and (name := re.search("'(.+?)'", str(error))):
        return (
            f"{error.full_key} is that of {name[1]}, which this configuration does not have: set {error.full_key}=..., "
            f"or choose another {name[1].partition('.')[0]}"
        )
    if "hydra/launcher/submitit" in str(error):
        return "hydra/launcher=slurm needs submitit: pip install 'onestep[slurm]'"
    return " ".join(str(error).split()) if isinstance(error, HydraException) else str(error)


def unknown_choice(group: str, choice: str) -> str:
    """The message for a ``choice`` that its ``group``, a folder in :data:`CONF`, does not have."""
    choices = sorted(str(file.relative_to(CONF / group).with_suffix("")) for file in (CONF / group).rglob("*.yaml"))
    guess = difflib.get_close_matches(choice, choices, n=1)
    hint = f"; did you mean {guess[0]!r}?" if guess else "."
    return f"unknown choice {group}={choice}{hint} The choices are: {', '.join(choices)}"


def explain_failure(error: BaseException | None) -> str | None:
    """The line of an error of the machine, see :func:`onestep.engine.failures.explain_failure`; else None."""
    from onestep.engine import failures  # imports torch

    return failures.explain_failure(error) if error is not None else None


def check_config(config: DictConfig, given: Collection[str] = ()) -> None:
    """Check every setting against its type, and convert it in place.

    The types are those of :mod:`onestep.build.schema`, and of the parameters of each ``_target_``.

    Args:
        config: the configuration of a command.
        given: keys whose values are objects instead of parts of the configuration.

    Raises:
        ValueError: for a setting without a value, a key that nothing reads, or a value out of its range, with the full
            key.
    """
    from onestep.build.schema import settings_of

    missing = OmegaConf.missing_keys(config)
    if missing:
        raise ValueError(f"settings without a value: {', '.join(sorted(missing))}; give each as KEY=VALUE")
    plain: Any = _without(OmegaConf.to_container(config, resolve=True), given)
    # Keys for other keys alone, such as data_dim; and the record's.
    read = {*re.findall(r"\$\{\.*(\w+)", str(OmegaConf.to_container(config))), "choices", "given"}
    settings = settings_of(plain)
    taken = parameters(settings) or ()
    known = {key: value for key, value in plain.items() if key in taken or key not in read}
    _write(config, check_arguments(settings, _check_parts(known, "", bool(given)), partial=bool(given)))


def check_parts(config: DictConfig) -> None:
    """Check the arguments of every ``_target_`` alone, as :func:`check_config`."""
    _write(config, _check_parts(OmegaConf.to_container(config, resolve=True), "", partial=False))


def _without(plain: Any, given: Collection[str]) -> Any:
    """The configuration without the keys ``given``, at the top and among the arguments of its parts."""
    kept = {key: value for key, value in plain.items() if key not in given}
    return {
        key: {name: item for name, item in value.items() if name not in given} if isinstance(value, dict) else value
        for key, value in kept.items()
    }


def _check_parts(node: Any, path: str, partial: bool) -> Any:
    """The ``node`` with the arguments of every ``_target_`` converted; ``partial`` as in :func:`check_arguments`."""
    if isinstance(node, list):
        return [_check_parts(item, f"{path}[{index}]", partial) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    checked = {key: _check_parts(value, f"{path}.{key}" if path else str(key), partial) for key, value in node.items()}
    if "_target_" not in node:
        return checked
    arguments = {key: value for key, value in checked.items() if key not in _INSTANTIATE_KEYS}
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise ValueError(
            f"{path}._target_={node['_target_']} cannot be imported: {' '.join(str(error).split())}"
        ) from error
    taken = parameters(target)
    if taken is not None and (foreign := [key for key in arguments if key not in taken]):
        # Hydra deletes no key whose value is null.
        words = [f"{path}.{key}=0 ~{path}.{key}" if arguments[key] is None else f"~{path}.{key}" for key in foreign]
        unknown = unknown_key(f"{path}.{foreign[0]}", taken)
        raise ValueError(f"{unknown}. Leave out what {node['_target_']} does not take: {' '.join(words)}")
    return checked | check_arguments(target, arguments, path, partial or node.get("_partial_", False))


def _write(node: DictConfig, converted: Mapping[str, Any]) -> None:
    """Write the values that differ into ``node``."""
    for key, value in converted.items():
        before = node[key]
        if OmegaConf.is_dict(before) and isinstance(value, dict):
            _write(before, value)
        elif repr(OmegaConf.to_container(before) if OmegaConf.is_config(before) else before) != repr(value):
            node[key] = list(value) if isinstance(value, tuple) else value
