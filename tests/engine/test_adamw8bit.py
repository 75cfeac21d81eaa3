"""AdamW with moments of 8 bits against torch's AdamW."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onestep.build.distillation import distill
from onestep.engine.adamw8bit import AdamW8bit
from tests.helpers.configs import tiny_config
from tests.helpers.killed_run import assert_same_checkpoint

OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"optimizer=adamw8bit needs .*bitsandbytes.*pip install 'onestep\[bitsandbytes\]'.*optimizer=adamw"
    with pytest.raises(ValueError, match=message):
        AdamW8bit([nn.Parameter(torch.zeros(1))], **OPTIONS)


def moved(rows: int, steps: int) -> tuple[nn.Parameter, nn.Parameter, AdamW8bit]:
    """A parameter after noisy ``steps``, that of torch's AdamW after the same ones, and the optimiser."""
    random = torch.Generator().manual_seed(0)
    start = torch.randn(rows, 64, generator=random)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = AdamW8bit([ours], **OPTIONS), torch.optim.AdamW([theirs], **OPTIONS)
    slope = torch.randn(rows, 64, generator=random)
    for _ in range(steps):
        ours.grad = slope + torch.randn(rows, 64, generator=random)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    return ours, theirs, optimizers[0]


@pytest.mark.slow
def test_steps_are_nearly_those_of_adamw() -> None:
    """The first before anything is rounded, and small parameters always, but for the order of operations."""
    pytest.importorskip("bitsandbytes")
    for rows, steps in ((64, 1), (63, 30)):
        ours, theirs, _ = moved(rows, steps)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (ours, theirs, _), (start, *_) = moved(64, 30), moved(64, 0)
    difference = (ours - theirs).norm() / (theirs - start).norm()
    assert 1e-4 < difference < 0.05


@pytest.mark.slow
def test_the_state_takes_a_quarter() -> None:
    pytest.importorskip("bitsandbytes")
    optimizer = moved(64, 1)[2]
    (state,) = optimizer.state.values()
    size = sum(value.nbytes for value in state.values()) - state["step"].nbytes
    assert size == 2 * (64 * 64 + 4 * 16)  # two moments, and a scale for each of 16 blocks


@pytest.mark.slow
def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = ["optimizer=adamw8bit", "metrics=[]"]
    distill(tiny_config(tmp_path / "run", *options))
    first = tmp_path / "run" / "checkpoints" / "iteration_00000002"
    distill(tiny_config(tmp_path / "resumed", *options, f"resume={first}"))
    assert_same_checkpoint(*(tmp_path / run / "checkpoints" / "iteration_00000006" for run in ("run", "resumed")))
