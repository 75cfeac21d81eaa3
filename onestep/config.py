"""Guards around Hydra: what a user gets wrong is refused before anything runs, with the valid choices."""

import difflib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import get_method, get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

#: The folder of all configuration files.
CONF = Path(__file__).parent / "conf"

_INSTANTIATE_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def run_entry_point(main: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run ``main`` under Hydra; a user's mistake ends in one readable line and exit code 1, not in a traceback.

    So does Ctrl-C where the training loop does not see to it, with exit code 130. Set HYDRA_FULL_ERROR=1 for the
    traceback.

    Args:
        main: takes the checked configuration.
        config_name: the primary file in :data:`CONF`.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets exceptions reach us, with their causes

    @contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except (HydraException, ValueError, OSError) as error:  # the last such as a disk that is full
            if wants_traceback:
                raise
            sys.exit(f"error: {explain(error)}")
        except KeyboardInterrupt:
            if wants_traceback:
                raise
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    def checked(config: DictConfig) -> None:
        with explained():  # here already, as Hydra would put a line of its own before the error
            check_additions(HydraConfig.get().overrides.task, config)
            check_config(config)
            main(config)

    with explained():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(checked)()


def instantiate(node: Any) -> Any:
    """Build what ``node`` describes, giving it plain lists and dicts rather than OmegaConf's.

    Raises:
        ValueError: the target's own, for a value that it refuses.
    """
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def explain(error: Exception) -> str:
    """The message of ``error``; for an unknown key of the configuration, with the keys that there are."""
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, ConfigAttributeError | ConfigKeyError):
        parent = cause.parent_node
        if OmegaConf.is_dict(parent):
            full_key = str(cause.full_key)
            return unknown_key(full_key, (str(key) for key in parent))
    if "hydra/launcher/submitit" in str(error):
        return "hydra/launcher=slurm needs submitit: pip install 'onestep[slurm]'"
    if "Config group override must be" in str(error):
        return "a group cannot be set to null: choose one of its options, such as discriminator=none, or write ~GROUP"
    return str(error)


def unknown_key(full_key: str, valid: Iterable[str]) -> str:
    """The message for a key that does not exist, with the ``valid`` ones beside it."""
    parent, _, key = full_key.rpartition(".")
    choices = sorted(set(valid) - _INSTANTIATE_KEYS)
    guess = difflib.get_close_matches(key, choices, n=1)
    hint = f"; did you mean {guess[0]!r}?" if guess else "."
    return f"unknown key {full_key!r}{hint} The keys of {parent or 'the configuration'} are: {', '.join(choices)}"


def check_additions(overrides: Iterable[str], config: DictConfig) -> None:
    """Refuse a new top-level key, such as ``+imagez=3``: nothing would ever read it.

    Raises:
        ValueError: naming the key and the valid ones.
    """
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if override.startswith("+") and "." not in key:
            raise ValueError(unknown_key(key, (str(name) for name in config if name != key)))


def check_config(config: DictConfig) -> None:
    """Refuse keys that the things to be built do not take, and settings without a value.

    Raises:
        ValueError: naming the key and the valid ones.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise ValueError(f"settings without a value: {', '.join(sorted(missing))}; give each as KEY=VALUE")
    _check_node(OmegaConf.to_container(config, resolve=True), path="")


def _check_node(node: Any, path: str) -> None:
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check_node(item, f"{path}[{index}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        parameters = _parameters(node["_target_"], path)
        for key in node:
            if key not in _INSTANTIATE_KEYS and parameters is not None and key not in parameters:
                raise ValueError(unknown_key(f"{path}.{key}", parameters))
    for key, value in node.items():
        _check_node(value, f"{path}.{key}" if path else str(key))


def _parameters(target: str, path: str) -> Collection[str] | None:
    """The names that ``target`` takes, None if it takes any."""
    try:
        signature = inspect.signature(get_object(target))
    except Exception as error:
        raise ValueError(f"{path}._target_={target} cannot be imported: {error}") from error
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return None
    return signature.parameters


def run_task(config: DictConfig) -> Any:
    """Run the function that ``config.task`` names on the configuration."""
    return get_method(config.task)(config)
