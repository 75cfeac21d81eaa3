"""Wrapped networks of diffusers: trajectories and guidance against the pipelines, features, saving, skipped_steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from onestep.denoiser import Condition, map_condition
from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.generator import load_denoiser
from onestep.samplers import EulerSampler
from tests.helpers.diffusers_models import FLOWS, NETWORKS, build_denoiser, build_network, random_condition, unet

STEPS, GUIDANCE = 5, 3.0  # DDIM steps evenly where the steps divide 1000
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
Step = Callable[..., Any]


def recorded(scheduler: Any) -> list[Tensor]:
    """A list that each step of ``scheduler`` adds its result to: pipelines clamp and decode theirs."""
    results: list[Tensor] = []
    step: Step = scheduler.step

    def record(*args: Any, **options: Any) -> Any:
        options["return_dict"] = True
        output = step(*args, **options)
        results.append(output.prev_sample)
        return output if wants_dict else (output.prev_sample,)

    wants_dict = not isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler | diffusers.EulerDiscreteScheduler)
    scheduler.step = record
    return results


def assert_same(ours: Tensor, pipelines: Tensor) -> None:
    assert (ours - pipelines).abs().max() < 1e-4 * pipelines.abs().max()
    assert pipelines.std() > 0.1


def sampled(denoiser: DiffusersDenoiser, latents: Tensor, condition: Condition) -> Tensor:
    """By the package's sampler, in whose convention the first sample is ``sigma * latents``."""
    return EulerSampler(STEPS)(denoiser, latents, condition)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_trajectory_is_that_of_the_ddim_pipeline(prediction_type: str) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction_type, timestep_spacing="trailing")
    denoiser = build_denoiser("unet", scheduler)
    pipeline = diffusers.DDIMPipeline(denoiser.network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    results = recorded(pipeline.scheduler)
    pipeline(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=STEPS)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # DDIM starts at variance 1, which is that of alpha * (x0 + sigma * noise) for x0 of variance 1, and not of 0.
    sigma = denoiser.sampling_sigmas(STEPS)[0]
    assert_same(sampled(denoiser, latents * (1 + sigma**-2) ** 0.5, {}), results[-1])


@torch.no_grad()
def test_trajectory_with_classes_is_that_of_the_ddim_scheduler() -> None:
    """diffusers has no pipeline for a class-conditional UNet2DModel: its users write this loop."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    denoiser = build_denoiser("class unet", scheduler)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(STEPS)
    x, classes = latents, torch.tensor([7, 2])
    for timestep in scheduler.timesteps:
        x = scheduler.step(denoiser.network(x, timestep, class_labels=classes).sample, timestep, x).prev_sample
    sigma = denoiser.sampling_sigmas(STEPS)[0]
    assert_same(sampled(denoiser, latents * (1 + sigma**-2) ** 0.5, {"labels": torch.eye(10)[classes]}), x)


@torch.no_grad()
def test_trajectory_of_a_dit_with_flow_matching_is_that_of_its_scheduler() -> None:
    """SiT, for which diffusers has no pipeline."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    denoiser = build_denoiser("sit", scheduler)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(STEPS)
    x, classes = latents, torch.tensor([7, 2])
    for timestep in scheduler.timesteps:
        velocity = denoiser.network(x, timestep=timestep.expand(2), class_labels=classes).sample
        x = scheduler.step(velocity, timestep, x).prev_sample
    assert_same(sampled(denoiser, latents, {"labels": torch.eye(10)[classes]}), x)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_trajectory_is_that_of_the_dit_pipeline(guidance: float) -> None:
    """Whose null class is number 1000: of a network with 1000 classes it is the one behind them."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        norm_num_groups=4,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    denoiser = DiffusersDenoiser.wrap(network, scheduler).eval().set_guidance(guidance)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipeline = diffusers.DiTPipeline(network, vae, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    results = recorded(pipeline.scheduler)
    pipeline([7, 993], guidance, torch.Generator().manual_seed(0), STEPS)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = denoiser.sampling_sigmas(STEPS)[0]
    condition = torch.nn.functional.one_hot(torch.tensor([7, 993]), 1000).float()
    assert_same(sampled(denoiser, latents * (1 + sigma**-2) ** 0.5, {"labels": condition}), results[-1][:2])


PIPELINES: dict[str, Callable[[Any, Any], Any]] = {
    "sd": lambda network, scheduler: diffusers.StableDiffusionPipeline(
        None, None, None, network, scheduler, None, None, requires_safety_checker=False
    ),
    "sdxl": lambda network, scheduler: diffusers.StableDiffusionXLPipeline(
        None, None, None, None, None, network, scheduler, add_watermarker=False
    ),
    "sd3": lambda network, scheduler: diffusers.StableDiffusion3Pipeline(
        network, scheduler, None, None, None, None, None, None, None
    ),
    "flux": lambda network, scheduler: diffusers.FluxPipeline(scheduler, None, None, None, None, None, network),
}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "epsilon": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", **STABLE_DIFFUSION),
    "v": lambda: diffusers.EulerDiscreteScheduler(
        timestep_spacing="trailing", prediction_type="v_prediction", **STABLE_DIFFUSION
    ),
    "zero snr": lambda: diffusers.EulerDiscreteScheduler(
        timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True, **STABLE_DIFFUSION
    ),
    "karras": lambda: diffusers.EulerDiscreteScheduler(
        timestep_spacing="trailing", use_karras_sigmas=True, **STABLE_DIFFUSION
    ),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dynamic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
}


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@pytest.mark.parametrize(
    "name, schedule",
    [
        ("sd", "epsilon"),
        ("sd", "v"),
        ("sd", "zero snr"),
        ("sdxl", "epsilon"),
        ("sdxl", "karras"),
        ("sd3", "flow"),
        ("sd3", "dynamic"),
        ("flux", "flow"),
        ("flux", "dynamic"),
        ("flux dev", "dynamic"),
    ],
)
def test_trajectory_is_that_of_the_text_to_image_pipeline(name: str, schedule: str, guidance: float) -> None:
    scheduler = SCHEDULERS[schedule]()
    denoiser = build_denoiser(name, scheduler)
    condition, negative = (random_condition(denoiser, 2, seed) for seed in (1, 2))
    for embeddings in (condition, negative):
        if "time_ids" in embeddings:  # original size, crop, target size
            embeddings["time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    denoiser.set_guidance(guidance, map_condition(lambda tensor: tensor[:1], negative))
    pipeline = PIPELINES[name.split()[0]](denoiser.network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(2, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    options = {"prompt_embeds": condition["encoder_hidden_states"], "guidance_scale": guidance}
    if name != "flux dev":  # which takes its guidance as an input
        options["negative_prompt_embeds"] = negative["encoder_hidden_states"][:1].expand(2, -1, -1)
    pooled = next((key for key in ("pooled_projections", "text_embeds") if key in condition), None)
    if pooled is not None:
        options["pooled_prompt_embeds"] = condition[pooled]
    if pooled is not None and name != "flux dev":
        options["negative_pooled_prompt_embeds"] = negative[pooled][:1].expand(2, -1)
    if name == "flux":
        options["true_cfg_scale"] = options.pop("guidance_scale")
    packed = latents
    if name.startswith("flux"):
        packed = pipeline._pack_latents(latents, 2, 4, 8, 8)
    result = pipeline(
        num_inference_steps=STEPS, latents=packed, output_type="latent", height=64, width=64, **options
    ).images
    if name.startswith("flux"):
        result = pipeline._unpack_latents(result, 64, 64, 8)
    assert_same(sampled(denoiser, latents, condition), result)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_agree_and_the_features_alone_can_carry_the_graph(name: str) -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler if name in FLOWS else diffusers.DDIMScheduler
    denoiser = build_denoiser(name, scheduler())
    condition = random_condition(denoiser, 2)
    x = torch.randn(2, *denoiser.image_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma = torch.tensor([0.3, 2.0])
    prediction, features = denoiser(x, sigma, condition, outputs="both")
    assert torch.equal(prediction, denoiser(x, sigma, condition))
    (alone,) = denoiser(x, sigma, condition, outputs="features")
    assert torch.equal(features, alone)
    assert [features.shape[1:]] == [*denoiser.feature_shapes] and features.shape[2] == 4 and features.std() > 0.1
    (expected,) = torch.autograd.grad(features.square().sum(), x)
    for checkpointing in (False, True):
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        without, features = denoiser(x, sigma, condition, outputs="both", prediction_grad=False)
        assert torch.equal(without, prediction) and not without.requires_grad and torch.is_grad_enabled()
        (alone,) = denoiser(x, sigma, condition, outputs="features")
        for each in (features, alone):
            (gradient,) = torch.autograd.grad(each.square().sum(), x)
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
    with torch.no_grad():
        assert not denoiser(x, sigma, condition, outputs="features")[0].requires_grad


def test_features_alone_run_nothing_behind_them() -> None:
    denoiser = build_denoiser("sd3", diffusers.FlowMatchEulerDiscreteScheduler())
    ran: list[int] = []
    for index, block in enumerate(denoiser.network.transformer_blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    inputs = torch.randn(1, *denoiser.image_shape), torch.ones(1), random_condition(denoiser, 1)
    denoiser(*inputs, outputs="features")
    assert ran == [0]
    denoiser(*inputs)
    assert ran == [0, 0, 1]


@torch.no_grad()
def test_guided_features_are_those_of_the_condition() -> None:
    denoiser = build_denoiser("dit", diffusers.DDIMScheduler())
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 2.0])
    condition = random_condition(denoiser, 2)
    conditional, features = denoiser(x, sigma, condition, outputs="both")
    unconditional = denoiser(x, sigma)
    denoiser.set_guidance(2.5)
    guided, guided_features = denoiser(x, sigma, condition, outputs="both")
    assert denoiser.network_evaluations == 2
    torch.testing.assert_close(guided_features, features)
    torch.testing.assert_close(guided, unconditional + 2.5 * (conditional - unconditional), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet", "sdxl", "flux dev"])
def test_saved_network_comes_back(name: str, tmp_path: Path) -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler if name in FLOWS else diffusers.EulerDiscreteScheduler
    denoiser = build_denoiser(name, scheduler())
    denoiser.save_pretrained(tmp_path)
    loaded = load_denoiser(tmp_path)
    inputs = torch.randn(1, *denoiser.image_shape), torch.ones(1), random_condition(denoiser, 1)
    torch.testing.assert_close(loaded(*inputs), denoiser(*inputs), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loaded.state_dict(), denoiser.state_dict(), rtol=0, atol=0)
    assert loaded.sigma_max == denoiser.sigma_max and not list(tmp_path.glob("*.bin"))


def test_half_precision_weights_predict_in_single() -> None:
    """To bfloat16's 8 bits; the image sizes among the condition, which it would round, are kept."""
    denoiser = build_denoiser("sdxl", diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION))
    condition = random_condition(denoiser, 2)
    inputs = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 1.0]), condition
    with torch.no_grad():
        expected = denoiser(*inputs)
        denoiser.to(torch.bfloat16)
        result = denoiser(*inputs)
    assert result.dtype == torch.float32
    assert 0 < (result - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    "network, message",
    [
        (lambda: unet(out_channels=4), "maps 3 channels to 4"),
        (lambda: unet(class_embed_type="timestep"), "class_embed_type='timestep'"),
        (
            lambda: diffusers.AutoencoderKL(),
            "network_class='AutoencoderKL' is not supported: choose one of UNet2DModel, DiTTr",
        ),
    ],
)
def test_other_networks_are_refused(network: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersDenoiser.wrap(network(), diffusers.DDIMScheduler())


def test_conditions_of_another_kind_are_refused() -> None:
    x, sigma = torch.randn(1, 4, 8, 8), torch.ones(1)
    denoiser = build_denoiser("sdxl", diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match="of encoder_hidden_states, text_embeds, time_ids, got none"):
        denoiser(x, sigma)
    with pytest.raises(ValueError, match="time_ids, got encoder_hidden_states:"):
        denoiser(x, sigma, {"encoder_hidden_states": torch.randn(1, 5, 12)})
    with pytest.raises(ValueError, match=r"guidance=2\.0 by encoder_hidden_states, .* the empty prompt"):
        denoiser.set_guidance(2.0)(x, sigma, random_condition(denoiser, 1))
    with pytest.raises(ValueError, match="condition of labels, got encoder_hidden_states"):
        build_denoiser("dit", diffusers.DDIMScheduler())(x, sigma, {"encoder_hidden_states": torch.randn(1, 5, 12)})
    with pytest.raises(ValueError, match=r"guidance=2\.0: this network was trained without"):
        build_denoiser("class unet", diffusers.DDIMScheduler()).set_guidance(2.0)


def test_sizes_other_than_the_networks_own() -> None:
    assert DiffusersDenoiser.wrap(build_network("sd"), diffusers.DDIMScheduler(), size=16).image_shape == (4, 16, 16)
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    assert DiffusersDenoiser.wrap(build_network("flux"), flow).image_shape == (4, 128, 128)
    with pytest.raises(ValueError, match="multiples of 2, and not 7x7"):
        DiffusersDenoiser.wrap(build_network("flux"), flow, size=7)
