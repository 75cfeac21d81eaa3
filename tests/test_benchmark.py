"""The benchmark counts what a cycle costs as the documentation says, and measures presets beside each other."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from hydra.core.hydra_config import HydraConfig
from torch.utils.flop_counter import FlopCounterMode

from onestep.benchmark import subject
from onestep.benchmark.__main__ import main
from onestep.benchmark.passes import count
from onestep.benchmark.subject import CIFAR10, Subject
from onestep.networks.edm import EDMDenoiser

#: Forwards of docs/objectives.md's table beside the encoders' share, and how many times that share, for 4 updates of
#: the fake score; and what docs/performance.md says of the published network, with as many updates as are published.
PASSES = {
    "sds": (4, 0), "diff_instruct": (17, 0), "f_distill": (17, 9), "dmd2": (17, 9), "sid": (19, 0), "sida": (19, 12),
    "uni_instruct": (19, 8),
}  # fmt: skip
BARS = {"f_distill": (4, 20.6), "dmd2": (4, 20.6), "sid": (1, 10.1), "sida": (1, 11.1), "uni_instruct": (1, 11.1)}


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """accelerate and Hydra keep a state of the whole process, which a subject's own is put in place of."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    HydraConfig.instance().cfg = None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> float:
    """A small network takes the place of the published one; returns its encoder's share of a forward."""
    options = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 2, "attn_resolutions": [16]}

    def teacher(guidance: float) -> EDMDenoiser:
        return EDMDenoiser(CIFAR10, options=options).eval().requires_grad_(False).set_guidance(guidance)

    monkeypatch.setattr(subject, "random_teacher", teacher)
    network, flops = teacher(1.0), []
    for outputs in ("features", "prediction"):
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *CIFAR10), torch.ones(1), outputs=outputs)
        flops.append(counter.get_total_flops())
    return float(flops[0] / flops[1])


@pytest.mark.parametrize("objective", PASSES)
def test_the_count_is_that_of_the_documentation(objective: str, small: float) -> None:
    counted = count(Subject("ddpmpp", [f"objective={objective}", "training.fake_score_steps=4"], 2))
    whole, encoders = PASSES[objective]
    costs = {"all": 0.0, "discriminator": 0.0}
    for line in counted.lines():
        costs["all"] += line["forward"] + line["backward"]
        costs["discriminator"] += (line["forward"] + line["backward"]) * (line["network"] == "discriminator")
    assert costs["all"] == pytest.approx(counted.forward_equivalents, rel=1e-3)
    # The first layer's input is not differentiated, which the documentation neglects, as it does the heads.
    expected = whole + encoders * small + costs["discriminator"]
    assert counted.forward_equivalents == pytest.approx(expected, rel=0.015)
    generator = [one for one in counted.passes if one.network == "generator"]
    assert len(generator) == 1 and generator[0].backward == pytest.approx(2 * generator[0].forward, rel=0.02)


def test_fresh_latents_cost_a_forward_each(small: float) -> None:
    shared, fresh = (
        count(Subject("ddpmpp", ["objective=sid", "training.fake_score_steps=3", *more], 2)).forward_equivalents
        for more in ([], ["training.fresh_latents=true"])
    )
    assert fresh - shared == pytest.approx(3, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", BARS)
def test_the_published_network_s_count(objective: str) -> None:
    steps, most = BARS[objective]
    counted = count(Subject("ddpmpp", [f"objective={objective}", f"training.fake_score_steps={steps}"], 4))
    assert counted.forward / 4e9 == pytest.approx(42.4, abs=0.1)
    assert most - 1 < counted.forward_equivalents <= most


def test_two_presets_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    arguments = ["objective=sid", "device=cpu", "--against", "objective=diff_instruct", "device=cpu"]
    main(["--network", "digits", "--batch-size", "8", "--cycles", "1", "--json", str(file), *arguments])
    left, right = json.loads(file.read_text())["subjects"]
    assert left["overrides"] == ["objective=sid", "device=cpu"]
    for record in (left, right):
        assert record["images_per_second"] == pytest.approx(8 / record["seconds_a_cycle"])
        assert 0.1 < record["peak_memory_gb"] < 10
    ratio = left["forward_equivalents"] / right["forward_equivalents"]
    assert ratio == pytest.approx((7 + 3 * 2) / (5 + 3 * 2), rel=0.02)
    assert f"{ratio:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["objective=nothing"], "nothing"),
        (["--against-revision", "no-such-revision"], "revision 'no-such-revision'"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--network", "digits", "--count", *arguments])
    assert expected in str(caught.value) and str(caught.value).startswith("error: ")
