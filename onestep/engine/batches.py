"""The data of a training, read iteration by iteration."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

from torch import Tensor
from torch.utils.data import DataLoader

from onestep.data.dataset import Batch, NoData, PositionSampler, TrainingDataset, keep_batch
from onestep.denoiser import map_condition
from onestep.engine.prefetch import prefetch
from onestep.engine.run import Run
from onestep.engine.settings import TrainingSettings
from onestep.engine.signals import leave_signals_to_parent

#: The random stream of conditions. 1, 3 and 5 are those of the distillation, 4 is that of the images held out.
_OF_CONDITIONS = 2


@dataclass(frozen=True)
class Batches:
    """This process's rows of the batches of every iteration.

    Args:
        run: of the training.
        settings: of the training.
        data: where the batches are from.
        per_iteration: the number of an iteration's batches.
    """

    run: Run
    settings: TrainingSettings
    data: TrainingDataset | NoData
    per_iteration: int = 1

    def start_at(self, iteration: int) -> Iterator[list[Batch]]:
        """The batches of each iteration from ``iteration`` on, without end, on the run's device.

        The next batch is prefetched, also without workers.
        """
        if isinstance(self.data, NoData):
            for number in count(iteration):
                random = self.run.random(self.settings, number, _OF_CONDITIONS)
                yield [self.data.batch(random) for _ in range(self.per_iteration)]
        else:
            batches = self._read(self.data, iteration)
            while True:
                yield list(islice(batches, self.per_iteration))

    def indices(self, iteration: int, number: int) -> list[int] | None:
        """Those in the data of the batch ``number`` of an iteration; None without data."""
        if isinstance(self.data, NoData):
            return None
        return next(iter(self._order(self.data, iteration * self.per_iteration + number)))

    def _order(self, data: TrainingDataset, start: int) -> PositionSampler:
        """The indices in ``data`` of each batch from the batch ``start`` of the training on."""
        accelerator = self.run.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        return PositionSampler(
            len(data), self.settings.batch_size, self.run.seed, start, rank, processes, data.held_out
        )

    def _read(self, data: TrainingDataset, iteration: int) -> Iterator[Batch]:
        """The batches of ``data`` from the first of ``iteration`` on."""
        of_run, device = self.run.settings, self.run.device
        pinned = device.type == "cuda"  # for asynchronous copies
        loader = DataLoader(
            data,
            batch_sampler=self._order(data, iteration * self.per_iteration),
            collate_fn=keep_batch,
            num_workers=of_run.num_workers,
            pin_memory=pinned,
            worker_init_fn=leave_signals_to_parent,
        )
        move = partial(Tensor.to, device=device, non_blocking=pinned)
        reader = iter(loader)
        timeout = of_run.process_timeout if of_run.num_workers else None

        def kill_workers() -> None:  # DataLoader's own timeout does not cover the transfer of a batch
            for process in getattr(reader, "_workers", ()):
                process.kill()

        for images, condition in prefetch(reader, timeout, kill_workers):
            yield None if images is None else move(images), map_condition(move, condition)
