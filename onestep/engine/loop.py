"""The loop of every training: updates, skipped steps, evaluations, checkpoints and rollbacks."""

import time
from collections.abc import Callable

from torch import Tensor

from onestep.data.dataset import NoData, TrainingDataset
from onestep.denoiser import Condition
from onestep.engine.optimizer import NonFiniteError, SkippedStepError
from onestep.engine.run import Run
from onestep.engine.settings import TrainingSettings
from onestep.engine.state import TrainingState
from onestep.metrics.result import Measurement

#: Performs the updates of an iteration, given its number and this process's rows of the batch.
Update = Callable[[int, Tensor | None, Condition], None]
#: Called after each iteration with the number of iterations so far; returns the value that picks the best checkpoint,
#: or None if nothing was evaluated.
Evaluate = Callable[[int], Measurement | None]


def train(
    run: Run,
    state: TrainingState,
    settings: TrainingSettings,
    data: TrainingDataset | NoData,
    update: Update,
    evaluate: Evaluate,
) -> None:
    """Start or resume ``run`` and train to the end. Every process must call it.

    Raises:
        ValueError: for losses or gradients that stay non-finite, a full disk, or a lost process.
        SystemExit: with :data:`onestep.engine.signals.STOPPED`, after a signal and a checkpoint.
    """
    run.start(state, settings)
    with run.guarded():
        while state.iteration < settings.iterations:
            try:
                _iterate(run, state, settings, data, update, evaluate)
            except NonFiniteError as error:
                run.roll_back(error, state, settings)


def _iterate(
    run: Run,
    state: TrainingState,
    settings: TrainingSettings,
    data: TrainingDataset | NoData,
    update: Update,
    evaluate: Evaluate,
) -> None:
    """The iterations from ``state.iteration`` on."""
    for x_real, condition in run.batches(data, settings, start=state.iteration):
        started = time.monotonic()
        try:
            update(state.iteration, x_real, condition)
            state.skipped_steps = 0
        except SkippedStepError as skipped:  # ends the iteration's updates
            run.skip_step(skipped, state, settings, data)

        state.iteration += 1
        state.seconds += time.monotonic() - started
        run.log.end_iteration(state.iteration)
        run.end_iteration(state, settings, evaluate(state.iteration))
        if state.iteration == settings.iterations:
            return
