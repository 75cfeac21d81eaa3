"""Wrapped networks against the schedulers' own predictions of x0, over the whole range of noise."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.schedule import read_schedule
from tests.helpers.diffusers_models import FLOWS, NETWORKS, build_denoiser, random_condition

TIMESTEPS = torch.tensor([0, 1, 2, 10, 50, 137, 250, 400, 500, 613, 750, 888, 950, 998, 999])
BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "stable diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": torch.linspace(0.001, 0.03, 1000).tolist()},
}


def relative_error(result: Tensor, expected: Tensor) -> float:
    """The largest difference of a sample, relative to the sample's largest value."""
    return float(((result - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)).max())


def wrapped_and_raw(denoiser: DiffusersDenoiser, x: Tensor, x_sigma: Tensor, sigma: Tensor, timestep: Tensor) -> Any:
    """The wrapped prediction at ``x_sigma``, and the bare network's output at ``x`` and the integer timestep."""
    condition = random_condition(denoiser, len(x))
    with torch.no_grad():
        raw = denoiser.family.call(denoiser.network, x, timestep, condition, 1.0)[:, : x.shape[1]]
        return denoiser(x_sigma, sigma, condition), raw


def check_against(scheduler: Any, denoiser: DiffusersDenoiser) -> None:
    """The wrapped network's x0 is that of a step of ``scheduler`` at every one of TIMESTEPS."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(len(TIMESTEPS), *denoiser.image_shape, generator=random)
    kept = scheduler.alphas_cumprod[TIMESTEPS]  # alpha^2
    x_sigma = x / kept.sqrt().reshape(-1, 1, 1, 1)
    prediction, raw = wrapped_and_raw(denoiser, x, x_sigma, ((1 - kept) / kept).sqrt(), TIMESTEPS)
    expected = torch.cat([
        scheduler.step(raw[[k]], timestep, x[[k]]).pred_original_sample for k, timestep in enumerate(TIMESTEPS.tolist())
    ])  # fmt: skip
    assert relative_error(prediction, expected) < 1e-5
    assert prediction.std() > 0.3


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("scheduler_class", [diffusers.DDIMScheduler, diffusers.DDPMScheduler])
def test_x0_is_the_schedulers(scheduler_class: Any, betas: str, prediction_type: str) -> None:
    scheduler = scheduler_class(clip_sample=False, prediction_type=prediction_type, **BETAS[betas])
    scheduler.set_timesteps(1000)
    check_against(scheduler, build_denoiser("unet", scheduler))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in FLOWS])
def test_x0_of_every_variance_preserving_family(name: str) -> None:
    prediction_type = "v_prediction" if name == "sd" else "epsilon"
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction_type, **BETAS["stable diffusion"])
    scheduler.set_timesteps(1000)
    check_against(scheduler, build_denoiser(name, scheduler))


@pytest.mark.parametrize("name", FLOWS)
def test_x0_of_flow_matching(name: str) -> None:
    """``x_t - t * v`` at every t, and one Euler step of the scheduler down to t = 0."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    denoiser = build_denoiser(name, scheduler)
    t = torch.tensor([0.001, 0.01, 0.1, 0.3, 0.5, 0.75, 0.9, 0.99, 0.999])
    x = torch.randn(len(t), *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    wide = t.reshape(-1, 1, 1, 1)
    prediction, velocity = wrapped_and_raw(denoiser, x, x / (1 - wide), t / (1 - t), 1000 * t)
    assert relative_error(prediction, x - wide * velocity) < 1e-5
    # At t = 1 there is noise alone, and the network is told 1000.
    noise = x[:1]
    prediction, velocity = wrapped_and_raw(
        denoiser, noise, denoiser.sigma_max * noise, torch.tensor([denoiser.sigma_max]), torch.tensor([1000.0])
    )
    scheduler.set_timesteps(1)
    (one_step,) = scheduler.step(velocity, scheduler.timesteps[0], noise, return_dict=False)
    assert relative_error(prediction, one_step) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler_class", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
def test_x0_and_steps_of_edm(scheduler_class: Any, prediction_type: str) -> None:
    """Playground 2.5's, with a sigma_data that is not its own; each step is Euler's from one level to the next."""
    scheduler = scheduler_class(sigma_data=0.7, prediction_type=prediction_type)
    denoiser = build_denoiser("unet", scheduler)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.002, 80.0)
    scheduler.set_timesteps(8)
    torch.testing.assert_close(torch.tensor(denoiser.schedule.sampling_sigmas(8, 0, False)), scheduler.sigmas)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep, sigma, after in zip(scheduler.timesteps, scheduler.sigmas, scheduler.sigmas[1:], strict=False):
        x_sigma = sigma.hypot(torch.tensor(0.7)) * x
        scaled = scheduler.scale_model_input(x_sigma, timestep)
        prediction, raw = wrapped_and_raw(denoiser, scaled, x_sigma, sigma[None], timestep[None])
        assert relative_error(prediction, scheduler.precondition_outputs(x_sigma, raw, sigma)) < 1e-5
        step = scheduler.step(raw, timestep, x_sigma).prev_sample
        if scheduler_class is diffusers.EDMEulerScheduler:
            assert relative_error(x_sigma + (after - sigma) / sigma * (x_sigma - prediction), step) < 1e-5
    levels = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    c_in, c_skip, c_out = denoiser.schedule.scalings(levels)
    sample, output = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(scheduler.precondition_inputs(sample, levels), c_in * sample, rtol=1e-12, atol=0)
    x0 = scheduler.precondition_outputs(sample, output, levels)
    torch.testing.assert_close(c_skip * sample + c_out * output, x0, rtol=1e-12, atol=0)


def test_x0_of_flow_matching_by_other_solvers() -> None:
    """Sana's: a solver of flow matching, whose shift changes its levels alone."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    denoiser = build_denoiser("sd3", scheduler)
    scheduler.set_timesteps(6)
    x = torch.randn(1, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    for index, t in enumerate(scheduler.sigmas[1:-1], start=1):  # the first is 1, without image
        scheduler._step_index = index
        sigma = t / (1 - t)
        timestep = 1000 * t[None]
        prediction, raw = wrapped_and_raw(denoiser, x, x * (1 + sigma), sigma[None], timestep)
        assert relative_error(prediction, scheduler.convert_model_output(raw, sample=x)) < 1e-5
    levels = torch.tensor(denoiser.schedule.sampling_sigmas(1000, 16, False)[:-1])
    t = torch.linspace(1, 1 / 1000, 1000)
    torch.testing.assert_close(levels / (1 + levels), 3 * t / (1 + 2 * t), rtol=0, atol=0.01)


def test_x0_of_the_scheduler_of_latent_consistency() -> None:
    """Its betas are those of training; its boundary condition, which mixes in the sample, fades at once."""
    scheduler = diffusers.LCMScheduler(clip_sample=False, original_inference_steps=1000)
    denoiser = build_denoiser("sd", scheduler)
    scheduler.set_timesteps(1000)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in (400, 700, 999):
        kept = scheduler.alphas_cumprod[timestep]
        sigma = ((1 - kept) / kept).sqrt()
        prediction, raw = wrapped_and_raw(denoiser, x, x / kept.sqrt(), sigma[None], torch.tensor([timestep]))
        assert relative_error(prediction, scheduler.step(raw, timestep, x).denoised) < 1e-5


def test_euler_scheduler_without_terminal_signal() -> None:
    """A terminal signal of zero (arXiv 2305.08891) has a sigma of 4096 in diffusers' Euler scheduler."""
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        **BETAS["stable diffusion"],
    )
    denoiser = build_denoiser("unet", scheduler)
    assert denoiser.sigma_max == pytest.approx(4096, rel=1e-6)
    scheduler.set_timesteps(8)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x_sigma = sigma * x
        scaled = scheduler.scale_model_input(x_sigma, timestep)
        prediction, raw = wrapped_and_raw(denoiser, scaled, x_sigma, sigma[None], timestep[None])
        expected = scheduler.step(raw, timestep, x_sigma).pred_original_sample
        assert relative_error(prediction, expected) < 1e-5
    # DDIM has an infinite sigma there; linear betas are above 4096 just before the end already.
    ddim = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False)
    ddim.set_timesteps(1000)
    denoiser = build_denoiser("unet", ddim)
    prediction, raw = wrapped_and_raw(
        denoiser, x, denoiser.sigma_max * x, torch.tensor([denoiser.sigma_max]), torch.tensor([999])
    )
    assert relative_error(prediction, ddim.step(raw, 999, x).pred_original_sample) < 1e-4


@pytest.mark.parametrize("betas", BETAS)
def test_timesteps_are_the_integers_at_the_schedules_own_sigmas(betas: str) -> None:
    scheduler = diffusers.DDPMScheduler(**BETAS[betas])
    schedule = build_denoiser("unet", scheduler).schedule
    kept = scheduler.alphas_cumprod
    sigmas = ((1 - kept) / kept).sqrt()
    assert torch.equal(schedule.timestep(sigmas), torch.arange(1000.0))
    assert (schedule.sigma_min, schedule.sigma_max) == pytest.approx((sigmas[0].item(), sigmas[-1].item()), rel=1e-6)
    between = (sigmas[:-1] * sigmas[1:]).sqrt()  # halfway in log sigma
    torch.testing.assert_close(schedule.timestep(between), torch.arange(999) + 0.5, rtol=0, atol=1e-2)
    outside = torch.tensor([schedule.sigma_min / 2, schedule.sigma_max * 2])
    assert schedule.timestep(outside).tolist() == [0, 999]


def test_stable_diffusions_highest_noise_level() -> None:
    """14.6146, as every sampler of Stable Diffusion has it."""
    assert build_denoiser("sd", diffusers.PNDMScheduler(**BETAS["stable diffusion"])).sigma_max == pytest.approx(
        14.6146, abs=1e-4
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_denoising_weight_makes_the_x0_error_that_of_the_output(prediction_type: str) -> None:
    """Perturb the network's output by noise of variance 1: weighted, the error of x0 is 1 at every level."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction_type)
    scheduler.set_timesteps(1000)
    denoiser = build_denoiser("unet", scheduler)
    random = torch.Generator().manual_seed(0)
    x, raw, error = torch.randn(3, 1, 3, 8, 8, generator=random)
    for timestep in (0, 300, 999):
        step = [scheduler.step(output, timestep, x).pred_original_sample for output in (raw, raw + error)]
        alpha = scheduler.alphas_cumprod[timestep].sqrt()
        weight = denoiser.loss_weight(((1 - alpha**2).sqrt() / alpha)[None])
        assert (weight * (step[1] - step[0]).square().mean()).item() == pytest.approx(
            error.square().mean().item(), rel=1e-3
        )


def test_denoising_weight_of_flow_matching() -> None:
    t = torch.tensor([0.01, 0.5, 0.9])
    weight = build_denoiser("sd3", diffusers.FlowMatchEulerDiscreteScheduler()).loss_weight(t / (1 - t))
    torch.testing.assert_close(weight, 1 / t**2)


@pytest.mark.parametrize(
    "scheduler, message",
    [
        (diffusers.DDPMScheduler(prediction_type="flow"), "prediction_type='flow': expected one of epsilon, v_pred"),
        (diffusers.CMStochasticIterativeScheduler(), "the schedule of CMStochasticIterativeScheduler is not supported"),
        (diffusers.EDMEulerScheduler(prediction_type="sample"), "EDM's schedulers have epsilon or v_prediction"),
        (diffusers.EDMEulerScheduler(sigma_data=0.0), "sigma_data=0.0: expected positive numbers"),
        (diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "prediction_type='epsilon' with rescale_betas_zero_snr"),
        (diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"), "not supported"),
    ],
)
def test_other_schedules_are_refused(scheduler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_denoiser("unet", scheduler)


@pytest.mark.parametrize("name", ["os", "UNet2DModel", None])
def test_only_schedulers_of_diffusers_are_built(name: str | None) -> None:
    with pytest.raises(ValueError, match=f"_class_name={name!r}, expected a scheduler of diffusers"):
        read_schedule({"_class_name": name})
