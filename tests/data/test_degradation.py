"""Degradation against independent computations; randomness that depends on an image's key alone."""

import io
import math
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.special
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from onestep.config import CONF, instantiate
from onestep.data import kernels
from onestep.data.degradation import AreaReduction, BicubicReduction, enlarge
from onestep.data.distortions import Draws, blurred, gaussian_noise, poisson_noise, resized
from onestep.data.jpeg import jpeg
from onestep.images import from_uint8, to_uint8
from onestep.seeding import seeded_rng

CHOICES = ("area", "bicubic", "bsrgan", "real_esrgan")


def photograph(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth colours, edges and fine texture, uint8 [H, W, C]."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / (5 + 3 * c) + y / 7) + 30 * ((x // 9 + y // (6 + c)) % 2) for c in range(3)]
    noisy = np.stack(waves, -1) + np.random.RandomState(0).normal(0, 6, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)[:, :, :channels]


def batch_of(*pictures: np.ndarray) -> Tensor:
    return from_uint8(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))


def built(choice: str, **changes: Any) -> Any:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / "degradation" / f"{choice}.yaml"), changes))


@pytest.mark.parametrize("factor, size", [(2, (30, 45)), (3, (20, 30)), (4, (15, 22)), (2.5, (24, 36))])
def test_the_reductions_are_pillows(factor: float, size: tuple[int, int]) -> None:
    picture = photograph(60, 90)
    image, new = Image.fromarray(picture), (size[1], size[0])
    low = to_uint8(BicubicReduction(factor)(batch_of(picture), [(0,)]))[0].permute(1, 2, 0)
    theirs = np.asarray(image.resize(new, Image.Resampling.BICUBIC)).astype(int)
    assert low.shape == (*size, 3)
    assert np.abs(low.numpy().astype(int) - theirs).max() <= 1
    low = to_uint8(AreaReduction(factor)(batch_of(picture), [(0,)]))[0].permute(1, 2, 0)
    if 60 % factor == 90 % factor == 0 and factor != 2.5:
        theirs = np.asarray(image.reduce(int(factor))).astype(int)
        assert np.abs(low.numpy().astype(int) - theirs).max() <= 1
    wide = picture.astype(float).repeat(20, 0).repeat(20, 1)  # each new pixel has whole parts of old ones
    rows, columns = (np.arange(new + 1) * (20 * old) / new for old, new in zip((60, 90), size, strict=True))
    if np.allclose(rows, rows.round()) and np.allclose(columns, columns.round()):
        parts = wide.reshape(size[0], 1200 // size[0], size[1], 1800 // size[1], 3)
        assert np.abs(low.numpy() - parts.mean((1, 3))).max() <= 0.5 + 1e-9


def test_an_image_of_one_level_keeps_it() -> None:
    even = torch.full((1, 3, 24, 17), 0.2)
    for choice in ("area", "bicubic"):
        assert to_uint8(built(choice)(even, [(0,)])).unique().tolist() == to_uint8(even).unique().tolist()
    assert enlarge(even, (48, 34)).sub(0.2).abs().max() < 1e-6


def test_the_condition_is_clipped_bicubic() -> None:
    low = batch_of(photograph(12, 9))
    large = enlarge(low, (48, 36))
    image = Image.fromarray(to_uint8(low)[0].permute(1, 2, 0).numpy())
    theirs = np.asarray(image.resize((36, 48), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(to_uint8(large)[0].permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1
    edge = torch.ones(1, 1, 4, 4)
    edge[..., :2] = -1
    assert (enlarge(edge, (16, 16)).min().item(), enlarge(edge, (16, 16)).max().item()) == (-1, 1)
    assert enlarge(low, (12, 9)) is low


def test_kernels() -> None:
    """Against the formulas, place by place."""
    size, deviations, angle, shape, cutoff = 9, (2.5, 0.8), 0.7, 1.7, 2.1
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag(np.square(deviations)) @ turn.T)
    expected: dict[str, np.ndarray] = {name: np.zeros((size, size)) for name in ("plain", "general", "flat", "sinc")}
    for row, column in np.ndindex(size, size):
        v = np.array([column - 4.0, row - 4.0])
        square, r = v @ inverse @ v, np.hypot(*v)
        expected["plain"][row, column] = math.exp(-square / 2)
        expected["general"][row, column] = math.exp(-(square**shape) / 2)
        expected["flat"][row, column] = 1 / (1 + square**shape)
        bessel = scipy.special.j1(cutoff * r) * cutoff / (2 * math.pi * r) if r else cutoff**2 / (4 * math.pi)
        expected["sinc"][row, column] = bessel
    squares = kernels.squared_distances(size, deviations, angle)
    found = {
        "plain": kernels.gaussian(squares),
        "general": kernels.gaussian(squares, shape),
        "flat": kernels.plateau(squares, shape),
        "sinc": kernels.sinc(size, cutoff),
    }
    for name, kernel in found.items():
        assert kernel.sum() == pytest.approx(1, abs=1e-12)
        tolerance = 1e-7 if name == "sinc" else 1e-12  # torch's Bessel function has about seven digits
        np.testing.assert_allclose(kernel, expected[name] / expected[name].sum(), atol=tolerance)
    shifted = kernels.gaussian(kernels.squared_distances(25, (2.0, 2.0), shift=1.5))
    line = torch.arange(25.0).double() - 12
    assert [(shifted.sum(axis) * line).sum().item() for axis in (0, 1)] == pytest.approx([1.5, 1.5], abs=1e-4)


@pytest.mark.parametrize("height, width", [(20, 31), (4, 1)])  # smaller than the border too
def test_blur_reflects_at_the_border(height: int, width: int) -> None:
    levels = torch.rand(1, 2, height, width, dtype=torch.float64) * 255
    kernel = kernels.gaussian(kernels.squared_distances(11, (3.0, 1.0), 0.4, shift=0.5))
    expected = [scipy.ndimage.correlate(one.numpy(), kernel.numpy(), mode="mirror") for one in levels[0]]
    np.testing.assert_allclose(blurred(levels, kernel)[0], expected, atol=1e-9)


@pytest.mark.parametrize("quality", [10, 30, 75, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(quality: int, channels: int) -> None:
    """As libjpeg codes and decodes, but for its integer arithmetic: 0.9 grey levels of 255 in the mean at most."""
    picture = photograph(77, 90, channels)
    file = io.BytesIO()
    Image.fromarray(picture.squeeze()).save(file, "JPEG", quality=quality)
    theirs = np.asarray(Image.open(file)).reshape(picture.shape).astype(float)
    ours = jpeg(torch.from_numpy(picture).double().permute(2, 0, 1)[None], quality)[0].permute(1, 2, 0).numpy()
    loss = np.abs(theirs - picture).mean()
    assert np.abs(ours - theirs).mean() < min(0.9 if channels == 3 else 0.4, loss / 3)


def test_jpeg_of_a_block() -> None:
    """A block in grey is its quantised cosine transform, by another implementation."""
    block = np.random.RandomState(1).randint(0, 256, (8, 8)).astype(float)
    table = np.array([[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
                      [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
                      [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
                      [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]])  # fmt: skip
    quantised = np.round(scipy.fft.dctn(block - 128, norm="ortho") / table) * table
    expected = np.round(scipy.fft.idctn(quantised, norm="ortho") + 128).clip(0, 255)
    np.testing.assert_array_equal(jpeg(torch.from_numpy(block)[None, None], 50)[0, 0], expected)


def test_the_moments_of_noise() -> None:
    draws = Draws(seeded_rng(0))
    levels = torch.full((1, 3, 200, 200), 102.0, dtype=torch.float64)
    coloured, grey = (gaussian_noise(levels, 12.0, equal, draws) for equal in (False, True))
    assert coloured.std().item() == pytest.approx(12, rel=0.02) and coloured.mean().abs() < 0.2
    assert torch.equal(grey[:, 0], grey[:, 2]) and not torch.equal(coloured[:, 0], coloured[:, 2])
    # 8 levels: a peak of 8 photons at white, of which 102 / 255 are 3.2; a photon is 255 / 8 levels.
    levels[..., :1] = torch.arange(200.0).clamp(max=6)[:, None] * 2
    for equal in (False, True):
        noise = poisson_noise(levels, equal, draws)[..., 1:]
        assert noise.var().item() == pytest.approx(3.2 * (255 / 8) ** 2, rel=0.03)
        assert abs(noise.mean().item()) < 1
        assert torch.equal(noise[:, 0], noise[:, 2]) == equal
    modes = {tuple(resized(levels[..., :64, :64], (20, 20), draws).shape) for _ in range(4)}
    assert modes == {(1, 3, 20, 20)}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_depends_on_its_image_and_key_alone(choice: str, channels: int) -> None:
    model = built(choice)
    images = (
        batch_of(*[photograph(48, 40, channels) for _ in range(6)]) * torch.linspace(0.5, 1, 6)[:, None, None, None]
    )
    keys = [(3, index) for index in range(6)]
    torch.manual_seed(0)
    low = model(images, keys)
    assert low.shape == (6, channels, 12, 10) and low.dtype == torch.float32
    assert torch.equal(low, from_uint8(to_uint8(low)))  # grey levels of 8 bits, in [-1, 1]
    torch.manual_seed(1)  # the global rng plays no part
    alone = [model(images[index : index + 1], [keys[index]]) for index in reversed(range(6))]
    assert torch.equal(torch.cat(alone[::-1]), low)
    others = model(images, [(4, index) for index in range(6)])
    assert [torch.equal(*pair) for pair in zip(low, others, strict=True)] == [choice in ("area", "bicubic")] * 6


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("factor, size", [(2.5, (10, 6)), (4, (6, 4)), (1, (25, 16))])
def test_any_factor_and_small_images(choice: str, factor: float, size: tuple[int, int]) -> None:
    model = built(choice, factor=factor)
    assert model(batch_of(photograph(25, 16)), [(0, 0)]).shape == (1, 3, *size)
    for key in range(8):
        assert model(batch_of(photograph(3, 1)), [(key,)]).isfinite().all()


def test_the_published_branches_are_all_taken() -> None:
    """Every step, and its absence, changes the result: with a probability of 0 and of 1."""
    image, keys = batch_of(photograph(40, 40)), [(0, 1)]
    for choice, names in {
        "real_esrgan": ("second_probability", "last_sinc"),
        "bsrgan": ("halved_first", "anisotropic", "interpolated", "grey", "jpeg"),
    }.items():
        for name in names:
            never, always = (built(choice, **{name: value})(image, keys) for value in (0.0, 1.0))
            assert not torch.equal(never, always), name
    for name in ("blur", "sinc", "gaussian", "grey"):
        never, always = (built("real_esrgan", first={name: value})(image, keys) for value in (0.0, 1.0))
        assert not torch.equal(never, always), name


@pytest.mark.parametrize(
    ("choice", "changes", "message"),
    [
        ("area", {"factor": 0.5}, "factor=0.5: expected a number of at least 1 and at most 64"),
        ("bsrgan", {"quality": [95, 30]}, "quality=[95, 30]: expected a list of 2, each an integer of at least 1 and "
         "at most 100, the first at most the second"),
        ("bsrgan", {"sizes": [7, 24]}, "sizes=[7, 24]: expected a list of 2, each an integer of at least 1 and at most "
         "63, the first at most the second, and both odd"),
        ("real_esrgan", {"last_sinc": 2}, "last_sinc=2: expected a number of at least 0 and at most 1"),
    ],
)  # fmt: skip
def test_settings_out_of_range(choice: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        built(choice, **changes)
    assert str(caught.value).startswith(message)
