"""The profile counts the FLOPs in the documentation, and measures presets interleaved."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from onestep.commands import main
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.profiling import subject
from onestep.profiling.measure import peak_memory
from onestep.profiling.passes import Count, count
from onestep.profiling.subject import CIFAR10, Subject
from tests.helpers.configs import CPU

pytestmark = pytest.mark.usefixtures("process_as_it_was")

#: Forward passes in docs/objectives.md's table without and with the encoder's fraction e, for 2 updates of the fake
#: score; and the numbers in docs/performance.md for the published network, with the published number of updates.
PASSES = {
    "sds": (4, 0), "diff_instruct": (11, 0), "f_distill": (11, 5), "dmd2": (11, 5), "sid": (13, 0), "sida": (13, 6),
    "uni_instruct": (13, 4), "adversarial": (3, 6),
}  # fmt: skip
BARS = {"f_distill": (4, 20.6), "dmd2": (4, 20.6), "sid": (1, 10.1), "sida": (1, 11.1), "uni_instruct": (1, 11.1)}
QUICK = ("sds", "uni_instruct")  # without and with every kind of pass
#: What has been counted, by overrides.
COUNTED: dict[tuple[str, ...], Count] = {}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> float:
    """Replaces the published network by a small one; returns its encoder's fraction of a forward pass."""
    options = {"model_channels": 256, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}

    def teacher(guidance: float) -> EDMDenoiser:
        return EDMDenoiser(CIFAR10, options=options).eval().requires_grad_(False).set_guidance(guidance)

    monkeypatch.setattr(subject, "random_teacher", teacher)
    network, flops = teacher(1.0), []
    for outputs in ("features", "prediction"):
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *CIFAR10), torch.ones(1), outputs=outputs)
        flops.append(counter.get_total_flops())
    return float(flops[0] / flops[1])


def counted(*overrides: str) -> Count:
    """The cost of an iteration of two images by the small network with two updates of the fake score."""
    if overrides not in COUNTED:
        COUNTED[overrides] = count(Subject("ddpmpp", ["fake_score.steps=2", *overrides], 2))
    return COUNTED[overrides]


@pytest.mark.parametrize(
    "objective", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PASSES]
)
def test_the_count_is_that_of_the_documentation(objective: str, small: float) -> None:
    found = counted(f"objective={objective}")
    full, encoders = PASSES[objective]
    costs = {"all": 0.0, "discriminator": 0.0}
    for line in found.lines():
        costs["all"] += line["forward"] + line["backward"]
        costs["discriminator"] += (line["forward"] + line["backward"]) * (line["network"] == "discriminator")
    assert costs["all"] == pytest.approx(found.forward_equivalents, rel=1e-3)
    # The documentation neglects the heads, and that the first layer's input is not differentiated.
    expected = full + encoders * small + costs["discriminator"]
    assert found.forward_equivalents == pytest.approx(expected, rel=0.015)
    assert {one.update for one in found.passes} == {"images", "generator"} | (
        {"critics"} if objective != "sds" else set()
    )
    generator = [one for one in found.passes if one.network == "generator"]
    assert len(generator) == 1 and generator[0].backward == pytest.approx(2 * generator[0].forward, rel=0.02)


@pytest.mark.slow
def test_separate_samples_cost_a_forward_each(small: float) -> None:
    shared, fresh = (counted("objective=sid", *more).forward_equivalents for more in ([], ["schedule=separate"]))
    assert fresh - shared == pytest.approx(2, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", BARS)
def test_the_published_network_s_count(objective: str) -> None:
    steps, most = BARS[objective]
    counted = count(Subject("ddpmpp", [f"objective={objective}", f"fake_score.steps={steps}"], 4))
    assert counted.forward / 4e9 == pytest.approx(42.4, abs=0.1)
    assert most - 1 < counted.forward_equivalents <= most


@pytest.mark.slow
def test_two_presets_interleaved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(network: str, overrides: list[str], batch_size: int, sources: Path | None) -> float:
        assert (network, batch_size, sources) == ("digits", 8, None)
        return {"objective=sid": 2.5, "objective=diff_instruct": 2.0}[overrides[0]]

    monkeypatch.setattr("onestep.profiling.report.peak_memory", stand_in)
    file = tmp_path / "report.json"
    options = [CPU, "fake_score.steps=1"]
    arguments = ["objective=sid", *options, "--against", "objective=diff_instruct", *options]
    main(["profile", "--network", "digits", "--batch-size", "8", "--iterations", "1", "--json", str(file), *arguments])
    left, right = json.loads(file.read_text())["subjects"]
    assert left["overrides"] == ["objective=sid", *options]
    for record in (left, right):
        assert record["images_per_second"] == pytest.approx(8 / record["seconds_per_iteration"])
    assert (left["peak_memory_gb"], right["peak_memory_gb"]) == (2.5, 2.0)
    ratio = left["forward_equivalents"] / right["forward_equivalents"]
    assert ratio == pytest.approx((7 + 3) / (5 + 3), rel=0.02)
    printed = capsys.readouterr().out
    assert f"{ratio:.3f}" in printed and "1.250" in printed


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    """The graph of 1,500 digits holds 1,500 x 64 pixels x 32 channels, 12 MB, of more than 20 layers."""
    taken = torch.zeros(2**28)  # 1 GB of this process
    overrides = ["objective=sds", CPU, "precision=no"]
    few, many = (peak_memory("digits", overrides, count, None) for count in (8, 1500))
    assert 0.1 < few < taken.nbytes / 1e9 and few + 0.2 < many < 10


@pytest.mark.parametrize(
    "arguments, expected",
    [(["objective=nothing"], "nothing"), (["--against-revision", "no-such-revision"], "revision 'no-such-revision'")],
)
def test_what_cannot_be_measured(arguments: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["profile", "--network", "digits", "--count", *arguments])
    assert expected in str(caught.value) and str(caught.value).startswith("error: ")
