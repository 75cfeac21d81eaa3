"""Teachers from checkpoints."""

from pathlib import Path

import pytest
import torch

from onestep.data.digits import Digits
from onestep.models.loading import load_teacher
from tests.helpers.edm_models import tiny_denoiser


def test_saved_teacher_comes_back_frozen(tmp_path: Path) -> None:
    network = tiny_denoiser(dropout=0.3).train()
    network.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), guidance=1.0)
    weights = network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in teacher.state_dict().items())
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_absent_teacher() -> None:
    with pytest.raises(ValueError, match=r"no teacher at 'runs/none': expected a folder with config.json.*digits"):
        load_teacher("runs/none", guidance=1.0)


@torch.no_grad()
def test_bundled_teacher_denoises_the_digits() -> None:
    """At sigma = 0.3 it removes most of the noise, and more with the right class than with a wrong one at sigma = 2."""
    teacher, data = load_teacher("digits", guidance=1.0), Digits()
    x0, condition = data.__getitems__(range(0, len(data), 9))
    labels = condition["labels"]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))

    def error(sigma: float, labels: torch.Tensor) -> float:
        prediction = teacher(x0 + sigma * noise, torch.full((len(x0),), sigma), {"labels": labels})
        return (prediction - x0).square().mean().sqrt().item()

    assert error(0.3, labels) < 0.6 * 0.3
    assert error(2.0, labels) < 0.9 * error(2.0, labels.roll(1, dims=1))


def test_guidance_needs_a_teacher_trained_for_it(tmp_path: Path) -> None:
    assert load_teacher("digits", guidance=1.5).guidance == 1.5
    tiny_denoiser().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"guidance=1\.5: .* without label dropout"):
        load_teacher(str(tmp_path), guidance=1.5)
