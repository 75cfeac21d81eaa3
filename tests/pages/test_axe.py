"""Accessibility: axe finds no serious fault on any page, wide and narrow, light and dark."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from onestep.commands import main
from tests.helpers.browser import axe_script, look
from tests.pages.test_demo import served

PAGES = ("report", "compare", "demo")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return axe_script(tmp_path_factory.mktemp("axe"))


@pytest.fixture(scope="module")
def urls(
    axe: Path, finished_run: Path, few_step_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The address of each page; the demo's only where its runtime is."""
    root = tmp_path_factory.mktemp("pages")
    main(["compare", str(finished_run), str(few_step_run), "-o", str(root / "compare.html")])
    found = {"report": f"file://{finished_run / 'report.html'}", "compare": f"file://{root / 'compare.html'}"}
    if (runtime := os.environ.get("ONNXRUNTIME_WEB")) is None:
        yield found
        return
    main(["demo", str(few_step_run), "-o", str(root / "demo"), "--no-serve", "--runtime", runtime, "--seeds", "4"])
    with served(root / "demo") as url:
        yield found | {"demo": url}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", PAGES)
def test_no_serious_fault(page: str, width: int, scheme: str, urls: dict[str, str], axe: Path, tmp_path: Path) -> None:
    if page not in urls:
        pytest.skip("needs ONNXRUNTIME_WEB, the .tgz of npm pack onnxruntime-web")
    found = look("browser.mjs", urls[page], width, scheme, tmp_path / "page.png", str(axe))
    assert found["rules"] > 15  # that passed: it has looked
    assert [one for one in found["violations"] if one[0] in ("serious", "critical")] == []
    assert found["overlaps"] == [] and found["wider"] <= 0
