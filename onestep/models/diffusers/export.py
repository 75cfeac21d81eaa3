"""Export of a text-to-image generator as its teacher's standard pipeline, with a scheduler for the generator's steps.

Plain diffusers then generates the same images as ``onestep sample`` from the same seeds:

- variance preserving: ``LCMScheduler`` adds noise to its x0-prediction at each later timestep, as a stochastic
  generator does. Its boundary scalings c_out and c_skip are 1 and 0 here, and its table of timesteps ends at the
  generator's first one. ``DPMSolverMultistepScheduler`` of order 1 is DDIM, the step of a deterministic generator;
  ``DDIMScheduler`` itself takes no timesteps of a pipeline's call.
- EDM: ``EDMEulerScheduler``, whose one step from ``sigma_max`` to 0 is the prediction of x0.
- flow matching: ``FlowMatchEulerDiscreteScheduler`` without a shift does both, the first with ``stochastic_sampling``.
  Its pipelines pass it no rng: the noise of later steps comes from torch's global rng, which must be seeded.
"""

import copy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from safetensors.torch import save_file

from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.folder import PipelineIndex, required_parts
from onestep.models.diffusers.saving import network_name, save_pipeline
from onestep.models.diffusers.schedule import EDMSchedule, build_scheduler, tabulated_timesteps
from onestep.models.generator import Generator

_LORA_USAGE = """

# The same generator from the teacher and pytorch_lora_weights.safetensors, the LoRA change:
# import diffusers
# pipeline = DiffusionPipeline.from_pretrained("<the teacher>"{without})
# pipeline.load_lora_weights("{name}")
# pipeline.scheduler = diffusers.{scheduler}.from_pretrained("{name}", subfolder="scheduler")"""
_COMFYUI_FILE = "comfyui_lora_weights.safetensors"
_COMFYUI_USAGE = f"\n\n# For ComfyUI, by its names of the layers: {_COMFYUI_FILE}, the LoRA change"


def save_text_to_image(generator: Generator, teacher: Path, output: Path, variant: str | None = None) -> str:
    """Write the pipeline in the folder ``teacher`` with the generator's network and scheduler into ``output``.

    For a LoRA student it also writes the change alone, as ``pytorch_lora_weights.safetensors``; of a family of whose
    ComfyUI knows the layers by other names, it does so by these as ``comfyui_lora_weights.safetensors``. The teacher's
    weights are copied once: those of the ``variant``, or of the default where it has none.

    Returns:
        Python code that generates images with it.

    Raises:
        ValueError: for noise levels that no scheduler of diffusers supports.
    """
    denoiser = generator.denoiser
    assert isinstance(denoiser, DiffusersDenoiser)
    scheduler, arguments = match_scheduler(generator)
    arguments = {**denoiser.family.call_options, **arguments}
    if denoiser.config["size"] is not None:
        factor = Autoencoder.from_pretrained(teacher, variant).downsampling
        height, width = (side * factor for side in denoiser.image_shape[1:])
        arguments |= {"height": height, "width": width}
    index = PipelineIndex.of(teacher)
    pipeline_class: Any = getattr(diffusers, index.kind)
    # PixArt's pipelines read no LoRA: of its students there are the merged weights alone.
    change = denoiser.config["lora"] is not None and hasattr(pipeline_class, "save_lora_weights")
    other_names = False
    if change:
        other_names = save_lora(pipeline_class, network_name(index, type(denoiser.network).__name__), denoiser, output)
    save_pipeline(teacher, output, _without_lora(denoiser), scheduler, variant)
    # Of an absent part that is not optional for diffusers, such as SD3's third encoder, it must be told.
    told = [name for name in required_parts(pipeline_class) if name not in {*index.components, "scheduler"}]
    told = [name for name in told if name not in pipeline_class._optional_components]
    without = "".join(f", {name}=None" for name in told)
    usage = _usage(output.name, generator, arguments, without)
    if change:
        usage += _COMFYUI_USAGE if other_names else ""
        usage += _LORA_USAGE.format(name=output.name, scheduler=type(scheduler).__name__, without=without)
    return usage


def match_scheduler(generator: Generator) -> tuple[Any, dict[str, Any]]:
    """The scheduler of diffusers for the generator's steps, and the further arguments of a pipeline's call.

    Raises:
        ValueError: for noise levels between the timesteps of a variance-preserving schedule.
    """
    denoiser = generator.denoiser
    assert isinstance(denoiser, DiffusersDenoiser)
    sigmas = [generator.sigma_init, *generator.later_sigmas]
    timesteps = tabulated_timesteps(denoiser.schedule, sigmas)
    if isinstance(denoiser.schedule, EDMSchedule):
        config = denoiser.config["scheduler_config"] | {"sigma_max": generator.sigma_init}
        # The exponential spacing of one step starts at sigma_min.
        config |= {"sigma_schedule": "karras", "final_sigmas_type": "zero"}
        return diffusers.EDMEulerScheduler.from_config(config), {}
    if timesteps is None:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            denoiser.config["scheduler_config"].get("num_train_timesteps", 1000),
            shift=1.0,
            use_dynamic_shifting=False,
            stochastic_sampling=generator.renoise == "stochastic",
        )
        t = [sigma / (1 + sigma) for sigma in sigmas]
        return scheduler, {"sigmas": t} if len(t) > 1 or t[0] < 1 - 1e-6 else {}
    stochastic = generator.renoise == "stochastic"
    scheduler = _lcm_scheduler(denoiser, timesteps[0]) if stochastic else _ddim_scheduler(denoiser)
    scheduler.set_timesteps(len(timesteps))
    return scheduler, {} if scheduler.timesteps.tolist() == timesteps else {"timesteps": timesteps}


def save_lora(pipeline_class: Any, network: str, denoiser: DiffusersDenoiser, output: Path) -> bool:
    """Write a LoRA student's change alone, in the format of ``load_lora_weights`` on the teacher's pipeline.

    Returns:
        True if there is a second file, by the names of ComfyUI.
    """
    from peft import get_peft_model_state_dict

    scale = denoiser.config["lora"]["alpha"] / denoiser.config["lora"]["rank"]
    # The file has no alpha, and readers assume alpha = rank: the weights contain the scale.
    layers = {
        name: value * scale if ".lora_B." in name else value
        for name, value in get_peft_model_state_dict(denoiser.network).items()
    }
    pipeline_class.save_lora_weights(output, **{f"{network}_lora_layers": layers})
    comfyui = denoiser.family.comfyui_lora(denoiser.network, layers)
    if comfyui is None:
        return False
    save_file({name: value.contiguous() for name, value in comfyui.items()}, output / _COMFYUI_FILE)
    return True


def _without_lora(denoiser: DiffusersDenoiser) -> Any:
    """The network; for a LoRA student, with the change merged into the weights."""
    if denoiser.config["lora"] is None:
        return denoiser.network
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    network = copy.deepcopy(denoiser.network)
    for layer in [module for module in network.modules() if isinstance(module, BaseTunerLayer)]:
        layer.merge()
    return recurse_remove_peft_layers(network)


def _lcm_scheduler(denoiser: DiffusersDenoiser, first: int) -> Any:
    """An LCMScheduler over the timesteps up to ``first``."""
    teacher = build_scheduler(denoiser.config["scheduler_config"])
    config = {key: value for key, value in teacher.config.items() if key in ("beta_start", "beta_end", "beta_schedule")}
    if first + 1 < len(teacher.betas) or teacher.config.get("rescale_betas_zero_snr"):
        config["trained_betas"] = teacher.betas[: first + 1].tolist()
    elif teacher.config.get("trained_betas") is not None:
        config["trained_betas"] = np.asarray(teacher.config.trained_betas).tolist()
    return diffusers.LCMScheduler(
        num_train_timesteps=first + 1,
        original_inference_steps=first + 1,
        prediction_type=teacher.config.prediction_type,
        clip_sample=False,
        steps_offset=1,  # unused; the pipelines of Stable Diffusion warn about another value
        timestep_scaling=1e4,  # c_skip = 0 and c_out = 1 to 1e-8
        **config,
    )


def _ddim_scheduler(denoiser: DiffusersDenoiser) -> Any:
    """A scheduler of DDIM's steps over the teacher's timesteps."""
    config = build_scheduler(denoiser.config["scheduler_config"]).config
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
             "rescale_betas_zero_snr")  # fmt: skip
    return diffusers.DPMSolverMultistepScheduler(
        solver_order=1,
        final_sigmas_type="zero",
        steps_offset=1,  # as for LCM
        **{name: config[name] for name in names if name in config},
    )


def _usage(name: str, generator: Generator, arguments: dict[str, Any], without: str) -> str:
    given: dict[str, Any] = {"num_inference_steps": generator.network_evaluations} | arguments
    seeding = ""
    # Pipelines of flow matching pass no rng to the scheduler.
    if "sigmas" in arguments and generator.renoise == "stochastic":
        seeding = "torch.manual_seed(0)\n"
    else:
        given["generator"] = "torch.Generator().manual_seed(0)"
    lines = "".join(f"    {key}={value},\n" for key, value in given.items())
    return f"""import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}"{without})  # this folder, or its id on the hub
{seeding}images = pipeline(
    prompt="a photo of a cat",
{lines}).images"""
