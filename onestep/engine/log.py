"""The log of a run: a progress bar, JSON lines, and accelerate's trackers."""

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from onestep.engine.trackers import send_picture
from onestep.files import atomic_file, sync, to_json
from onestep.precision import double
from onestep.reading import check_file, one_line, parse_json

#: Statistics of diagnostics in the log; others have the mean only. They are taken within a global batch.
_STATISTICS = {"weight": ("mean", "std", "max"), "log_ratio": ("mean", "std")}
_LONGEST_LINE = 2**20  # bytes
_LARGEST = 10**300  # number in a line
#: Keys of values that are no numbers, of skipped steps, rollbacks and resumptions.
_EVENTS = ("skipped_step", "samples", "rollback", "changed_settings", "symptoms")
#: Diagnostics on the progress bar.
_SHOWN = ("loss", "fake_score_loss")


class RunLog:
    """Collects the diagnostics of every iteration and regularly writes their means over processes and iterations.

    Args:
        accelerator: its main process writes the file and its trackers.
        path: the JSON-lines file. Lines after the iteration ``start`` are deleted, as a resumed run writes them again.
        total, start: iterations of the run, and completed ones.
        batch_size: images per iteration, for the progress bar.
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
        # Moments by name: of this process in this iteration; of this process in each iteration since the last gather;
        # of all processes in each iteration since the last line.
        self._current: dict[str, Tensor] = {}
        self._local: list[dict[str, Tensor]] = []
        self._global = [dict(iteration) for iteration in pending]
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
        """Add an iteration's values, tensors of any shape, to the next line."""
        for name, value in diagnostics.items():
            moments, held = _moments(value), self._current.get(name)
            self._current[name] = moments if held is None else _join(torch.stack([held, moments]))

    def end_iteration(self, iteration: int) -> None:
        """Advance the bar, and write a line at every ``every``-th iteration. Every process must call it."""
        if self._current:
            self._local.append(self._current)
        self._current = {}
        self.bar.update(self.batch_size)
        if iteration % self.every == 0:
            self._gather()
            if self._global:
                self.write(iteration, self._means())
            self._global = []

    def _gather(self) -> None:
        """Gather the values of all processes: the log's only synchronisation with them and with the device."""
        if not self._local:
            return
        moments = torch.stack([value for iteration in self._local for value in iteration.values()])
        joined = iter(_join(self.accelerator.gather(moments[None]).cpu()).tolist())
        self._global += [dict(zip(iteration, joined, strict=False)) for iteration in self._local]
        self._local = []

    def _means(self) -> dict[str, float]:
        """The statistics of each iteration, averaged over the iterations since the last line."""
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for iteration in self._global for name in iteration):
            moments = [iteration[name] for iteration in self._global if name in iteration]
            count, total, squares, largest = torch.tensor(moments, dtype=torch.float64).unbind(1)
            mean = total / count
            statistics = {"mean": mean, "std": (squares / count - mean**2).clamp_min(0).sqrt(), "max": largest}
            for statistic in _STATISTICS.get(name, ("mean",)):
                means[f"{name}_{statistic}" if name in _STATISTICS else name] = statistics[statistic].mean().item()
        return means

    def state(self) -> list[dict[str, list[float]]]:
        """The values since the last line, for a checkpoint: a resumed run writes the same lines.

        Every process must call it. The values are those of all processes.
        """
        self._gather()
        return list(self._global)

    def write(self, iteration: int, values: dict[str, Any]) -> None:
        """Append one line to the file, and send its numbers to the trackers and the progress bar."""
        if not self.accelerator.is_main_process:
            return
        images_seen = iteration * self.batch_size
        line: dict[str, Any] = {"iteration": iteration, "images_seen": images_seen, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")
        numbers = {key: value for key, value in values.items() if isinstance(value, float)}
        self.accelerator.log(numbers, step=images_seen)
        self.show({key: numbers[key] for key in _SHOWN if key in numbers})

    def picture(self, iteration: int, name: str, path: Path) -> None:
        """Send the image in the file ``path`` to the trackers, see :func:`onestep.engine.trackers.send_picture`."""
        send_picture(self.accelerator, name, path, iteration * self.batch_size)

    def show(self, numbers: dict[str, float]) -> None:
        """Put ``numbers`` on the progress bar; each replaces the last value of its name."""
        self.shown |= {name: f"{number:.3g}" for name, number in numbers.items()}
        self.bar.set_postfix(self.shown, refresh=False)

    def sync(self) -> None:
        """Wait until the lines are on the disk. A checkpoint needs the lines before it."""
        if self.accelerator.is_main_process:
            sync(self.path)

    def close(self) -> None:
        self.bar.close()


def _moments(value: Tensor) -> Tensor:
    """Count, sum, sum of squares and maximum [4] of a tensor's elements, in float64."""
    exact = double(value.detach())
    return torch.stack([torch.full_like(exact.sum(), exact.numel()), exact.sum(), exact.square().sum(), exact.max()])


def _join(moments: Tensor) -> Tensor:
    """The moments [..., 4] of the union of several sets, from their moments [N, ..., 4]."""
    return torch.cat([moments[..., :3].sum(0), moments[..., 3:].amax(0)], -1)


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    with atomic_file(path, durable=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(to_json(line) + "\n" for line in lines)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, oldest first; a number that was not finite is NaN.

    A last line that is incomplete after a crash is left out, and so are, with a warning, other lines that are no record
    of an iteration.

    Raises:
        ValueError: if it is no regular file, or has a line of more than a megabyte.
    """
    lines, damaged = [], []
    for number, text in enumerate(_texts(path), start=1):
        try:
            line = parse_json(text, dict[str, Any], f"{path}, line {number}")
            _check_line(line, f"{path}, line {number}")
        except ValueError as error:
            damaged.append(str(error))
            continue
        lines.append({name: math.nan if value is None else value for name, value in line.items()})
    if damaged:
        warnings.warn(f"lines of the log that are damaged and left out: {len(damaged)}. {damaged[0]}", stacklevel=2)
    return lines


def _check_line(line: dict[str, Any], place: str) -> None:
    for name in ("iteration", "images_seen"):
        if type(line.get(name)) is not int or not 0 <= line[name] < 2**63:
            raise ValueError(f"{place}: {name}={one_line(repr(line.get(name)))}: expected an integer")
    for name, value in line.items():
        number = type(value) in (int, float) and abs(value) < _LARGEST
        if value is not None and not number and name not in _EVENTS:
            raise ValueError(f"{place}: {one_line(name)}={one_line(repr(value))}: expected a number or null")


def _texts(path: Path) -> Iterator[bytes]:
    """The complete lines of a file; none if it does not exist."""
    if not path.exists():
        return
    check_file(path)
    with path.open("rb") as file:
        while (text := file.readline(_LONGEST_LINE)).endswith(b"\n"):
            yield text
    if len(text) == _LONGEST_LINE:
        raise ValueError(f"{path}: a line has more than {_LONGEST_LINE:,} bytes: it is no log of a run")
