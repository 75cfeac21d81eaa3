"""The settings that decide the course of a training, of which a checkpoint keeps a copy.

A resumed run has the settings of its checkpoint. Some may change: the run goes on with the new values and logs them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from onestep.engine.records import flatten
from onestep.engine.shard import full_tensor
from onestep.files import hash_tensors
from onestep.reading import one_line, read_json

#: Settings, or groups of them, that a run may change without a trace in its weights.
_WITHOUT_INFLUENCE = (
    "attention", "channels_last", "choices", "compile", "device", "diagnosis.samples", "evaluation", "features",
    "features_cache", "fake_score.init", "generator.init", "given", "gradient_checkpointing", "hydra", "metrics",
    "num_workers", "output", "process_timeout", "reference", "resume", "sampler", "shard", "trackers",
    "training.accumulation", "training.checkpoint_every", "training.evaluate_every", "training.keep_last",
    "training.log_every", "training.max_skipped_steps", "training.rollback_lr_factor", "training.rollbacks",
)  # fmt: skip
#: Settings that a resumed run may change: it uses the new value from the checkpoint on.
_MAY_CHANGE = (
    "averages", "clip", "discriminator.weight", "generator.gan_weight", "generator.regression_weight", "optimizer",
    "precision", "tf32", "training.final_lr", "training.total_images", "training.warmup_images",
)  # fmt: skip
#: Last parts of keys that may change too: files may move, and what a cache holds does not depend on its place.
_PLACES = ("path", "cache", "local_files_only")
_SHOWN = 8  # changes in a message
_HASHED = 64  # numbers of a tensor

#: The old and the new value by key; None for a key that is not set.
Changes = dict[str, tuple[Any, Any]]


@dataclass
class Course:
    """The content of ``course.json``.

    Args:
        settings: see :func:`course_of`.
        parts: descriptions of parts that were built, such as the data.
    """

    settings: dict[str, Any]
    parts: dict[str, str] = field(default_factory=dict)


def course_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``settings``, a resolved configuration, that decide a training's course, by their full keys."""
    left_out = set(_WITHOUT_INFLUENCE) - ({"sampler"} if settings.get("pairs") else set())  # it generates the pairs
    return {key: value for key, value in flatten(settings).items() if not _is_in(key, left_out)}


def changes_since(checkpoint: Path, course: Course) -> Changes:
    """The old and the new value of each setting of ``course`` that differs from the ``checkpoint``'s.

    Its parts are compared if it has any.

    Raises:
        ValueError: for a setting or a part that a training cannot change, or an unreadable record.
    """
    saved = read_json(checkpoint / "course.json", Course)
    changes = _differences(saved.settings, course.settings)
    if course.parts:
        changes |= _differences(saved.parts, course.parts)
    refused = {key: values for key, values in changes.items() if not _may_change(key)}
    if refused:
        finished = checkpoint.parent.parent / "generator"
        start = f" with generator.init={finished}" if finished.is_dir() else ""
        raise ValueError(
            f"cannot resume from {checkpoint} with other settings: {describe(refused)}. Restore them, or start a new "
            f"run in another folder{start}"
        )
    return changes


def describe_weights(network: nn.Module) -> str:
    """A hash of the first numbers of each tensor of ``network``. Every process must call it."""
    state = network.state_dict()
    return hash_tensors({name: full_tensor(tensor).flatten()[:_HASHED] for name, tensor in state.items()})[:16]


def describe(changes: Changes) -> str:
    """``key: old -> new`` of the first changes, and the number of the others."""
    texts = [f"{one_line(key)}: {one_line(old)} -> {one_line(new)}" for key, (old, new) in changes.items()]
    others = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return ", ".join(texts[:_SHOWN] + others)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    keys = [*new, *(key for key in old if key not in new)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _may_change(key: str) -> bool:
    return _is_in(key, _MAY_CHANGE) or key.rpartition(".")[2] in _PLACES


def _is_in(key: str, groups: Collection[str]) -> bool:
    """True if ``key`` is one of ``groups``, or in one of them."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)
