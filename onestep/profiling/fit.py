"""Predictions of memory for people: what it consists of, and the settings that fit a card."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onestep.profiling.memory import Prediction, predict
from onestep.profiling.outline import Outline
from onestep.profiling.subject import composed

GIB = 2**30
#: The part of a card's memory that is left for what is not predicted: see :mod:`onestep.profiling.memory`.
SPARE = 0.1


class Trial(NamedTuple):
    """Overrides that were added, and the prediction with them."""

    added: list[str]
    prediction: Prediction


def savings(overrides: Sequence[str]) -> list[list[str]]:
    """The settings that save memory, in the order in which they are tried, each in addition to those before it.

    Those come first that change the result least: micro-batches of one sample, activation checkpointing, bf16, frozen
    weights in bf16, LoRA students that share them with the teacher, and no average.
    """
    config = composed(overrides)
    of_diffusers = "dtype" in config.teacher
    return [
        [f"training.accumulation={config.training.batch_size}"],
        ["gradient_checkpointing=true"],
        ["precision=bf16"],
        *([["teacher.dtype=bfloat16"], ["lora=attention", "lora.students=[generator,fake_score]"]] * of_diffusers),
        ["averages=none"],
    ]


def trials(overrides: Sequence[str], card: float | None) -> Iterator[Trial]:
    """The predictions of the ``overrides`` and, until one fits, of these with one of :func:`savings` after another.

    Args:
        overrides: of ``onestep train``.
        card: memory of a GPU in GiB; None to predict the ``overrides`` alone.

    Raises:
        ValueError, HydraException: if the overrides are not valid, or for settings that are not predicted.
    """
    added: list[str] = []
    for more in [[], *([] if card is None else savings(overrides))]:
        added += more
        prediction = predict(Outline([*overrides, *added]))
        yield Trial(list(added), prediction)
        if card is not None and fits(prediction, card):
            return


def fits(prediction: Prediction, card: float) -> bool:
    """True if the ``prediction`` leaves :data:`SPARE` of a ``card`` of these GiB."""
    return prediction.peak <= (1 - SPARE) * card * GIB


def show_memory(overrides: Sequence[str], card: float | None, console: Console) -> list[dict[str, Any]]:
    """Print the :func:`trials` of ``overrides``, and the first one that fits; returns a record of each."""
    found = []
    for trial in trials(overrides, card):
        found.append(trial)
        if len(found) == 1:
            _show_parts(trial.prediction, console)
        if card is not None:
            settings = escape(" ".join(trial.added)) or "as given"
            console.print(f"{trial.prediction.peak / GIB:8.2f} GiB  {settings}", highlight=False, soft_wrap=True)
    console.print("Predicted, not run on a GPU: without the CUDA context, workspaces of kernels, and what an allocator "
                  "cannot use again.", soft_wrap=True)  # fmt: skip
    if card is not None:
        last, limit = found[-1], f"{1 - SPARE:.0%} of {card:g} GiB"
        if fits(last.prediction, card):
            words = escape(" ".join(map(shlex.quote, last.added))) or "the settings as given"
            console.print(f"fits in {limit}: {words}", soft_wrap=True)
        else:
            console.print(f"none of these fits in {limit}: a smaller teacher.size, or a larger card", soft_wrap=True)
    return [{"added": trial.added, "peak_bytes": trial.prediction.peak, "moment": trial.prediction.moment,
             "bytes": trial.prediction.parts} for trial in found]  # fmt: skip


def _show_parts(prediction: Prediction, console: Console) -> None:
    table = Table("at the peak", title=f"peak {prediction.peak / GIB:.2f} GiB: {prediction.moment}")
    table.add_column("GiB", justify="right")
    for name, size in prediction.parts.items():
        table.add_row(name, f"{size / GIB:.3f}")
    console.print(table)
