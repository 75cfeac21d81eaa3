"""What a run says while it runs: a progress bar, JSON lines, and accelerate's trackers."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm


class RunLog:
    """Collects the diagnostics of every cycle on the device and writes their means every so often.

    Args:
        accelerator: its main process writes; its trackers, if any, are written too.
        path: the JSON-lines file; lines of cycles after ``start`` are dropped, so that a resumed run repeats none.
        total, start: cycles of the run, and those already done.
        batch_size: images a cycle, for the bar's rate.
        every: cycles between two lines.
    """

    def __init__(
        self, accelerator: Accelerator, path: Path, total: int, start: int, batch_size: int, every: int
    ) -> None:
        self.accelerator, self.path, self.every = accelerator, path, every
        self.pending: dict[str, list[Tensor]] = {}
        main = accelerator.is_main_process
        if main:
            kept = [line for line in read_log(path) if line["cycle"] <= start]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.bar = tqdm(
            total=total * batch_size,
            initial=start * batch_size,
            unit="img",
            unit_scale=True,
            desc=path.parent.name,
            disable=not main,
            mininterval=1.0,
        )
        self.batch_size = batch_size
        self.shown: dict[str, str] = {}

    def add(self, diagnostics: dict[str, Tensor]) -> None:
        """Keep a cycle's values, tensors of any shape, for the next line."""
        for name, value in diagnostics.items():
            self.pending.setdefault(name, []).append(value.detach().float().mean())

    def end_cycle(self, cycle: int) -> None:
        """Advance the bar; at every ``every``-th cycle reduce what was kept over processes and write it."""
        self.bar.update(self.batch_size)
        if cycle % self.every == 0 and self.pending:
            means = torch.stack([torch.stack(values).mean() for values in self.pending.values()])
            means = self.accelerator.reduce(means, "mean")
            self.write(cycle, dict(zip(self.pending, means.tolist(), strict=True)))
            self.pending = {}

    def write(self, cycle: int, values: dict[str, float]) -> None:
        """Append one line and show it."""
        if not self.accelerator.is_main_process:
            return
        images_seen = cycle * self.batch_size
        line: dict[str, Any] = {"cycle": cycle, "images_seen": images_seen, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.accelerator.log(values, step=images_seen)
        self.shown |= {key: f"{values[key]:.3g}" for key in ("loss", "fake_score_loss", "fid") if key in values}
        self.bar.set_postfix(self.shown, refresh=False)

    def close(self) -> None:
        self.bar.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, oldest first; a last line that was cut short by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
