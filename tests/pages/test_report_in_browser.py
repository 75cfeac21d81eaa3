"""The page in headless Chromium: nothing overlaps, fails or is fetched, in both colour schemes, wide and narrow."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = Path(__file__).parents[1] / "helpers" / "browser.mjs"


@pytest.mark.slow
@pytest.mark.parametrize("scheme, ground", [("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 23, 29)")])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page(width: int, scheme: str, ground: str, finished_run: Path, tmp_path: Path) -> None:
    chromium, node = shutil.which("chromium"), shutil.which("node")
    if chromium is None or node is None:
        pytest.skip("needs chromium and node")
    page = finished_run / "report.html"
    words = [node, "--experimental-websocket", "--no-warnings", str(BROWSER), chromium, str(page), str(width), scheme]
    finished = subprocess.run([*words, str(tmp_path / "page.png")], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["overlaps"] == found["errors"] == [] and found["broken"] == 0 and found["wider"] <= 0
    assert found["requests"] == [f"file://{page}"] and found["ground"] == ground
    assert found["shown"] == 1 and found["time"] == "Samples after iteration 3, 48 images seen"
    assert found["wipe"] == "30 % of the teacher, the rest of the student"
