"""The page on which a generator draws: what is written into its folder, and what it does in headless Chromium."""

import io
import json
import os
import re
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onestep.build.sampling import sample
from onestep.commands import main
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from onestep.pages import demo
from onestep.pages.server import demo_server
from onestep.seeding import seeded_inputs, seeded_noise
from tests.helpers.browser import look
from tests.helpers.configs import configure

PACKAGE = os.environ.get("ONNXRUNTIME_WEB")
#: Flags of Chromium for WebGPU without a GPU, by SwiftShader.
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")


def package(path: Path, *left_out: str, link: str | None = None) -> Path:
    """An archive with the files of onnxruntime-web that a page needs, each with its name as its content."""
    with tarfile.open(path, "w:gz") as archive:
        for name in (*demo._RUNTIME, "ort.all.js"):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            if name == link:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0
            if name not in left_out:
                archive.addfile(entry, io.BytesIO(name.encode()))
    return path


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with demo_server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page(few_step_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo of a run of three steps, without its network, which takes seconds to convert."""
    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "export_graph", lambda graph, name, dtype, folder: folder.mkdir())
        runtime = package(root / "onnxruntime-web-1.0.0.tgz")
        words = ["-o", str(root / "page"), "--no-serve", "--seeds", "3", "--teacher-seeds", "2"]
        main(["demo", str(few_step_run), *words, "--runtime", str(runtime)])
    return root / "page"


def test_the_noise_is_that_of_sample(page: Path) -> None:
    settings = json.loads((page / "demo.json").read_text())
    noise = np.fromfile(page / "noise.bin", "<f4").reshape(3, 3, 1, 8, 8)
    latents, condition = seeded_inputs([0, 1, 2], (1, 8, 8), 10)
    later = seeded_noise([0, 1, 2], (1, 8, 8), 10)
    for step, expected in enumerate([latents, next(later), next(later)]):
        np.testing.assert_array_equal(noise[:, step], expected.numpy())
    assert [one["name"] for one in settings["noise"]] == ["noise", "noise_2", "noise_3"]
    assert settings["own"] == condition["labels"].argmax(1).tolist() and len(settings["choices"]) == 10
    np.testing.assert_array_equal(np.fromfile(page / "conditions.bin", "<f4").reshape(10, 10), np.eye(10))


def test_the_teachers_pictures_are_those_of_sample(page: Path, few_step_run: Path, tmp_path: Path) -> None:
    sample(configure("sample", f"run={few_step_run}", "model=teacher", "count=2", "classes=[6]", f"save_to={tmp_path}"))
    grid = np.asarray(Image.open(page / "teacher.png"))
    assert grid.shape == (2 * 8, 10 * 8)
    for seed in range(2):
        drawn = grid[8 * seed : 8 * seed + 8, 8 * 6 : 8 * 7].astype(int)
        assert np.abs(drawn - np.asarray(Image.open(tmp_path / f"{seed:06d}.png"))).max() <= 1


def test_the_runtime_is_the_package_and_nothing_else(page: Path) -> None:
    found = {path.name: path.read_text() for path in (page / "runtime").iterdir()}
    assert found == {name: name for name in demo._RUNTIME}


def test_the_policy_lets_the_page_read_its_own_folder_alone(page: Path) -> None:
    text = (page / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    parts = dict(part.strip().split(" ", 1) for part in policy[1].split(";"))
    assert parts["default-src"] == "'none'" and parts["connect-src"] == "'self'"
    assert "http" not in policy[1] and "unsafe-inline" not in policy[1] and "'unsafe-eval'" not in policy[1]


def test_the_server_isolates_the_page(page: Path) -> None:
    with demo_server(page, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
    with served(page) as url, urllib.request.urlopen(url + "runtime/ort.wasm.min.mjs") as response:
        assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert response.headers.get_content_type() == "text/javascript"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime", "absent.tgz"], "--runtime absent.tgz is not the npm package onnxruntime-web"),
        (["--runtime", "part.tgz"], "onnxruntime-web .*ort.wasm.min.mjs"),
        (["--runtime", "link.tgz"], "onnxruntime-web .*ort.wasm.min.mjs is no file"),
        ([], "there is no onnxruntime-web-.*.tgz in this folder: npm pack onnxruntime-web"),
    ],
)
def test_a_runtime_that_is_refused(
    options: list[str], message: str, few_step_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package(tmp_path / "part.tgz", "ort.wasm.min.mjs")
    package(tmp_path / "link.tgz", link="ort.wasm.min.mjs")
    with pytest.raises(SystemExit, match=message):
        main(["demo", str(few_step_run), "-o", "page", "--no-serve", "--teacher-seeds", "0", *options])
    assert {path.name for path in tmp_path.iterdir()} == {"part.tgz", "link.tgz"}


def test_points_are_no_pictures(tmp_path: Path) -> None:
    Generator(EDMDenoiser((2, 1, 1), architecture="MLP"), 2.5).save_pretrained(tmp_path / "points")
    words = ["-o", str(tmp_path / "page"), "--no-serve", "--runtime", str(package(tmp_path / "x.tgz"))]
    with pytest.raises(SystemExit, match="points: samples of 2 channels are no pictures: expected 1 or 3"):
        main(["demo", str(tmp_path / "points"), *words])


def test_a_port_that_is_in_use(page: Path) -> None:
    with served(page) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        with pytest.raises(ValueError, match=f"--port {port}: .*in use.*; give another one, or 0 for a free one"):
            demo_server(page, port)
    with pytest.raises(ValueError, match="holds no demo: expected the folder that onestep demo wrote"):
        demo_server(page.parent, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "width", "scheme", "device"),
    [
        ("fashion", 1280, "light", "WebAssembly"),
        ("run", 390, "dark", "WebAssembly"),
        ("fashion", 1280, "dark", "WebGPU"),
    ],
)
def test_in_a_browser(source: str, width: int, scheme: str, device: str, few_step_run: Path, tmp_path: Path) -> None:
    """The bundled student of one step, and a run's of three: each picture is that of ``onestep sample``."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    if PACKAGE is None:
        pytest.skip("needs ONNXRUNTIME_WEB, the .tgz of npm pack onnxruntime-web")
    folder, place = tmp_path / "page", str(few_step_run) if source == "run" else source
    main(["demo", place, "-o", str(folder), "--no-serve", "--runtime", PACKAGE, "--teacher-seeds", "8"])
    with served(folder) as url:
        found = look("demo.mjs", url, width, scheme, tmp_path / "page.png", *(WEBGPU if device == "WebGPU" else ()))
    assert "failure" not in found, found["failure"]
    assert found["overlaps"] == [] and found["wider"] <= 0 and found["isolated"]
    assert set(found["errors"]) <= {"No available adapters."}  # of a browser without WebGPU, which the page asks for
    assert len(found["requests"]) > 8 and all(one.startswith(url) for one in found["requests"])
    assert found["ready"].startswith(device)
    assert device == "WebGPU" or found["rate"] >= 20, found["speed"]  # without a GPU WebGPU is for comparison alone
    grid = np.asarray(Image.open(folder / "teacher.png"))
    for name, seed, setting in (("own", 3, "classes=null"), ("chosen", 5, "classes=[7]")):
        words = [f"{'run' if source == 'run' else 'checkpoint'}={place}", "count=1", f"seed={seed}", setting]
        sample(configure("sample", *words, f"save_to={tmp_path / name}"))
        expected = np.asarray(Image.open(tmp_path / name / f"{seed:06d}.png")).astype(int)
        picture, side = found["pictures"][name], len(expected)
        assert np.abs(np.reshape(picture["student"], expected.shape) - expected).max() <= 1 and expected.std() > 10
        choice = {"own": int(seeded_inputs([3], (1, side, side), 10)[1]["labels"].argmax()), "chosen": 7}[name]
        of_teacher = grid[side * seed : side * (seed + 1), side * choice : side * (choice + 1)]
        np.testing.assert_array_equal(np.reshape(picture["teacher"], expected.shape), of_teacher)
        assert picture["drawn"] == picture["beside"] == f"seed {seed}, class {choice}"
    between = found["pictures"]["between"]
    assert between["drawn"] == "50 % of the way from seed 5 to 1, class 7" and np.std(between["student"]) > 10
