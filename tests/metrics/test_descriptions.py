"""Each metric of conf/metrics has a title and a direction for each of its values."""

from pathlib import Path

import pytest
from hydra.utils import get_class

from onestep.config import CONF, instantiate
from tests.helpers.configs import configure

DESCRIPTIONS = {
    "fid": {"fid": ("FID", False)},
    "fid50k": {"fid50k": ("FID of 50,000 samples", False)},
    "fd_dinov2": {"fd_dinov2": ("FD-DINOv2", False)},
    "is": {"is": ("Inception Score", True)},
    "kid": {"kid": ("kernel distance (KID)", False)},
    "recall": {"recall": ("recall", True)},
    "prdc": {key: (key, True) for key in ("precision", "recall", "density", "coverage")},
    "clip_score": {"clip_score": ("CLIP score", True)},
    "prompt_spread": {
        "prompt_spread": ("spread of a prompt's images", True),
        "prompt_vendi": ("Vendi score of a prompt's images", True),
    },
    "psnr_y": {"psnr_y": ("PSNR of Y from 16 to 235, peak 255, border 4", True)},
    "psnr_rgb": {"psnr_rgb": ("PSNR of all channels, peak 255, border 0", True)},
    "ssim_y": {"ssim_y": ("SSIM of Y from 16 to 235, peak 255, border 4", True)},
    "ssim_rgb": {"ssim_rgb": ("SSIM of all channels, peak 255, border 0", True)},
    "consistency": {"consistency": ("consistency, grey levels of 255", False)},
    "seed_spread": {"seed_spread": ("spread across seeds, grey levels of 255", True)},
    "lpips_alex": {"lpips_alex": ("LPIPS 0.1, AlexNet, RGB in [-1, 1], no border", False)},
    "lpips_vgg": {"lpips_vgg": ("LPIPS 0.1, VGG-16, RGB in [-1, 1], no border", False)},
    "clip_iqa": {"clip_iqa": ("CLIP-IQA, RN50 of CLIP without positions, by piq", True)},
    "clip_iqa_vit": {"clip_iqa_vit": ("CLIP-IQA, CLIP tiny", True)},
    "modes": {"modes": ("modes covered", True)},
    "mode_precision": {"mode_precision": ("mode precision", True)},
    "kl": {"kl": ("KL divergence", False)},
    "energy": {"energy": ("energy distance", False)},
}


def test_every_metric_is_listed_here() -> None:
    assert DESCRIPTIONS.keys() == {path.stem for path in (CONF / "metrics").glob("*.yaml")} - {"none"}


@pytest.mark.usefixtures("other_protocols")
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_metric_s_keys_titles_and_directions(
    name: str, clip_folder: Path, lpips_files: dict[str, dict[str, object]]
) -> None:
    """Most descriptions need only the class and its configuration: features of transformers are not fetched."""
    config = configure("train", f"metrics=[{name}]", "mixture=grid").metrics[name]
    if name == "clip_iqa_vit":
        config.features.path = str(clip_folder)
    elif name.startswith("lpips"):
        config.network.update(lpips_files[name.removeprefix("lpips_")])
    metric = get_class(config._target_)
    titles = config.get("title", getattr(metric, "title", None))
    if isinstance(titles, property):  # of its settings
        titles = instantiate(config).title
    by_key = {name: titles} if isinstance(titles, str) else titles
    better = metric.higher_is_better
    assert {key: (title, better) for key, title in by_key.items()} == DESCRIPTIONS[name]
