"""The README's three ways to bring a teacher, run as they are written in an empty folder, on tiny models."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from onestep.commands import main
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier
from tests.helpers.configs import TINY, TWO_ITERATIONS
from tests.helpers.diffusers_models import UNET_BLOCKS, randomize
from tests.helpers.paths import REFERENCE, REPOSITORY

README = (REPOSITORY / "README.md").read_text()
# Behind the command as it stands.
SHORT = (*TINY, *TWO_ITERATIONS, "diagnosis.samples=4", "fake_score.steps=1", "hydra.run.dir=run")
MY_MODEL = """
import torch
from torch import nn

images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(1, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 1, 1)

    def forward(self, x, sigma):
        middle = self.middle(torch.tanh(self.first(x) + sigma.log()[:, None, None, None] / 4))
        return nn.functional.interpolate(self.last(torch.tanh(middle)), scale_factor=2.0)


torch.manual_seed(0)
network = Network()
"""


def blocks(language: str) -> list[str]:
    """The code blocks of "Your own teacher"."""
    section = README.partition("## Your own teacher")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.S)


def save_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{index}.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process_as_it_was: None) -> Iterator[Path]:
    """The empty folder in which the test runs, as a new process would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["onestep"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which a command changes
    monkeypatch.syspath_prepend(tmp_path)
    AcceleratorState._reset_state()
    yield tmp_path
    sys.modules.pop("my_model", None)


def run_block(folder: Path, block: str) -> Path:
    """The folder of the run of a block's one command."""
    command, *words = shlex.split(block.replace("\\\n", " "), comments=True)
    assert command == "onestep"
    main([*words, *SHORT])
    return folder / "run"


def test_a_diffusers_pipeline(folder: Path) -> None:
    torch.manual_seed(0)
    types = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = diffusers.UNet2DModel(8, 1, 1, **UNET_BLOCKS, **types)
    diffusers.DDPMPipeline(randomize(unet), diffusers.DDPMScheduler()).save_pretrained(folder / "my-pipeline")
    save_images(folder / "my-images")
    run = run_block(folder, blocks("bash")[0])
    settings = (run / "generator" / "generator.json").read_text()
    assert settings.startswith('{"sigma_init": 157.')  # the last level of the pipeline's own schedule


def test_an_edm_file(folder: Path) -> None:
    (folder / "edm.pkl").write_bytes((REFERENCE / "sid_ddpmpp_cond10_16.pkl").read_bytes())
    (folder / "images.zip").write_bytes((REFERENCE / "rand-16x16-10c.zip").read_bytes())
    run = run_block(folder, blocks("bash")[1])
    assert (run / "generator" / "generator.json").read_text().startswith('{"sigma_init": 80.0')
    assert not (run / "checkpoints" / "iteration_00000002" / "discriminator.safetensors").exists()


def test_any_module(folder: Path) -> None:
    (folder / "my_model.py").write_text(MY_MODEL)
    (code,) = blocks("python")
    values = {"device": "cpu", "precision": "no", "training": {"total_images": 8, "batch_size": 4},
              "evaluation": {"grid": 4, "batch_size": 4}, "sampler": "heun"}  # fmt: skip
    short = ", ".join(f"{name}={value!r}" for name, value in values.items())
    code = code.replace('output="outputs/mine")', f'output="outputs/mine", {short})')
    check = (
        "latents = __import__('torch').zeros(2, 1, 16, 16)\nassert (generator(latents) == run.generator(latents)).all()"
    )
    (folder / "mine.py").write_text(f"{code}\n{check}\n")
    runpy.run_path("mine.py")
    assert (folder / "outputs" / "mine" / "summary.json").is_file()


def test_the_losses_alone() -> None:
    """The picture of docs/python.md becomes a three; its loop moves both networks."""
    text = (REPOSITORY / "docs" / "python.md").read_text().partition("## The losses alone")[2]
    first, second = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    values: dict[str, Any] = {}
    exec(first, values)
    classes = load_classifier("digits").classify(to_uint8(values["picture"].detach())).softmax(1)
    assert classes[0, 3] > 0.9
    values = {}
    exec(second, values)
    for network in (values["fake_score"], values["generator"].denoiser):
        pairs = zip(network.parameters(), values["teacher"].parameters(), strict=True)
        assert sum(not torch.equal(ours, theirs) for ours, theirs in pairs) > 50


def test_it_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) < 150
