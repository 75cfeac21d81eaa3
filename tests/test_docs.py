"""The documentation says what the code does."""

import re

import pytest

from onestep.config import CONF
from tests.helpers.paths import REPOSITORY

OBJECTIVES = REPOSITORY / "docs" / "objectives.md"


def test_quoted_lines_are_the_code() -> None:
    code = {line.strip() for file in (REPOSITORY / "onestep").rglob("*.py") for line in file.read_text().splitlines()}
    quoted = re.findall(r"```python\n(.*?)```", OBJECTIVES.read_text(), flags=re.S)
    lines = [line.strip() for block in quoted for line in block.splitlines() if line.strip()]
    assert len(lines) == 7
    assert [line for line in lines if line not in code] == []


@pytest.mark.parametrize("preset", [file.stem for file in (CONF / "objective").glob("*.yaml")])
def test_every_preset_is_described(preset: str) -> None:
    assert f"| `{preset}` |" in OBJECTIVES.read_text()
