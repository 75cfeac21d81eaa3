"""The presets of published super-resolution: the settings of docs/super_resolution.md, and two iterations of each."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import DDPMScheduler
from omegaconf import DictConfig, OmegaConf

from onestep.build.distillation import build_distillation
from onestep.config import CONF, check_config
from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.edm.denoiser import EDMDenoiser
from tests.helpers.configs import NO_DIAGNOSIS, TINY, TWO_ITERATIONS, as_given, configure
from tests.helpers.diffusers_models import unet
from tests.helpers.edm_models import randomized
from tests.helpers.paths import REPOSITORY
from tests.helpers.updates import take_updates

PAGE = (REPOSITORY / "docs" / "super_resolution.md").read_text(encoding="utf-8")
FOLDER = CONF / "experiment" / "method"
DIGITS = ("data@data.images=digits", "degradation=area", "degradation.factor=2")
SMALL = (*TINY, *TWO_ITERATIONS, *NO_DIAGNOSIS, "fake_score.steps=1", "metrics=[]")
PAIRS = ("pairs.count=6", "pairs.batch_size=4", "sampler.steps=3")
LPIPS = "features@terms.lpips.network=digits"  # in place of weights that are fetched
#: Of each preset the choices and settings of a tiny run, and the losses that it logs.
PRESETS: dict[str, tuple[str, tuple[str, ...], set[str]]] = {
    "sinsr": ("lora=null", PAIRS, {"regression_loss", "inverse_loss", "consistency_loss"}),
    "hf_diff": (
        "features@terms.embedding_js.network=digits",
        PAIRS,
        {"regression_loss", "inverse_loss", "consistency_loss", "embedding_js_loss"},
    ),
    "rsd": (LPIPS, (), {"fake_score_loss", "discriminator_loss", "adversarial_loss", "lpips_loss"}),
    "osediff": (LPIPS, ("data.images.use_labels=false",), {"fake_score_loss", "reconstruction_loss", "lpips_loss"}),
}


def of_preset(preset: str, *settings: str) -> DictConfig:
    """The configuration of ``preset``, for the same choices with all settings."""
    chosen = (f"experiment=method/{preset}", PRESETS[preset][0], *DIGITS, "teacher=local")
    return as_given(configure("train", *chosen, *settings), ())


def documented() -> dict[str, dict[str, Any]]:
    """The settings of each preset in the page's table, by key."""
    block = next(block for block in re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.M) if "experiment=method/sinsr" in block)
    header, _, *rows = [
        [re.findall("`(.*?)`", cell) for cell in line.strip("|\n").split("|")] for line in block.splitlines()
    ]
    names = [spans[0].partition("experiment=method/")[2] for spans in header[1:]]
    return {
        name: {key: yaml.safe_load(row[column][0]) for row in rows for key in row[0] if row[column]}
        for column, name in enumerate(names, 1)
    }


def test_every_preset_is_in_the_table() -> None:
    assert documented().keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_settings_of_the_table(preset: str) -> None:
    config = of_preset(preset, "teacher.path=teacher", "output=nowhere")
    check_config(config)
    rows = documented()[preset]
    assert len(rows) > 10
    found = {key: config.choices.get(key) or OmegaConf.select(config, key) for key in rows}
    assert found == rows
    header = (FOLDER / f"{preset}.yaml").read_text().partition("defaults:")[0]
    for expected in ("arXiv", "What differs", r"Not yet\s+(# )?run at scale", "Source"):
        assert re.search(expected, header), expected


@pytest.fixture(scope="module")
def conditional_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny network that sees y, with random weights."""
    folder = tmp_path_factory.mktemp("teacher")
    options = {"model_channels": 16, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": []}
    settings: Any = {"sigma_data": 0.4, "sigma_max": 20.0, "options": options, "image_condition": "residual"}
    randomized(EDMDenoiser((1, 8, 8), 10, **settings)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_two_iterations(preset: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    _, more, losses = PRESETS[preset]
    folder = request.getfixturevalue("conditional_teacher")
    more = (*more, f"pairs.cache={tmp_path / 'pairs'}") if more == PAIRS else more
    config = of_preset(preset, *SMALL, *more, f"teacher.path={folder}", f"output={tmp_path / 'run'}")
    check_config(config)
    prior = {"teacher": DiffusersDenoiser.wrap(unet(in_channels=1, out_channels=1), DDPMScheduler()).eval()}
    parts = build_distillation(config, prior if preset == "osediff" else None)
    found: dict[str, Any] = {}
    for update in take_updates(parts, 2):
        found |= update
    assert {name for name in found if name.endswith("_loss")} == losses
    assert all(bool(values.isfinite().all()) for values in found.values()) and found["generator_gradient"] > 0
    if preset == "osediff":
        trained = [name for name, one in parts.student.named_parameters() if one.requires_grad]
        assert trained and all("lora" in name for name in trained)
