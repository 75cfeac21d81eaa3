"""Metrics of what the networks of a run draw, while it runs and at its end."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from onestep.data.dataset import ImageDataset
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings
from onestep.evaluation.evaluate import best_key, prompts_of
from onestep.evaluation.generate import Draw
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.result import Measurement
from onestep.reports.plots import save_samples


@dataclass(frozen=True)
class RunEvaluator:
    """Evaluates what the networks of a run draw of the same seeds; every process must call its methods.

    Raises:
        ValueError: for a metric that compares with prompts where the data has none.
    """

    run: Run
    evaluator: Evaluator
    settings: EvaluationSettings
    data: ImageDataset

    def __post_init__(self) -> None:
        if prompts_of(self.data, range(1)) is None:
            for name, metric in self.evaluator.metrics.items():
                if metric.reads == "similarities":
                    raise ValueError(f"metrics: {name} compares images with their prompts, and this data has none")

    @property
    def best(self) -> str | None:
        """The key of the value that picks the best checkpoint, see :func:`best_key`."""
        return best_key(self.evaluator, self.settings)

    def draw(self, draw: Draw, count: int, **options: Any) -> Tensor:
        """Images [count, C, H, W] in every process, see :meth:`Run.draw`."""
        return self.run.draw(draw, count, self.settings.batch_size, self.data, **options)

    def interim(self, iteration: int, draw: Draw) -> Measurement | None:
        """Evaluate after an ``iteration``: the values go to the log, and a grid of samples into ``samples/``.

        Returns:
            the value that picks the best checkpoint; None where there is none, and outside the main process.
        """
        settings, values = self.settings, {}
        if self.evaluator.keys(settings.interim_metrics):
            share = self.run.draw_share(draw, settings.interim_samples, settings.batch_size, self.data)
            prompts = prompts_of(self.data, range(settings.interim_samples))
            values = self.evaluator(share, shared=True, prompts=prompts, only=settings.interim_metrics)
        shown = self.draw(draw, settings.grid)
        if not self.run.accelerator.is_main_process:
            return None
        save_samples(shown, self.run.folder / "samples" / f"iteration_{iteration:08d}.png")
        if not values:
            return None
        self.run.log.write(iteration, values)
        measured = self.measurement(values)
        assert measured is not None  # best_key is of what is measured during the run
        self.run.log.show({self.evaluator.descriptions[measured.key].title: measured.value})
        return measured

    def measurement(self, line: dict[str, Any] | None) -> Measurement | None:
        """The value of ``line``, of the log or of an evaluation, that picks the best; None where it has none."""
        if line is None or (key := self.best) is None or key not in line:
            return None
        return Measurement(key, line[key], self.evaluator.descriptions[key].higher_is_better)

    def best_line(self, lines: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The first of the log's ``lines`` with the best value; None if none has a value."""
        best: dict[str, Any] | None = None
        for line in lines:
            measured = self.measurement(line)
            if measured is not None and measured.is_better_than(self.measurement(best)):
                best = line
        return best

    def final(self, name: str, draw: Draw, network_evaluations: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The values of the first range of seeds, with their cost; and the records of all ranges.

        Returns:
            every metric, ``network_evaluations``, ``samples`` and ``samples_per_second``; and a record of each value
            of each range, see :meth:`Evaluator.results`. Of the metrics there is none outside the main process.
        """
        count, batch_size = self.settings.samples, self.settings.batch_size
        title = f"drawing from the {name}" if self.run.accelerator.is_main_process else None
        side: dict[str, Any] = {}
        records: list[dict[str, Any]] = []
        for number in range(self.settings.seed_ranges):
            first = number * count
            share = Clock(self.run.draw_share(draw, count, batch_size, self.data, first=first, progress=title))
            only = self.settings.interim_metrics if number else None
            prompts = prompts_of(self.data, range(first, first + count))
            values = self.evaluator(share, shared=True, prompts=prompts, only=only)
            records += self.evaluator.results(values, count, [first, first + count - 1], network_evaluations)
            if not number:
                cost = {"samples": count, "samples_per_second": round(count / share.seconds, 1)}
                side = values | {"network_evaluations": network_evaluations} | cost
        return side, records


class Clock:
    """Hands on what ``items`` give, and counts the ``seconds`` that they took, without what is done with them."""

    def __init__(self, items: Iterator[Tensor]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        started = time.monotonic()
        for item in self.items:
            self.seconds += time.monotonic() - started
            yield item
            started = time.monotonic()
