"""A prompt from all sides: the cameras, the words of their views, and what is refused."""

from collections import Counter

import pytest
import torch

from onestep.data.view_prompts import VIEWS, Views, view_of

SETTINGS = {"prompt": "a cat", "front": 45, "back": 45, "overhead": 60, "elevation": [-10, 90], "distance": [2, 3]}


def views(**options: object) -> Views:
    return Views(**{**SETTINGS, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "azimuth, elevation, expected",
    [
        (0, 0, "front view"),
        (44.9, 0, "front view"),
        (315.1, 59, "front view"),
        (-44.9, 0, "front view"),
        (45.1, 0, "side view"),
        (270, 60, "side view"),
        (134.9, -10, "side view"),
        (135.1, 0, "back view"),
        (224.9, 0, "back view"),
        (225.1, 0, "side view"),
        (0, 60.1, "overhead view"),
        (180, 90, "overhead view"),
    ],
)
def test_words_of_a_camera(azimuth: float, elevation: float, expected: str) -> None:
    """At threestudio's angles."""
    camera = torch.tensor([[azimuth, elevation, 2.0]])
    assert VIEWS[int(view_of(camera, 45, 45, 60))] == expected


def test_cameras_fill_their_ranges() -> None:
    """Uniformly: a third of the elevations is above 60, and a quarter, half and quarter of the rest is the others'."""
    found = views()
    low, high = found.cameras.amin(0), found.cameras.amax(0)
    assert torch.allclose(low, torch.tensor([0.0, -10.0, 2.0]), atol=0.01)
    assert torch.allclose(high, torch.tensor([360.0, 90.0, 3.0]), atol=0.01)
    assert torch.allclose(found.cameras.mean(0), torch.tensor([180.0, 40.0, 2.5]), rtol=0.01)
    shares = {text: count / len(found) for text, count in Counter(found.prompts or ()).items()}
    expected = {"front": 0.175, "side": 0.35, "back": 0.175, "overhead": 0.3}
    assert shares == pytest.approx({f"a cat, {view} view": share for view, share in expected.items()}, abs=0.01)
    assert torch.equal(views().cameras, found.cameras) and found[[5]]["camera"].shape == (1, 3)
    assert bool(views(distance=None).cameras[:, 2].isposinf().all())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"elevation": [90, -10]}, r"elevation=\[90(.0)?, -10(.0)?\]: expected the lower bound first"),
        ({"distance": [3, 2]}, r"distance=\[3(.0)?, 2(.0)?\]: expected the lower bound first"),
        ({"distance": [1.5, 2]}, r"distance=\[1.5, 2\]: expected a list of 2, each a number above 1.75"),
        ({"prompt": ""}, "prompt="),
        ({"front": 91}, "front=91: expected a number"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views(**options)
