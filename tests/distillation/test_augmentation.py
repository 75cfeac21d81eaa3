"""Augmentation of the images in the critics' updates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.build.distillation import build_distillation
from onestep.data.augmentation import EDMAugmentation
from onestep.distillation.method import Method
from onestep.distillation.parts import Distillation
from tests.helpers.configs import TWO_ITERATIONS, refused, tiny_config
from tests.helpers.edm_models import tiny_denoiser
from tests.helpers.updates import take_updates

SMALL = (*TWO_ITERATIONS, "metrics=[]", "features=null", "objective=sida")
AUGMENTED = ("augment=edm", "augment.probability=0.8")


def build(folder: Path, *overrides: str) -> Distillation:
    config = tiny_config(folder, *SMALL, *overrides)
    return build_distillation(config, {"teacher": tiny_denoiser(label_dim=10, augment_dim=9)})


class Inputs:
    """The arguments of the critics' losses, and the conditions of each pass of the networks."""

    def __init__(self, parts: Distillation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.critics: list[tuple[Any, ...]] = []
        self.conditions: dict[str, list[dict[str, Tensor]]] = {}
        losses = Method.critic_losses

        def keep(method: Method, *inputs: Any) -> Any:
            self.critics.append(inputs)
            return losses(method, *inputs)

        monkeypatch.setattr(Method, "critic_losses", keep)
        networks = {"generator": parts.student.denoiser, "fake_score": parts.method.fake_score}
        for name, network in {**networks, "teacher": parts.method.teacher}.items():
            passes = self.conditions[name] = []
            network.register_forward_hook(lambda _, inputs, __, passes=passes: passes.append(inputs[2]))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("head", ["teacher_features", "shared_encoder"])
def test_generated_and_real_images_have_transforms_of_their_own(
    head: str, accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (f"discriminator={head}", f"training.accumulation={accumulation}", "generator.gan_weight=0.1")
    plain, augmented = (build(tmp_path, *options, *more) for more in ((), AUGMENTED))
    before, after = Inputs(plain, monkeypatch), Inputs(augmented, monkeypatch)
    list(take_updates(plain)), list(take_updates(augmented))
    old, new = before.critics[:accumulation], after.critics[-accumulation:]
    generated, real, condition, noised, noised_real, _, condition_real, _ = zip(*new, strict=True)
    # The draws of noise come first, and are the same.
    for ours, theirs in zip((*noised, *noised_real), [one[place] for place in (3, 4) for one in old], strict=True):
        assert torch.equal(ours.sigma, theirs.sigma) and torch.equal(ours.noise, theirs.noise)
    random = augmented.run.random(augmented.settings, 0)
    random.normal((1, 8, 8))  # latents
    random.uniform(()), random.normal((1, 8, 8)), random.normal((1, 8, 8))  # levels and noise, and that of real images
    transform = EDMAugmentation(0.8, 1.1487, 1.1487, 0.125)
    for images, conditions, place in ((generated, condition, 0), (real, condition_real, 1)):
        expected, labels = transform(torch.cat([one[place] for one in old]).detach(), random)
        torch.testing.assert_close(torch.cat(images), expected)
        torch.testing.assert_close(torch.cat([one["augment_labels"] for one in conditions]), labels)
        assert not torch.allclose(expected, torch.cat([one[place] for one in old]), atol=0.1)
    assert not torch.cat(images).requires_grad
    assert not any("augment_labels" in passed for passed in after.conditions["generator"])
    labelled = [
        len(passed["augment_labels"])
        for name in ("fake_score", "teacher")
        for passed in after.conditions[name]
        if "augment_labels" in passed
    ]
    of_teacher, of_shared = [4 // accumulation, 8 // accumulation], [4 // accumulation] * 2
    assert sorted(labelled) == sorted((of_teacher if head == "teacher_features" else of_shared) * accumulation)
    # The generator's update has none.
    assert not any("augment_labels" in after.conditions[name][-1] for name in ("fake_score", "teacher"))


def test_it_changes_the_critics_update_alone(tmp_path: Path) -> None:
    plain, augmented = (
        [
            {name: value.mean().item() for name, value in update.items()}
            for update in take_updates(build(tmp_path, "optimizer.fake_score.lr=0", "discriminator=none",
                                             "objective=sid", *more))
        ]
        for more in ((), AUGMENTED)
    )  # fmt: skip
    assert augmented[0]["fake_score_loss"] != pytest.approx(plain[0]["fake_score_loss"], rel=1e-3)
    assert augmented[1].keys() == plain[1].keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "the fake score's augment_dim=0: expected 9, the labels of augment=...; use a teacher that was trained "
             "with augment=edm, or set augment=none"),
        (("objective=sds",), "augment=... is for the fake score's images, and this objective has none"),
        (("experiment=mixture",), "the fake score's augment_dim=0: expected 9, the labels of augment=...; set "
                                  "fake_score.network.options.augment_dim=9, or"),
        (("augment.probability=2",), "augment.probability=2: expected a number"),
    ],
)  # fmt: skip
def test_what_it_needs(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    said = refused(tiny_config(tmp_path, "augment=edm", *overrides))
    assert message in said and "\n" not in said


@pytest.mark.parametrize(
    "discriminator", [("discriminator=teacher_features",), ("discriminator=convolutional", "penalty=scores")]
)
def test_a_teacher_that_sees_the_augmented_images(discriminator: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *SMALL, *AUGMENTED, *discriminator, "generator.gan_weight=0.1",
                         "+fake_score.network._target_=tests.helpers.edm_models.tiny_denoiser",
                         "+fake_score.network.augment_dim=9", "+fake_score.network.label_dim=10")  # fmt: skip
    with pytest.raises(ValueError, match=r"the teacher's augment_dim=0: .*=shared_encoder without penalty=scores, or"):
        build_distillation(config, {"teacher": tiny_denoiser(label_dim=10)})
