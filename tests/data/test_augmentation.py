"""EDM's augmentation against what each transformation is in closed form."""

import math

import pytest
import torch
from torch import Tensor

from onestep.data.augmentation import PARAMETERS, EDMAugmentation, to_labels
from onestep.seeding import BatchRandom


@pytest.fixture
def augmentation() -> EDMAugmentation:
    """With factors of 2, so that one standard deviation is something simple; a shift of one eighth of a side."""
    return EDMAugmentation(probability=0.5, scale=2.0, anisotropy=2.0, translation=0.125)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def parameters(count: int, **values: float) -> Tensor:
    return torch.tensor([[values.get(name, 0.0) for name in PARAMETERS]] * count)


def bump(x: float, y: float, size: int = 32) -> Tensor:
    """A smooth bump [1, 1, size, size] whose centre is ``x`` to the right and ``y`` below the image's, in pixels."""
    places = torch.arange(size) - (size - 1) / 2
    return (-((places[None] - x) ** 2 + (places[:, None] - y) ** 2) / 6).exp()[None, None]


def centre(image: Tensor) -> tuple[float, float]:
    places = torch.arange(image.shape[-1]) - (image.shape[-1] - 1) / 2
    mass = image[0, 0] / image.sum()
    return (mass.sum(0) @ places).item(), (mass.sum(1) @ places).item()


def test_nothing_is_done_at_zero(augmentation: EDMAugmentation, images: Tensor) -> None:
    assert torch.equal(augmentation.transform(images.clone(), parameters(3)), images)
    assert torch.equal(to_labels(parameters(3)), torch.zeros(3, 9))


def test_flips_are_flips(augmentation: EDMAugmentation, images: Tensor) -> None:
    one_of_each = torch.cat([parameters(1, x_flip=1), parameters(1, y_flip=1), parameters(1, x_flip=1, y_flip=1)])
    expected = torch.stack([images[0].flip(2), images[1].flip(1), images[2].flip(1, 2)])
    assert torch.equal(augmentation.transform(images.clone(), one_of_each), expected)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_rotation_by_quarters(augmentation: EDMAugmentation, images: Tensor, quarters: int) -> None:
    angle = quarters * math.pi / 2
    turned = augmentation.transform(images.clone(), parameters(3, rotation=angle))
    torch.testing.assert_close(turned, torch.rot90(images, quarters, (2, 3)), rtol=0, atol=1e-5)


def test_a_shift_by_whole_pixels(augmentation: EDMAugmentation, images: Tensor) -> None:
    # One standard deviation is 16 / 8 = 2 pixels.
    moved = augmentation.transform(images.clone(), parameters(3, x_shift=1.5, y_shift=-1.0))
    torch.testing.assert_close(moved[:, :, :-2, 3:], images[:, :, 2:, :-3], rtol=0, atol=1e-5)
    # What comes in is the reflected image.
    torch.testing.assert_close(moved[:, :, :-2, :3], images[:, :, 2:, :3].flip(3), rtol=0, atol=1e-5)


def test_scaling_enlarges(augmentation: EDMAugmentation) -> None:
    for exponent in (0.5, -0.5):
        x, y = centre(augmentation.transform(bump(3, 2), parameters(1, scale=exponent)))
        assert (x, y) == pytest.approx((3 * 2**exponent, 2 * 2**exponent), abs=0.02)


def test_stretching_along_an_angle(augmentation: EDMAugmentation) -> None:
    along_x = augmentation.transform(bump(3, 2), parameters(1, anisotropy=0.5))
    assert centre(along_x) == pytest.approx((3 * 2**0.5, 2 * 2**-0.5), abs=0.02)
    along_y = augmentation.transform(bump(3, 2), parameters(1, anisotropy=0.5, anisotropy_angle=math.pi / 2))
    assert centre(along_y) == pytest.approx((3 * 2**-0.5, 2 * 2**0.5), abs=0.02)
    # Along the diagonal down to the right, on which the bump lies.
    along_it = augmentation.transform(bump(2, 2), parameters(1, anisotropy=0.5, anisotropy_angle=math.pi / 4))
    assert centre(along_it) == pytest.approx((2 * 2**0.5, 2 * 2**0.5), abs=0.02)


def test_the_order_is_the_tables(augmentation: EDMAugmentation) -> None:
    """Flip, enlarge, turn by a quarter against the clock, and shift last."""
    done = augmentation.transform(bump(3, 1), parameters(1, x_flip=1, scale=0.5, rotation=math.pi / 2, x_shift=1))
    # (3, 1) -> (-3, 1) -> times sqrt(2) -> (x, y) to (y, -x) -> 32 / 8 pixels to the right
    assert centre(done) == pytest.approx((2**0.5 + 4, 3 * 2**0.5), abs=0.03)


def test_the_labels_of_each_transformation() -> None:
    """The last column of table 6."""
    values = {"x_flip": 1, "y_flip": 1, "scale": 0.3, "rotation": 0.5, "x_shift": 0.7, "y_shift": -0.2}
    labels = to_labels(parameters(1, **values, anisotropy=-0.4, anisotropy_angle=1.1))[0]
    expected = [1, 1, 0.3, math.cos(0.5) - 1, math.sin(0.5), -0.4 * math.cos(1.1), -0.4 * math.sin(1.1), 0.7, -0.2]
    assert labels.tolist() == pytest.approx(expected, abs=1e-6)


def test_how_often_each_is_drawn() -> None:
    augmentation = EDMAugmentation(probability=0.12, scale=1.1487, anisotropy=1.1487, translation=0.125)
    drawn = augmentation.parameters(BatchRandom(0, batch_size=20000, rows=slice(None)))
    share = (drawn != 0).double().mean(0).tolist()
    # A flip is drawn by a coin besides; the error is four standard deviations.
    expected = [0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.12, 0.12]
    assert share == pytest.approx(expected, abs=0.015)
    assert torch.equal(drawn[:, 4] != 0, drawn[:, 5] != 0) and torch.equal(drawn[:, 6] != 0, drawn[:, 7] != 0)
    turned = drawn[:, 3][drawn[:, 3] != 0]
    assert turned.abs().max() <= math.pi and turned.std().item() == pytest.approx(math.pi / 3**0.5, rel=0.05)
    assert drawn[:, 2][drawn[:, 2] != 0].std().item() == pytest.approx(1, rel=0.06)


def test_a_sample_is_given_the_same_in_any_process(augmentation: EDMAugmentation, images: Tensor) -> None:
    def augment(rows: slice) -> tuple[Tensor, Tensor]:
        return augmentation(images[rows].clone(), BatchRandom(7, 0, 5, batch_size=3, rows=rows))

    whole, parts = augment(slice(0, 3)), [augment(slice(0, 1)), augment(slice(1, 3))]
    for together, *apart in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(apart))
