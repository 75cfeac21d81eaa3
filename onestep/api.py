"""The Python interface of a distillation, with the defaults of the command line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from onestep.build.distillation import build_distillation
from onestep.build.run import started_run
from onestep.config import CONF, check_config, compose, explain, keys_of
from onestep.distillation import loop
from onestep.ranges import unknown_key

#: The keys whose values may be objects.
_OBJECTS = {
    "data", "degradation", "divergence", "fake_sigma", "features", "metrics", "mixture", "objective", "sampler",
    "sigma", "student", "teacher", "terms", "weighting",
}  # fmt: skip

#: The groups of which several choices, or objects by name, can be given.
_LISTS = {"metrics", "terms"}


@dataclass(frozen=True)
class Distilled:
    """A finished distillation.

    Args:
        generator: the student's first moving average, or the student itself without one, in eval mode.
        summary: the content of ``summary.json``: metrics and cost of teacher and student, the images seen and the
            seconds of training.
        folder: the run's folder, as the command line writes it.
    """

    generator: Any
    summary: dict[str, Any]
    folder: Path


def distill(teacher: Any, data: Any = "none", *, output: str | Path, **settings: Any) -> Distilled:
    """Distill ``teacher`` into a one-step generator, as ``onestep train`` does.

    Every argument is a key of the configuration (``onestep train --help`` lists them with their defaults). Its value is
    the name of a choice of a group (``objective="uni_instruct"``, ``divergence="forward_kl"``, ``metrics=["fid"]``), a
    mapping of numbers (``training={"total_images": 20000}``, ``generator={"sigma_init": 2.5}``), or an object (a
    divergence, an objective, a sampler, metrics by name).

    Args:
        teacher: a :class:`onestep.DenoiserNetwork`, such as the result of :func:`onestep.load_teacher`, which is frozen
            and set to eval mode; or the name of a choice.
        data: a map-style ``torch.utils.data.Dataset`` of images [C, H, W] in [-1, 1], or of (image, class index); the
            name of a choice; "none" for a method without real images.
        output: the folder of the run. It must not contain another run; ``resume="auto"`` continues its run.
        settings: all other keys.

    Returns:
        The generator, the summary and the folder.

    Raises:
        ValueError: before training, for an unknown key or parts that do not fit each other; during training, see
            :func:`onestep.distillation.loop.distill`.
    """
    config, given = compose_objects({"teacher": teacher, "data": data, "output": str(output), **settings})
    with started_run(config) as run:
        parts = build_distillation(config, given, run)
        summary = loop.distill(parts)
    generator = next(iter(parts.averages.evaluated(parts.student).values()))
    return Distilled(generator.eval(), summary, run.folder)


def compose_objects(settings: Mapping[str, Any]) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration of ``settings``, see :func:`distill`, and the objects among them by key.

    Raises:
        ValueError: for an unknown key or choice.
    """
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    choices: list[str] = []
    values: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name, value in settings.items():
        value = str(value) if isinstance(value, Path) else value
        if name in groups and (isinstance(value, str) or value is None):
            choices.append(f"{name}={'null' if value is None else value}")
        elif name in _LISTS and isinstance(value, list | tuple):
            choices.append(f"{name}=[{','.join(value)}]")
        elif isinstance(value, str | int | float | bool | list | tuple | None):
            values[name] = value
        elif isinstance(value, Mapping) and name not in _LISTS:
            values[name] = dict(value)
        else:
            given[name] = value
    try:
        replaced = [f"~{name}" for name in given if name in groups & _OBJECTS - _LISTS]
        config = compose("train", [*choices, *replaced])
        for name, value in values.items():
            OmegaConf.update(config, name, value, merge=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error
    for name in sorted(given.keys() - _OBJECTS):
        if name not in groups and name not in config:
            raise ValueError(unknown_key(name, [*groups, *map(str, config)]))
        raise ValueError(
            f"{name} is of class {type(given[name]).__name__}: expected a value, a choice or a mapping of settings; "
            f"objects are possible for {', '.join(sorted(_OBJECTS))}"
        )
    with open_dict(config):
        for name, value in given.items():  # the record names the class of an object
            config[name] = f"{type(value).__module__}.{type(value).__qualname__}"
        config.given = [*config.given, *keys_of(values), *given]
    check_config(config, given)
    _check_use(settings, config, given)
    return config, given


def _check_use(settings: Mapping[str, Any], config: DictConfig, given: Mapping[str, Any]) -> None:
    """Refuse settings of what a given objective says itself."""
    for name in {"divergence", "weighting"} & settings.keys() if "objective" in given else ():
        kind = type(getattr(given["objective"], name, None))
        described = config[name] if isinstance(config[name], str) else config[name].get("_target_")
        if described != f"{kind.__module__}.{kind.__qualname__}":
            raise ValueError(f"{name}={described} has no effect: the given objective has {kind.__qualname__}")
