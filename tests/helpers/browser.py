"""Pages in headless Chromium, by the scripts of this folder for node."""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import REPOSITORY


def look(script: str, url: str, width: int, scheme: str, picture: Path, *others: str) -> Any:
    """What ``script`` prints of the page at ``url``, as JSON; skips the test without chromium or node."""
    chromium, node = shutil.which("chromium"), shutil.which("node")
    if chromium is None or node is None:
        pytest.skip("needs chromium and node")
    path = str(REPOSITORY / "tests" / "helpers" / script)
    command = [node, "--experimental-websocket", "--no-warnings", path, chromium, url, str(width), scheme, str(picture)]
    finished = subprocess.run([*command, *others], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def axe_script(folder: Path) -> Path:
    """The script of the npm package axe-core, a .tgz or a folder that AXE_CORE names; unpacked into ``folder``."""
    package = os.environ.get("AXE_CORE")
    if package is None:
        pytest.skip("needs AXE_CORE, the .tgz of npm pack axe-core")
    if Path(package).is_dir():
        return Path(package) / "axe.min.js"
    with tarfile.open(package) as archive:
        archive.extract("package/axe.min.js", folder, filter="data")
    return folder / "package" / "axe.min.js"
