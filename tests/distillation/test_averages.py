"""Runs with several averages and with none: files, values, best checkpoints, samples and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onestep.build.distillation import build_distillation, distill
from onestep.build.sampling import sample
from onestep.distillation import loop
from onestep.engine.checkpoint import best_values, list_checkpoints
from onestep.engine.clipping import Entries, NormOfEach
from onestep.engine.log import read_log
from onestep.export.export import export
from onestep.models.generator import Generator
from onestep.seeding import seeded_inputs
from tests.helpers.configs import configure, refused, tiny_config

SHORT = ("metrics=[fid]", "training.total_images=64", "training.evaluate_every=2", "evaluation.evaluate_teacher=false")
SEVERAL = (
    "averages=none",
    "+averages.fast={_target_: onestep.engine.averages.ConstantDecay, decay: 0.5}",
    "+averages.slow={_target_: onestep.engine.averages.HalfLife, halflife: 100, rampup: 1}",
    "+averages.power={_target_: onestep.engine.averages.PowerFunction, sigma_rel: 0.1}",
    "evaluation.interim_averages=[slow]",
    "fake_score.steps=2",
    "optimizer.generator.lr=0.01",
    "training.max_skipped_steps=3",
)
NETWORK = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four iterations, in the third of which the generator's step is skipped."""
    folder = tmp_path_factory.mktemp("averages") / "run"
    parts = build_distillation(tiny_config(folder, *SHORT, *SEVERAL))
    factors = iter([1.0, 1.0, torch.inf, 1.0])
    next(parts.student.parameters()).register_hook(lambda gradient: gradient * next(factors))
    with pytest.warns(UserWarning, match="non-finite value in iteration 2"):
        loop.distill(parts)
    return folder


def saved(folder: Path, iteration: int, name: str) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / f"iteration_{iteration:08d}" / f"{name}.safetensors")


def assert_saved(generator: Path, state: dict[str, Tensor]) -> None:
    weights = load_file(generator / NETWORK)
    assert weights and all(torch.equal(value, state[f"denoiser.{key}"]) for key, value in weights.items())


def test_each_average_moves_by_its_rule(run: Path) -> None:
    """Two updates of the critics in an iteration, while the generator has its old weights, then its own.

    The skipped update moves no average; those of the critics before it do.
    """
    for earlier, later, updates_of_critics in ((1, 2, 2), (2, 4, 4)):
        old, new = (saved(run, iteration, "generator") for iteration in (earlier, later))
        images = 16 * (later - 1)
        kept = {"slow": 0.5 ** (16 / min(100, images)), "power": (images / (images + 16)) ** 7.94}
        for name in ("fast", "slow", "power"):
            before, after = (saved(run, iteration, f"generator_{name}") for iteration in (earlier, later))
            for key, weights in new.items():
                if name == "fast":
                    expected = torch.lerp(torch.lerp(old[key], before[key], 0.5**updates_of_critics), weights, 0.5)
                else:
                    expected = torch.lerp(weights, before[key], kept[name])
                torch.testing.assert_close(after[key], expected, rtol=1e-4, atol=1e-6)


def test_values_and_best_checkpoints_of_each(run: Path) -> None:
    lines = [line for line in read_log(run / "log.jsonl") if any(key.startswith("fid") for key in line)]
    found = [(line["iteration"], key) for line in lines for key in line if key.startswith("fid")]
    assert found == [(2, "fid"), (2, "fid/slow"), (4, "fid"), (4, "fid/slow")]
    for key in ("fid", "fid/slow"):
        assert best_values(run)[key].value == min(line[key] for line in lines if key in line)
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["averages"]) == list(summary["results"])[-2:] == ["slow", "power"]
    values = {summary["student"]["fid"], *(side["fid"] for side in summary["averages"].values())}
    assert len(values) == 3
    (record,) = summary["results"]["power"]
    assert record["value"] == summary["averages"]["power"]["fid"]


@pytest.mark.parametrize(
    ("weights", "folder"),
    [
        ("null", "generator"),
        ("fast", "generator"),
        ("slow", "generator_slow"),
        ("raw", "generator_raw"),
    ],
)
def test_the_weights_of_samples(weights: str, folder: str, run: Path, tmp_path: Path, drawn: list[Tensor]) -> None:
    common = ("count=4", "format=npz", f"save_to={tmp_path / 'samples'}")
    sample(configure("sample", f"run={run}", f"weights={weights}", *common))
    with torch.no_grad():
        expected = Generator.from_pretrained(run / folder)(*seeded_inputs(list(range(4)), (1, 8, 8), 10))
    assert torch.equal(drawn[-1], expected)
    files = {"generator": "generator_fast", "generator_raw": "generator"}
    assert_saved(run / folder, saved(run, 4, files.get(folder, folder)))


def test_the_card_of_another_average(run: Path, tmp_path: Path) -> None:
    text = (export(run, tmp_path / "slow", "slow") / "README.md").read_text()
    facts = "the average slow over the training; results and samples of the student are those of fast"
    assert f"| weights | {facts} |" in text
    assert "|  | student | slow | power | features | reference |" in text
    with pytest.raises(ValueError, match=r"^weights=ema: .* has fast, slow, power, raw$"):
        export(run, tmp_path / "ema", "ema")


def test_a_run_without_averages(tmp_path: Path, drawn: list[Tensor]) -> None:
    """The raw weights are evaluated, saved as the generator and sampled from."""
    folder = tmp_path / "run"
    summary = distill(tiny_config(folder, *SHORT, "training.total_images=32", "averages=none"))
    assert summary["averages"] == {} and summary["student"]["fid"] > 0
    assert not list(folder.glob("generator_*")) and not list(folder.rglob("generator_*.safetensors"))
    assert_saved(folder / "generator", saved(folder, 2, "generator"))
    common = ("count=4", "format=npz", f"save_to={tmp_path / 'samples'}")
    sample(configure("sample", f"run={folder}", "weights=raw", *common))
    assert len(drawn[-1]) == 4
    assert "| weights | the last iterate |" in (export(folder, tmp_path / "export") / "README.md").read_text()
    assert len(list_checkpoints(folder)) == 2


def test_the_clipping_of_each_optimizer(tmp_path: Path) -> None:
    entries = "clip.critics._target_=onestep.engine.clipping.Entries"
    parts = build_distillation(tiny_config(tmp_path, entries, "clip.critics.largest=0.5", "clip.generator.largest=3"))
    of_generator, of_critics = (parts.optimizers[name].clip for name in ("generator", "critics"))
    assert isinstance(of_generator, NormOfEach) and of_generator.largest == 3
    assert isinstance(of_critics, Entries) and of_critics.largest == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("averages.ema.halflife=0",), "averages.ema.halflife=0: expected a number above 0"),
        (("+averages.ema.decay=0.9",), "unknown key 'averages.ema.decay'. The keys of averages.ema are: halflife, "),
        (("averages=fastgen", "averages.ema_9996.decay=1"), "ema_9996.decay=1: expected a number of at least 0 and "),
        (("averages=power_function", "averages.power_050.sigma_rel=0.3"), "sigma_rel=0.3: expected a number above 0 "),
        (("+averages.raw=${averages.ema}",), "averages.raw: expected a name of letters, digits and _, which does not "),
        (("averages.ema._target_=torch.nn.Identity",), "averages.ema._target_=torch.nn.Identity: expected one of "),
        (("evaluation.interim_averages=[slow]",), "evaluation.interim_averages: slow is not among the averages: ema"),
        (("clip.generator.largest=0",), "clip.generator.largest=0: expected a number above 0"),
        (("clip.critics._target_=torch.nn.Identity",), "clip.critics._target_=torch.nn.Identity: expected one of "),
        (("+clip.fake_score=null",), "unknown key 'clip.fake_score'. The keys of clip are: critics, generator"),
    ],
)
def test_what_is_refused(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in refused(tiny_config(tmp_path / "run", *overrides), build_distillation)
