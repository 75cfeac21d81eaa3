"""The alignment of the fake score with the generator, parameter by parameter."""

import re
from pathlib import Path

import pytest
import torch

from onestep.build.distillation import build_distillation
from tests.helpers.configs import refused, tiny_config
from tests.helpers.updates import take_updates

SMALL = ("objective=diff_instruct", "training.batch_size=4", "metrics=[]")


@pytest.mark.parametrize("alignment", [0.0, 0.25])
def test_an_update_of_the_generator_moves_the_fake_score_to_it(alignment: float, tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, *SMALL, f"fake_score.alignment={alignment}"))
    fake_score = parts.method.fake_score
    assert fake_score is not None
    updates = take_updates(parts)
    next(updates)
    trained = [parameter.detach().clone() for parameter in fake_score.parameters()]
    next(updates)
    moved = [parameter.detach() for parameter in fake_score.parameters()]
    generator = [parameter.detach() for parameter in parts.student.denoiser.parameters()]
    assert any((a - b).abs().max() > 1e-5 for a, b in zip(trained, generator, strict=True))
    for ours, before, theirs in zip(moved, trained, generator, strict=True):
        torch.testing.assert_close(ours, (1 - alignment) * before + alignment * theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("generator.frozen=[*.conv0.weight]",),
            r"fake_score.alignment=0.1: .* and \d+ differ, such as .*conv0.weight",
        ),
        (
            ("student=scene", "student.classes=[3,7]", "student.views=[[0,0,0],[90,0,0]]"),
            "fake_score.alignment=0.1: the fake score and the Scene must train the same parameters",
        ),
        (("objective=sds",), "fake_score.alignment=0.1 has no effect: this objective has no fake score"),
        (("fake_score.alignment=1.0",), "fake_score.alignment"),
    ],
)
def test_what_is_refused(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert re.search(message, refused(tiny_config(tmp_path / "run", *SMALL, "fake_score.alignment=0.1", *overrides)))
