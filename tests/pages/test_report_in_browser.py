"""The page in headless Chromium: nothing overlaps, fails or is fetched, in both colour schemes, wide and narrow."""

from pathlib import Path

import pytest

from tests.helpers.browser import look


@pytest.mark.slow
@pytest.mark.parametrize("scheme, ground", [("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 23, 29)")])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page(width: int, scheme: str, ground: str, finished_run: Path, tmp_path: Path) -> None:
    page = finished_run / "report.html"
    found = look("browser.mjs", f"file://{page}", width, scheme, tmp_path / "page.png")
    assert found["overlaps"] == found["errors"] == [] and found["broken"] == 0 and found["wider"] <= 0
    assert found["requests"] == [f"file://{page}"] and found["ground"] == ground
    assert found["shown"] == 1 and found["time"] == "Samples after iteration 3, 48 images seen"
    assert found["wipe"] == "30 % of the teacher, the rest of the student"
