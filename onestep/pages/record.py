"""What the files of a run's folder say of it. They are only read: a run that still writes them does not notice."""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep.engine.folder import LOCK
from onestep.engine.log import read_log
from onestep.engine.machine import MACHINE
from onestep.engine.records import read_record, select
from onestep.metrics.result import Description
from onestep.reading import read_bytes, read_json, read_yaml
from onestep.reports.tables import descriptions_of, read_summary


@dataclass(frozen=True)
class RunRecord:
    """The records of a run.

    Args:
        folder: of the run.
        config: its resolved configuration.
        state: "finished", "running", or "stopped" for a run that ended before it was finished.
        summary: the content of ``summary.json``; empty before its end.
        lines: of its log.
        machine: the machine and the versions by name; empty for a run without them.
        command: the words that started it; empty for a run from Python.
    """

    folder: Path
    config: Mapping[str, Any]
    state: str
    summary: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    machine: Mapping[str, str]
    command: Sequence[str]

    @property
    def images_seen(self) -> int:
        """Images seen in the training so far, as far as they are recorded."""
        seen = self.summary.get("images_seen", 0)
        return max(seen, self.lines[-1]["images_seen"]) if self.lines else int(seen)

    @property
    def total_images(self) -> int | None:
        """Images of the whole training; None if the configuration has no number of them."""
        total = select(dict(self.config), "training.total_images")
        return total if type(total) is int else None

    @property
    def metrics(self) -> dict[str, Description]:
        """Title and direction by key of what was measured at the end."""
        return descriptions_of(dict(self.summary)) if "results" in self.summary else {}

    @property
    def frames(self) -> dict[int, Path]:
        """The grids of samples during the training by iteration, in order."""
        found = {}
        for path in (self.folder / "samples").glob("iteration_*.png"):
            if match := re.fullmatch(r"iteration_([0-9]{1,18})\.png", path.name):
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def choice(self, group: str) -> str | None:
        """The choice of a group; None where there is none."""
        chosen = select(dict(self.config), f"choices.{group}")
        return chosen if isinstance(chosen, str) and chosen != "none" else None

    @property
    def given(self) -> list[str]:
        """The keys that the user set, beyond the recipe."""
        keys = self.config.get("given")
        return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []


def read_run(folder: Path) -> RunRecord:
    """The records of the run in ``folder``, finished or not.

    Raises:
        ValueError: with the file, if it holds no run, or a file of another content.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: no config.yaml; expected the folder of a run that has started")
    config, lines = read_record(folder), read_log(folder / "log.jsonl")
    summary = _read_summary(folder)
    seen = lines[-1]["images_seen"] if lines else 0
    if "student" in summary and seen > summary["images_seen"]:  # the run was continued
        summary = {}
    state = "running" if _is_running(folder) else "finished" if summary else "stopped"
    machine = read_json(folder / MACHINE, dict[str, str]) if (folder / MACHINE).is_file() else {}
    return RunRecord(folder, config, state, summary, lines, machine, _command(folder))


def _read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a distillation or a denoiser, or the numbers of another pretraining; empty without one."""
    path = folder / "summary.json"
    if not path.is_file():
        return {}
    values: dict[str, Any] = read_json(path, dict[str, Any])
    if "held_out_images" in values and "teacher" not in values:
        return read_json(path, dict[str, float])
    return read_summary(folder)


def _is_running(folder: Path) -> bool:
    """True if the process that the lock names lives, as far as this machine can know; this process is no other run."""
    path = folder / LOCK
    with suppress(ValueError):  # it is deleted at any time
        match = re.fullmatch(r"process ([0-9]{1,9}) on (.*)", read_bytes(path, 300).decode(errors="replace"))
        if match is None or match[2] != socket.gethostname():
            return True  # it starts, or runs on another machine
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            return False
        except OSError:  # of another user
            return True
        return int(match[1]) != os.getpid()
    return False


def _command(folder: Path) -> list[str]:
    """The command line of Hydra's record, without what continued the run."""
    path = folder / ".hydra" / "hydra.yaml"
    if not path.is_file():
        return []
    record = read_yaml(path)
    name, words = select(record, "hydra.job.config_name"), select(record, "hydra.overrides.task")
    if not isinstance(name, str) or not isinstance(words, list):
        return []
    words = [word for word in words if isinstance(word, str) and not word.startswith("resume=")]
    return ["onestep", *name.split("_"), *words]
