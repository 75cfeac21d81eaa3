"""Evaluations of a run: metrics and grids during the training and at its end."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings
from onestep.evaluation.evaluate import Clock, check_inputs, prompts_of, seeds_here
from onestep.evaluation.generate import SampleFunction, SampleSpace, generate_local
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.result import Measurement
from onestep.processes import gather_rows
from onestep.reports.plots import save_samples
from onestep.seeding import check_seeds

_COLUMNS = 10  # of a plot
_FEWEST_ROWS = 3  # a plot of up to 25 images has five columns


@dataclass(frozen=True)
class RunEvaluator:
    """Evaluates the networks of a run on samples of the same seeds; every process must call its methods.

    Args:
        run: processes, folder and log.
        evaluator: the metrics.
        settings: numbers of samples, and the interim metrics.
        space: inputs of the samples, and their decoder.

    Raises:
        ValueError: for a metric of what the samples are not made from, see :func:`check_inputs`.
    """

    run: Run
    evaluator: Evaluator
    settings: EvaluationSettings
    space: SampleSpace

    def __post_init__(self) -> None:
        check_inputs(self.evaluator, self.space)

    @property
    def best(self) -> str | None:
        """The key of the value that selects the best checkpoint, see :func:`best_key`."""
        return best_key(self.evaluator, self.settings)

    def grid(self, sample: SampleFunction, classes: Sequence[int] | None = None) -> Tensor:
        """The images of a plot [N, C, H, W], in every process.

        They are ``settings.grid`` samples of ``classes`` in turn, None for those of the space. Of data of pairs they
        are rows of ten, about as many: the degraded image, samples of it by different seeds, and the original.
        """
        pairs = self.evaluator.pairs
        if pairs is None:
            space = self.space if classes is None else replace(self.space, classes=classes)
            return self._gathered(sample, range(self.settings.grid), space)
        rows = range(max(_FEWEST_ROWS, self.settings.grid // _COLUMNS))
        seeds = [row + number * len(pairs) for row in rows for number in range(_COLUMNS - 2)]
        samples = self._gathered(sample, seeds, self.space).unflatten(0, (len(rows), _COLUMNS - 2))
        originals, low, _ = pairs.pairs([row % len(pairs) for row in rows])
        low, originals = (F.interpolate(one, samples.shape[3:]).to(samples)[:, None] for one in (low, originals))
        return torch.cat([low, samples, originals], 1).flatten(0, 1)

    def _gathered(self, sample: SampleFunction, seeds: Sequence[int], space: SampleSpace) -> Tensor:
        """The images of ``seeds`` in every process."""
        return gather_rows(torch.cat(list(self._generate_local(sample, seeds, space=space))), self.run.device)

    def interim(self, iteration: int, samples: Mapping[str, SampleFunction]) -> list[Measurement]:
        """Evaluate after an ``iteration``: log the values, and save a grid of samples of the first in ``samples/``.

        A value that cannot be computed is left out with a warning.

        Args:
            iteration: the iteration.
            samples: the functions that sample, by the names of their weights. Keys of values of all but the first end
                in their name, such as ``fid/ema_9996``; ``evaluation.interim_averages`` chooses among them.

        Returns:
            The value of each that selects the best checkpoint, as far as measured; empty outside the main process.

        Raises:
            StopRequestedError: after a signal, in all processes.
        """
        chosen, first = self.settings.interim_averages, next(iter(samples))
        names = [name for name in samples if name == first or chosen is None or name in chosen]
        found = {"" if name == first else f"/{name}": self._interim_values(samples[name]) for name in names}
        grid = self.grid(samples[first])
        if not self.run.accelerator.is_main_process:
            return []
        picture = self.run.folder / "samples" / f"iteration_{iteration:08d}.png"
        save_samples(grid, picture)
        self.run.log.picture(iteration, "samples", picture)
        measured = []
        for suffix, (values, failures) in found.items():
            for key, reason in failures.items():
                warnings.warn(f"{key}{suffix} cannot be computed after iteration {iteration}: {reason}", stacklevel=2)
            if values:
                self.run.log.write(iteration, {f"{key}{suffix}": value for key, value in values.items()})
            if (best := self.best) is not None and best in values:
                description = self.evaluator.descriptions[best]
                self.run.log.show({f"{description.title}{suffix}": values[best]})
                measured.append(Measurement(f"{best}{suffix}", values[best], description.higher_is_better))
        return measured

    def _interim_values(self, sample: SampleFunction) -> tuple[dict[str, float], dict[str, str]]:
        """The values by key, and the reasons of those that cannot be computed; empty outside the main process."""
        values: dict[str, float] = {}
        failures: dict[str, str] = {}
        only, count = self.settings.interim_metrics, self.settings.interim_samples
        if self.evaluator.keys(only):
            values = self._values(self._generate_local(sample, range(count)), range(count), only, failures)
        return values, failures

    def final(
        self, name: str, sample: SampleFunction, network_evaluations: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, str]]:
        """The values of the first range of seeds, with the cost, and the records of all ranges.

        Returns:
            The metrics (in the main process alone), ``network_evaluations``, ``samples`` and ``samples_per_second``;
            the records of :meth:`Evaluator.results` of each range; and the reasons of values that could not be
            computed, by key. Such a value is None.

        Raises:
            StopRequestedError: after a signal, in all processes.
        """
        # Without metrics, the samples serve to measure the speed alone.
        count = self.settings.samples if self.evaluator.metrics else self.settings.grid
        title = f"sampling the {name}" if self.run.accelerator.is_main_process else None
        side: dict[str, Any] = {}
        records: list[dict[str, Any]] = []
        failures: dict[str, str] = {}
        for number in range(self.settings.seed_ranges):
            first = number * count
            samples = Clock(self._generate_local(sample, range(first, first + count), title))
            only = self.settings.interim_metrics if number else None
            values = self._values(samples, range(first, first + count), only, failures)
            records += self.evaluator.results(
                values, count, [first, first + count - 1], network_evaluations, self.space.drawn_classes
            )
            if not number:
                cost = {"samples": count, "samples_per_second": round(count / samples.seconds, 1)}
                unknown: dict[str, None] = dict.fromkeys(failures)
                side = values | unknown | {"network_evaluations": network_evaluations} | cost
        return side, records, failures

    def _values(
        self, samples: Iterable[Tensor], seeds: range, only: Collection[str] | None, failures: dict[str, str]
    ) -> dict[str, float]:
        """The values of this process's rows of the ``samples`` of ``seeds``, see :class:`Evaluator`."""
        prompts, local = prompts_of(self.space.prompts, seeds), seeds_here(seeds)
        return self.evaluator(samples, True, prompts, local, only, failures)

    def _generate_local(
        self,
        sample: SampleFunction,
        seeds: Sequence[int],
        progress: str | None = None,
        space: SampleSpace | None = None,
    ) -> Iterator[Tensor]:
        accelerator, batch_size = self.run.accelerator, self.settings.batch_size
        for batch in generate_local(sample, seeds, batch_size, space or self.space, accelerator, progress):
            yield batch
            self.run.check_stop()


def check_values(failures: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    """Check that all values of a final evaluation could be computed.

    Args:
        failures: the reasons of those that could not, by side (teacher, student) and key.
        folder: the run's folder.

    Raises:
        ValueError: naming them.
    """
    reasons = [f"{key} of the {side}: {reason}" for side, failed in failures.items() for key, reason in failed.items()]
    if reasons:
        raise ValueError(
            f"values that could not be computed: {'; '.join(reasons)}. They are null in {folder / 'summary.json'}; "
            "everything else is written"
        )


def check_evaluation(
    evaluator: Evaluator, settings: EvaluationSettings, processes: int, averages: Collection[str]
) -> None:
    """Check the numbers of samples and the names of metrics, values and ``averages`` in ``settings``.

    Raises:
        ValueError: for fewer samples than ``processes``, a number of samples that contradicts a metric's name, or the
            name of a metric, a value or an average that there is not.
    """
    for name in settings.interim_averages or []:
        if name not in averages:
            known = ", ".join(averages) or "none"
            raise ValueError(f"evaluation.interim_averages: {name} is not among the averages: {known}")
    settings.check_processes(processes)
    ranges = f"evaluation.samples={settings.samples} evaluation.seed_ranges={settings.seed_ranges}"
    check_seeds(0, settings.samples * settings.seed_ranges - 1, ranges)
    for name in settings.interim_metrics or []:
        if name not in evaluator.metrics:
            known = ", ".join(evaluator.metrics) or "none"
            raise ValueError(f"evaluation.interim_metrics: {name} is not among the metrics: {known}")
    evaluator.check_samples(settings.samples)
    evaluator.check_samples(settings.interim_samples, settings.interim_metrics)
    best_key(evaluator, settings)


def best_key(evaluator: Evaluator, settings: EvaluationSettings) -> str | None:
    """The key of the value that selects the best checkpoint: ``evaluation.best``, or the first; None without metrics.

    Raises:
        ValueError: if ``evaluation.best`` is not measured during the run.
    """
    keys = evaluator.keys(settings.interim_metrics)
    if settings.best is None:
        return keys[0] if keys else None
    if settings.best not in keys:
        raise ValueError(
            f"evaluation.best={settings.best} is not among the values that are measured during the run: "
            f"{', '.join(keys) or 'none'}; choose one of them, or null for the first"
        )
    return settings.best
