"""Fidelity to originals and to degraded images, against torchmetrics and plain formulas."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from onestep.data.dataset import ImagesInMemory
from onestep.data.degradation import AreaReduction
from onestep.data.paired import PairedImages
from onestep.images import from_uint8
from onestep.metrics.evaluator import Evaluator, Metric
from onestep.metrics.fidelity import PSNR, SSIM, Consistency, PairMetric, SeedSpread, luma

NAMES = {"psnr": PSNR("rgb", 0), "consistency": Consistency()}


def pixels(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def pairs_of(originals: Tensor, factor: float = 2.0) -> PairedImages:
    return PairedImages(ImagesInMemory(from_uint8(originals)), AreaReduction(factor)).evaluated


def evaluator_of(pairs: Any, **metrics: PairMetric) -> Evaluator:
    every: dict[str, Metric] = {**metrics}
    return Evaluator(None, every, None, pairs=pairs)


def values_of(samples: Tensor, seeds: Sequence[int], pairs: Any, **metrics: PairMetric) -> dict[str, float]:
    parts = [from_uint8(part) for part in samples.split(4)]
    return evaluator_of(pairs, **metrics)(parts, seeds=seeds)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim(channels: int) -> None:
    """Of each image alone, then the mean; skimage's published SSIM is that of the window's inside."""
    originals = pixels(6, channels, 24, 20)
    noise = torch.randn(6, channels, 24, 20, generator=torch.Generator().manual_seed(1)) * 12
    samples = (originals.float() + noise).round().clamp(0, 255).to(torch.uint8)
    found = values_of(samples, range(6), pairs_of(originals), y=PSNR("y", 3), rgb=PSNR("rgb", 0), s=SSIM("rgb", 0))
    ours, theirs = samples.double(), originals.double()
    psnr = [peak_signal_noise_ratio(a, b, data_range=255.0) for a, b in zip(ours, theirs, strict=True)]
    assert found["rgb"] == pytest.approx(float(torch.stack(psnr).mean()), abs=1e-4)
    weights = torch.tensor([65.481, 128.553, 24.966]).double().reshape(3, 1, 1) / 255
    error = ((ours - theirs).expand(-1, 3, -1, -1) * weights).sum(1)[:, 3:-3, 3:-3].square().mean((1, 2))
    assert found["y"] == pytest.approx(float((10 * torch.log10(255**2 / error)).mean()), abs=1e-4)
    assert found["s"] == pytest.approx(ssim(ours.numpy(), theirs.numpy()), abs=1e-4)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al.'s formula, window by window."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for row in range(a.shape[2] - 10):
        for column in range(a.shape[3] - 10):
            p, q = (one[:, :, row : row + 11, column : column + 11] for one in (a, b))
            mean_p, mean_q, pq = ((window * one).sum((2, 3)) for one in (p, q, p * q))
            square_p, square_q = ((window * one**2).sum((2, 3)) - mean**2 for one, mean in ((p, mean_p), (q, mean_q)))
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            top = (2 * mean_p * mean_q + c1) * (2 * (pq - mean_p * mean_q) + c2)
            values.append(top / ((mean_p**2 + mean_q**2 + c1) * (square_p + square_q + c2)))
    return float(np.mean(values))


def test_luma_of_black_white_and_red() -> None:
    colours = torch.tensor([[0.0, 0, 0], [255, 255, 255], [255, 0, 0]])[:, :, None, None]
    assert luma(colours).flatten().tolist() == pytest.approx([16, 235, 16 + 65.481], abs=1e-3)
    assert luma(torch.tensor([[[[255.0]]]])).item() == pytest.approx(235, abs=1e-3)


def test_equal_images() -> None:
    originals = pixels(3, 3, 16, 16)
    found = values_of(originals, range(3), pairs_of(originals), **NAMES, ssim=SSIM("y", 2))
    assert found == {"psnr": 100.0, "consistency": 0.0, "ssim": pytest.approx(1)}


def test_consistency_is_in_grey_levels() -> None:
    """The details of a pixel's area do not count, and a shift of all levels does."""
    originals = pixels(4, 1, 8, 8) // 2
    flat = originals.float().unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    flat = flat.repeat_interleave(2, 2).repeat_interleave(2, 3).add(0.5).floor().to(torch.uint8)
    assert values_of(flat, range(4), pairs_of(originals), c=Consistency())["c"] == 0
    assert values_of(originals + 7, range(4), pairs_of(originals), c=Consistency())["c"] == pytest.approx(7)


def test_a_sample_is_of_the_pair_of_its_seed() -> None:
    originals = pixels(5, 1, 8, 8)
    seeds = [7, 3, 11, 14, 5, 6]
    samples = originals[[seed % 5 for seed in seeds]]
    assert values_of(samples, seeds, pairs_of(originals), **NAMES) == {"psnr": 100.0, "consistency": 0.0}
    wrong = values_of(samples, [seed + 1 for seed in seeds], pairs_of(originals), **NAMES)
    assert wrong["psnr"] < 12 and wrong["consistency"] > 20


def test_the_spread_across_seeds() -> None:
    """A root mean square of the standard deviations of each pixel, over the images with two samples or more."""
    originals = pixels(3, 1, 4, 4)
    samples, seeds = pixels(8, 1, 4, 4, seed=2), [0, 1, 3, 4, 6, 9, 10, 2]  # four, three and one of each image
    groups = [samples[[0, 2, 4, 5]], samples[[1, 3, 6]]]
    expected = math.sqrt(sum(float(group.double().var(0).mean()) for group in groups) / 2)
    assert values_of(samples, seeds, pairs_of(originals), s=SeedSpread())["s"] == pytest.approx(expected)
    same = samples[[0, 1, 0, 1]]
    assert values_of(same, [0, 1, 3, 4], pairs_of(originals), s=SeedSpread())["s"] == 0
    with pytest.raises(ValueError, match="no image has two samples among 3: set more samples than the evaluation has"):
        values_of(samples[:3], range(3), pairs_of(originals), s=SeedSpread())


def test_titles_name_channels_peak_and_border() -> None:
    assert PSNR("y", 4).title == "PSNR of Y from 16 to 235, peak 255, border 4"
    assert SSIM("rgb", 0).title == "SSIM of all channels, peak 255, border 0"


class Unknown(PairedImages):
    """Pairs whose degradation is not known, as those of two folders."""

    def degrade(self, samples: Tensor, indices: Sequence[int]) -> Any:
        return None


@pytest.mark.parametrize(
    ("metric", "pairs", "message"),
    [
        (PSNR("y", 4), None, r"^metrics: m compares samples with what they restore, and this data has no pairs"),
        (PSNR("y", 4), pairs_of(pixels(1, 1, 8, 8)), "^PSNR with a border of 4 needs images of at least 9x9 pixels"),
        (SSIM("y", 0), pairs_of(pixels(1, 1, 8, 8)), "^SSIM with a border of 0 needs images of at least 11x11 pixels"),
        (Consistency(), Unknown(ImagesInMemory(torch.zeros(1, 1, 8, 8)), AreaReduction(2)),
         "^consistency needs the degradation, which pairs of two folders do not tell: choose other metrics"),
    ],
)  # fmt: skip
def test_what_is_not_defined(metric: PairMetric, pairs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluator_of(pairs, m=metric)


def test_samples_without_seeds() -> None:
    evaluator = evaluator_of(pairs_of(pixels(2, 1, 8, 8)), **NAMES)
    with pytest.raises(ValueError, match="^psnr, consistency: the seeds of these samples are not known"):
        evaluator([torch.zeros(2, 1, 8, 8)])
