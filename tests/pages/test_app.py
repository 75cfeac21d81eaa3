"""The app of gradio: its pictures are those of ``onestep sample``, and it speaks with this machine alone."""

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onestep.build.deployment import Deployment
from onestep.build.sampling import sample
from onestep.commands import main
from onestep.pages.app import Drawing, build_app, serve_app
from tests.helpers.browser import look
from tests.helpers.configs import configure


@pytest.fixture(scope="module")
def deployment(few_step_run: Path) -> Deployment:
    """Of a run of three steps."""
    return Deployment(str(few_step_run))


@pytest.fixture(scope="module")
def drawing(deployment: Deployment) -> Drawing:
    return Drawing(deployment.graph, deployment.space, deployment.teacher())


def sampled(folder: Path, seeds: range, *settings: str) -> list[Any]:
    sample(configure("sample", f"seed={seeds.start}", f"count={len(seeds)}", *settings, f"save_to={folder}"))
    return [np.asarray(Image.open(folder / f"{seed:06d}.png")) for seed in seeds]


@pytest.mark.parametrize(("choice", "setting"), [(-1, "classes=null"), (7, "classes=[7]")])
def test_the_pictures_are_those_of_sample(
    choice: int, setting: str, drawing: Drawing, few_step_run: Path, tmp_path: Path
) -> None:
    student, teacher, text = drawing.draw(5, 2, 3, choice, beside=True)
    for pictures, model in ((student, "generator"), (teacher, "teacher")):
        expected = sampled(tmp_path / model, range(5, 7), f"run={few_step_run}", f"model={model}", setting)
        np.testing.assert_array_equal(np.stack([np.asarray(one) for one in pictures]), np.stack(expected))
        assert np.std(expected) > 1
    assert text.startswith("student, 3 evaluations: ") and "; teacher, " in text and text.count("ms a picture") == 2


def test_fewer_steps(drawing: Drawing) -> None:
    one, teacher, text = drawing.draw(5, 1, 1, -1, beside=False)
    three, *_ = drawing.draw(5, 1, 3, -1, beside=False)
    assert teacher == [] and text.startswith("student, one evaluation: ") and "teacher" not in text
    assert np.abs(np.asarray(one[0]).astype(int) - np.asarray(three[0])).max() > 1


@pytest.mark.slow
def test_a_prompt_of_any_words(tmp_path: Path) -> None:
    deployment = Deployment("emoji")
    (picture,), _, _ = Drawing(deployment.graph, deployment.space).draw(3, 1, 1, "red heart", beside=False)
    expected = sampled(tmp_path / "drawn", range(3, 4), "checkpoint=emoji", 'prompts=["red heart"]')
    np.testing.assert_array_equal(np.asarray(picture), expected[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [((-1, 1, 3, -1, False), "seed -1: got the seeds from -1"), ((0, 1, 3, 10, False), "has 10 classes")],
)
def test_what_is_refused(given: Any, message: str, drawing: Drawing) -> None:
    with pytest.raises(ValueError, match=message):
        drawing.draw(*given)


def test_without_the_extra(few_step_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"--gradio needs gradio: pip install 'onestep\[gradio\]'"):
        main(["demo", str(few_step_run), "--gradio", "--teacher-seeds", "0"])


def test_an_app_writes_no_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "fashion", "--gradio", "-o", "page"])
    assert "--gradio serves an app and writes no page: remove -o" in capsys.readouterr().err


@pytest.mark.slow
def test_the_app(deployment: Deployment, few_step_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its client: the same pictures. Every connection of process and browser is to the loopback address."""
    pytest.importorskip("gradio", reason="needs the extra gradio")
    from gradio_client import Client

    places: list[Any] = []
    connect = socket.socket.connect

    def recorded(self: socket.socket, address: Any) -> None:
        places.append(address[0])
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", recorded)
    app = build_app("tiny", deployment.graph, deployment.space, deployment.teacher())
    address = serve_app(app, 0)
    try:
        client = Client(address, verbose=False, download_files=str(tmp_path / "client"))
        student, teacher, text = client.predict(5, 2, 3, 7, True, api_name="/draw")
        with pytest.raises(Exception, match="expected seeds from 0 to"):
            client.predict(2**62, 2, 3, 7, True, api_name="/draw")
        with pytest.raises(ValueError, match="--port"):
            serve_app(
                build_app("tiny", deployment.graph, deployment.space, None), int(address.split(":")[2].strip("/"))
            )
        page = look("browser.mjs", address, 1280, "light", tmp_path / "page.png")
    finally:
        app.close()
    assert page["errors"] == [] and all(one.startswith(address) for one in page["requests"])
    assert app.share_url is None and {*places} <= {"127.0.0.1", "localhost", "::1"} and places
    for found, model in ((student, "generator"), (teacher, "teacher")):
        expected = sampled(tmp_path / model, range(5, 7), f"run={few_step_run}", f"model={model}", "classes=[7]")
        drawn = [np.asarray(Image.open(one["image"]).convert("L")) for one in found]
        np.testing.assert_array_equal(np.stack(drawn), np.stack(expected))
    assert "ms a picture" in text
