"""Teachers from checkpoints: frozen denoisers."""

from pathlib import Path

from onestep.assets import ASSETS
from onestep.networks.base import DenoiserNetwork
from onestep.networks.generator import load_denoiser


def load_teacher(path: str, guidance: float) -> DenoiserNetwork:
    """A frozen teacher in eval mode, from a folder with ``config.json`` and safetensors weights.

    Args:
        path: the folder, such as ``<run>/teacher`` of a pretraining; or the name of a bundled teacher: "digits".
        guidance: its classifier-free guidance; 1 for none.

    Raises:
        ValueError: if there is no such checkpoint, its weights do not fit its config, or it was not trained for the
            guidance.
    """
    bundled = {folder.parent.name: folder.parent for folder in ASSETS.glob("*/config.json")}
    if path not in bundled and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"no teacher at {path!r}: expected a folder with config.json and safetensors weights, or the name of a "
            f"bundled teacher: {', '.join(sorted(bundled)) or 'none is bundled'}"
        )
    return load_denoiser(bundled.get(path, Path(path))).requires_grad_(False).set_guidance(guidance)
