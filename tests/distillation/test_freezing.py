"""A generator of which a part is not trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onestep.build.distillation import build_distillation, distill
from onestep.models.loading import load_teacher
from tests.helpers.configs import TWO_ITERATIONS, refused, tiny_config
from tests.helpers.killed_run import assert_same_checkpoint, distill_until_iteration_5
from tests.helpers.paths import REPOSITORY
from tests.helpers.updates import take_updates

CONVOLUTIONS = "generator.frozen=[*.conv*.weight]"
TEACHER = REPOSITORY / "onestep" / "assets" / "digits"
SMALL = (*TWO_ITERATIONS, "metrics=[]", "features=null", "objective=adversarial", "discriminator=convolutional",
         "training.total_images=24", "training.checkpoint_every=3")  # fmt: skip


def is_frozen(name: str) -> bool:
    return ".conv" in name and name.endswith(".weight")


def test_a_run_keeps_the_frozen_bits_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    distill(tiny_config(straight, *SMALL, CONVOLUTIONS))
    assert "trained parameters of the generator: 35,217 of 180,369 (19.5 %)\n" in capsys.readouterr().out
    distill_until_iteration_5(monkeypatch, tiny_config(resumed, *SMALL, CONVOLUTIONS))
    distill(tiny_config(resumed, *SMALL, CONVOLUTIONS, "resume=auto"))
    last, other = (folder / "checkpoints" / "iteration_00000006" for folder in (straight, resumed))
    assert_same_checkpoint(last, other)

    teacher = dict(load_teacher(str(TEACHER)).named_parameters())
    for file in ("generator", "generator_ema"):
        weights = load_file(last / f"{file}.safetensors")
        assert [name for name in teacher if torch.equal(weights[f"denoiser.{name}"], teacher[name])] == [
            name for name in teacher if is_frozen(name)
        ]
    trained = [name for name in teacher if not is_frozen(name)]
    moments = load_file(last / "generator.optimizer.safetensors")
    assert {int(key.partition(".")[0]) for key in moments} == {*range(len(trained))}
    sizes = sum(value.numel() for key, value in moments.items() if key.endswith(".exp_avg_sq"))
    assert sizes == sum(teacher[name].numel() for name in trained) == 35_217
    assert refused(tiny_config(resumed, *SMALL, "resume=auto")).startswith("cannot resume from ")


def test_gradients_and_averages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the trained parameters are as without frozen ones; micro-batches and recomputed activations too."""
    gradients = {}
    for frozen in ((), (CONVOLUTIONS,)):
        layout = ("training.accumulation=2", "gradient_checkpointing=true") if frozen else ()
        parts = build_distillation(tiny_config(tmp_path, *SMALL, *frozen, *layout))
        monkeypatch.setattr(parts.optimizers["generator"], "step", lambda iteration: {})
        list(take_updates(parts))
        gradients[frozen] = {name: parameter.grad for name, parameter in parts.student.named_parameters()}
        student, average = parts.student, parts.averages.networks["ema"]
    for name, gradient in gradients[()].items():
        ours = gradients[(CONVOLUTIONS,)][name]
        if is_frozen(name):
            assert ours is None and gradient is not None and gradient.any()
        else:
            torch.testing.assert_close(ours, gradient, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0 if parameter.requires_grad else 0.0)
    before = {name: parameter.clone() for name, parameter in average.named_parameters()}
    parts.averages.after_iteration(student, 10**6, 4)
    for name, parameter in average.named_parameters():
        assert torch.equal(parameter, before[name]) == is_frozen(name)


@pytest.mark.parametrize(
    "patterns, message",
    [
        ("[encoder.*]", "generator.frozen: 'encoder.*' matches no trained parameter; the closest names are model.enc."),
        ("['*']", "generator.frozen=[*] freezes all parameters: leave some to be trained"),
        ("[3]", "generator.frozen=[3]: expected a list, each text that is not empty"),
        ("model.enc.*", "generator.frozen=model.enc.*: expected a list, each text that is not empty"),
    ],
)
def test_what_is_refused(patterns: str, message: str, tmp_path: Path) -> None:
    said = refused(tiny_config(tmp_path, f"generator.frozen={patterns}"))
    assert said.startswith(message) and "\n" not in said
