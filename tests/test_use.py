"""Settings that have no effect are refused where the user gave them, and left over where a recipe has them."""

from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

from onestep.api import compose_objects
from onestep.build.pretraining import pretrain
from onestep.build.sampling import sample
from onestep.build.use import check_use, check_use_in_distillation
from onestep.config import compose, explain, instantiate
from onestep.data.dataset import NoData
from onestep.data.digits import Digits
from tests.helpers.configs import configure, refused, tiny_config, tiny_pretraining

NO_GAN = ("divergence=reverse_kl", "generator.gan_weight=0")
GAN = "generator.gan_weight=1"
SID = ("objective=sid",)
SDS = ("objective=sds",)
ALONE = ("objective=adversarial",)
#: Choices and settings, of which the last has no effect, and the reason. {} is the last.
IN_VAIN = [
    ((*NO_GAN, "generator.gan_level=own"), "{} has no effect: there is no adversarial term; set generator.gan_weight "
     "above 0, or leave it out"),
    ((*NO_GAN, "generator.gan_weighting=distance"), "{} has no effect: there is no adversarial term"),
    ((*NO_GAN, "generator.gan_starts_at=1000"), "{} has no effect: there is no adversarial term"),
    (("generator.objective_weight_before_gan=2.0",), "{} has no effect: generator.gan_starts_at=0; set "),
    (("generator.renoise=deterministic",), "{} has no effect: there is one step; set generator.later_sigmas, "),
    (("fake_score.step_aware=true",), "{} has no effect: there is one step; set generator.later_sigmas, "),
    ((*NO_GAN, "normalizer=published"), "{} has no effect: no term of the loss needs a discriminator; set "),
    ((*NO_GAN, "penalty=r1"), "{} has no effect: no term of the loss needs a discriminator"),
    ((*NO_GAN, "diff_augment=published"), "{} has no effect: no term of the loss needs a discriminator"),
    ((*NO_GAN, "normalizer.decay=0.5"), "{} has no effect: no term of the loss needs a discriminator"),
    ((*NO_GAN, "discriminator.weight=2.0"), "{} has no effect: no term of the loss needs a discriminator"),
    ((*NO_GAN, "optimizer.discriminator.lr=0.125"), "{} has no effect: no term of the loss needs a discriminator"),
    ((*SID, "discriminator=teacher_features"), "{} has no effect: no term of the loss needs a discriminator"),
    ((*SDS, "fake_score.guidance=2.0"), "{} has no effect: this objective has no fake score; use another objective"),
    ((*SDS, "fake_score.error_sum=true"), "{} has no effect: this objective has no fake score"),
    ((*SDS, "fake_score.init=folder"), "{} has no effect: this objective has no fake score"),
    ((*SDS, "optimizer.fake_score.lr=0.125"), "{} has no effect: this objective has no fake score"),
    ((*SDS, "fake_score.steps=3"), "{} has no effect: the generator alone is trained"),
    ((*SDS, "sigma@fake_sigma=log_normal"), "{} has no effect: the generator alone is trained"),
    ((*SDS, "fake_sigma.sigma_min=0.5"), "{} has no effect: the generator alone is trained"),
    ((*SDS, "schedule=separate"), "{} has no effect: the generator alone is trained"),
    ((*SDS, "clip.critics.largest=2.0"), "{} has no effect: the generator alone is trained"),
    (("objective=sds", "discriminator=teacher_features", GAN, "discriminator.weighting=fake_score"),
     "{} has no effect: this objective has no fake score"),
    ((*ALONE, "generator.objective_weight=2.0"), "{} has no effect: the objective has no losses of its own; use "
     "another objective, or leave it out"),
    ((*ALONE, "generator.objective_weight_before_gan=2.0"), "{} has no effect: the objective has no losses of its own"),
    ((*ALONE, "normalizer=published"), "{} has no effect: the objective has no losses of its own"),
    ((*ALONE, "weighting=unit"), "{} has no effect: the objective has no losses of its own"),
    ((*ALONE, "fake_score.guidance=2.0"), "{} has no effect: this objective has no fake score"),
    (("objective=sds", "lora.students=[fake_score]", "lora=attention"), "{} has no effect: none of lora.students="),
    (("metrics=[]", "features=digits"), "{} has no effect: there are no metrics; set metrics="),
    (("metrics=[]", "reference=real.npz"), "{} has no effect: there are no metrics"),
    (("training.rollback_lr_factor=0.25",), "{} has no effect: training.rollbacks=0; set the number of rollbacks"),
    (("mixture=ring",), "{} has no effect: neither teacher nor data are of it; use experiment=mixture"),
    (("discriminator.noise_level=0.5", "discriminator.real_noise=own_level"),
     "{} has no effect: discriminator.noise_level=0.5; set it to null, or leave it out"),
    (("discriminator.noise_level=0.5", GAN, "generator.gan_level=own"), "{} has no effect: discriminator.noise_level="),
    (("degradation=area",), "{} has no effect: the data are not degraded; use data=paired, or leave it out"),
    (("data=none", "num_workers=2"), "{} has no effect: no data are read; use data="),
]  # fmt: skip
EFFECTIVE: list[tuple[str, ...]] = [
    # What turns something off, or was left over by a preset.
    (*NO_GAN, "discriminator=none", "normalizer=none", "generator.gan_starts_at=0", "generator.gan_level=shared"),
    ("objective=sds", "fake_score.dropout=0", "fake_score.init=null", "augment=none", "pairs=none"),
    (GAN, "generator.gan_level=own", "generator.gan_starts_at=8", "generator.labels=uniform"),
    # The weight of the objective changes after that number of images, also without an adversarial term.
    (*NO_GAN, "generator.gan_starts_at=8", "generator.objective_weight_before_gan=2.0"),
    # It has critics: the discriminator.
    ("objective=sds", "discriminator=teacher_features", GAN, "fake_score.steps=3"),
    (*ALONE, "discriminator=convolutional", "penalty=r1", "fake_score.steps=3", "generator.gan_level=own"),
    ("experiment=mixture", "mixture=ring", "mixture.std=0.1"),
    ("data=paired", "data@data.images=digits", "degradation=area", "degradation.factor=2"),
    # They are not those of the metrics.
    ("metrics=[]", "terms=[embedding_js]", "features@terms.embedding_js.network=digits"),
]


def check(config: Any, data: Any = None) -> None:
    check_use(config)
    nothing = NoData((1, 8, 8), 10)
    check_use_in_distillation(
        config, instantiate(config.objective), nothing if config.data is None else data or Digits()
    )


@pytest.mark.parametrize(("overrides", "message"), IN_VAIN)
def test_settings_in_vain(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        check(tiny_config(tmp_path, *overrides))
    assert str(caught.value).startswith(message.format(overrides[-1]))


@pytest.mark.parametrize("overrides", EFFECTIVE)
def test_settings_with_an_effect(overrides: tuple[str, ...], tmp_path: Path) -> None:
    check(tiny_config(tmp_path, *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("images=samples.npz", "metrics=[fid]", "count=4"),
            "{} has no effect: images=samples.npz are evaluated; ",
        ),
        (("images=samples.npz", "metrics=[fid]", "checkpoint=folder"), "{} has no effect: images=samples.npz are "),
        (("run=folder", "model=teacher", "weights=raw"), "{} has no effect: model=teacher; set model=student, or "),
        (
            ("run=folder", "sampler=heun"),
            "{} has no effect: a generator needs none; set model=teacher, or leave it out",
        ),
        (("checkpoint=folder", "weights=raw"), "{} has no effect: they are those of a run; set run=..., or leave it "),
        (("run=folder", "seed_ranges=3"), "{} has no effect: there are no metrics; set metrics=[...], or leave it out"),
        (("run=folder", "save_reference=real.npz"), "{} has no effect: there are no metrics"),
    ],
)
def test_settings_of_a_sampling_in_vain(overrides: tuple[str, ...], message: str) -> None:
    assert refused(configure("sample", "save_to=nowhere", *overrides), sample).startswith(message.format(overrides[-1]))


def test_values_of_a_recipe_are_left_over() -> None:
    """Its SiDA has both weights, the start and the discriminator, which need an adversarial term."""
    recipe = "experiment=sida/cifar10_cond"
    own = ["data.path=images.zip", "teacher.path=edm.pkl", "features.path=inception.pt"]
    config = compose("train", [recipe, *own, "objective=sds", "generator.gan_weight=0"])
    assert (config.generator.gan_weighting, config.fake_score.dropout) == ("distance", 0.13)
    check(config)


def test_both_commands_of_a_training_check(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, *NO_GAN, "generator.gan_level=own")
    assert refused(config).startswith("generator.gan_level=own has no effect: ")
    assert refused(tiny_config(tmp_path, "metrics=[]", "features=digits")).startswith("features=digits has no effect: ")
    config = tiny_pretraining(tmp_path, "metrics=[]", "features=digits")
    assert refused(config, pretrain).startswith("features=digits has no effect: ")


@pytest.mark.parametrize("setting", ["generator.labels=uniform", "discriminator.head.projection=true"])
def test_settings_of_classes_without_classes(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        check(tiny_config(tmp_path, setting), NoData((1, 8, 8), 0))
    assert str(caught.value).startswith(f"{setting} has no effect: there are no classes; use a teacher and data with ")
    check(tiny_config(tmp_path, setting))


def test_settings_of_a_part_that_is_none() -> None:
    with pytest.raises(HydraException) as caught:
        compose("train", ["experiment=digits", "pairs.count=5"])
    assert explain(caught.value) == "pairs.count has no effect: pairs is none; choose pairs=..., or leave it out"


def test_nested_settings_of_python() -> None:
    settings = {"objective": "sds", "teacher": "digits", "fake_score": {"error_sum": True}, "clip": {"critics": None}}
    config, _ = compose_objects(settings | {"output": "nowhere"})
    assert {"objective", "fake_score.error_sum", "clip.critics"} <= {*config.given}
    with pytest.raises(ValueError, match=r"^fake_score\.error_sum=true has no effect: this objective has no fake"):
        check(config)
