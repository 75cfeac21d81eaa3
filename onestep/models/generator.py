"""The generator: a denoiser evaluated once, at a fixed high noise level, or a few times at falling ones."""

import copy
import json
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition
from onestep.files import write_text
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.seeding import noise_from_latents

_SETTINGS = "generator.json"
_CLASSES: dict[str, Any] = {"EDMDenoiser": EDMDenoiser, "DiffusersDenoiser": DiffusersDenoiser}
_MOST_STEPS = 8  # more are a mistake: a student of this kind takes few


class Generator(nn.Module):
    """``x_generated = D(sigma_init * z, sigma_init, condition)`` with ``z ~ N(0, I)`` (SiD, arXiv 2404.04057, sec. 3).

    A network of diffusers sees ``z`` itself at first, as in its pipelines, see its ``init_noise_sigma``.

    Each later step noises the image anew and predicts again, ``x = D(x + sigma * z, sigma, condition)`` with a fresh
    ``z`` (DMD2, arXiv 2405.14867, sec. 4.4).

    Args:
        denoiser: the network; usually it starts as a copy of the teacher.
        sigma_init: the noise level at which it is evaluated first, in data units.
        later_sigmas: those of the further steps, strictly descending; none for a one-step generator.

    Raises:
        ValueError: for noise levels that the network does not know or that do not descend, or too many of them.
    """

    def __init__(self, denoiser: DenoiserNetwork, sigma_init: float, later_sigmas: Sequence[float] = ()) -> None:
        super().__init__()
        if not denoiser.sigma_min <= sigma_init <= denoiser.sigma_max:
            raise ValueError(
                f"sigma_init={sigma_init} is outside the noise levels that the network knows, "
                f"[{denoiser.sigma_min}, {denoiser.sigma_max}]"
            )
        if len(later_sigmas) >= _MOST_STEPS:
            raise ValueError(
                f"later_sigmas={list(later_sigmas)} makes {1 + len(later_sigmas)} steps: at most {_MOST_STEPS} in all"
            )
        for above, sigma in pairwise((sigma_init, *later_sigmas)):
            if not denoiser.sigma_min <= sigma < above:
                raise ValueError(
                    f"later_sigmas={list(later_sigmas)}: {sigma} must be below {above}, the level before it (the first "
                    f"is sigma_init), and no less than the network's lowest, {denoiser.sigma_min}"
                )
        self.denoiser = denoiser
        self.sigma_init = sigma_init
        self.later_sigmas = list(later_sigmas)

    @property
    def network_evaluations(self) -> int:
        """Network evaluations a sample costs: the number of steps."""
        return 1 + len(self.later_sigmas)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one sample's noise, (C, H, W)."""
        return self.denoiser.image_shape

    @property
    def networks(self) -> list[nn.Module]:
        """Its one network."""
        return [self.denoiser]

    def forward(
        self, latents: Tensor, condition: Condition = NO_CONDITION, noises: Iterator[Tensor] | None = None
    ) -> Tensor:
        """Images [B, C, H, W] in data units from ``latents`` [B, C, H, W] ~ N(0, I), after all steps.

        The later steps take their noise from ``noises`` [B, C, H, W]; without them, a sample's is a function of its
        latent, so that an image depends on nothing else in the batch.
        """
        later = noise_from_latents(latents) if noises is None else (noise.to(latents) for noise in noises)
        return self.simulate([latents, *islice(later, len(self.later_sigmas))], condition)

    def simulate(self, noises: Sequence[Tensor], condition: Condition = NO_CONDITION) -> Tensor:
        """Images [B, C, H, W] after the first ``len(noises)`` steps; the gradient is that of the last of these alone.

        DMD2's backward simulation (arXiv 2405.14867, sec. 4.5): what a step is trained on is what the steps before it
        make, as in drawing, and they run without a graph.

        Args:
            noises: the noise [B, C, H, W] ~ N(0, I) of each step, the latents first; as many as steps, or fewer.
            condition: of the images; empty for none.
        """
        sigmas = (self.sigma_init, *self.later_sigmas)[: len(noises)]
        *earlier, (last_sigma, last_noise) = zip(sigmas, noises, strict=True)
        x: Tensor | None = None
        with torch.no_grad():
            for sigma, noise in earlier:
                x = self._step(x, noise, sigma, condition)
        # In older versions of torch autocast goes on with the copies of the weights that it made without a graph
        # (pytorch issue 112583): the last step would have no gradient.
        torch.clear_autocast_cache()
        return self._step(x, last_noise, last_sigma, condition)

    def _step(self, x: Tensor | None, noise: Tensor, sigma: float, condition: Condition) -> Tensor:
        level = torch.full((len(noise),), sigma, device=noise.device)
        x_sigma = self.denoiser.init_noise_sigma(sigma) * noise if x is None else x + sigma * noise
        return self.denoiser(x_sigma, level, condition)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network as safetensors with its config, and this class's settings beside them."""
        self.denoiser.save_pretrained(folder)
        settings = {"sigma_init": self.sigma_init, "later_sigmas": self.later_sigmas}
        write_text(Path(folder) / _SETTINGS, json.dumps(settings) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, denoiser: DenoiserNetwork | None = None) -> Self:
        """Read what :meth:`save_pretrained` wrote, in eval mode.

        Args:
            folder: the generator's.
            denoiser: for a network of your own class, which no folder describes: one of that class, which is given the
                weights; None for those of this package.

        Raises:
            ValueError: if the folder holds no generator, or one of another network.
        """
        settings = Path(folder) / _SETTINGS
        if not settings.is_file():
            raise ValueError(f"{folder} holds no one-step generator: expected {_SETTINGS} beside its weights")
        network = load_denoiser(folder) if denoiser is None else copy.deepcopy(denoiser).load_weights(folder)
        return cls(network, **json.loads(settings.read_text())).eval()


def load_denoiser(folder: str | Path) -> DenoiserNetwork:
    """The denoiser that ``save_pretrained`` wrote into ``folder``, in eval mode.

    Raises:
        ValueError: if the folder holds none, or its weights and config do not fit each other.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"no checkpoint at {str(folder)!r}: expected a folder with config.json and safetensors weights, such as "
            "the 'teacher' or 'generator' folder of a finished run"
        )
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
        if name not in _CLASSES:
            raise KeyError(
                f"it holds a {name}, and not one of {', '.join(_CLASSES)}: a network of your own class is read by "
                "Generator.from_pretrained(folder, denoiser)"
            )
        network_class = _CLASSES[name]
        denoiser, report = network_class.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the checkpoint at {str(folder)!r} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"the weights at {str(folder)!r} do not fit their config.json: {error}") from error
    # diffusers fills missing weights with random ones and goes on.
    if problems := {kind: keys for kind, keys in report.items() if keys}:
        raise ValueError(f"the weights at {str(folder)!r} do not fit their config.json: {problems}")
    # Where it lay here is nobody's business in the config of what is distilled from it.
    denoiser.register_to_config(_name_or_path="")
    return denoiser.eval()
