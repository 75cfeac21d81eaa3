"""The loop of every training: updates, skipped steps, evaluations, checkpoints and rollbacks."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from onestep.data.dataset import Batch, NoData, TrainingDataset
from onestep.engine.batches import Batches
from onestep.engine.optimizer import NonFiniteError, SkippedStepError
from onestep.engine.run import Run
from onestep.engine.settings import TrainingSettings
from onestep.engine.signals import StopRequestedError
from onestep.engine.skips import Rollback, check_successes, count_success, roll_back, skip_step
from onestep.engine.state import TrainingState
from onestep.metrics.result import Measurement

#: Performs the updates of an iteration, given its number and this process's rows of the iteration's batches.
Update = Callable[[int, Sequence[Batch]], None]
#: Called after each iteration with the number of iterations so far; returns the values that pick the best checkpoints,
#: none if nothing was evaluated. A signal interrupts it with a :class:`StopRequestedError`.
Evaluate = Callable[[int], Sequence[Measurement]]


def train(
    run: Run,
    state: TrainingState,
    settings: TrainingSettings,
    data: TrainingDataset | NoData,
    update: Update,
    evaluate: Evaluate,
    parts: Mapping[str, str] | None = None,
    batches_per_iteration: int = 1,
) -> None:
    """Start or resume ``run`` and train to the end. Every process must call it, within :meth:`Run.guarded`.

    ``parts`` are descriptions of what a checkpoint must have in common with the run, in addition to settings and data.

    Raises:
        ValueError: for a checkpoint of another course, or losses or gradients that stay non-finite.
        SystemExit: with :data:`onestep.engine.signals.STOPPED`, after a signal and a checkpoint.
    """
    run.start(state, settings, {"data": _describe(data), **(parts or {})})
    if not state.evaluated:
        _end_iteration(run, state, settings, evaluate)
        run.save(state, settings)
    batches = Batches(run, settings, data, batches_per_iteration)
    last: Rollback | None = None
    while state.iteration < settings.iterations:
        try:
            _iterate(run, state, settings, batches, update, evaluate)
        except NonFiniteError as error:
            last = roll_back(run, error, state, settings, last)
    run.wait_for_writer()  # before the long evaluation
    check_successes(run, state)


def _describe(data: TrainingDataset | NoData) -> str:
    length = f", {len(data)} items" if isinstance(data, TrainingDataset) else ""
    return f"{type(data).__name__}{length} of {tuple(data.image_shape)}, {data.label_dim} classes"


def _iterate(
    run: Run,
    state: TrainingState,
    settings: TrainingSettings,
    batches: Batches,
    update: Update,
    evaluate: Evaluate,
) -> None:
    """The iterations from ``state.iteration`` on."""
    for of_iteration in batches.start_at(state.iteration):
        started = time.monotonic()
        skipped = False
        try:
            update(state.iteration, of_iteration)
            count_success(state)
        except SkippedStepError as error:  # ends the iteration's updates
            skip_step(run, error, state, settings, batches)
            skipped = True

        state.iteration += 1
        state.seconds += time.monotonic() - started
        run.log.end_iteration(state.iteration)
        _end_iteration(run, state, settings, evaluate, skipped)
        if state.iteration == settings.iterations:
            return


def _end_iteration(
    run: Run, state: TrainingState, settings: TrainingSettings, evaluate: Evaluate, skipped: bool = False
) -> None:
    """Evaluate, save and stop if that is due; an evaluation that a signal interrupts is repeated on resumption."""
    measured: Sequence[Measurement] = ()
    state.evaluated = False
    with suppress(StopRequestedError):
        measured = evaluate(state.iteration)
        state.evaluated = True
    run.end_iteration(state, settings, measured, skipped)
