"""Generation of samples by several processes."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from onestep.denoiser import Condition
from onestep.evaluation.generate import SampleSpace, generate_local


def sample(latents: Tensor, condition: Condition, noises: Iterator[Tensor]) -> Tensor:
    return latents + condition["labels"].argmax(1)[:, None] + next(noises)


def test_processes_have_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven samples, in equally many batches of two."""
    space = SampleSpace((3,), label_dim=5)
    shares, calls = [], []
    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        for module in ("onestep.processes", "onestep.evaluation.generate"):
            monkeypatch.setattr(f"{module}.rank_and_count", lambda found=(rank, processes): found)
        batches = list(generate_local(sample, range(4, 11), 2, space, Accelerator(cpu=True)))
        shares.append(torch.cat(batches))
        calls.append(len(batches))
    one, first, second = shares
    assert torch.equal(torch.cat([first, second]), one) and (len(one), len(first), len(second)) == (7, 3, 4)
    assert calls == [4, 2, 2]
