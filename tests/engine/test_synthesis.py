"""Averages of other widths against sums over all images of a training."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from onestep.engine.averages import PowerFunction, power_of
from onestep.engine.synthesis import Average, synthesis_weights, synthesize
from onestep.models.edm.denoiser import EDMDenoiser
from tests.helpers.edm_format import pickled, snapshot

SAVED = [Average(images, width) for images in (2500, 5000, 7500, 10_000) for width in (0.05, 0.1)]


def profile(average: Average, times: np.ndarray) -> np.ndarray:
    """The weight of each of ``times`` in images, of sum 1."""
    weights: np.ndarray = np.where(times <= average.images, times ** (power_of(average.sigma_rel)), 0.0)
    return weights / weights.sum()


def fitted(saved: Sequence[Average], target: Average) -> np.ndarray:
    """Synthesis by least squares over a grid of times, of sum 1."""
    times = np.arange(0.5, 10_000) + 0.0
    basis = np.stack([profile(average, times) for average in saved], axis=1)
    solution = np.linalg.lstsq(basis, profile(target, times), rcond=None)[0]
    return solution / solution.sum()


@pytest.mark.parametrize("target", [Average(10_000, 0.075), Average(8000, 0.15)], ids=str)
def test_weights_are_the_least_squares_fit(target: Average) -> None:
    weights = synthesis_weights(SAVED, target)
    assert weights == pytest.approx(fitted(SAVED, target), rel=2e-2, abs=2e-3) and sum(weights) == pytest.approx(1)
    assert synthesis_weights(SAVED, SAVED[3]) == pytest.approx([0, 0, 0, 1, 0, 0, 0, 0], abs=1e-6)


def test_synthesis_of_files(tmp_path: Path) -> None:
    """Of a random walk over 10,000 images, saved in EDM2's format, against the average during the walk."""
    options = {"model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "logvar_channels": 4}
    network = EDMDenoiser((1, 4, 4), architecture="EDM2UNet", options=options)
    weight, target = network.model.out_conv.weight, Average(10_000, 0.075)
    profiles = {width: PowerFunction(width) for width in (0.05, 0.1, 0.075)}
    averages = {width: torch.zeros(weight.shape) for width in profiles}
    value, random, files, sources = torch.zeros(weight.shape), torch.Generator().manual_seed(0), [], []
    for step in range(200):
        value += torch.randn(weight.shape, generator=random)
        for width, average in averages.items():
            average.lerp_(value, 1 - profiles[width].decay(50 * step, 50))
        if (step + 1) % 50 == 0:
            for width in (0.05, 0.1):
                weight.data.copy_(averages[width])
                sources.append(averages[width].clone())
                files.append(tmp_path / f"{step}_{width}.pkl")
                files[-1].write_bytes(pickled(snapshot(network)))
    made = synthesize(files, SAVED, target)
    expected = sum(w * source for w, source in zip(synthesis_weights(SAVED, target), sources, strict=True))
    torch.testing.assert_close(made.state_dict()["model.out_conv.weight"], expected, rtol=1e-4, atol=1e-4)
    error, nearest = expected - averages[0.075], averages[0.1] - averages[0.075]
    assert error.norm() < 0.15 * nearest.norm() and not made.training
    frequencies = "model.emb_fourier.freqs"
    assert torch.equal(made.state_dict()[frequencies], network.state_dict()[frequencies])
    EDMDenoiser((1, 4, 4), architecture="EDM2UNet", options=options | {"num_blocks": 2}).save_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match="pkl holds another network than .*x: expected averages of one training"):
        synthesize([tmp_path / "x", *files[1:]], SAVED, target)


def test_what_cannot_be_synthesised() -> None:
    for width in (0, 0.3, math.nan):
        with pytest.raises(ValueError, match=f"sigma_rel={width}.*: expected a number above 0 and below 0.288"):
            Average(1, width)
    with pytest.raises(ValueError, match="after 10,001 images cannot be made of averages up to 10,000"):
        synthesis_weights(SAVED, Average(10_001, 0.1))
    with pytest.raises(ValueError, match="after 5 images cannot be made of averages up to 0"):
        synthesis_weights([], Average(5, 0.1))
    with pytest.raises(ValueError, match="two of the averages are of the same images and sigma_rel"):
        synthesis_weights([SAVED[0], *SAVED], SAVED[3])
