"""The predicted memory: by hand, by torch's tracker, and by the process's own peak."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from onestep.commands import main
from onestep.profiling import fit
from onestep.profiling.memory import GRADIENTS, REST, STATES, Ledger, Prediction, make_states, predict
from onestep.profiling.outline import Outline
from tests.helpers.diffusers_models import text_unet

pytestmark = pytest.mark.usefixtures("process_as_it_was")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory_prediction.py"
TEXT = ["experiment=text_to_image", "divergence=reverse_kl", "discriminator=none", "generator.gan_weight=0",
        "teacher.pipeline=null", "training.batch_size=2", "precision=no"]  # fmt: skip


def folder_of(network: Any, folder: Path) -> str:
    """A network's folder without weights."""
    network.save_config(folder)
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    return f"teacher.path={folder}"


def test_an_mlp_by_hand_and_by_torch() -> None:
    """64 inputs, 256 hidden numbers and one output for 32 samples, in float32.

    The largest moment is the second layer's backward pass through the ReLU: the weights, the input, the ReLU's output
    (saved), the two gradients of 32 x 256 hidden numbers, and the second layer's gradient of its weight.
    """

    def step(tracker: Any) -> None:
        network = nn.Sequential(nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 1, bias=False))
        inputs = torch.zeros(32, 64)
        hold = getattr(tracker, "hold", None)
        if hold is None:
            tracker.track_external(network, inputs)
        else:
            hold([*network.parameters(), inputs], "given")
        with tracker:
            network(inputs).sum().backward()

    with FakeTensorMode():
        step(ledger := Ledger())
        step(theirs := MemTracker())
    weights, hidden = 64 * 256 + 256, 32 * 256
    expected = 4 * (weights + 32 * 64 + 3 * hidden + 256)
    assert ledger.peak.parts["given"] == 4 * (weights + 32 * 64)
    assert ledger.peak.peak == pytest.approx(expected, rel=0.01)
    (snapshot,) = theirs.get_tracker_snapshot("peak").values()
    assert ledger.peak.peak == snapshot["Total"]
    assert sum(ledger.peak.parts.values()) == ledger.peak.peak


@pytest.fixture
def small(tmp_path: Path) -> Outline:
    """A generator of which all weights are trained, and a fake score that trains LoRA on the teacher's, in bf16."""
    pytest.importorskip("peft")
    lora = ["lora=attention", "lora.rank=4", "lora.students=[fake_score]", "teacher.dtype=bfloat16"]
    return Outline([*TEXT, folder_of(text_unet(), tmp_path), *lora])


def test_parameters_and_states_by_hand(small: Outline) -> None:
    network = text_unet()
    count, tensors = sum(p.numel() for p in network.parameters()), len(list(network.parameters()))
    layers = [m for name, m in network.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    added = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    ledger = Ledger()
    with ledger.following(small):
        make_states(small)
    parts = {name.removeprefix("parameters of the "): size for name, size in ledger.parts.items() if size}
    # Adam has two moments of each weight, and the number of steps of each tensor.
    assert parts == {
        "generator": 4 * count,
        "average ema": 4 * count,
        "teacher": 2 * count,
        "fake score": 4 * added,
        STATES: 2 * 4 * (count + added) + 4 * (tensors + 2 * len(layers)),
    }


@pytest.mark.slow
def test_the_peak_of_an_iteration(small: Outline) -> None:
    found = predict(small)
    trained = found.parts["parameters of the generator"]
    assert 0 <= found.parts.get(GRADIENTS, 0) <= 2 * trained and found.parts[REST] > 0
    assert found.peak == sum(found.parts.values())
    assert found.moment.endswith(("update of the critics", "update of the generator"))


def test_the_first_savings_that_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = iter([100, 60, 23, 21, 1])
    tried: list[list[str]] = []
    monkeypatch.setattr(fit, "Outline", tried.append)
    monkeypatch.setattr(fit, "predict", lambda _: Prediction(next(peaks) * fit.GIB, {REST: 7}, "losses"))
    main(["profile", "--memory", "--card", "24", "experiment=digits", "training.batch_size=8"])
    added = ["training.accumulation=8", "gradient_checkpointing=true", "precision=bf16"]
    assert tried == [["experiment=digits", "training.batch_size=8", *added[:count]] for count in range(4)]
    assert " ".join(added) in capsys.readouterr().out.splitlines()[-1]
    peaks = iter([100] * 9)
    tried.clear()
    main(["profile", "--memory", "--card", "24", "experiment=text_to_image", "teacher.path=unread"])
    assert tried[-1][-5:] == ["precision=bf16", "teacher.dtype=bfloat16", "lora=attention",
                              "lora.students=[generator,fake_score]", "averages=none"]  # fmt: skip
    assert "none of these fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--card", "0"], "above 0, got 0"),
        (["--card", "24", "--count"], "without --count"),
        (["experiment=digits", "shard=true"], "shard=true is not predicted"),
        (["experiment=digits", "compile=true"], "compile=true is not predicted"),
        (["experiment=text_to_image", "teacher.path=no/such/model"], "no pipeline of diffusers at 'no/such/model'"),
    ],
)
def test_what_is_not_predicted(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["profile", "--memory", *arguments])
    assert expected in f"{caught.value} {capsys.readouterr().err}"


@pytest.mark.slow
def test_the_prediction_is_the_peak_of_a_process() -> None:
    specification = importlib.util.spec_from_file_location("memory_prediction", BENCHMARK)
    assert specification is not None and specification.loader is not None
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    overrides = benchmark.SETTINGS["digits, EDM's network"].overrides
    child = [sys.executable, str(BENCHMARK), "one", json.dumps(overrides)]
    environment = os.environ | benchmark.GIVES_BACK
    measured = int(subprocess.run(child, env=environment, capture_output=True, check=True).stdout.split()[-1])
    assert predict(Outline(overrides)).peak == pytest.approx(measured, rel=0.1)
