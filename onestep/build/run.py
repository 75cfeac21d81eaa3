"""The parts of every run: processes, folder, records and the layout of its networks."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from onestep.build.processes import separate_processes
from onestep.config import instantiate, record_overrides
from onestep.engine.averages import Rule, check_names
from onestep.engine.clipping import Clipping
from onestep.engine.course import course_of
from onestep.engine.prepare import Layout
from onestep.engine.run import Run
from onestep.engine.settings import RunSettings
from onestep.models.diffusers.quantized import is_quantized
from onestep.pages.run import REPORT, write_report
from onestep.precision import DistillationPrecision, allow_tf32, choose_precision, describe_precision


@contextmanager
def started_run(config: DictConfig) -> Iterator[Run]:
    """Context of the run of ``config``, with its processes, precision and device, in a folder of its own.

    Raises:
        ValueError: see :class:`onestep.engine.run.Run` and :meth:`onestep.engine.folder.RunFolder.claimed`.
    """
    asked = config.precision
    with separate_processes(), build_run(config).claimed() as run:
        run.accelerator.print(describe_precision(asked, config.precision, config.device, _is_distillation(config)))
        if run.accelerator.is_main_process:
            record_overrides(config)
        with _reported(run):
            yield run


@contextmanager
def _reported(run: Run) -> Iterator[None]:
    """Context of a run, at whose end its report is written, also of one that stops or fails once it trains.

    The report is the last of a run's files: if it cannot be written, the run is as good without it.
    """
    failure: str | None = None
    try:
        yield
    except SystemExit:
        failure = "A signal stopped it."
        raise
    except ValueError as error:  # of the machine, or of a value that could not be computed
        failure = f"It ended with: {error}"
        raise
    except BaseException as error:
        failure = f"It ended with {type(error).__name__}: {error}"
        raise
    finally:
        if run.has_started and run.accelerator.is_main_process:
            try:
                write_report(run.folder, run.folder / REPORT, failure)
            except (OSError, ValueError) as error:
                warnings.warn(f"{REPORT} could not be written: {error}", stacklevel=3)


def build_run(config: DictConfig) -> Run:
    """Start the processes of the run of ``config``; nothing is written yet.

    Raises:
        ValueError: see :class:`onestep.engine.run.Run`.
    """
    allow_tf32(config.tf32)
    # Recorded in place of "auto".
    with_bf16: DistillationPrecision = "bf16_critics" if _is_distillation(config) else "bf16"
    config.precision = choose_precision(config.precision, config.device, with_bf16)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return Run(
        RunSettings(
            output=Path(config.output),
            seed=config.seed,
            device=config.device,
            precision=config.precision,
            num_workers=config.num_workers,
            process_timeout=config.process_timeout,
            trackers=list(config.trackers),
            resume=config.resume,
            record=OmegaConf.to_yaml(config, resolve=True),
            course=course_of(resolved),
        )
    )


def build_rules(config: DictConfig) -> dict[str, Rule]:
    """The rules of the averages by name; those of null are left out.

    Raises:
        ValueError: for a name that :func:`check_names` refuses, or another class.
    """
    rules = {str(name): node for name, node in config.averages.items() if node is not None}
    check_names(rules)
    return {name: _build(node, Rule, f"averages.{name}") for name, node in rules.items()}


def build_clips(config: DictConfig) -> dict[str, Clipping | None]:
    """The clipping of each optimiser; None for none.

    Raises:
        ValueError: for another class.
    """
    clips = config.clip.items()
    return {str(name): None if node is None else _build(node, Clipping, f"clip.{name}") for name, node in clips}


def _build(node: Any, kind: Any, key: str) -> Any:
    part = instantiate(node)
    if not isinstance(part, kind):
        known = ", ".join(f"{one.__module__}.{one.__qualname__}" for one in kind.__subclasses__())
        raise ValueError(f"{key}._target_={node['_target_']}: expected one of {known}")
    return part


def _is_distillation(config: DictConfig) -> bool:
    return "objective" in config


def build_layout(config: DictConfig, teacher: Any = None) -> Layout:
    """The layout of the run's networks, the ``teacher`` among them.

    Raises:
        ValueError: for sharded or compiled networks with a teacher whose layers have 8 or 4 bits.
    """
    names = ("channels_last", "gradient_checkpointing", "shard", "compile")
    options: dict[str, Any] = {name: config[name] for name in names}
    for key in ("shard", "compile"):
        if config[key] and isinstance(teacher, nn.Module) and is_quantized(teacher):
            raise ValueError(
                f"{key}={str(config[key]).lower()} is not supported with layers of 8 or 4 bits: set {key}=false, or "
                "teacher.quantize=null"
            )
    return Layout(**options)
