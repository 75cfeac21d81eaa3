"""The families of networks of diffusers that can be teachers, one line each."""

from typing import Any

from onestep.models.diffusers.families.base import Family
from onestep.models.diffusers.families.dit import DiT
from onestep.models.diffusers.families.flux import Flux
from onestep.models.diffusers.families.flux2 import Flux2
from onestep.models.diffusers.families.lumina2 import Lumina2
from onestep.models.diffusers.families.pixart import PixArt
from onestep.models.diffusers.families.qwen_image import QwenImage
from onestep.models.diffusers.families.sana import Sana
from onestep.models.diffusers.families.sd3 import SD3
from onestep.models.diffusers.families.unet import TextUNet, UNet
from onestep.models.diffusers.families.z_image import ZImage

FAMILIES: dict[str, Family] = {
    "UNet2DModel": UNet(),
    "DiTTransformer2DModel": DiT(),
    "UNet2DConditionModel": TextUNet(),
    "SD3Transformer2DModel": SD3(),
    "FluxTransformer2DModel": Flux(),
    "PixArtTransformer2DModel": PixArt(),
    "SanaTransformer2DModel": Sana(),
    "Lumina2Transformer2DModel": Lumina2(),
    "ZImageTransformer2DModel": ZImage(),
    "QwenImageTransformer2DModel": QwenImage(),
    "Flux2Transformer2DModel": Flux2(),
}


def find_family(network_class: str) -> Family:
    """The family of the networks of diffusers' ``network_class``.

    Raises:
        ValueError: for a class that is not supported.
    """
    if network_class not in FAMILIES:
        raise ValueError(
            f"network_class={network_class!r} is not supported: choose one of {', '.join(FAMILIES)}, or see "
            "CONTRIBUTING.md, 'A new family of teachers', to add it"
        )
    return FAMILIES[network_class]


def diffusers_class(name: str) -> Any:
    """The class ``name`` of diffusers.

    Raises:
        ValueError: if the installed version lacks it, or is older than its family needs.
    """
    import diffusers

    since = FAMILIES[name].since if name in FAMILIES else (0, 0)
    installed = tuple(int(number) for number in diffusers.__version__.split(".")[:2])
    if installed < since or not hasattr(diffusers, name):
        needed = f" {'.'.join(map(str, since))} or newer" if any(since) else " in a newer version"
        raise ValueError(
            f"{name} needs diffusers{needed}, and {diffusers.__version__} is installed: pip install -U diffusers"
        )
    return getattr(diffusers, name)
