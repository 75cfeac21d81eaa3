"""Every preset without further overrides trains the networks of its method."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onestep.build.distillation import build_distillation, distill
from onestep.build.sampling import sample
from onestep.config import CONF
from onestep.distillation import loop
from tests.helpers.configs import TINY, TWO_ITERATIONS, configure, tiny_config
from tests.helpers.updates import take_updates

# Diagnostics of critics and pairs in a log line, and the critics' updates per update of the generator.
EXPECTED = {
    "sds": (set(), 0),
    "diff_instruct": ({"fake_score_loss"}, 2),
    "vsd": ({"fake_score_loss"}, 2),
    "dmd": ({"fake_score_loss", "regression_loss"}, 1),
    "dmd2": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 5),
    "f_distill": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 2),
    "sim": ({"fake_score_loss"}, 2),
    "sid": ({"fake_score_loss"}, 2),
    "sida": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 2),
    "sid_lsg": ({"fake_score_loss"}, 2),
    "uni_instruct": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 2),
    "adversarial": ({"discriminator_loss", "adversarial_loss"}, 1),
    "tdm": ({"fake_score_loss"}, 1),
    "terms_alone": ({"regression_loss"}, 0),
    "uni_instruct_code": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 2),
}


FEW_PAIRS = ("pairs.count=16", "pairs.batch_size=16")


def test_every_preset_is_here() -> None:
    assert EXPECTED.keys() == {file.stem for file in (CONF / "objective").glob("*.yaml")}


@pytest.mark.parametrize("preset", EXPECTED)
def test_a_preset_trains_what_it_should(preset: str, tmp_path: Path) -> None:
    pairs: tuple[str, ...] = ()
    if preset in ("dmd", "terms_alone"):
        pairs = ("pairs=teacher", "generator.regression_weight=0.5", *FEW_PAIRS, f"pairs.cache={tmp_path}")
    parts = build_distillation(configure("train", *TINY, f"objective={preset}", *pairs, f"output={tmp_path / 'run'}"))
    losses, steps = EXPECTED[preset]
    *critics, generator = take_updates(parts)
    assert len(critics) == steps
    assert {key for update in (*critics, generator) for key in update if key.endswith("_loss")} == losses
    assert generator["generator_gradient"] > 0
    trained = {name for name in ("fake_score", "discriminator") if name in parts.trained_networks}
    with_weights = {"fake_score"} if preset == "uni_instruct_code" else {"fake_score", "discriminator"}
    assert trained == {name for name in with_weights if f"{name}_loss" in losses}
    assert bool(trained) == (steps > 0)


def test_each_step_is_trained_at_its_own_levels(tmp_path: Path) -> None:
    """TDM's, of teacher and fake score."""
    bounds = [f"{law}.sigma_{end}" for law in ("sigma", "fake_sigma") for end in ("min=0.02", "max=1.0")]
    parts = build_distillation(configure(
        "train", *TINY, "objective=tdm", "sigma=step_intervals", "sigma@fake_sigma=step_intervals", *bounds,
        "generator.later_sigmas=[0.5]", f"output={tmp_path / 'run'}",
    ))  # fmt: skip
    seen = list[float]()
    parts.method.teacher.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1].tolist()))
    assert parts.method.fake_score is not None
    parts.method.fake_score.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1].tolist()))
    steps = set()
    for iteration, _ in enumerate(take_updates(parts, iterations=2)):  # two updates in each
        if iteration % 2:
            step = loop.exit_step(0, iteration // 2, 2)
            low, high = [(0.5, 1.0), (0.02, 0.5)][step]
            assert low <= min(seen) and max(seen) <= high and seen
            steps.add(step)
            seen.clear()
    assert steps == {0, 1}


@pytest.mark.parametrize(
    "discriminator, passes", [("convolutional", []), ("teacher_features", ["features", "features"])]
)
def test_a_gan_alone_reads_at_most_the_teachers_features(discriminator: str, passes: list[str], tmp_path: Path) -> None:
    overrides = ("objective=adversarial", f"discriminator={discriminator}", f"output={tmp_path}")
    parts = build_distillation(configure("train", *TINY, *overrides))
    seen = []

    def watch(_: Any, inputs: Any, options: dict[str, Any]) -> None:
        seen.append(options.get("outputs", "prediction"))

    parts.method.teacher.register_forward_pre_hook(watch, with_kwargs=True)
    _, generator = take_updates(parts)
    assert seen == passes and parts.method.fake_score is None
    assert generator.keys() == {"adversarial_loss", "generator_gradient"}


def test_terms_alone_are_the_whole_loss_without_the_teacher(tmp_path: Path) -> None:
    """One step of gradient descent, by the regression's gradient alone; the teacher only made the pairs."""
    options = ("pairs=teacher", "generator.regression_weight=0.5", *FEW_PAIRS, f"pairs.cache={tmp_path}")
    descent = ("optimizer.generator._target_=torch.optim.SGD", "~optimizer.generator.betas", "~optimizer.generator.eps")
    overrides = ("objective=terms_alone", *options, "clip.generator=null", "optimizer.generator.lr=0.5", *descent)
    parts = build_distillation(configure("train", *TINY, *overrides, f"output={tmp_path / 'run'}"))
    assert parts.pairs is not None and parts.method.fake_score is None
    latents, condition, x_teacher = parts.pairs.batch(0)
    before = {name: parameter.detach().clone() for name, parameter in parts.student.named_parameters()}
    loss = 0.5 * (parts.student.simulate([latents], condition) - x_teacher).square().mean()
    gradients = torch.autograd.grad(loss, list(parts.student.parameters()), allow_unused=True)

    def fail(*_: Any) -> None:
        raise AssertionError("the teacher was evaluated")

    parts.method.teacher.register_forward_pre_hook(fail)
    (generator,) = take_updates(parts)
    assert generator.keys() == {"regression_loss", "generator_gradient"}
    for (name, parameter), gradient in zip(parts.student.named_parameters(), gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.detach(), before[name] - 0.5 * gradient)


@pytest.mark.parametrize("penalty", ["r1", "finite_difference_r1", "scores", "finite_difference_scores"])
def test_a_discriminator_of_its_own_with_a_penalty(penalty: str, tmp_path: Path) -> None:
    overrides = ("experiment=digits", "discriminator=convolutional", f"penalty={penalty}", f"output={tmp_path}")
    parts = build_distillation(configure("train", *TINY, *overrides))
    *critics, generator = take_updates(parts)
    largest = [float(update["gradient_penalty"].max()) for update in critics]
    assert largest[0] == 0 and all(value > 0 for value in largest[1:])  # the initial logit is constant
    assert generator["generator_gradient"] > 0 and "discriminator" in parts.trained_networks


def test_the_scores_of_a_teacher_without_guidance(tmp_path: Path) -> None:
    """The fake score of the mixture is not the teacher at the start, so the constant logit has a penalty."""
    overrides = ("experiment=mixture", "discriminator=points", "penalty=scores", f"output={tmp_path}")
    *critics, _ = take_updates(build_distillation(configure("train", *TINY, *overrides)))
    assert critics and all(float(update["gradient_penalty"].min()) > 0 for update in critics)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("objective=sid", "divergence=forward_kl"), "SiD minimises reverse KL only, got divergence=ForwardKL"),
        (("objective=sim", "weighting=dreamfusion"), "weighting=dreamfusion is for distribution matching"),
        (("experiment=mixture", "objective=sid_lsg"), "guidance=1.5: a mixture has no classes"),
        (("experiment=mixture", "fake_score.guidance=1.5"), "guidance=1.5: .* without classes"),
        (("experiment=mixture", "discriminator=teacher_features"), "the teacher has no features"),
        (
            ("discriminator=strided_teacher_features", "discriminator.head.levels=[0,5]"),
            r"discriminator.head.levels=\[0, 5\]: the network has features at 2 levels",
        ),
        (("discriminator=channel_mean", "objective=sds", "generator.gan_weight=1"), "no fake score with an encoder"),
        (
            ("experiment=mixture", "fake_score.network=null"),
            "fake_score.network=null .* is not a network: describe a network as fake_score.network=",
        ),
        (("objective=adversarial", "discriminator=shared_encoder"), "no fake score with an encoder.*=convolutional"),
        (
            ("objective=adversarial", "divergence=forward_kl"),
            "Adversarial has no divergence, got divergence=ForwardKL: remove divergence=",
        ),
        (("metrics=[modes]", "mixture=grid"), "64 dimensions and the mixture 2"),
    ],
)
def test_parts_that_do_not_go_together(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(tiny_config(tmp_path, *overrides))


def test_guidance_reaches_teacher_and_fake_score_but_not_the_generator(tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, "objective=sid_lsg", "fake_score.guidance=1.25"))
    summary = loop.distill(parts)
    assert parts.method.fake_score is not None
    assert (parts.method.teacher.guidance, parts.method.fake_score.guidance) == (1.5, 1.25)
    assert parts.student.denoiser.guidance == 1.0
    assert summary["teacher"]["network_evaluations"] == 2 * 3 and summary["student"]["network_evaluations"] == 1


def test_points_are_drawn_as_numbers(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    run = tiny_run("experiment=mixture", "mixture=ring", *TWO_ITERATIONS)
    options = (f"run={run}", f"save_to={tmp_path / 'drawn'}", "count=200", "model=teacher")
    result = sample(configure("sample", *options, "format=npz", "metrics=[energy]", "sampler=heun"))
    points = np.load(tmp_path / "drawn" / "samples.npz")["images"]
    assert points.dtype == np.float32 and points.shape == (200, 2, 1, 1)
    assert abs(result["energy"]) < 0.03  # 35 evaluations: the mixture's samples, up to the noise of 200 samples
    with pytest.raises(ValueError, match="format=png: .* points, not images: use format=npz"):
        sample(configure("sample", *options, "format=png", f"save_to={tmp_path / 'others'}"))
