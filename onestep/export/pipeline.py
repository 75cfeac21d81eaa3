"""A trained generator as a diffusers pipeline: ``model_index.json``, safetensors and a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from onestep.denoiser import map_condition
from onestep.images import to_uint8
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.autoencoder import Autoencoder, wrap
from onestep.models.diffusers.folder import INDEX, pipeline_folder
from onestep.models.generator import Generator, Renoise, StepLevels, load_denoiser
from onestep.reading import read_json
from onestep.seeding import seeded_inputs, seeded_noise

OUTPUT_TYPES = ("pil", "np", "pt")


class OneStepPipeline(DiffusionPipeline):
    """Generates images with a one-step or few-step generator; a seed gives the same image as in ``onestep sample``.

    It saves and loads like other diffusers pipelines, with ``save_pretrained``, ``from_pretrained`` (safetensors
    only) and ``push_to_hub``, and moves with ``to``.

    Args:
        denoiser: the generator's network.
        vae: autoencoder of diffusers for a generator of latents; None for one of images.
        sigma_init, later_sigmas: noise levels of the steps, see :class:`onestep.models.generator.Generator`.
        classes: the classes that it draws, if they are fewer than the network's.
        renoise: noise between the steps, see :class:`onestep.models.generator.Generator`.

    Raises:
        ValueError: without ``sigma_init``, or for noise levels that the generator does not support.
    """

    def __init__(
        self,
        denoiser: DenoiserNetwork,
        vae: Any,
        sigma_init: float | None = None,
        later_sigmas: list | None = None,
        classes: list | None = None,
        renoise: Renoise = "stochastic",
    ) -> None:
        super().__init__()  # for diffusers, an argument with a default is a setting, and one without is a network
        if sigma_init is None:
            raise ValueError("sigma_init is missing: expected the noise level of the generator's first step")
        self.register_modules(denoiser=denoiser, vae=vae)
        self.register_to_config(
            sigma_init=sigma_init, later_sigmas=list(later_sigmas or []), classes=classes, renoise=renoise
        )
        self.generator = Generator(denoiser, sigma_init, later_sigmas or [], classes, renoise=renoise).eval()
        self.autoencoder = None if vae is None else wrap(vae)

    @classmethod
    def from_generator(cls, generator: Generator, vae: Any = None) -> Self:
        """The pipeline of a ``generator``."""
        steps = generator.sigma_init, generator.later_sigmas, generator.classes, generator.renoise
        return cls(generator.denoiser, vae, *steps)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path) -> Self:
        """Load a folder or a hub id: safetensors only, so that nothing is unpickled.

        Raises:
            ValueError: if the pipeline does not exist, or its weights do not fit their config.
        """
        folder = pipeline_folder(str(pretrained_model_name_or_path))
        index = cls.load_config(folder)
        if index.get("_class_name") != cls.__name__:
            raise ValueError(f"{folder} holds a {index.get('_class_name')}, expected a {cls.__name__}")
        vae = Autoencoder.from_pretrained(folder).vae if (folder / "vae").is_dir() else None
        return cls(load_denoiser(folder / "denoiser"), vae, **vars(read_json(folder / INDEX, StepLevels)))

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write ``model_index.json`` and the networks, as safetensors.

        Raises:
            ValueError: for other files than safetensors, or a variant.
        """
        if not safe_serialization or variant is not None:
            raise ValueError(
                f"safe_serialization={safe_serialization}, variant={variant}: this pipeline writes safetensors without "
                "a variant"
            )
        self.save_config(save_directory)
        self.denoiser.save_pretrained(Path(save_directory) / "denoiser")
        if self.vae is not None:
            self.vae.save_pretrained(Path(save_directory) / "vae")

    @torch.no_grad()
    def __call__(
        self,
        seeds: Sequence[int],
        classes: Sequence[int] | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Generate one image for each of ``seeds``.

        Args:
            seeds: an image depends on its seed alone, not on the rest of its batch.
            classes: seed ``s`` gets ``classes[s % len(classes)]``; None for the generator's classes,
                or a random class, a function of the seed.
            batch_size: images per batch.
            output_type: "pil" for Pillow images; "np" for floats [N, H, W, C] in [0, 1]; "pt" for the network's output
                [N, C, H, W], in about [-1, 1].

        Returns:
            An output with the ``images``.

        Raises:
            ValueError: for an unknown ``output_type``, or classes that the network does not have.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        drawn = self.generator.classes if classes is None else classes
        images = self._generate(list(seeds), None if drawn is None else list(drawn), batch_size)
        if output_type == "pt":
            return ImagePipelineOutput(images)
        if output_type == "np":
            return ImagePipelineOutput((images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())
        return ImagePipelineOutput(VaeImageProcessor.numpy_to_pil(to_uint8(images).permute(0, 2, 3, 1).numpy() / 255))

    def _generate(self, seeds: list[int], classes: list[int] | None, batch_size: int) -> Tensor:
        """Images [N, C, H, W] of the ``seeds``, float32 on the CPU."""
        shape, label_dim, images = self.denoiser.image_shape, self.denoiser.label_dim, []
        for start in self.progress_bar(range(0, len(seeds), batch_size)):
            latents, condition = seeded_inputs(seeds[start : start + batch_size], shape, label_dim, classes)
            condition = map_condition(lambda tensor: tensor.to(self.device), condition)
            noises = seeded_noise(seeds[start : start + batch_size], shape, label_dim)
            samples = self.generator(latents.to(self.device), condition, noises).float()
            images.append((samples if self.autoencoder is None else self.autoencoder.decode(samples)).cpu())
        return torch.cat(images)
