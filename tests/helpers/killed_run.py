"""A killed run, and the comparison of its resumption with an uninterrupted run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from onestep.build.distillation import distill
from onestep.distillation import loop
from onestep.distillation.parts import Distillation


class KilledError(Exception):
    """Simulates the death of a process."""


def assert_same_checkpoint(left: Path, right: Path) -> None:
    files = sorted(path.name for path in left.iterdir())
    assert files == sorted(path.name for path in right.iterdir())
    for name in files:
        if name.endswith(".safetensors"):
            ours, theirs = load_file(left / name), load_file(right / name)
            assert ours.keys() == theirs.keys() and ours
            assert [key for key, value in ours.items() if not torch.equal(value, theirs[key])] == [], name
        elif name not in ("state.json", "manifest.json"):  # they hold the duration
            assert (left / name).read_text() == (right / name).read_text()
    iterations = [json.loads((folder / "state.json").read_text())["iteration"] for folder in (left, right)]
    assert iterations[0] == iterations[1]


def distill_until_iteration_5(monkeypatch: pytest.MonkeyPatch, config: DictConfig) -> None:
    """A run that is killed in the update of the generator of iteration 5."""
    update_generator = loop.update_generator

    def killed_in_iteration_5(parts: Distillation, iteration: int, *inputs: Any) -> dict[str, Tensor]:
        if iteration == 5:
            raise KilledError
        return update_generator(parts, iteration, *inputs)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(loop, "update_generator", killed_in_iteration_5)
        distill(config)
