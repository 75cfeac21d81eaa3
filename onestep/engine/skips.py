"""Skipped steps: their records, the end of a run that has too many, and rollbacks to a checkpoint."""

import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate.utils import gather_object

from onestep.engine.batches import Batches
from onestep.engine.checkpoint import damage, iteration_of, list_checkpoints
from onestep.engine.optimizer import NonFiniteError, SkippedStepError
from onestep.engine.run import Run
from onestep.engine.settings import TrainingSettings
from onestep.engine.state import TrainingState
from onestep.processes import from_main_process

_FORGIVEN = 0.5  # of a skipped step, by each iteration without one: a run in which every third is skipped goes on


def count_success(state: TrainingState) -> None:
    """Count an iteration without a skipped step."""
    state.recent_skips = max(0.0, state.recent_skips - _FORGIVEN)


def skip_step(
    run: Run,
    skipped: SkippedStepError,
    state: TrainingState,
    settings: TrainingSettings,
    batches: Batches,
) -> None:
    """Count and log a skipped step, with its non-finite samples by their indices in the data.

    Raises:
        NonFiniteError: after ``settings.max_skipped_steps`` recent ones.
    """
    samples = [asdict(sample) for sample in skipped.samples]
    if (indices := batches.indices(state.iteration, skipped.batch)) is not None:
        samples = [sample | {"index": indices[sample["position"]]} for sample in samples]
    if run.accelerator.num_processes > 1:
        samples = gather_object(samples)
    values = {name: value if math.isfinite(value) else str(value) for name, value in skipped.values.items()}
    run.log.write(state.iteration + 1, {"skipped_step": values, "bad_samples": len(samples), "samples": samples[:10]})
    state.skipped_steps += 1
    if skipped.overflow:
        return
    state.recent_skips += 1
    message = f"non-finite value in iteration {state.iteration}: {skipped.values}, samples {samples[:10]}"
    if state.recent_skips >= settings.max_skipped_steps:
        raise NonFiniteError(
            f"{message}. The step was skipped, and so were {state.skipped_steps - 1} of the {state.iteration} before it"
        )
    warnings.warn(f"{message}: step skipped, {state.skipped_steps} of {state.iteration + 1} so far", stacklevel=2)


def check_successes(run: Run, state: TrainingState) -> None:
    """Check at the end of a training that most of its steps were taken.

    Raises:
        NonFiniteError: if more than half were skipped.
    """
    if 2 * state.skipped_steps > state.iteration:
        raise NonFiniteError(
            f"{state.skipped_steps} of {state.iteration} steps were skipped, as their loss or gradient was not finite: "
            f"nothing is evaluated. {run.folder / 'log.jsonl'} names the samples and noise levels: lower the learning "
            "rate, or repair the data, and start again in another folder"
        )


@dataclass(frozen=True)
class Rollback:
    """The iterations at which steps failed, and of the checkpoint to which the run rolled back."""

    failed: int
    target: int


def roll_back(
    run: Run, error: NonFiniteError, state: TrainingState, settings: TrainingSettings, last: Rollback | None
) -> Rollback:
    """Roll back to the newest intact checkpoint and lower the learning rates.

    If the run has not come further than before the ``last`` rollback, it goes further back than that, if it can.

    Raises:
        NonFiniteError: ``error`` with an advice, after ``settings.rollbacks`` rollbacks or without a checkpoint.
    """
    run.wait_for_writer()
    failed, rollbacks = state.iteration, state.rollbacks + 1
    before = last.target if last is not None and failed <= last.failed else None
    checkpoint: Path | None = from_main_process(lambda: _checkpoint_before(run.folder, before))
    if checkpoint is None or rollbacks > settings.rollbacks:
        raise NonFiniteError(f"{error}. {_advice(checkpoint, settings)}") from error
    run.log.close()
    run.continue_from(checkpoint, state, settings)
    state.rollbacks, state.recent_skips = rollbacks, 0.0
    factor = settings.rollback_lr_factor**rollbacks
    for optimizer in state.optimizers.values():
        optimizer.lr_factor = factor
    run.log.write(state.iteration, {"rollback": f"{error}", "lr_factor": factor})
    run.accelerator.print(f"{error}\nrolled back to {checkpoint}, learning rates times {factor:.3g}")
    return Rollback(failed, state.iteration)


def _checkpoint_before(run: Path, iteration: int | None) -> Path | None:
    """The newest intact checkpoint before ``iteration``, or else the oldest one; None for the newest of all."""
    intact = [path for path in list_checkpoints(run) if damage(path) is None]
    earlier = [path for path in intact if iteration is None or iteration_of(path) < iteration]
    return earlier[-1] if earlier else next(iter(intact), None)


def _advice(checkpoint: Path | None, settings: TrainingSettings) -> str:
    lower = "lower the learning rate or the weight of that term"
    if checkpoint is None:
        return f"There is no checkpoint to return to: {lower}, and start again"
    if not settings.rollbacks:
        return f"The last checkpoint is intact: {lower} and continue with resume=auto, or set training.rollbacks"
    return (
        f"All rollbacks are used (training.rollbacks={settings.rollbacks}): {lower} and continue with resume=auto, or "
        f"from an earlier checkpoint with resume={checkpoint.parent / 'iteration_...'}"
    )
