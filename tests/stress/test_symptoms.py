"""Each failure of docs/diagnosis.md, provoked by a short training, is named; healthy trainings are not."""

import re
import warnings
from pathlib import Path

import pytest

from onestep.build.distillation import distill
from tests.helpers.configs import configure
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.slow

SHORT = ("metrics=[]", "evaluation.best=null", "evaluation.samples=100", "evaluation.grid=100",
         "evaluation.evaluate_teacher=false")  # fmt: skip


def named(folder: Path, *overrides: str) -> set[str]:
    """The beginnings of the warnings of a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distill(configure("train", *SHORT, *overrides, f"output={folder}"))
    texts = [str(warning.message) for warning in caught]
    return {match[1] for text in texts if (match := re.match(r"after iteration \d+: ([^:,]*)", text))}


def commands() -> list[tuple[str, str]]:
    """What is named, and the overrides which provoke it, of docs/diagnosis.md."""
    page = (REPOSITORY / "docs" / "diagnosis.md").read_text()
    block = page.partition("## Each on purpose")[2].partition("```bash\n")[2].partition("```")[0]
    lines = [line.partition("  # ") for line in block.splitlines()]
    return [(comment, command.removeprefix("onestep train ")) for command, _, comment in lines if command]


@pytest.mark.parametrize("symptom, overrides", commands())
def test_a_failure_is_named(symptom: str, overrides: str, tmp_path: Path) -> None:
    assert symptom in named(tmp_path / "run", *overrides.split())


def test_there_is_a_command_for_each_symptom() -> None:
    assert len({symptom for symptom, _ in commands()}) == 7


#: Recipes with their lengths in images, an evaluation after each of the iterations, and the number of seeds.
HEALTHY = [
    *((("experiment=mixture", "training.total_images=38400", "training.evaluate_every=50"), seed) for seed in range(7)),
    *(
        (("experiment=digits", "precision=no", "training.total_images=19200", "training.evaluate_every=75"), seed)
        for seed in range(3)
    ),
]


@pytest.mark.parametrize("overrides, seed", HEALTHY)
def test_healthy_trainings_have_no_symptom(overrides: tuple[str, ...], seed: int, tmp_path: Path) -> None:
    assert named(tmp_path / "run", *overrides, "training.warmup_images=5000", f"seed={seed}") == set()
