"""A text-to-image generator as its teacher's standard pipeline, under a scheduler that takes the generator's steps.

Plain diffusers then draws, from the same seeds, what ``sample.py`` draws:

- variance preserving: ``LCMScheduler`` renoises its prediction of x0 at each later timestep, as the generator does. Its
  boundary scalings are 1 and 0 here, and its table of timesteps ends at the generator's first one.
- flow matching: ``FlowMatchEulerDiscreteScheduler`` does the same under ``stochastic_sampling``, without a shift. Its
  pipelines hand it no generator: the noise of later steps comes from torch's own, which has to be seeded.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.pipeline_parts import Autoencoder
from onestep.models.diffusers.schedule import build_scheduler, tabulated_timesteps
from onestep.models.generator import Generator

_LORA_USAGE = """

# The same of the teacher and pytorch_lora_weights.safetensors, the change alone:
# import diffusers
# pipeline = DiffusionPipeline.from_pretrained("<the teacher>")
# pipeline.load_lora_weights("{name}")
# pipeline.scheduler = diffusers.{scheduler}.from_pretrained("{name}", subfolder="scheduler")"""
_KEPT = (".safetensors", ".json", ".txt", ".model")  # no weights that would be unpickled, and no code


def save_text_to_image(generator: Generator, teacher: Path, output: Path) -> str:
    """Write the pipeline in the folder ``teacher`` with the generator's network and scheduler into ``output``.

    Of a LoRA student the change alone is written beside it too, as ``pytorch_lora_weights.safetensors``.

    Returns:
        The Python code that draws with it.

    Raises:
        ValueError: for noise levels that no scheduler of diffusers takes.
    """
    denoiser = generator.denoiser
    assert isinstance(denoiser, DiffusersDenoiser)
    scheduler, arguments = match_scheduler(generator)
    if denoiser.config["size"] is not None:
        factor = Autoencoder.from_pretrained(teacher).downsampling
        height, width = (side * factor for side in denoiser.image_shape[1:])
        arguments |= {"height": height, "width": width}
    index: dict[str, Any] = json.loads((teacher / "model_index.json").read_text())
    network = next(name for name, entry in index.items() if _class_of(entry) == type(denoiser.network).__name__)
    for name, entry in index.items():
        if _class_of(entry) is not None and name not in (network, "scheduler"):
            _copy(teacher / name, output / name)
    if denoiser.config["lora"] is not None:
        _save_lora(getattr(diffusers, index["_class_name"]), network, denoiser, output)
    _without_lora(denoiser).save_pretrained(output / network)
    scheduler.save_pretrained(output / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    usage = _usage(output.name, generator, arguments)
    if denoiser.config["lora"] is not None:
        usage += _LORA_USAGE.format(name=output.name, scheduler=type(scheduler).__name__)
    return usage


def match_scheduler(generator: Generator) -> tuple[Any, dict[str, Any]]:
    """The scheduler of diffusers that takes the generator's steps, and what a pipeline's call has to say besides.

    Raises:
        ValueError: for noise levels between the timesteps of a variance-preserving schedule.
    """
    denoiser = generator.denoiser
    assert isinstance(denoiser, DiffusersDenoiser)
    sigmas = [generator.sigma_init, *generator.later_sigmas]
    timesteps = tabulated_timesteps(denoiser.schedule, sigmas)
    if timesteps is None:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            denoiser.config["scheduler_config"].get("num_train_timesteps", 1000),
            shift=1.0,
            use_dynamic_shifting=False,
            stochastic_sampling=True,
        )
        t = [sigma / (1 + sigma) for sigma in sigmas]
        return scheduler, {"sigmas": t} if len(t) > 1 or t[0] < 1 - 1e-6 else {}
    scheduler = _lcm_scheduler(denoiser, timesteps[0])
    scheduler.set_timesteps(len(timesteps))
    return scheduler, {} if scheduler.timesteps.tolist() == timesteps else {"timesteps": timesteps}


def _save_lora(pipeline_class: Any, network: str, denoiser: DiffusersDenoiser, output: Path) -> None:
    """Write a LoRA student's change alone, as ``load_lora_weights`` takes it: on the teacher it gives the generator."""
    from peft import get_peft_model_state_dict

    scale = denoiser.config["lora"]["alpha"] / denoiser.config["lora"]["rank"]
    # Without a note of alpha a reader takes it to be the rank: the scale goes into the weights.
    layers = {
        name: value * scale if ".lora_B." in name else value
        for name, value in get_peft_model_state_dict(denoiser.network).items()
    }
    pipeline_class.save_lora_weights(output, **{f"{network}_lora_layers": layers})


def _without_lora(denoiser: DiffusersDenoiser) -> Any:
    """The network, a LoRA student's with its change merged into the weights."""
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
        steps_offset=1,  # unused; the pipelines of Stable Diffusion complain of another
        timestep_scaling=1e4,  # c_skip = 0 and c_out = 1 to 1e-8
        **config,
    )


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix in _KEPT:
            shutil.copyfile(file, target / file.name)


def _class_of(entry: Any) -> str | None:
    """The class that an entry of a pipeline's index names, None for other entries."""
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def _usage(name: str, generator: Generator, arguments: dict[str, Any]) -> str:
    given: dict[str, Any] = {"num_inference_steps": generator.network_evaluations, "guidance_scale": 1.0} | arguments
    seeding = ""
    if "sigmas" in arguments:  # pipelines of flow matching hand no generator on to the scheduler's later steps
        seeding = "torch.manual_seed(0)\n"
    else:
        given["generator"] = "torch.Generator().manual_seed(0)"
    lines = "".join(f"    {key}={value},\n" for key, value in given.items())
    return f"""import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}")  # this folder, or its id on the hub
{seeding}images = pipeline(
    "a photo of a cat",
{lines}).images"""
