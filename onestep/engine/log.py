"""The log of a run: a progress bar, JSON lines, and accelerate's trackers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from onestep.files import atomic_file, sync

#: Of these the log has more than the mean; the standard deviation and the maximum are those within a global batch.
_SPREADS = {"weight": ("mean", "std", "max"), "log_ratio": ("mean", "std")}
#: Of the diagnostics these are on the progress bar.
_SHOWN = ("loss", "fake_score_loss")


class RunLog:
    """Collects the diagnostics of every iteration over all its samples and writes their means every so often.

    Args:
        accelerator: its main process writes; its trackers, if any, are written too.
        path: the JSON-lines file; lines of iterations after ``start`` are dropped, so that a resumed run repeats none.
        total, start: iterations of the run, and those already done.
        batch_size: images an iteration, for the bar's rate.
        every: iterations between two lines.
        pending: the :meth:`state` that was saved at the iteration ``start``.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path,
        total: int,
        start: int,
        batch_size: int,
        every: int,
        pending: Sequence[dict[str, list[float]]] = (),
    ) -> None:
        self.accelerator, self.path, self.batch_size, self.every = accelerator, path, batch_size, every
        self._of_iteration: dict[str, Tensor] = {}  # moments by name, of this process, where they were computed
        self._of_iterations: list[
            dict[str, Tensor]
        ] = []  # likewise, those of the iterations since they were last gathered
        self._iterations = [dict(iteration) for iteration in pending]  # those of all processes, an iteration each
        main = accelerator.is_main_process
        if main:
            _rewrite(path, [line for line in read_log(path) if line["iteration"] <= start])
        self.bar = tqdm(
            total=total * batch_size,
            initial=start * batch_size,
            unit="img",
            unit_scale=True,
            desc=path.parent.name,
            disable=not main,
            mininterval=1.0,
        )
        self.shown: dict[str, str] = {}

    def add(self, diagnostics: dict[str, Tensor]) -> None:
        """Keep an iteration's values, tensors of any shape, for the next line."""
        for name, value in diagnostics.items():
            moments, held = _moments(value), self._of_iteration.get(name)
            self._of_iteration[name] = moments if held is None else _join(torch.stack([held, moments]))

    def end_iteration(self, iteration: int) -> None:
        """Advance the bar, and at every ``every``-th iteration write a line; every process must call it."""
        if self._of_iteration:
            self._of_iterations.append(self._of_iteration)
        self._of_iteration = {}
        self.bar.update(self.batch_size)
        if iteration % self.every == 0:
            self._gather()
            if self._iterations:
                self.write(iteration, self._means())
            self._iterations = []

    def _gather(self) -> None:
        """Take the values of all processes together: the log's one wait for them and for the device."""
        if not self._of_iterations:
            return
        moments = torch.stack([value for iteration in self._of_iterations for value in iteration.values()])
        joined = iter(_join(self.accelerator.gather(moments[None]).cpu()).tolist())
        self._iterations += [dict(zip(iteration, joined, strict=False)) for iteration in self._of_iterations]
        self._of_iterations = []

    def _means(self) -> dict[str, float]:
        """Means over the iterations since the last line of each iteration's mean, standard deviation and maximum."""
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for iteration in self._iterations for name in iteration):
            moments = [iteration[name] for iteration in self._iterations if name in iteration]
            count, total, squares, largest = torch.tensor(moments, dtype=torch.float64).unbind(1)
            mean = total / count
            figures = {"mean": mean, "std": (squares / count - mean**2).clamp_min(0).sqrt(), "max": largest}
            for figure in _SPREADS.get(name, ("mean",)):
                means[f"{name}_{figure}" if name in _SPREADS else name] = figures[figure].mean().item()
        return means

    def state(self) -> list[dict[str, list[float]]]:
        """The values not written yet, for a checkpoint: a line is over the same iterations whenever the run resumes.

        Every process must call it; the values are those of all.
        """
        self._gather()
        return list(self._iterations)

    def write(self, iteration: int, values: dict[str, Any]) -> None:
        """Append one line and show it."""
        if not self.accelerator.is_main_process:
            return
        images_seen = iteration * self.batch_size
        line: dict[str, Any] = {"iteration": iteration, "images_seen": images_seen, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {key: value for key, value in values.items() if isinstance(value, float)}
        self.accelerator.log(numbers, step=images_seen)
        self.show({key: numbers[key] for key in _SHOWN if key in numbers})

    def show(self, numbers: dict[str, float]) -> None:
        """Put ``numbers`` on the progress bar, each in the place of the last of its name."""
        self.shown |= {name: f"{number:.3g}" for name, number in numbers.items()}
        self.bar.set_postfix(self.shown, refresh=False)

    def sync(self) -> None:
        """Wait until the lines are on the disk: a checkpoint must not outlive the lines before it."""
        if self.accelerator.is_main_process:
            sync(self.path)

    def close(self) -> None:
        self.bar.close()


def _moments(value: Tensor) -> Tensor:
    """Count, sum, sum of squares and maximum [4] of a tensor's elements, in float64."""
    exact = value.detach().double()
    return torch.stack([torch.full_like(exact.sum(), exact.numel()), exact.sum(), exact.square().sum(), exact.max()])


def _join(moments: Tensor) -> Tensor:
    """The moments [..., 4] of several sets [N, ..., 4] taken together."""
    return torch.cat([moments[..., :3].sum(0), moments[..., 3:].amax(0)], -1)


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    with atomic_file(path, durable=True) as temporary, temporary.open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, oldest first; a last line that was cut short by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
