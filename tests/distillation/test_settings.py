"""Settings of a distillation out of range are rejected with their name and value."""

from typing import Any

import pytest

from onestep.distillation.settings import CriticSettings, GeneratorSettings

GENERATOR: dict[str, Any] = {"sigma_init": 1.0, "later_sigmas": [], "gan_weight": 0.0, "regression_weight": 0.0}
CRITICS: dict[str, Any] = {"steps": 1, "fresh_latents": False, "guidance": 1.0, "discriminator_weight": 1.0}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"later_sigmas": 0.5}, r"later_sigmas=0\.5: expected a list of noise levels such as \[0\.5,0\.2\], or \[\]"),
        ({"later_sigmas": None}, r"later_sigmas=None: expected a list of noise levels"),
        ({"later_sigmas": ["low"]}, r"later_sigmas=\['low'\]: expected a list of noise levels"),
        ({"gan_weight": -0.5}, r"generator\.gan_weight must not be negative, got -0\.5"),
        ({"regression_weight": -0.5}, r"generator\.regression_weight must not be negative, got -0\.5"),
    ],
)
def test_generator_numbers_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorSettings(**(GENERATOR | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, r"fake_score\.steps must be at least 1, got 0"),
        ({"discriminator_weight": 0.0}, r"discriminator\.weight must be positive, got 0\.0"),
    ],
)
def test_critics_numbers_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CriticSettings(**(CRITICS | changes))
