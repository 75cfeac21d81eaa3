"""The documentation as a site: it builds without a warning, and a broken link fails it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY


def build(repository: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300)


def test_the_site_is_complete(tmp_path: Path) -> None:
    """Every page, the API's entries, and the sources that a page links to; and nothing is fetched from elsewhere."""
    built = build(REPOSITORY, tmp_path)
    assert built.returncode == 0, built.stderr
    pages = {page.stem for page in REPOSITORY.glob("docs/*.md")} | {"start", "contributing", "security", "changelog"}
    assert pages | {"api", "api_parts", "404"} == {page.stem for page in tmp_path.glob("*.html")}
    interface = (tmp_path / "api.html").read_text("utf-8")
    assert (
        'id="onestep.api.distill"' in interface
        and 'id="onestep.models.generator.Generator.from_pretrained"' in interface
    )
    assert ":class:<" not in interface and ":func:<" not in interface
    source = "onestep/objectives/f_distill.py"
    assert f'href="sources/{source}"' in (tmp_path / "start.html").read_text("utf-8")
    assert (tmp_path / "sources" / source).read_bytes() == (REPOSITORY / source).read_bytes()
    fetched = [
        url
        for page in tmp_path.glob("*.html")
        for url in re.findall(r'<(?:script|img|link)[^>]* (?:src|href)="(https?:[^"]*)"', page.read_text("utf-8"))
    ]
    assert fetched == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "link", "message"),
    [
        ("docs/sampling.md", "[x](nowhere.md)", "'nowhere.md'"),
        ("docs/sampling.md", "[x](metrics.md#nowhere)", "does not contain an anchor '#nowhere'"),
        ("README.md", "[x](onestep/nowhere.py)", "'sources/onestep/nowhere.py'"),
    ],
)
def test_a_broken_link_fails_the_build(page: str, link: str, message: str, tmp_path: Path) -> None:
    for name in ("docs", "onestep"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    with (tmp_path / page).open("a") as file:
        file.write(f"\n{link}\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1 and message in built.stderr
