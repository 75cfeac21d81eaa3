"""A run's folder, processes and records, common to distillation and pretraining."""

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object, set_seed
from torch import Tensor
from torch.utils.data import DataLoader

from onestep.data.dataset import Batch, NoData, PositionSampler, TrainingDataset, keep_batch
from onestep.denoiser import map_condition
from onestep.engine.checkpoint import CheckpointWriter, best_value, find_checkpoint, set_later_aside
from onestep.engine.folder import RunFolder
from onestep.engine.launch import join_submitit_job
from onestep.engine.log import RunLog
from onestep.engine.optimizer import NonFiniteError, SkippedStepError
from onestep.engine.prefetch import prefetch
from onestep.engine.settings import RunSettings, TrainingSettings
from onestep.engine.signals import STOPPED, StopSignals, leave_signals_to_parent
from onestep.engine.state import TrainingState
from onestep.metrics.result import Measurement
from onestep.seeding import BatchRandom

_OF_CONDITIONS = 2  # the random stream of conditions; 1 is the distillation's exit step


class Run:
    """A run with its accelerator and its folder, the main process's for all. It writes nothing outside :meth:`claimed`.

    Raises:
        ValueError: for an unsupported engine of accelerate.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self.seed = settings, settings.seed
        join_submitit_job()
        self.accelerator = Accelerator(
            mixed_precision=settings.precision,
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
        set_seed(settings.seed, device_specific=True)
        self._folder = RunFolder(settings)
        self.folder = self._folder.path
        self.checkpoint: Path | None = None  # to resume
        self.log: RunLog
        self.signals = StopSignals()
        self._writer = CheckpointWriter(self.folder)
        self._saved_iteration = -1

    @contextmanager
    def claimed(self) -> Iterator[Self]:
        """Context in which the folder belongs to this run alone, see :meth:`RunFolder.claimed`."""
        with self._folder.claimed() as self.checkpoint:
            yield self

    def write_config(self) -> None:
        """Write the configuration into the run's folder and to the trackers."""
        self._folder.write_config()
        if self.settings.trackers:
            self.accelerator.init_trackers("onestep", config={"config": self.settings.record})

    def start(self, state: TrainingState, settings: TrainingSettings) -> None:
        """Resume ``state`` from the run's checkpoint, if there is one; write the configuration and open the log.

        Raises:
            ValueError: if the checkpoint does not fit the networks.
        """
        self._continue_from(self.checkpoint, state, settings)
        if self.checkpoint is not None:
            self.accelerator.print(f"resumed {self.checkpoint} at iteration {state.iteration} of {settings.iterations}")

    def _continue_from(self, checkpoint: Path | None, state: TrainingState, settings: TrainingSettings) -> None:
        pending = state.load(checkpoint) if checkpoint is not None else []
        self.write_config()
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
        if checkpoint is not None and checkpoint.parent.parent == self.folder:
            self._saved_iteration = state.iteration

    def _order(self, data: TrainingDataset, settings: TrainingSettings, start: int) -> PositionSampler:
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        return PositionSampler(len(data), settings.batch_size, self.seed, start, rank, processes)

    def batches(self, data: TrainingDataset | NoData, settings: TrainingSettings, start: int) -> Iterator[Batch]:
        """This process's rows of the batches from iteration ``start`` on, without end, on its device.

        The next batch is prefetched, also without workers.
        """
        if isinstance(data, NoData):
            for iteration in count(start):
                yield data.batch(self.random(settings, iteration, _OF_CONDITIONS))
            return
        pinned = self.device.type == "cuda"  # for asynchronous copies
        loader = DataLoader(
            data,
            batch_sampler=self._order(data, settings, start),
            collate_fn=keep_batch,
            num_workers=self.settings.num_workers,
            pin_memory=pinned,
            worker_init_fn=leave_signals_to_parent,
        )
        move = partial(Tensor.to, device=self.device, non_blocking=pinned)
        for images, condition in prefetch(iter(loader)):
            yield None if images is None else move(images), map_condition(move, condition)

    def random(self, settings: TrainingSettings, iteration: int, *stream: int) -> BatchRandom:
        """This process's rows of the randomness of an iteration's global batch; ``stream`` selects another stream."""
        count = settings.per_process(self.accelerator.num_processes)
        rows = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        size = settings.batch_size
        return BatchRandom(self.seed, 0, iteration, *stream, batch_size=size, rows=rows, device=self.device)

    def skip_step(
        self,
        skipped: SkippedStepError,
        state: TrainingState,
        settings: TrainingSettings,
        data: TrainingDataset | NoData,
    ) -> None:
        """Log a skipped step, with its non-finite samples by their indices in ``data``.

        Raises:
            NonFiniteError: after ``settings.max_skipped_steps`` consecutive skipped steps.
        """
        samples = [asdict(sample) for sample in skipped.samples]
        if isinstance(data, TrainingDataset):
            indices = next(iter(self._order(data, settings, state.iteration)))
            samples = [sample | {"index": indices[sample["position"]]} for sample in samples]
        if self.accelerator.num_processes > 1:
            samples = gather_object(samples)
        values = {name: value if math.isfinite(value) else str(value) for name, value in skipped.values.items()}
        skip = {"skipped_step": values, "bad_samples": len(samples), "samples": samples[:10]}
        self.log.write(state.iteration + 1, skip)
        if skipped.overflow:
            return
        state.skipped_steps += 1
        message = f"non-finite value in iteration {state.iteration}: {skipped.values}, samples {samples[:10]}"
        if state.skipped_steps >= settings.max_skipped_steps:
            raise NonFiniteError(
                f"{message}. This step and the {state.skipped_steps - 1} before it were skipped, and the last "
                "checkpoint is intact: lower the learning rate or the weight of that term and continue with "
                "resume=auto, or set training.rollbacks"
            )
        warnings.warn(f"{message}: step skipped, {state.skipped_steps} in a row", stacklevel=2)

    def roll_back(self, error: NonFiniteError, state: TrainingState, settings: TrainingSettings) -> None:
        """Roll back to the last intact checkpoint and lower the learning rates.

        Raises:
            NonFiniteError: ``error``, after ``settings.rollbacks`` rollbacks or without a checkpoint.
        """
        self._writer.wait()
        self.accelerator.wait_for_everyone()
        checkpoint = find_checkpoint("auto", self.folder)
        rollbacks = state.rollbacks + 1
        if checkpoint is None or rollbacks > settings.rollbacks:
            raise error
        self.log.close()
        self._continue_from(checkpoint, state, settings)
        state.rollbacks, state.skipped_steps = rollbacks, 0
        for optimizer in state.optimizers.values():
            optimizer.lr_factor = settings.rollback_lr_factor**rollbacks
        self.log.write(state.iteration, {"rollback": f"{error}"})
        self.accelerator.print(
            f"{error}\nrolled back to {checkpoint}, learning rates times {settings.rollback_lr_factor**rollbacks}"
        )

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Context that delays signals to the end of an iteration and explains errors of the disk and of processes."""
        try:
            with self.signals:
                yield
                self._writer.wait()
        except OSError as error:
            raise ValueError(
                f"the run in {self.folder} stopped: {error}. The last checkpoint is intact: fix the cause and continue "
                "with resume=auto"
            ) from error
        except RuntimeError as error:
            if self.accelerator.num_processes == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"process {self.accelerator.process_index} failed, perhaps because another one died: {error}. The last "
                "checkpoint is intact: continue with resume=auto"
            ) from error

    def end_iteration(self, state: TrainingState, settings: TrainingSettings, measured: Measurement | None) -> None:
        """Save a checkpoint if one is due or ``measured`` is the best value so far; stop after a signal.

        Raises:
            SystemExit: with :data:`onestep.engine.signals.STOPPED`, after a signal and the checkpoint.
        """
        self._writer.check()
        best = False
        if measured is not None:
            self._writer.wait()
            best = measured.is_better_than(best_value(self.folder, measured.key))
        stop, best = self._in_any_process(self.signals.received is not None, best)
        # Not after a skipped step: a rollback returns to a state before the first one.
        due = state.iteration % settings.checkpoint_every == 0 and state.skipped_steps == 0
        if due or best or stop or state.iteration == settings.iterations:
            self.save(state, settings, measured)
        if stop:
            self._writer.wait()
            self.log.close()
            self.accelerator.wait_for_everyone()
            self.accelerator.print(
                f"stopped by a signal and saved after iteration {state.iteration}; continue with resume=auto"
            )
            self.signals.hand_on()
            sys.exit(STOPPED)

    def _in_any_process(self, *flags: bool) -> list[bool]:
        if self.accelerator.num_processes == 1:
            return list(flags)
        counts = self.accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=self.device))
        return [count > 0 for count in counts.tolist()]

    def save(self, state: TrainingState, settings: TrainingSettings, measured: Measurement | None = None) -> None:
        """Copy ``state`` and write the copy in a thread.

        Raises:
            ValueError: if the previous checkpoint could not be written.
        """
        if state.iteration == self._saved_iteration:
            return
        self._writer.wait()
        self.log.sync()
        snapshot = state.snapshot(self.log.state(), measured, keep=self.accelerator.is_main_process)
        if snapshot is not None:
            self._writer.write(snapshot, settings.keep_last)
        self._saved_iteration = state.iteration

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write ``values`` into the run's folder."""
        self._folder.write_json(name, values)

    def finish(self) -> None:
        """Close the trackers and the process group."""
        self.accelerator.end_training()

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device
