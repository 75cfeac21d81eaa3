"""Settings that have no effect: one that the user gave is refused. Defaults and those of recipes may be left over."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from onestep.annotations import shown
from onestep.data.dataset import NoData, TrainingDataset
from onestep.data.prompts import PromptDataset
from onestep.objectives.base import Objective


class _Rule(NamedTuple):
    """When ``settings`` have no effect: keys, which stand for all below them, or ``KEY=VALUE`` for one value."""

    settings: tuple[str, ...]
    unused: bool
    reason: str
    remedy: str


def check_use(config: DictConfig) -> None:
    """Check that the settings of every command that the user gave have an effect.

    Raises:
        ValueError: naming the setting, the reason and the remedy.
    """
    in_training = "training" in config
    used = OmegaConf.to_yaml(config, resolve=False)
    _refuse(config, (
        _Rule(("features",), not config.metrics and config.get("student") is None, "there are no metrics",
              "set metrics=[...]"),
        _Rule(("reference", "features_cache", "save_reference", "seed_ranges"), not config.metrics,
              "there are no metrics", "set metrics=[...]"),
        _Rule(("training.rollback_lr_factor",), in_training and config.training.get("rollbacks") == 0,
              "training.rollbacks=0", "set the number of rollbacks"),
        _Rule(("mixture",), "${mixture" not in used, "neither teacher nor data are of it", "use experiment=mixture"),
        _Rule(("degradation",), "${degradation" not in used, "the data are not degraded", "use data=paired"),
    ))  # fmt: skip


def check_use_in_sampling(config: DictConfig) -> None:
    """Check that the settings of a sampling that the user gave have an effect, as :func:`check_use`, which it calls."""
    of_generator = ("checkpoint", "weights", "sigma_init")
    of_samples = ("model", "sampler", "count", "seed", "seed_ranges", "prompts", "classes", "batch_size", "format")
    _refuse(config, (
        _Rule((*of_generator, *of_samples), config.images is not None, f"images={config.images} are evaluated",
              "set images=null to draw"),
        _Rule(of_generator, config.model == "teacher", "model=teacher", "set model=student"),
        _Rule(("sampler",), config.model == "student", "a generator needs none", "set model=teacher"),
        _Rule(("weights",), config.run is None, "they are those of a run", "set run=..."),
    ))  # fmt: skip
    check_use(config)


def check_use_in_pretraining(config: DictConfig, data: TrainingDataset) -> None:
    """Check that the settings of a pretraining that the user gave have an effect, as :func:`check_use`."""
    _refuse(config, (
        _Rule(("prompt_dropout",), not isinstance(data, PromptDataset), "the data have no prompts", "use data=prompts"),
    ))  # fmt: skip
    check_use(config)


def check_use_in_distillation(
    config: DictConfig, objective: Objective, data: TrainingDataset | NoData, replaced: Collection[str] = ()
) -> None:
    """Check that the settings of a distillation that the user gave have an effect, in addition to :func:`check_use`.

    Args:
        config: of the distillation.
        objective: that it describes, or another.
        data: the images and conditions.
        replaced: parts that are objects in place of those of ``config``.

    Raises:
        ValueError: as :func:`check_use`.
    """
    generator = config.generator
    adversarial = generator.gan_weight > 0
    critic = adversarial or objective.needs_ratio
    fake = objective.needs_fake_score
    lora = set(() if config.lora is None else config.lora.students)
    other = "student" in replaced or config.get("student") is not None
    built = {*(() if other else ("generator",)), *(("fake_score",) if fake else ())}
    add_term = "set generator.gan_weight above 0"
    another, with_classes = "use another objective", "use a teacher and data with classes"
    of_generator = tuple(
        f"generator.{name}" for name in ("network", "init", "sigma_init", "later_sigmas", "start", "renoise")
    )
    of_fake_score = (
        "network",
        "init",
        "guidance",
        "guidance_rescale",
        "guidance_interval",
        "error_weight",
        "error_sum",
        "dropout",
        "alignment",
        "step_aware",
    )
    _refuse(config, (
        _Rule(("generator.objective_weight", "generator.objective_weight_before_gan", "normalizer", "weighting"),
              not objective.has_losses, "the objective has no losses of its own", another),
        _Rule(("generator.gan_level=own", "generator.gan_weighting=distance"), not adversarial,
              "there is no adversarial term", add_term),
        _Rule(("generator.gan_starts_at",), not adversarial and generator.objective_weight_before_gan is None,
              "there is no adversarial term", add_term),
        _Rule(("generator.objective_weight_before_gan",), generator.gan_starts_at == 0, "generator.gan_starts_at=0",
              "set the images before the adversarial term"),
        _Rule(("generator.labels=uniform",), data.label_dim == 0, "there are no classes",
              with_classes),
        _Rule(of_generator, other, "student=... replaces the generator", "use student=none"),
        _Rule(("generator.renoise=deterministic", "fake_score.step_aware"), not generator.later_sigmas,
              "there is one step", "set generator.later_sigmas, the levels of the others"),
        _Rule(("discriminator.real_noise=own_level", "discriminator.generated_noise=own_level",
               "generator.gan_level=own"), config.discriminator.noise_level is not None,
              f"discriminator.noise_level={config.discriminator.noise_level}", "set it to null"),
        _Rule(("discriminator.head.projection",), data.label_dim == 0, "there are no classes", with_classes),
        _Rule(("discriminator", "penalty", "normalizer", "diff_augment", "optimizer.discriminator"), not critic,
              "no term of the loss needs a discriminator", f"{add_term}, or a divergence with a density ratio"),
        _Rule((*(f"fake_score.{name}" for name in of_fake_score), "optimizer.fake_score",
               "discriminator.weighting=fake_score"), not fake, "this objective has no fake score", another),
        _Rule(("fake_score.steps", "fake_sigma", "schedule", "clip.critics"), not (fake or critic),
              "the generator alone is trained", another),
        _Rule(("lora",), not lora & built, f"none of lora.students={shown(sorted(lora))} is trained from a copy of the "
              "teacher", "set lora.students"),
        _Rule(("num_workers",), isinstance(data, NoData), "no data are read", "use data=..."),
    ))  # fmt: skip


def _refuse(config: DictConfig, rules: Iterable[_Rule]) -> None:
    for rule in rules:
        for key in config.get("given", ()) if rule.unused else ():
            value = config.choices.get(key) or OmegaConf.select(config, key)
            if value and value != "none" and any(_covers(setting, key, value) for setting in rule.settings):
                raise ValueError(f"{key}={_text(value)} has no effect: {rule.reason}; {rule.remedy}, or leave it out")


def _covers(setting: str, key: str, value: Any) -> bool:
    name, _, only = setting.partition("=")
    place = key.rpartition("@")[2]  # of a group's choice at another place, such as sigma@fake_sigma
    return value == only and place == name if only else f"{place}.".startswith(f"{name}.")


def _text(value: Any) -> str:
    return shown(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)
