"""Choices of groups in conf/: none, null, and the noise levels of each recipe."""

import pytest
from omegaconf import OmegaConf

from onestep.config import CONF, accept_null
from tests.helpers.configs import configure

OPTIONAL = (
    "augment", "averages", "data", "degradation", "diff_augment", "discriminator", "features", "lora", "metrics",
    "mixture", "normalizer", "pairs", "penalty", "student", "terms",
)  # fmt: skip


@pytest.mark.parametrize("group", OPTIONAL)
def test_optional_groups_can_be_left_out(group: str) -> None:
    primary = "pretrain" if group == "augment" else "train"
    part = {"discriminator": "discriminator.head"}.get(group, group)
    chosen = {
        "augment": "edm", "degradation": "area", "diff_augment": "published", "lora": "attention", "mixture": "grid",
        "pairs": "teacher", "penalty": "r1", "student": "scene", "terms": "haar",
    }.get(group)  # fmt: skip
    if chosen is not None:  # the other groups have a default choice
        assert OmegaConf.select(configure(primary, f"{group}={chosen}"), part)
    assert OmegaConf.select(configure(primary), part) or chosen is not None
    # An override also replaces a recipe's choice, in either order.
    recipe = "experiment=mixture" if primary == "train" else "experiment=pretrain/digits"
    for overrides in ((f"{group}=none",), (f"{group}=null",), (f"{group}=null", recipe), (recipe, f"{group}=none")):
        assert not OmegaConf.select(configure(primary, *overrides), part)


def test_optional_groups_are_those_with_none() -> None:
    assert sorted(file.parent.name for file in CONF.glob("*/none.yaml")) == sorted([*OPTIONAL, "experiment"])


def test_an_empty_list_of_metrics() -> None:
    for primary in ("train", "pretrain", "sample"):
        assert configure(primary, "metrics=[]").metrics == {}


@pytest.mark.parametrize("group", ["teacher", "sampler", "data", "features", "metrics", "mixture"])
def test_null_is_the_runs_own_for_sample(group: str) -> None:
    assert not configure("sample", f"{group}=null").get(group)


def test_null_among_the_values_of_a_sweep() -> None:
    given = ["-m", "pairs=null,teacher", "metrics=[fid]", "resume=null", "experiment=null"]
    none = ["-m", "pairs=none,teacher", "metrics=[fid]", "resume=null", "experiment=none"]
    assert accept_null("train", given) == none


@pytest.mark.parametrize("override", ["objective=null", "teacher=null", "sigma@fake_sigma=null", "weighting=dmd,null"])
def test_null_for_a_group_that_needs_a_choice(override: str) -> None:
    group = override.partition("=")[0].partition("@")[0]
    choices = ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))
    with pytest.raises(ValueError, match=rf"^{override}: a choice is needed, one of {choices}$"):
        accept_null("train", [override])


def test_the_critics_levels_are_chosen_apart() -> None:
    config = configure("train", "sigma.sigma_max=7", "sigma@fake_sigma=log_normal")
    assert (config.sigma.sigma_max, config.fake_sigma.log_mean, config.fake_sigma.log_std) == (7, -1.2, 1.2)
    assert configure("train").fake_sigma == configure("train").sigma


@pytest.mark.parametrize(
    "recipe, levels, fake_levels",
    [
        ("affine", (0.1, 0.4), (0.1, 0.4)),
        ("mixture", (0.05, 2.0), (0.05, 2.0)),
        ("fashion", (0.02, 20.0), (-0.92, 1.2)),
        ("cifar10_5k", (0.02, 20.0), (-1.2, 1.2)),
        ("benchmark/cifar10_uncond", (0.002, 24.4083), (-1.2, 1.2)),
        ("sdxl_dmd2", (0.138, 13.04), (0.138, 13.04)),
        ("sd3_dmd2", (0.0204, 49.0), (0.0204, 49.0)),
    ],
)
def test_the_levels_of_the_recipes(recipe: str, levels: tuple[float, ...], fake_levels: tuple[float, ...]) -> None:
    config = configure("train", f"experiment={recipe}")
    for sigma, expected in ((config.sigma, levels), (config.fake_sigma, fake_levels)):
        names = ("log_mean", "log_std") if "log_mean" in sigma else ("sigma_min", "sigma_max")
        assert tuple(sigma[name] for name in names) == expected
        assert sigma.get("rho", 7.0) == 7.0
