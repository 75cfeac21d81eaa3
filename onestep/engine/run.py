"""A run's folder, processes and records, common to distillation and pretraining."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, set_seed
from safetensors import SafetensorError

from onestep.engine.checkpoint import CheckpointWriter, best_values, set_later_aside
from onestep.engine.course import Course, changes_since, describe
from onestep.engine.failures import explain_failure
from onestep.engine.folder import RunFolder
from onestep.engine.launch import check_launch, join_submitit_job
from onestep.engine.log import RunLog
from onestep.engine.machine import MACHINE, describe_machine
from onestep.engine.settings import RunSettings, TrainingSettings
from onestep.engine.signals import STOPPED, StopRequestedError, StopSignals
from onestep.engine.state import TrainingState
from onestep.engine.trackers import check_trackers, finish_trackers, start_trackers
from onestep.metrics.result import Measurement
from onestep.precision import autocast_of
from onestep.seeding import SEEDS, BatchRandom


class Run:
    """A run with its accelerator and its folder, the main process's for all. It writes nothing outside :meth:`claimed`.

    Raises:
        ValueError: for an unsupported engine of accelerate.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self.seed = settings, settings.seed
        check_launch()
        check_trackers(settings.trackers)
        join_submitit_job()
        self.accelerator = Accelerator(
            mixed_precision=autocast_of(settings.precision),
            cpu=settings.device == "cpu",
            log_with=list(settings.trackers) or None,
            project_dir=settings.output,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=settings.process_timeout))],
        )
        if (engine := self.accelerator.distributed_type) in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"accelerate is configured for {engine.value}, which supports one network: launch without it, and set "
                "shard=true"
            )
        set_seed((settings.seed + self.accelerator.process_index) % SEEDS)  # of each process, also of the last seed
        self._folder = RunFolder(settings)
        self.folder = self._folder.path
        self.checkpoint: Path | None = None  # to resume
        self.log: RunLog
        self.course: Course
        self.signals = StopSignals()
        self._writer = CheckpointWriter(self.folder)
        self._saved_iteration = -1
        self.has_started = False  # True once its configuration is written; a run that is refused leaves none

    @contextmanager
    def claimed(self) -> Iterator[Self]:
        """Context in which the folder belongs to this run alone, see :meth:`RunFolder.claimed`."""
        with self._folder.claimed() as self.checkpoint:
            yield self

    def generator_autocast(self) -> AbstractContextManager[None]:
        """Context of the generator's passes: that of the critics', but float32 with the precision "bf16_critics"."""
        if self.settings.precision == "bf16_critics":
            return torch.autocast(self.device.type, enabled=False)
        return self.accelerator.autocast()

    def write_config(self, images_seen: int = 0) -> None:
        """Write the configuration and the machine into the run's folder, and start the trackers at ``images_seen``."""
        self._folder.write_config()
        self.has_started = True
        if self.accelerator.is_main_process:
            self.write_json(MACHINE, describe_machine(self.device, self.accelerator.num_processes))
        if self.settings.trackers:
            start_trackers(self.accelerator, self.folder, self.settings.record, images_seen)

    def start(self, state: TrainingState, settings: TrainingSettings, parts: dict[str, str]) -> None:
        """Resume ``state`` from the run's checkpoint, if there is one; write the configuration and open the log.

        Args:
            state: the new state.
            settings: of the training.
            parts: descriptions of the data and of other parts that a checkpoint must have in common with the run.

        Raises:
            ValueError: if the checkpoint is of another course, see :mod:`onestep.engine.course`, or does not fit the
                networks.
        """
        self.course = Course(self.settings.course, parts)
        changes = {} if self.checkpoint is None else changes_since(self.checkpoint, self.course)
        self.continue_from(self.checkpoint, state, settings)
        if self.checkpoint is not None:
            changed = f", with {describe(changes)}" if changes else ""
            self.accelerator.print(
                f"resumed {self.checkpoint} at iteration {state.iteration} of {settings.iterations}{changed}"
            )
        if changes:
            self.log.write(state.iteration, {"changed_settings": changes})

    def continue_from(self, checkpoint: Path | None, state: TrainingState, settings: TrainingSettings) -> None:
        """Load ``state`` from a ``checkpoint``, if it is not None, and open the log at its iteration."""
        pending = state.load(checkpoint) if checkpoint is not None else []
        self.write_config(state.iteration * settings.batch_size)
        if self.accelerator.is_main_process:
            set_later_aside(self.folder, state.iteration)  # before RunLog deletes their lines
        self.log = RunLog(
            self.accelerator,
            self.folder / "log.jsonl",
            total=settings.iterations,
            start=state.iteration,
            batch_size=settings.batch_size,
            every=settings.log_every,
            pending=pending,
        )
        if checkpoint is not None and checkpoint.parent.parent == self.folder and state.evaluated:
            self._saved_iteration = state.iteration

    def random(self, settings: TrainingSettings, iteration: int, *stream: int) -> BatchRandom:
        """This process's rows of the randomness of an iteration's global batch; ``stream`` selects another stream."""
        count = settings.per_process(self.accelerator.num_processes)
        rows = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        size = settings.batch_size
        return BatchRandom(self.seed, 0, iteration, *stream, batch_size=size, rows=rows, device=self.device)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Context that delays signals until a process can stop, and explains errors of the machine.

        Raises:
            ValueError: for a full disk or memory, a lost process or data loading process.
            SystemExit: with :data:`onestep.engine.signals.STOPPED`, after a signal at :meth:`check_stop`.
        """
        try:
            with self.signals:
                yield
                self._writer.wait()
        except StopRequestedError:
            self._stop("in the final evaluation, which resume=auto repeats")
        except Exception as error:
            if "log" in vars(self):
                self.log.close()  # its bar's line
            with suppress(ValueError):  # a disk that is full for both
                self._writer.wait()
            disk = isinstance(error, OSError | SafetensorError)
            reason = f"the run in {self.folder} stopped: {error}" if disk else explain_failure(error)
            if reason is None:
                raise
            raise ValueError(f"{reason}. The last checkpoint is intact: continue with resume=auto") from error

    def check_stop(self) -> None:
        """Stop if a process has received a signal. Every process must call it; it also notices lost processes.

        Raises:
            StopRequestedError: in all processes.
        """
        if self._in_any_process(self.signals.received is not None)[0]:
            raise StopRequestedError

    def _stop(self, where: str) -> NoReturn:
        self._writer.wait()
        self.log.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.print(f"stopped by a signal {where}")
        self.signals.hand_on()
        sys.exit(STOPPED)

    def end_iteration(
        self, state: TrainingState, settings: TrainingSettings, measured: Sequence[Measurement], skipped: bool = False
    ) -> None:
        """Save a checkpoint if one is due or one of ``measured`` is the best value so far; stop after a signal.

        None is due after a ``skipped`` step: a rollback returns to a state before the first one.

        Raises:
            SystemExit: with :data:`onestep.engine.signals.STOPPED`, after a signal and the checkpoint.
        """
        self._writer.check()
        best = False
        if measured:
            self._writer.wait()
            so_far = best_values(self.folder)
            best = any(value.is_better_than(so_far.get(value.key)) for value in measured)
        stop, best = self._in_any_process(self.signals.received is not None, best)
        due = state.iteration % settings.checkpoint_every == 0 and not skipped
        if due or best or stop or state.iteration == settings.iterations:
            self.save(state, settings, measured)
        if stop:
            self._stop(f"and saved after iteration {state.iteration}; continue with resume=auto")

    def _in_any_process(self, *flags: bool) -> list[bool]:
        if self.accelerator.num_processes == 1:
            return list(flags)
        counts = self.accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=self.device))
        return [count > 0 for count in counts.tolist()]

    def save(self, state: TrainingState, settings: TrainingSettings, measured: Sequence[Measurement] = ()) -> None:
        """Copy ``state`` and write the copy in a thread.

        Raises:
            ValueError: if the previous checkpoint could not be written.
        """
        if state.iteration == self._saved_iteration:
            return
        self._writer.wait()
        self.log.sync()
        values = {"log": self.log.state(), "course": asdict(self.course)}
        snapshot = state.snapshot(values, measured, keep=self.accelerator.is_main_process)
        if snapshot is not None:
            self._writer.write(snapshot, settings.keep_last)
        self._saved_iteration = state.iteration

    def wait_for_writer(self) -> None:
        """Wait until the last checkpoint is complete; raises the error if it could not be written."""
        self._writer.wait()

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write ``values`` into the run's folder."""
        self._folder.write_json(name, values)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary into the run's folder and to the trackers, and close these. The main process calls it."""
        self.write_json("summary.json", summary)
        finish_trackers(self.accelerator, summary)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device
