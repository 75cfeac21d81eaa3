"""Two cycles of each published code, replayed by the recipe of its name: its sizes and its network alone are replaced.

What the recordings leave out: dropout and augmentation are off in them, as are fp16 and several processes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onestep.models.edm.denoiser import EDMDenoiser
from tests.helpers.paths import REFERENCE
from tests.helpers.published import FOLDER, Replay, family

#: The recording, the recipe, and what replaces the sizes: groups of a head on 64 channels, and the start.
CASES = {
    "sid_cifar10_cond": ("sid/cifar10_cond",),
    "sid_imagenet64": ("sid/imagenet64",),
    "sida_warmup_20kimg": ("sida/cifar10_cond",),
    "sida_warmup_150kimg": ("sida/cifar10_cond",),
    "sida_cifar10_cond": ("sida/cifar10_cond",),
    "uni_forward_kl": ("uni_instruct/cifar10_cond_code", "generator.init=null"),
    "uni_none": ("uni_instruct/cifar10_cond_code", "generator.init=null", "generator.objective_weight=0"),
    "dmd2_imagenet64": ("dmd2/imagenet64", "discriminator.head.groups=4"),
    "fastgen_fdistill_kl": ("f_distill/cifar10_cond",),
    "fastgen_fdistill_js": ("f_distill/imagenet64",),
    "fastgen_dmd2": ("dmd2/imagenet64_fastgen",),
}


SMALL = {"model_channels": 16, "attn_resolutions": [8], "augment_dim": 9}
TEACHERS: dict[str, tuple[Path, int, Any, dict[str, Any]]] = {
    "sid": (REFERENCE / "edm_ddpmpp_cond10_16.safetensors", 10, "SongUNet", {"channel_mult": [1, 2], "num_blocks": 2}),
    "imagenet": (FOLDER / "adm_teacher.safetensors", 20, "DhariwalUNet", {"channel_mult": [1, 4], "num_blocks": 1,
                                                                         "channel_mult_emb": 2}),
    "fastgen": (FOLDER / "fastgen_teacher.safetensors", 10, "SongUNet", {"channel_mult": [1, 1], "num_blocks": 4}),
}  # fmt: skip


def teacher_of(name: str) -> EDMDenoiser:
    file, classes, architecture, options = TEACHERS["imagenet" if "imagenet" in name else family(name)]
    teacher = EDMDenoiser((3, 16, 16), classes, architecture=architecture, options=SMALL | options)
    missing, unexpected = teacher.load_state_dict(load_file(file), strict=False)
    assert not unexpected and all("resample_filter" in key for key in missing)
    return teacher.eval().requires_grad_(False)


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_is_the_published_code_step_for_step(name: str) -> None:
    recipe, *overrides = CASES[name]
    replay = Replay(name, np.load(FOLDER / f"{name}.npz"), teacher_of(name), recipe, *overrides)
    assert_same_levels(replay)
    replay.cycle(0, first=1e-5, later=1e-4)
    replay.cycle(1, first=1e-4, later=1e-4)


def assert_same_levels(replay: Replay) -> None:
    """The recorded 1,000 draws of each noise level have the recipe's distribution: Kolmogorov's test at 5 %."""
    laws = {key: replay.recording[key] for key in replay.recording if key.endswith("1000_sorted")}
    assert laws
    for key, drawn in laws.items():
        distribution = replay.parts.sigma if "generator" in key else replay.parts.fake_sigma
        found = distribution.cdf(torch.as_tensor(drawn).double())
        steps = torch.arange(1001, dtype=torch.float64) / 1000
        distance = torch.maximum((steps[1:] - found).abs().max(), (found - steps[:-1]).abs().max())
        assert distance < 1.36 / 1000**0.5, key
