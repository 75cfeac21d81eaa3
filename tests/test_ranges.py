"""Every setting that a yaml names has a type with a range, and what is not in it is one line with the full key."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter

from onestep.annotations import is_plain
from onestep.build.schema import settings_of
from onestep.config import CONF, check_config
from onestep.models.discriminator import PooledHead
from onestep.noise import KarrasSigma, LogNormalSigma
from onestep.objectives.divergences import Alpha
from onestep.ranges import Count, ImageShape, PathText, Positive, check, check_arguments, parameters
from onestep.samplers import HeunSampler
from tests.helpers.configs import configure
from tests.helpers.updates import make_settings

NAN, INF = float("nan"), float("inf")
#: Values that are none of a number, a flag or a list of numbers; null is another where it stands for nothing.
BAD = ("abc", "no", NAN, INF, -INF, 1e30, -1e30, {"a": 1}, [[1]], ["abc"], [NAN], [True], None)
COMMANDS = {
    "train": ("teacher=digits", "objective=dmd", "lora=attention", "discriminator=teacher_features"),
    "pretrain": ("augment=edm",),
    "pretrain_features": (),
    "pretrain_invertible": ("data=digits",),
    "sample": (),
}


def kinds(schema: Any) -> Iterator[dict[str, Any]]:
    """The schemas of numbers and flags in a JSON schema, also in lists."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number", "boolean"):
            yield schema
        for value in schema.values():
            yield from kinds(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from kinds(value)


@cache
def base(command: str) -> Any:
    metrics = ["metrics=[recall]"] if command == "train" else []
    return configure(command, *COMMANDS[command], *metrics, "save_to=s" if command == "sample" else "output=o")


@cache
def schema_of(annotation: Any) -> dict[str, Any]:
    plain = is_plain(annotation)
    return TypeAdapter(annotation, config=ConfigDict(strict=True)).json_schema() if plain else {}


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """The nodes with a ``_target_``."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from parts(value)


def targets() -> set[str]:
    """Every class and function that a yaml names, and the raw networks of ``network.options``."""
    files = (OmegaConf.to_container(OmegaConf.load(file)) for file in CONF.rglob("*.yaml"))
    networks = (
        "edm.song_unet.SongUNet", "edm.adm.DhariwalUNet", "edm2.unet.EDM2UNet", "edm.preconditioning.VPPreconditioning",
    )  # fmt: skip
    return {part["_target_"] for file in files for part in parts(file)} | {f"onestep.models.{n}" for n in networks}


def settings() -> dict[str, tuple[Any, str, Any]]:
    """The class or function, the argument and its type of each numeric and boolean setting, by a key."""
    owners: dict[str, Any] = {target.rpartition(".")[2]: get_object(target) for target in targets()}
    for command in COMMANDS:
        block = settings_of(base(command))
        owners[command] = block
        owners |= {name: kind for name, kind in (parameters(block) or {}).items() if not is_plain(kind)}
    found = {}
    for owner, target in owners.items():
        for name, annotation in (parameters(target) or {}).items() if callable(target) else ():
            if any(kinds(schema_of(annotation))):
                found[f"{owner}.{name}"] = (target, name, annotation)
    return found


SETTINGS = settings()


def test_all_settings_are_found() -> None:
    assert len(SETTINGS) > 150
    names = {"TrainingSettings.total_images", "train.process_timeout", "sample.classes", "generator.later_sigmas",
             "features_training.epochs", "fake_score.error_sum", "HeunSampler.rho", "Adam.betas", "LoRA.alpha",
             "SongUNet.dropout", "TeacherPipeline.batch_size", "train.compile", "grid.spacing"}  # fmt: skip
    assert names <= set(SETTINGS)


@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_a_setting_is_a_number_in_a_range_or_a_flag(key: str) -> None:
    target, name, annotation = SETTINGS[key]
    schemas = list(kinds(schema_of(annotation)))
    numbers = [schema for schema in schemas if schema["type"] != "boolean" and "enum" not in schema]
    for schema in numbers:
        assert {"minimum", "exclusiveMinimum"} & set(schema) and {"maximum", "exclusiveMaximum"} & set(schema)
    text = str(schema_of(annotation))
    is_list, has_numbers = "array" in text, "integer" in text or "number" in text
    outside: list[Any] = [] if has_numbers else [0, 1, 2, 1.0, "off"]
    if has_numbers and not is_list:
        outside = [True, False, [1], *(number["minimum"] - 1 for number in numbers if "minimum" in number)]
        outside += [number["maximum"] + 1 for number in numbers if "maximum" in number]
        outside += [1.5] if "integer" in text else []
    for value in [*BAD, *outside]:
        if (value is None and "null" in text) or (value == [[1]] and name == "means"):
            continue
        with pytest.raises(ValueError) as caught:
            check_arguments(target, {name: value}, "the.block", partial=True)
        assert str(caught.value).startswith(f"the.block.{name}=") and ": expected " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_each_command_has_exactly_the_settings_of_its_schema() -> None:
    for command in COMMANDS:
        config = base(command)
        assert set(config) - {"choices", "given"} == set(parameters(settings_of(config)) or ())
        check_config(config)


@pytest.mark.parametrize(
    ("command", "key", "value", "message"),
    [
        ("train", "training.total_images", NAN, "=nan: expected an integer of at least 1"),
        ("train", "training.total_images", "96k", "=96k: expected an integer of at least 1"),
        ("train", "training.batch_size", None, "=null: expected an integer of at least 1"),
        ("train", "training.warmup_images", -1, "=-1: expected an integer of at least 0"),
        ("train", "evaluation.samples", True, "=true: expected an integer of at least 1"),
        ("train", "evaluation.evaluate_teacher", "no", "=no: expected true or false"),
        ("train", "gradient_checkpointing", "abc", "=abc: expected true or false"),
        ("train", "optimizer.discriminator.lr", -1e-3, "=-0.001: expected a number of at least 0"),
        ("train", "optimizer.generator.betas", [0.0], "=[0.0]: expected a list of 2, each a number of at least 0"),
        ("train", "fake_sigma.sigma_max", INF, "=inf: expected a number above 0"),
        ("train", "discriminator.head.hidden", 0, "=0: expected an integer of at least 1"),
        ("train", "metrics.recall.k", 0, "=0: expected an integer of at least 1"),
        ("train", "lora.students", ["teacher"], "=[teacher]: expected a list of at least 1, each one of generator"),
        ("train", "seed", None, "=null: expected an integer of at least 0"),
        ("train", "process_timeout", 1e30, "=1e+30: expected a number above 0"),
        ("train", "device", "tpu", "=tpu: expected one of auto, cpu, cuda"),
        (
            "train",
            "precision",
            False,
            "=false: expected one of auto, no, bf16, fp16, bf16_critics; YAML reads no, off, yes and on as "
            'false and true: quote such a text, as precision: "no"',
        ),
        (
            "train",
            "resume",
            True,
            "=true: expected text that is not empty, or null; YAML reads no, off, yes and on as "
            'false and true: quote such a text, as resume: "yes"',
        ),
        (
            "train",
            "data",
            {"path": "a", "split": "b"},
            "={path: a, split: b}: expected a mapping with a _target_, or "
            "null; without a choice leave out its settings: ~data.path ~data.split",
        ),
        ("train", "device", None, "=null: expected one of auto, cpu, cuda"),
        ("train", "trackers", [3], "=[3]: expected a list, each text"),
        ("train", "pairs.cache", None, "=null: expected text"),
        ("train", "normalizer", 3, "=3: expected a mapping with a _target_, or null"),
        ("train", "generator", None, "=null: expected a mapping"),
        ("train", "objective.divergence", 3, "=3: expected a mapping with a _target_"),
        ("train", "trainin.total_images", 3, "unknown key 'trainin'; did you mean 'training'?"),
        (
            "train",
            "generator.gan.weight",
            3,
            "unknown key 'generator.gan'. The keys of generator are: dropout",
        ),
        ("train", "count", 3, "unknown key 'count'. The keys of the configuration are: attention"),
        ("pretrain", "network.options.model_channels", "abc", "=abc: expected an integer of at least 4"),
        ("pretrain", "network.options.width", 3, "unknown key 'network.options.width'. The keys of network.options"),
        ("pretrain_features", "features_training.epochs", 1.5, "=1.5: expected an integer of at least 1"),
        ("pretrain_features", "features_training.momentum", 1, "unknown key 'features_training.momentum'. The keys"),
        ("sample", "count", "abc", "=abc: expected an integer of at least 1"),
        ("sample", "classes", [1.5], "=[1.5]: expected a list of at least 1, each an integer of at least 0"),
        ("sample", "classes", 3, "=3: expected a list of at least 1"),
        ("sample", "prompts", [None, True, 2.5], "=[null, true, 2.5]: expected a list of at least 1, each text"),
        ("sample", "save_to", None, "=null: expected text"),
        ("sample", "model", "pupil", "=pupil: expected one of student, teacher"),
    ],
)
def test_the_message_has_the_key_and_the_range(command: str, key: str, value: Any, message: str) -> None:
    config = copy.deepcopy(base(command))
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    with pytest.raises(ValueError) as caught:
        check_config(config)
    assert str(caught.value).startswith(f"{key}{message}" if message.startswith("=") else message)


def test_a_choice_of_another_command_lacks_settings() -> None:
    with pytest.raises(ValueError, match="settings without a value: generator, fake_score"):
        check_config(configure("train", "teacher=digits", "training=pretrain_digits", "output=o"))


def test_whole_floats_are_integers_and_paths_are_expanded() -> None:
    config = copy.deepcopy(base("train"))
    given = {"training.total_images": 96.0, "training.batch_size": 16.0, "evaluation.samples": 32.0, "seed": 1.0,
             "optimizer.generator.lr": 1, "generator.later_sigmas": [1, 0.5], "normalizer.bins": 10.0,
             "trackers": "all", "output": "~/here"}  # fmt: skip
    for key, value in given.items():
        OmegaConf.update(config, key, value)
    check_config(config)
    numbers = (config.training.total_images, config.training.batch_size, config.evaluation.samples, config.seed)
    assert repr((*numbers, config.optimizer.generator.lr)) == "(96, 16, 32, 1, 1.0)"
    assert repr((list(config.generator.later_sigmas), config.normalizer.bins)) == "([1.0, 0.5], 10)"
    assert (list(config.trackers), config.output) == (["all"], str(Path.home() / "here"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_settings(batch_size="abc"), "batch_size=abc: expected an integer"),
        (lambda: HeunSampler(1, 0.002, 80.0), "steps=1: expected an integer of at least 2"),
        (lambda: KarrasSigma(0.1, 2.0, rho=NAN), "rho=nan: expected a number of at least 0.1"),
        (lambda: LogNormalSigma(0.0, 0.0), "log_std=0.0: expected a number above 0"),
        (lambda: Alpha(3), "alpha=3: expected a number of at least -2 and at most 2"),
        (lambda: PooledHead([(8, 4, 4)], 0, "student", 8, [0], False), "features_from=student: expected one of "),  # type: ignore[arg-type]
        (lambda: check("shape", [1, 8], ImageShape), "shape=[1, 8]: expected a list of 3, each an integer"),
        (lambda: check("path", "", PathText), "path='': expected text that is not empty"),
        (lambda: check("x", [1.0, 2], list[Positive] | None) and check("x", {}, Count | None), "x={}: expected an"),
    ],
)
def test_calls_from_python_are_checked(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
