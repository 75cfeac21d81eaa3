"""What a precision keeps of the generator's gradient, and which passes it is for."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.build.distillation import build_distillation
from onestep.build.processes import separate_processes
from onestep.distillation import method
from onestep.distillation.parts import Distillation
from onestep.noise import Noised
from onestep.precision import without_bf16
from tests.helpers.configs import tiny_config
from tests.helpers.updates import take_updates


def distillation(folder: Path, precision: str) -> Distillation:
    """SiD's, of the digits' teacher; each weight of the fake score differs from it by a random 1 %."""
    parts = build_distillation(tiny_config(folder, f"precision={precision}", "objective=sid"))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        assert parts.method.fake_score is not None
        for weight in parts.method.fake_score.parameters():
            weight.mul_(1 + 0.01 * torch.randn(weight.shape, generator=random))
    return parts


def generator_gradient(parts: Distillation) -> Tensor:
    """The gradient of the generator's loss by its weights on a fixed batch, as in the loop."""
    random = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 16, 1, 8, 8, generator=random)
    condition = {"labels": torch.eye(10)[torch.arange(16) % 10]}
    with parts.run.generator_autocast():
        samples = parts.student.simulate([latents], condition)
        losses = parts.method.generator_losses(samples, condition, Noised(torch.linspace(0.1, 2, 16), noise))
    losses.total.backward()
    return torch.cat([weight.grad.flatten() for weight in parts.student.parameters() if weight.grad is not None])


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    with separate_processes():
        yield


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    with separate_processes():
        return generator_gradient(distillation(tmp_path_factory.mktemp("exact"), "no"))


@pytest.mark.parametrize(
    "precision, least, most", [("bf16_critics", 1.0, 1.0), ("bf16", 0.999, 0.99999), ("bf16 alone", 0, 0.99)]
)
def test_cosine_to_the_gradient_in_float32(
    precision: str, least: float, most: float, exact: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice of precision=auto keeps it all; autocast of all passes would not keep 0.99."""
    if precision == "bf16 alone":
        monkeypatch.setattr(method, "without_bf16", lambda *_: nullcontext())
    gradient = generator_gradient(distillation(tmp_path, precision.split()[0]))
    cosine = torch.cosine_similarity(gradient.double(), exact.double(), dim=0).item()
    assert least - 1e-9 <= cosine <= most + 1e-9


@pytest.mark.parametrize(
    "precision, critics, generator, scores",
    [
        ("no", None, None, None),
        ("bf16", torch.bfloat16, torch.bfloat16, None),
        ("bf16_critics", torch.bfloat16, None, None),
    ],
)
def test_the_passes_of_an_iteration(precision: str, critics: Any, generator: Any, scores: Any, tmp_path: Path) -> None:
    """The dtype of autocast in each pass of networks; None without autocast."""
    overrides = (f"precision={precision}", "training.accumulation=2", "schedule=separate")
    parts = build_distillation(tiny_config(tmp_path, *overrides))
    seen: dict[str, set[Any]] = {}
    update = ["critics"]

    def watch(name: str, network: Any) -> None:
        def record(*_: Any) -> None:
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            seen.setdefault(name if name == "generator" else f"{name} of {update[0]}", set()).add(dtype)

        network.register_forward_pre_hook(record)

    for name, network in (("generator", parts.student.denoiser), ("teacher", parts.method.teacher),
                          ("fake score", parts.method.fake_score), ("head", parts.method.discriminator)):  # fmt: skip
        watch(name, network)
    for _ in take_updates(parts):  # that of the critics, then that of the generator
        update[0] = "generator"
    assert seen == {
        "generator": {generator},
        "teacher of critics": {critics}, "fake score of critics": {critics}, "head of critics": {critics},
        "teacher of generator": {scores}, "fake score of generator": {scores}, "head of generator": {generator},
    }  # fmt: skip


@pytest.fixture
def bf16() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


def test_half_weights_and_half_precision_stay_under_autocast(bf16: None) -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    cpu = torch.device("cpu")
    with without_bf16(layer, cpu):
        assert layer(x).dtype is torch.float32
    with without_bf16(copy.deepcopy(layer).bfloat16(), cpu):
        assert layer.bfloat16()(x).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.float16), without_bf16(layer, cpu):
        assert torch.get_autocast_dtype("cpu") is torch.float16 and torch.is_autocast_enabled("cpu")
