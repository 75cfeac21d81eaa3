"""Generators for export and for pages: those that ``onestep sample`` draws with, from the same settings."""

from collections.abc import Sequence
from pathlib import Path

import torch

from onestep.build.recorded import Parts
from onestep.build.sampling import has_bundled_teacher, load_model, pipeline_of, sampling_space
from onestep.config import CONF, check_config, compose
from onestep.denoiser import Condition, keys_of_data, prompt_keys
from onestep.entry import quote_values
from onestep.evaluation.generate import SampleFunction, SampleSpace
from onestep.export.graph import GeneratorGraph
from onestep.models.generator import Generator
from onestep.models.loading import generator_path
from onestep.reading import read_yaml
from onestep.seeding import seeded_rng

#: Of a network of prompts that is given none.
_PROMPTS = ("a photo of a cat", "a landscape")
#: The settings of ``onestep sample`` that say what is drawn and with what.
_SETTINGS = ("weights", "sigma_init", "prompts", "classes", "teacher", "sampler", "mixture")


class Deployment:
    """A generator with the inputs of its seeds, and its teacher if it is known.

    Args:
        source: the folder of a finished run; or a generator as ``checkpoint`` of ``onestep sample`` names it.
        overrides: settings of ``onestep sample``, such as ``weights=raw``, ``classes=[3,7]`` or ``prompts=[...]``.

    Attributes:
        graph: the generator.

    Raises:
        ValueError: as :func:`onestep.build.sampling.sample`, for other settings, and for a scene, which is no network.
    """

    def __init__(self, source: str, overrides: Sequence[str] = ()) -> None:
        for word in overrides:
            if word.lstrip("+").partition("=")[0].partition(".")[0] not in _SETTINGS:
                raise ValueError(f"{word}: expected one of the settings {', '.join(_SETTINGS)}, as KEY=VALUE")
        if not generator_path(source).exists():
            raise ValueError(
                f"{source}: no such file or folder: expected the folder of a finished run, a generator's folder or "
                "file, or the name of a bundled generator"
            )
        own = "run" if (Path(source) / "config.yaml").is_file() else "checkpoint"
        given = [*_bundled_teacher(source, overrides), "device=cpu", *overrides, "save_to=."]
        self._config = compose("sample", quote_values(given))
        self._config[own] = source
        check_config(self._config)
        if own == "checkpoint" and self._config.weights is not None:
            raise ValueError(f"weights={self._config.weights}: they are those of a run, and {source} is none")
        self._parts = Parts(self._config)
        generator, network, _ = load_model(self._config, self._parts, torch.device("cpu"))
        if not isinstance(generator, Generator):
            raise ValueError(f"{source}: a scene is no network of images: export it with --format diffusers")
        if self._config.prompts is None and prompt_keys(keys_of_data(network)):
            self._config.prompts = list(_PROMPTS)
        self._generator = generator
        space = self.space()
        pipeline = network.pipeline or pipeline_of(self._config, self._parts)
        autoencoder = None if space.decode is None or pipeline is None else pipeline.autoencoder
        self.graph = GeneratorGraph(generator, space, autoencoder)

    def space(self, classes: list[int] | None = None, prompts: list[str] | None = None) -> SampleSpace:
        """The inputs of seeds, with ``classes`` or ``prompts`` in place of those of the settings.

        Raises:
            ValueError: as :func:`onestep.build.sampling.sampling_space`.
        """
        network, config = self._generator.denoiser, self._config.copy()
        if keys_of_data(network) == ["image"]:
            return SampleSpace.of(network, None, RandomImages(self._generator.noise_shape))
        config.prompts = config.prompts if prompts is None else prompts
        known = self._generator.classes if config.classes is None else list(config.classes)
        return sampling_space(config, self._parts, network, known if classes is None else classes)

    def teacher(self) -> tuple[SampleFunction, int] | None:
        """The teacher's sampler, and its network evaluations per image; None if it is not known."""
        if self._parts["teacher"] is None or self._parts["sampler"] is None:
            return None
        self._config.model = "teacher"
        function, _, evaluations = load_model(self._config, self._parts, torch.device("cpu"))
        return function, evaluations


def _bundled_teacher(source: str, overrides: Sequence[str]) -> list[str]:
    """The teacher of the bundled generator of that name with its sampler, unless another one is given."""
    if not has_bundled_teacher(source) or any(word.startswith("teacher=") for word in overrides):
        return []
    of_diffusers = "diffusers" in read_yaml(CONF / "teacher" / f"{source}.yaml").get("defaults", [])
    return [f"teacher={source}", f"sampler={'euler' if of_diffusers else 'heun'}"]


class RandomImages:
    """Random conditions ``image``, for a network that takes any image."""

    prompts: Sequence[str] | None = None

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        self.image_shape = image_shape

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, indices: Sequence[int]) -> Condition:
        images = [torch.rand(self.image_shape, generator=seeded_rng(index)) * 2 - 1 for index in indices]
        return {"image": torch.stack(images)}
