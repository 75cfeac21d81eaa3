"""The one-step generator: a denoiser evaluated once, at a fixed high noise level."""

import json
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from onestep.networks.edm import EDMDenoiser

_SETTINGS = "generator.json"


class Generator(nn.Module):
    """``x_generated = D(sigma_init * z, sigma_init, condition)`` with ``z ~ N(0, I)`` (SiD, arXiv 2404.04057, sec. 3).

    Args:
        denoiser: the network; usually it starts as a copy of the teacher.
        sigma_init: the noise level at which it is evaluated, in data units.
    """

    def __init__(self, denoiser: EDMDenoiser, sigma_init: float) -> None:
        super().__init__()
        if not denoiser.sigma_min <= sigma_init <= denoiser.sigma_max:
            raise ValueError(
                f"sigma_init={sigma_init} is outside the noise levels that the network knows, "
                f"[{denoiser.sigma_min}, {denoiser.sigma_max}]"
            )
        self.denoiser = denoiser
        self.sigma_init = sigma_init

    def forward(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in data units from ``latents`` [B, C, H, W] ~ N(0, I)."""
        sigma = torch.full((len(latents),), self.sigma_init, device=latents.device)
        return self.denoiser(self.sigma_init * latents, sigma, condition)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network as safetensors with its config, and this class's settings beside them."""
        self.denoiser.save_pretrained(folder)
        (Path(folder) / _SETTINGS).write_text(json.dumps({"sigma_init": self.sigma_init}) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what :meth:`save_pretrained` wrote, in eval mode.

        Raises:
            ValueError: if the folder holds no generator.
        """
        settings = Path(folder) / _SETTINGS
        if not settings.is_file():
            raise ValueError(f"{folder} holds no one-step generator: expected {_SETTINGS} beside its weights")
        return cls(load_denoiser(folder), **json.loads(settings.read_text())).eval()


def load_denoiser(folder: str | Path) -> EDMDenoiser:
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
        denoiser, report = EDMDenoiser.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"the checkpoint at {str(folder)!r} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"the weights at {str(folder)!r} do not fit their config.json: {error}") from error
    # diffusers fills missing weights with random ones and goes on.
    if problems := {kind: keys for kind, keys in report.items() if keys}:
        raise ValueError(f"the weights at {str(folder)!r} do not fit their config.json: {problems}")
    # Where it lay here is nobody's business in the config of what is distilled from it.
    denoiser.register_to_config(_name_or_path="")
    return denoiser
