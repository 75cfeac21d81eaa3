"""The model card of an exported generator: settings, metrics, samples and the code for sampling."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from onestep.engine.averages import RAW
from onestep.engine.records import read_record, select
from onestep.evaluation.sample import weights_of
from onestep.models.generator import Generator
from onestep.reading import read_bytes
from onestep.reports.tables import (
    COSTS,
    descriptions_of,
    evaluated_sides,
    format_value,
    read_summary,
    to_cell,
    to_markdown,
)

_SAMPLES = "side_by_side.png"
_LARGEST_PICTURE = 2**26  # bytes
_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A generator that samples with {{ evaluations }}, distilled with onestep from a teacher that samples with
{{ teacher_evaluations }}.

{% if samples %}![Samples of the teacher and of this generator]({{ samples }})

{% endif %}| | |
| --- | --- |
{% for name, value in facts %}| {{ name }} | {{ value }} |
{% endfor %}
## Results

{{ results }}
## Use

```python
{{ usage }}
```
"""


def write_card(
    run: Path, output: Path, generator: Generator, weights: str, usage: str, text_to_image: bool = False
) -> None:
    """Write ``README.md``, a card in the hub's format, and the run's plot of samples into ``output``.

    Args:
        run: the folder of a finished distillation.
        output: the folder of the exported pipeline; its name is the model's.
        generator: the exported generator.
        weights: the name of its weights, see :func:`onestep.evaluation.sample.weights_of`.
        usage: Python code for sampling.
        text_to_image: True if it takes prompts.
    """
    summary = read_summary(run)
    config = read_record(run)
    task = "text-to-image" if text_to_image else "unconditional-image-generation"
    steps = generator.network_evaluations
    kind = "one-step" if steps == 1 else f"{steps}-step"
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        tags=["onestep", "distillation", "one-step" if steps == 1 else "few-step"],
        model_name=output.name,
        base_model=_hub_id(str(select(config, "teacher.path"))),
        eval_results=_eval_results(summary, task, _name(config.get("data"))) or None,
    )
    samples = run / _SAMPLES
    if samples.is_file():
        (output / _SAMPLES).write_bytes(read_bytes(samples, _LARGEST_PICTURE))
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=f"{output.name}: {kind} generator by {to_cell(_name(config.get('objective')))}",
        evaluations=_evaluations(steps),
        teacher_evaluations=_evaluations(summary["teacher"]["network_evaluations"]),
        samples=_SAMPLES if samples.is_file() else None,
        facts=[(to_cell(name), to_cell(value)) for name, value in _facts(config, generator, summary, weights)],
        results=_results_table(summary),
        usage=usage,
    )
    card.save(output / "README.md")


def _eval_results(summary: dict[str, Any], task: str, data: str) -> list[EvalResult]:
    return [
        EvalResult(
            task,
            dataset_type=data,
            dataset_name=data,
            metric_type=record["name"],
            metric_name=record["title"],
            metric_value=record["value"],
        )
        for record in _first_records(summary, "student").values()
        if record["value"] is not None
    ]


def _first_records(summary: dict[str, Any], side: str) -> dict[str, dict[str, Any]]:
    """The records of the first range of seeds of the teacher or the student, by key."""
    records: dict[str, dict[str, Any]] = {}
    for record in summary["results"].get(side, []):
        records.setdefault(record["metric"], record)
    return records


def _results_table(summary: dict[str, Any]) -> str:
    """A table with one metric or cost per row, with the metric's features and reference."""
    sides, records = evaluated_sides(summary), _first_records(summary, "student")
    rows = [["", *map(to_cell, sides), "features", "reference"]]
    for key, description in descriptions_of(summary).items():
        of_metric = [to_cell(records.get(key, {}).get(name, "")) for name in ("features", "reference")]
        rows.append([to_cell(description.heading), *_cells(sides, key), *of_metric])
    rows += [[cost.replace("_", " "), *_cells(sides, cost), "", ""] for cost in COSTS]
    return to_markdown(rows)


def _cells(sides: dict[str, dict[str, Any]], key: str) -> list[str]:
    return [format_value(side[key]) if key in side else "" for side in sides.values()]


def _facts(
    config: dict[str, Any], generator: Generator, summary: dict[str, Any], weights: str
) -> list[tuple[str, str]]:
    """Names and values of the run's parts and settings."""
    objective = config.get("objective")
    sigmas = (generator.sigma_init, *generator.later_sigmas)
    return [
        ("teacher", _describe(config.get("teacher"))),
        ("teacher's sampler", _describe(config.get("sampler"))),
        ("objective", _describe(objective)),
        *((name, _describe(node)) for name, node in _parts_of(objective)),
        ("discriminator", _describe(select(config, "discriminator.head"))),
        ("adversarial weight", _shown(select(config, "generator.gan_weight"))),
        ("regression weight", _shown(select(config, "generator.regression_weight"))),
        ("data", _describe(config.get("data"))),
        ("images seen in training", f"{summary['images_seen']:,}"),
        ("seconds of training", f"{summary['seconds']:,.0f}"),
        ("noise levels of the steps", ", ".join(f"{sigma:g}" for sigma in sigmas)),
        *([("noise between the steps", generator.renoise)] if generator.later_sigmas else []),
        ("weights", _describe_weights(weights, weights_of(config))),
    ]


def _describe_weights(name: str, names: list[str]) -> str:
    text = "the last iterate" if name == RAW else f"the average {name} over the training"
    return text if name == names[0] else f"{text}; results and samples of the student are those of {names[0]}"


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _parts_of(node: Any) -> list[tuple[str, Any]]:
    return [(name, part) for name, part in node.items() if _is_part(part)] if isinstance(node, dict) else []


def _describe(node: Any) -> str:
    """The name of a part of the configuration and its plain values, without local paths."""
    if not isinstance(node, dict):
        return _name(node)
    values = [
        f"{key.replace('_', ' ')} {_shown(value)}"
        for key, value in node.items()
        if isinstance(value, str | float | int) and not key.startswith("_") and key not in ("path", "cache")
    ]
    return ", ".join([_name(node), *values])


def _name(node: Any) -> str:
    """The class of a part of the configuration with its path; of a function, such as load_teacher, the path alone.

    The record of a part that was given as an object is the name of its class.
    """
    if node is None:
        return "none"
    if not isinstance(node, dict):
        return str(node).rpartition(".")[2]
    name, path = str(node.get("_target_")).rpartition(".")[2], node.get("path")
    if _is_part(node.get("images")):
        return f"{name} of {_name(node['images'])}"
    if not isinstance(path, str):
        return name
    return f"{name} ({_shown(path)})" if name[:1].isupper() else _shown(path)


def _shown(value: Any) -> str:
    """A value of the configuration as text; of a local path the last part alone, because local paths are private."""
    if isinstance(value, str):
        return _hub_id(value) or Path(value).name
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _hub_id(path: str) -> str | None:
    """``path`` if it is a hub id, None if it is local."""
    return path if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).exists() else None


def _evaluations(count: int) -> str:
    return f"{count} network evaluation{'' if count == 1 else 's'}"
