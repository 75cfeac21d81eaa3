"""The model card of an exported generator: what it is, what it was measured to be, and how to draw with it."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import OmegaConf

from onestep.models.generator import Generator

_METRICS = ("fid", "recall", "modes", "mode_precision", "kl", "energy")
_TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

A generator that draws in {{ evaluations }} what its teacher draws in {{ teacher_evaluations }}, distilled with onestep.

| | |
| --- | --- |
{% for name, value in facts %}| {{ name }} | {{ value }} |
{% endfor %}
## Figures

| | {% for name in metrics %}{{ name }} | {% endfor %}network evaluations | samples |
| --- | {% for name in metrics %}--- | {% endfor %}--- | --- |
{% for side, row in figures %}| {{ side }} | {% for value in row %}{{ value }} | {% endfor %}
{% endfor %}
## Use

```python
{{ usage }}
```
"""


def write_card(run: Path, output: Path, generator: Generator, usage: str, text_to_image: bool = False) -> None:
    """Write ``README.md``, a card in the hub's format, of the finished ``run``'s ``generator`` into ``output``.

    ``usage`` is the Python code that draws with it.
    """
    summary = json.loads((run / "summary.json").read_text())
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))  # type: ignore[assignment]
    student, teacher = summary["student"], summary["teacher"]
    metrics = [name for name in _METRICS if name in student]
    task = "text-to-image" if text_to_image else "unconditional-image-generation"
    data_name = _describe(config["data"])
    results = [
        EvalResult(task, dataset_type=data_name, dataset_name=data_name, metric_type=name, metric_value=student[name])
        for name in metrics
    ]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        tags=["onestep", "distillation", "one-step" if generator.network_evaluations == 1 else "few-step"],
        model_name=output.name,
        base_model=_hub_id(config["teacher"].get("path") or ""),
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        evaluations=_evaluations(student["network_evaluations"]),
        teacher_evaluations=_evaluations(teacher["network_evaluations"]),
        facts=_facts(config, generator, data_name, summary),
        metrics=metrics,
        figures=[
            (side, [*(f"{row[name]:.4g}" for name in metrics), row["network_evaluations"], row["samples"]])
            for side, row in summary.items()
            if side in ("teacher", "student") and "samples" in row
        ],
        usage=usage,
    )
    card.save(output / "README.md")


def _facts(
    config: dict[str, Any], generator: Generator, data_name: str, summary: dict[str, Any]
) -> list[tuple[str, str]]:
    sigmas = (generator.sigma_init, *generator.later_sigmas)
    return [
        ("teacher", f"{_describe(config['teacher'])}, guidance {config['teacher'].get('guidance')}"),
        ("objective", _describe(config["objective"])),
        ("divergence", _describe(config["divergence"])),
        ("discriminator", _describe(config["discriminator"]["head"])),
        ("data", data_name),
        ("images seen in training", f"{summary['images_seen']:,}"),
        ("noise levels of the steps", ", ".join(f"{sigma:g}" for sigma in sigmas)),
    ]


def _describe(node: dict[str, Any] | None) -> str:
    """What a part of the configuration builds, of its ``path`` no more than may be seen."""
    if node is None:
        return "none"
    name = str(node["_target_"]).rpartition(".")[2]
    if isinstance(node.get("images"), dict):
        return f"{name} of {_describe(node['images'])}"
    path = node.get("path")
    return f"{name} ({_hub_id(path) or Path(path).name})" if isinstance(path, str) else name


def _hub_id(path: str) -> str | None:
    """``path`` if it is a hub id, None if a local one: where things lie on a machine stays private."""
    return path if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).exists() else None


def _evaluations(count: int) -> str:
    return f"{count} network evaluation{'' if count == 1 else 's'}"
