"""A fake score that knows the generator's step."""

from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from onestep.build.distillation import build_distillation
from onestep.distillation.loop import exit_step
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.lora import LoRA
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.steps import StepEmbedding, add_step_embedding, set_step
from onestep.noise import expand_like
from onestep.objectives.denoising import denoising_loss
from onestep.toy.gaussian_mixture import GaussianMixture
from tests.helpers.configs import FEW_STEPS, tiny_config
from tests.helpers.diffusers_models import FLOWS, NETWORKS, build_denoiser, random_condition
from tests.helpers.edm_models import randomized, tiny_denoiser
from tests.helpers.updates import take_updates

SETTING = "fake_score.step_aware"
ARCHITECTURES = ("SongUNet", "DhariwalUNet", "EDM2UNet")


def network(name: str) -> DenoiserNetwork:
    if name == "MLP":
        return randomized(EDMDenoiser((2, 1, 1), architecture="MLP"))
    if name in ARCHITECTURES:
        return tiny_denoiser(0, 0, architecture=name)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if name in FLOWS else diffusers.DDPMScheduler()
    return build_denoiser(name, scheduler)


@pytest.mark.parametrize("name", ["MLP", *ARCHITECTURES, *NETWORKS])
def test_every_network_learns_the_step(name: str) -> None:
    denoiser = network(name)
    x, sigma = torch.randn(2, *denoiser.image_shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5, 2])
    condition = {} if name in ("MLP", *ARCHITECTURES) else random_condition(denoiser, 2)  # type: ignore[arg-type]
    with torch.no_grad():
        before = denoiser(x, sigma, condition)
        add_step_embedding(denoiser, 3, SETTING)
        assert torch.equal(denoiser(x, sigma, condition), before)
    embedding = denoiser.step_embedding
    assert isinstance(embedding, StepEmbedding)
    embedding.weight.data[1] = 1.0
    set_step(denoiser, 1)
    after = denoiser(x, sigma, condition)
    assert (after - before).abs().amax((1, 2, 3)).min() > 1e-4
    (gradient,) = torch.autograd.grad(after.sum(), embedding.weight)
    assert gradient[1].abs().max() > 0 and not gradient[[0, 2]].any()
    set_step(denoiser, 2)
    assert torch.equal(denoiser(x, sigma, condition), before)


def test_a_lora_trains_the_embedding_too() -> None:
    pytest.importorskip("peft", reason="needs the extra lora")
    student = LoRA(2, 2.0, ["to_q"], ["fake_score"]).apply(network("sd3"))
    add_step_embedding(student, 4, SETTING)
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert "step_embedding.weight" in trained and all("lora" in name or "step" in name for name in trained)
    assert student.state_dict()["step_embedding.weight"].shape == (4, 16)


def test_a_network_without_an_embedding_of_the_level() -> None:
    with pytest.raises(ValueError, match=r"fake_score.step_aware=true: no level_embeddings of this EDMDenoiser are"):
        add_step_embedding(EDMDenoiser((2, 1, 1), architecture="Affine"), 2, SETTING)


#: The outputs of two steps; at these levels the mixture's denoiser is far from both.
STEPS = [GaussianMixture.isotropic(torch.ones(1), torch.tensor([[mean, 0.0]]), torch.tensor([0.3])) for mean in (-1, 1)]
BOTH = GaussianMixture.isotropic(torch.ones(2) / 2, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0.3, 0.3]))


def noised(random: torch.Generator, step: int, count: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    x0 = STEPS[step].sample(count, random)[:, :, None, None].float()
    sigma = 0.5 + 1.5 * torch.rand(count, generator=random)
    return x0, x0 + expand_like(sigma, x0) * torch.randn(x0.shape, generator=random), sigma


@pytest.mark.slow
@pytest.mark.parametrize("aware", [True, False])
def test_what_a_fake_score_of_two_steps_learns(aware: bool) -> None:
    """Each step's own denoiser, or that of the mixture of both, which is another."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(2)
    denoiser = EDMDenoiser((2, 1, 1), architecture="MLP", options={"width": 64, "depth": 1})
    if aware:
        add_step_embedding(denoiser, 2, SETTING)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    for iteration in range(400):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - iteration / 400)
        set_step(denoiser, iteration % 2)
        x0, x_sigma, sigma = noised(random, iteration % 2)
        denoising_loss(denoiser(x_sigma, sigma), x0, denoiser.loss_weight(sigma)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def error(step: int, exact: GaussianMixture) -> float:
        _, x_sigma, sigma = noised(random, step)
        set_step(denoiser, step)
        return (denoiser(x_sigma, sigma) - exact.denoise(x_sigma, sigma)).square().mean().sqrt().item()

    own, mixed = [error(step, STEPS[step]) for step in (0, 1)], [error(step, BOTH) for step in (0, 1)]
    reached, missed = (own, mixed) if aware else (mixed, own)
    assert max(reached) < 0.06 and min(missed) > 0.4, (own, mixed)


# In a training.


def test_the_step_of_a_training_is_the_trained_one(tmp_path: Path) -> None:
    """Each iteration trains the row of its step, and no other."""
    parts = build_distillation(tiny_config(tmp_path, *FEW_STEPS, "fake_score.step_aware=true", "fake_score.steps=1"))
    assert parts.method.fake_score is not None
    embedding = parts.method.fake_score.step_embedding
    assert isinstance(embedding, StepEmbedding) and embedding.weight.shape[0] == 3
    list(take_updates(parts, iterations=2))
    trained = {exit_step(0, iteration, 3) for iteration in range(2)}
    assert trained == {0, 1} == {row for row in range(3) if embedding.weight[row].any()}
