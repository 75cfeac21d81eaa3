"""The differentiable augmentation of a discriminator's samples."""

import pytest
import torch
from torch import Tensor

from onestep.data.diff_augment import DifferentiableAugmentation

OFF = dict.fromkeys(("brightness", "saturation", "contrast", "translation", "cutout"), 0.0)
PUBLISHED = DifferentiableAugmentation(0.5, 1.0, 0.5, 0.125, 0.5)
RANDOM = torch.Generator().manual_seed(0)


def only(**settings: float) -> DifferentiableAugmentation:
    return DifferentiableAugmentation(**(OFF | settings))


def images(count: int = 1, channels: int = 3, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, generator=RANDOM, dtype=torch.float64)


def numbers(**places: float) -> Tensor:
    """The middle of each range, but for the ``places``: by the names of the transforms."""
    names = ("brightness", "saturation", "contrast", "down", "right", "top", "left")
    return torch.tensor([[places.get(name, 0.5) for name in names]], dtype=torch.float64)


def test_without_transforms_nothing_changes() -> None:
    x = images(3)
    torch.testing.assert_close(only()(x, torch.rand(3, 7, generator=RANDOM)), x)
    torch.testing.assert_close(DifferentiableAugmentation(0.5, 1.0, 0.5, 0.125, 0)(x, numbers().expand(3, 7)), x)


@pytest.mark.parametrize(("number", "change"), [(0.0, -1.0), (0.25, -0.5), (0.75, 0.5)])
def test_colours(number: float, change: float) -> None:
    """A number in [0, 1) is a change in [-1, 1) times the setting."""
    x = images()
    torch.testing.assert_close(only(brightness=0.5)(x, numbers(brightness=number)), x + 0.5 * change)
    grey, mean = x.mean(1, keepdim=True), x.mean()
    saturated = only(saturation=1.0)(x, numbers(saturation=number))
    torch.testing.assert_close(saturated, grey + (1 + change) * (x - grey))
    contrasted = only(contrast=0.5)(x, numbers(contrast=number))
    torch.testing.assert_close(contrasted, mean + (1 + 0.5 * change) * (x - mean))
    grey_image = images(channels=1)
    torch.testing.assert_close(only(saturation=1.0)(grey_image, numbers(saturation=number)), grey_image)


@pytest.mark.parametrize(("number", "shift"), [(0.0, -2), (0.2, -1), (0.5, 0), (0.79, 1), (0.9999, 2)])
def test_translation(number: float, shift: int) -> None:
    """By up to a quarter of 8 pixels, each of the five shifts for a fifth of the numbers; zeros come in."""
    x = images()
    for axis, name in ((2, "down"), (3, "right")):
        source = torch.arange(8) - shift
        inside = ((source >= 0) & (source < 8)).double().view((8, 1) if axis == 2 else (8,))
        expected = x.roll(shift, axis) * inside
        torch.testing.assert_close(only(translation=0.25)(x, numbers(**{name: number})), expected)


@pytest.mark.parametrize(
    ("cutout", "number", "first", "last"),
    [(0.5, 0.0, 0, 2), (0.5, 0.5, 2, 6), (0.5, 0.9999, 6, 8), (0.375, 0.0, 0, 2), (0.375, 0.9999, 6, 8)],
)
def test_cutout(cutout: float, number: float, first: int, last: int) -> None:
    """The centre is anywhere in the image, so that the square can lie in part outside."""
    x = images()
    expected = x.clone()
    expected[:, :, first:last, 2 if cutout == 0.5 else 3 : 6] = 0
    torch.testing.assert_close(only(cutout=cutout)(x, numbers(top=number)), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_gradient_is_that_of_finite_differences(channels: int) -> None:
    x, direction, weight = images(5, channels), images(5, channels), images(5, channels)
    given = torch.rand(5, 7, generator=RANDOM, dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((PUBLISHED(x, given) ** 3 * weight).sum(), x)

    def value(step: float) -> Tensor:
        return (PUBLISHED(x.detach() + step * direction, given) ** 3 * weight).flatten(1).sum(1)

    differences = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), differences, rtol=1e-6, atol=1e-6)


def test_images_have_transforms_of_their_own() -> None:
    x, given = images(4), torch.rand(4, 7, generator=RANDOM)
    alone = torch.cat([PUBLISHED(x[i : i + 1], given[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(PUBLISHED(x, given), alone)
    assert not torch.allclose(PUBLISHED(x[:1].expand(4, -1, -1, -1), given)[0], PUBLISHED(x[:1], given[1:2])[0])
