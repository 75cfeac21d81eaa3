"""The training of an invertible network of details."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from onestep.build.pretraining import pretrain_invertible
from onestep.build.run import started_run
from onestep.config import check_config
from onestep.data.dataset import ImagesInMemory
from onestep.data.digits import Digits
from onestep.haar import haar, inverse_haar
from onestep.models.invertible import InvertibleNetwork, load_invertible
from onestep.pretraining import invertible
from onestep.pretraining.settings import InvertibleSettings
from tests.helpers.configs import configure, refused

SMALL = ("invertible.width=8", "invertible.nodes=2", "invertible_training.total_images=320")


def test_a_training_on_the_digits(tmp_path: Path) -> None:
    """What is held out is not trained; the Gaussian's bits are those of details with noise of one grey level."""
    config = configure("pretrain_invertible", "data=digits", *SMALL, f"output={tmp_path}")
    check_config(config)
    summary = pretrain_invertible(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["held_out_images"], summary["images"]) == (359, 1438)
    squares = haar(Digits().images, 1)[1][0].square().mean((0, 2, 3)) + 1 / 127.5**2 / 12
    of_bands = (127.5 * squares.sqrt()).log2().mean() + math.log2(2 * math.pi * math.e) / 2
    assert summary["gaussian_bits"] == pytest.approx(of_bands.item(), abs=0.02)
    assert 4 < summary["held_out_bits"] < summary["gaussian_bits"] - 0.05
    network = load_invertible(str(tmp_path / "invertible"))
    assert network.config == {"channels": 1, "width": 8, "nodes": 2}


@pytest.mark.slow
def test_it_reaches_the_likelihood_of_a_gaussian(tmp_path: Path) -> None:
    """Of details that are linear in the low band with correlated noise: the entropy of a band is known."""
    rng = torch.Generator().manual_seed(0)
    low, noise = torch.randn(4000, 1, 4, 4, generator=rng) / 3, torch.randn(4000, 3, 4, 4, generator=rng)
    mixing = torch.tensor([[0.2, 0.0, 0.0], [0.15, 0.1, 0.0], [-0.1, 0.05, 0.08]])
    details = torch.einsum("ij,bjhw->bihw", mixing, noise) + low * torch.tensor([0.3, -0.2, 0.1])[:, None, None]
    data = ImagesInMemory(inverse_haar(low, details), None, num_classes=0)
    torch.manual_seed(0)
    network = InvertibleNetwork(1, 16, 4)
    with started_run(configure("pretrain_invertible", "data=digits", f"output={tmp_path}")) as run:
        settings = InvertibleSettings(total_images=64_000, batch_size=64, lr=5e-3, largest_gradient=1.0)
        summary = invertible.pretrain_invertible(run, network, data, None, settings)
    entropy = math.log2(127.5) + math.log2(2 * math.pi * math.e) / 2 + mixing.diag().log2().mean().item()
    assert summary["gaussian_bits"] > entropy + 0.3
    assert summary["held_out_bits"] == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("compile=true",), "compile=True: this training of a small network is in float32 and eager"),
        (("data=none",), "an invertible network needs images: use data=... other than none or prompts"),
        (("data=crops", "data.size=5"), "data has images of 5x5: the Haar transform needs even sides"),
        (("data=crops", "data.size=6", "data.crops=1", "data.max_size=1"), "data, .*: too few images to train and to"),
        (("data=digits", "invertible_training.lr=1e6"), "invertible_training.lr=1000000.0: the loss is not finite in "),
    ],
)
def test_what_does_not_fit(overrides: tuple[str, ...], message: str, stores: Path, tmp_path: Path) -> None:
    crops = (f"data.path={stores / 'classes'}",) if "data=crops" in overrides else ()
    config = configure("pretrain_invertible", *SMALL, *overrides, *crops, f"output={tmp_path}")
    said = refused(config, pretrain_invertible)
    assert re.match(message, said) and "\n" not in said
    assert not (tmp_path / "invertible").exists()


def test_held_out_images_of_other_channels(tmp_path: Path) -> None:
    config: Any = configure("pretrain_invertible", "data=digits", *SMALL, f"output={tmp_path}")
    with started_run(config) as run:
        data, held_out = Digits(), ImagesInMemory(torch.zeros(2, 3, 8, 8), None, num_classes=0)
        network = InvertibleNetwork(1, 8, 2)
        with pytest.raises(ValueError, match="^held_out has 3 channels, and the network takes 1: use other data"):
            invertible.pretrain_invertible(run, network, data, held_out, InvertibleSettings(1, 1, 0.1, 1.0))
