"""The entry point of the commands with a configuration: Hydra's run or sweep, errors in one line, and completion."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from traceback import print_exception
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onestep.config import (
    CONF,
    accept_null,
    add_origin,
    add_recipe,
    check_config,
    explain,
    explain_failure,
)
from onestep.engine.signals import interruptible, wants_traceback

#: Hydra's options that the next word belongs to.
OPTIONS_WITH_VALUE = {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "--package", "-p"}
OPTIONS_WITH_NAME = {"-c", "--cfg", "-i", "--info"}
#: The longest that the processes of a launcher wait for each other before anything else, in seconds.
_START_SECONDS = 120.0


@contextmanager
def explained(traceback: bool) -> Iterator[None]:
    """Context that reports a user's error in one line, with exit code 1; with ``traceback``, errors are raised.

    A signal outside a training likewise ends in one line, see :func:`interruptible`.
    """
    try:
        with interruptible(traceback):
            yield
    except BrokenPipeError:  # of "| head", see onestep.commands.main
        raise
    except Exception as error:
        if traceback or (line := _line_of(error)) is None:
            raise
        sys.exit(f"error: {line}")


def _line_of(error: Exception) -> str | None:
    """The line of an error of the user or of the machine, such as a full disk; None for one of the program."""
    return explain(error) if isinstance(error, HydraException | ValueError | OSError) else explain_failure(error)


def run_entry_point(main: Callable[[DictConfig], Any], config_name: str, arguments: Sequence[str]) -> None:
    """Run ``main`` under Hydra; :func:`explained` reports errors.

    Args:
        main: a function of the checked configuration.
        config_name: the primary file in :data:`CONF`.
        arguments: of the command line: Hydra's options, and overrides.
    """
    traceback, here = wants_traceback(), os.getpid()
    jobs: list[list[str]] = []
    failed: dict[int, str] = {}

    def checked(config: DictConfig) -> None:
        jobs.append(list(HydraConfig.get().overrides.task))
        swept = HydraConfig.get().mode is RunMode.MULTIRUN
        with _noted(failed, len(jobs) - 1, traceback, os.getpid() == here) if swept else explained(traceback):
            check_config(config)
            add_origin(config, HydraConfig.get())
            main(config)

    with explained(traceback):
        words = quote_values(accept_null(config_name, add_recipe(config_name, options_first(arguments))))
        _run_hydra(checked, config_name, words)
    if failed:
        common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
        lines = (
            f"\n  {' '.join(word for word in jobs[number] if word not in common)}: {reason}"
            for number, reason in failed.items()
        )
        sys.exit(f"error: {len(failed)} of {len(jobs)} jobs of the sweep failed:{''.join(lines)}")


def options_first(words: Sequence[str]) -> list[str]:
    """The ``words`` of a command line with the options before the overrides: argparse takes none among these."""
    options: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        of_option = before in OPTIONS_WITH_VALUE or (before in OPTIONS_WITH_NAME and "=" not in word)
        (options if word.startswith("-") or of_option else overrides).append(word)
    return options + overrides


def quote_values(words: Sequence[str]) -> list[str]:
    """The ``words`` of a command line with quotes around the values that Hydra cannot read, such as many paths.

    Hydra's grammar takes a value with a comma for a sweep, and none with ``=``, accents or lone brackets.

    Raises:
        ValueError: for a prompt with an interpolation, or a list or mapping that cannot be read.
    """
    parser = OverridesParser.create()
    sweeps = any(word in ("-m", "--multirun") for word in words)
    readable_words = []
    for before, word in zip(["", *words], words, strict=False):
        key, assigned, value = word.partition("=")
        if not assigned or word.startswith("-") or before in OPTIONS_WITH_VALUE:
            readable_words.append(word)
            continue
        if key == "prompts" and "${" in value:
            raise ValueError(
                f"{word}: a value of the configuration would replace ${{...}}, and a prompt is text: read such prompts "
                "from a file, with data=prompts data.path=FILE"
            )
        try:
            readable = sweeps or not parser.parse_override(word).is_sweep_override()
        except HydraException as error:
            if value.startswith(("[", "{")):
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"{word} cannot be read ({reason}): quote the texts in it, as in 'prompts=[\"a cat, (two)\"]'"
                ) from error
            readable = False
        if not readable:
            word = f"{key}={quoted(value)}"
        readable_words.append(word)
    return readable_words


def quoted(value: str) -> str:
    """A text in Hydra's quotes."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)  # the closing quote is no escaped one
    return f'"{escaped}"'


@contextmanager
def _noted(failed: dict[int, str], job: int, traceback: bool, here: bool) -> Iterator[None]:
    """Context that prints a job's error and puts it into ``failed``, for the next job of the sweep to run.

    If a launcher runs the job in another process, ``here`` is False, and the error goes to the process of the sweep.
    """
    try:
        yield
    except Exception as error:
        known = _line_of(error)
        if traceback or known is None:
            print_exception(error)
        failed[job] = f"{type(error).__name__}: {error}" if known is None else known
        print(f"error: {failed[job]}", file=sys.stderr)
        if not here:
            raise ValueError(f"job {HydraConfig.get().job.override_dirname}: {failed[job]}") from error


def _run_hydra(main: Callable[[DictConfig], Any], config_name: str, arguments: Sequence[str]) -> None:
    sys.argv[1:] = arguments
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets exceptions reach us, with their causes
    _share_start()
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(main)()
    except (HydraException, BrokenPipeError):  # an unknown choice is an OSError too
        raise
    except (OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__  # a ValueError of the log's file
        if isinstance(cause, OSError):
            raise ValueError(
                f"the folder of the run cannot be written ({cause}): choose another with hydra.run.dir=..., of a sweep "
                "with hydra.sweep.dir=..."
            ) from error
        raise


def _share_start() -> None:
    """Make ``${started:FORMAT}`` the main process's time in all processes, for the name of their common folder.

    Raises:
        ValueError: if a process is missing, with its rank.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined] # slow, and needed anyway

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun keeps the store
    keys = [f"onestep/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{other}" for other in range(count)]
    limit = timedelta(seconds=_START_SECONDS)
    try:
        store = TCPStore(host, port, count, rank == 0 and not by_launcher, limit, False, multi_tenant=True)
        store.set(keys[rank], datetime.now().isoformat())
    except DistError as error:
        raise ValueError(
            f"process {rank} of {count} found no main process at {host}:{port} within {_START_SECONDS:g} s: start all "
            "processes again"
        ) from error
    try:
        store.wait(keys, limit)
    except DistError as error:
        missing = ", ".join(str(other) for other, key in enumerate(keys) if not store.check([key]))
        raise ValueError(
            f"process {rank} of {count} waited {_START_SECONDS:g} s at the start for process {missing}, which "
            "has ended or hangs: start all processes again"
        ) from error
    time = datetime.fromisoformat(store.get(keys[0]).decode())

    def started(pattern: str, _held: Any = store) -> str:  # other processes may still read from this one's store
        return time.strftime(pattern)

    OmegaConf.register_new_resolver("started", started, replace=True, use_cache=True)


def complete(config_name: str, words: Sequence[str], query: str) -> None:
    """Print the completions of the last of ``words``, overrides of the primary file ``config_name``.

    Args:
        config_name: the primary file in :data:`CONF`.
        words: the words after the command; the last is "" for a new word.
        query: Hydra's query, such as ``query=bash``.
    """
    # No errors during typing: without a valid configuration there are no completions.
    with suppress(HydraException, OmegaConfBaseException, ValueError):
        key, assigned, _ = words[-1].partition("=")
        for file in sorted((CONF / key).glob("*/*.yaml")) if assigned else []:  # Hydra leaves out a group's folders
            choice = f"{key}={file.relative_to(CONF / key).with_suffix('')}"
            if choice.startswith(words[-1]):
                print(choice)
        line = [*accept_null(config_name, add_recipe(config_name, words[:-1])), words[-1]]
        os.environ["COMP_LINE"] = " ".join(["onestep", *line])
        _run_hydra(lambda config: None, config_name, ["--shell-completion", query])
