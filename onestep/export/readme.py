"""The README of an exported generator: its inputs, their ranges, how exact it is, and code that draws with it."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from onestep.export.compare import TOLERANCES, DType, Tolerance
from onestep.export.graph import OUTPUT, GeneratorGraph
from onestep.files import atomic_file

CONDITIONS = "conditions.npz"
_COUNT = 4  # images of the code

_ONNX = """import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
noise = lambda: np.random.standard_normal({shape}).astype(np.float32)
given = {condition}
images = session.run(None, {{{noises}, **given}})[0]  # {result}"""
_TORCH = """import torch
program = torch.export.load("model.pt2").module()
noise = lambda: torch.randn{shape}
given = {condition}
images = program({arguments}, *given.values())  # {result}"""
_SAFETENSORS = """import onestep
from onestep.seeding import seeded_inputs, seeded_noise
generator = onestep.Generator.from_pretrained(".")
latents, given = seeded_inputs([0, 1, 2, 3], {sample}, {label_dim}, {classes})
{reading}images = generator(latents, given, seeded_noise([0, 1, 2, 3], {sample}, {label_dim}))  # {result}"""
_DIFFUSERS = """import onestep
pipeline = onestep.OneStepPipeline.from_pretrained(".")
images = pipeline(seeds=[0, 1, 2, 3]).images  # those of onestep sample for these seeds"""
_CODE = {"diffusers": _DIFFUSERS, "onnx": _ONNX, "torch-export": _TORCH, "safetensors": _SAFETENSORS}
_TEMPLATE = """# {title}

A generator that samples with {evaluations}, in the format {name} with weights in {dtype}. Exported by onestep.

| input | shape | range |
| --- | --- | --- |
{inputs}
| **output** | **shape** | **range** |
{outputs}

`batch` is any number of images. All inputs and the output are float32; the pixels of a value are
`clip(value * 127.5 + 128, 0, 255)`, truncated.

{code}

Compared with the original on batches of one and of three images: the largest difference is {largest:.1e} (allowed
{largest_allowed:g}), the root mean square {rms:.1e} (allowed {rms_allowed:g}), in units of values in [-1, 1].
"""


def write_readme(graph: GeneratorGraph, name: str, dtype: DType, found: Tolerance, folder: Path) -> None:
    """Write ``README.md`` into ``folder``; for conditions other than classes also four of them, ``conditions.npz``.

    Args:
        graph: what was exported.
        name, dtype: its format.
        found: the differences from the original.
        folder: of the export, whose name is the title.
    """
    inputs = graph.inputs(list(range(_COUNT)))
    condition = {key: inputs[key] for key in graph.condition_names}
    if set(condition) - {"labels"}:
        arrays: Any = {key: value.numpy() for key, value in condition.items()}
        with atomic_file(folder / CONDITIONS) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    shape = tuple(graph.generator.noise_shape)
    steps, allowed = graph.generator.network_evaluations, TOLERANCES[dtype]
    images = graph(*inputs.values())
    result = f"[{', '.join(map(str, images.shape))}] in about [-1, 1]"
    classes = graph.generator.classes
    given = _condition_code(name, condition, classes)
    code = _CODE[name].format(
        shape=(_COUNT, *shape),
        condition=given,
        noises=", ".join(f'"{key}": noise()' for key in graph.noise_names),
        arguments=", ".join("noise()" for _ in graph.noise_names),
        sample=shape,
        label_dim=graph.generator.denoiser.label_dim,
        classes=classes,
        reading=f"import numpy as np, torch\ngiven = {given}\n" if set(condition) - {"labels"} else "",
        result=result if graph.autoencoder is None or name != "safetensors" else "latents",
    )
    text = _TEMPLATE.format(
        title=folder.name, name=name, dtype=dtype, code=f"```python\n{code}\n```",
        evaluations="one network evaluation" if steps == 1 else f"{steps} network evaluations",
        inputs="\n".join(_row(key, value, classes) for key, value in inputs.items()),
        outputs=_line(OUTPUT, images.shape[1:], "about [-1, 1], black to white"),
        largest=found.largest, rms=found.rms, largest_allowed=allowed.largest, rms_allowed=allowed.rms,
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")


def _row(name: str, value: Tensor, classes: list[int] | None) -> str:
    trained = "zeros for none" if classes is None else f"trained for {', '.join(map(str, classes))}"
    ranges = {
        "labels": f"one-hot of one of {value.shape[-1]} classes; {trained}",
        "image": "the image to restore, enlarged to this size, in [-1, 1]",
    }
    own = "standard normal" if name.startswith("noise") else f"of the text encoders, as in `{CONDITIONS}`"
    return _line(name, value.shape[1:], ranges.get(name, own))


def _line(name: str, shape: tuple[int, ...], text: str) -> str:
    return f"| `{name}` | batch x {' x '.join(map(str, shape))} | {text} |"


def _condition_code(name: str, condition: dict[str, Tensor], classes: list[int] | None) -> str:
    if not condition:
        return "{}"
    if set(condition) == {"labels"}:
        count = condition["labels"].shape[1]
        cycle = classes or range(count)
        drawn = [cycle[number % len(cycle)] for number in range(_COUNT)]
        one_hot = {"onnx": f"np.eye({count}, dtype=np.float32)", "torch-export": f"torch.eye({count})"}
        return f'{{"labels": {one_hot.get(name, "")}[{drawn}]}}'
    if name == "onnx":
        return f'np.load("{CONDITIONS}")'
    return f'{{key: torch.from_numpy(value) for key, value in np.load("{CONDITIONS}").items()}}'
