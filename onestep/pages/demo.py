"""A page on which a generator draws in the browser: a folder of static files that any web server can serve."""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onestep.denoiser import Condition, beyond_labels
from onestep.evaluation.generate import SampleFunction, SampleSpace, check_finite
from onestep.export.formats import export_graph
from onestep.export.graph import GeneratorGraph
from onestep.files import atomic_folder, write_text
from onestep.images import to_uint8
from onestep.pages.markup import Child, element, section, write_page
from onestep.pages.server import SETTINGS

#: The files of onnxruntime-web: with and without WebGPU.
_RUNTIME = (
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
)  # fmt: skip
_LARGEST_FILE = 2**26  # bytes of one of them
_LISTED = 16  # classes in the list, where none are chosen
_BATCH = 32  # pictures of the teacher


def write_demo(
    graph: GeneratorGraph,
    title: str,
    seeds: int,
    teacher: tuple[SampleFunction, int] | None,
    teacher_seeds: int,
    runtime: Path,
    output: Path,
) -> None:
    """Write the page of a generator, its network, noise and conditions, and pictures of its teacher.

    The noise of each seed is that of ``onestep sample``, drawn here: ``noise.bin`` has float32 [seeds, steps, C, H, W].

    Args:
        graph: the generator; of prompts, its space has them.
        title: the page's.
        seeds: number of seeds, from 0 on.
        teacher: its sampler, and network evaluations per picture; None for none.
        teacher_seeds: the seeds, from 0 on, of which it draws a picture for each class or prompt.
        runtime: the package onnxruntime-web, a folder or a .tgz.
        output: the folder to write, new or empty.

    Raises:
        ValueError: for a generator that takes an image or draws none, a ``runtime`` that is not this package, or as
            :func:`onestep.export.formats.export_graph`. Nothing is written then.
    """
    shape = check_pictures(graph, title)
    space = graph.space
    if space.conditions is None and space.classes is None and space.label_dim > _LISTED:
        space = replace(space, classes=range(_LISTED))
        graph = GeneratorGraph(graph.generator, space, graph.autoencoder)
    names, conditions, own = _choices(space, seeds)
    size = {"height": str(shape[1]), "width": str(shape[2])}
    with atomic_folder(output) as folder:
        _copy_runtime(runtime, folder / "runtime")
        export_graph(graph, "onnx", "float32", folder / "model")
        first, *others = space.noise_shape
        inputs = graph.inputs(range(seeds))
        noise = torch.stack([inputs[name] for name in graph.noise_names], 1)
        (folder / "noise.bin").write_bytes(noise.numpy().astype("<f4").tobytes())
        rows = b"".join(value.numpy().astype("<f4").tobytes() for value in conditions.values())
        (folder / "conditions.bin").write_bytes(rows)
        drawn = 0 if teacher is None else min(seeds, teacher_seeds)
        if teacher is not None and drawn:
            _draw_teacher(teacher[0], space, conditions, max(1, len(names)), drawn, folder / "teacher.png")
        settings = {
            "noise": [{"name": name, "shape": [first, *others]} for name in graph.noise_names],
            "conditions": [{"name": name, "shape": list(value.shape[1:])} for name, value in conditions.items()],
            "choices": names,
            "own": own,
            "seeds": seeds,
            "teacher_seeds": drawn,
        }
        write_text(folder / SETTINGS, json.dumps(settings) + "\n")
        page = _page(title, graph, size, names, seeds, teacher[1] if teacher is not None and drawn else 0)
        write_page(title, page, folder / "index.html", "demo")


def check_pictures(graph: GeneratorGraph, title: str) -> torch.Size:
    """The shape [C, H, W] of the pictures that a generator draws from noise alone.

    Raises:
        ValueError: for a generator that takes an image, or samples that are no pictures.
    """
    if "image" in graph.condition_names:
        raise ValueError(f"{title}: its generator takes an image, use onestep upscale: a demo draws from noise alone")
    shape = graph(*graph.inputs([0]).values()).shape[1:]
    if shape[0] not in (1, 3):
        raise ValueError(f"{title}: samples of {shape[0]} channels are no pictures: expected 1 or 3")
    return shape


def _choices(space: SampleSpace, seeds: int) -> tuple[list[str], Condition, list[int]]:
    """The names of the classes or prompts, their conditions [choices, ...], and the place of each seed's own."""
    if space.conditions is not None:
        count = len(space.conditions)
        names = [str(prompt) for prompt in space.prompts or range(count)]
        return names, space.conditions[range(count)], [seed % count for seed in range(seeds)]
    if not space.label_dim:
        return [], {}, [0] * seeds
    classes = sorted({*(range(space.label_dim) if space.classes is None else space.classes)})
    drawn = space.inputs(range(seeds))[1]["labels"].argmax(1).tolist()
    names = [f"class {number}" for number in classes]
    return names, {"labels": torch.eye(space.label_dim)[classes]}, [classes.index(number) for number in drawn]


@torch.no_grad()
def _draw_teacher(
    sample: SampleFunction, space: SampleSpace, conditions: Condition, choices: int, seeds: int, path: Path
) -> None:
    """A grid of the teacher's pictures: a row for each seed, a column for each choice."""
    pairs = [(seed, choice) for seed in range(seeds) for choice in range(choices)]
    pixels: list[Tensor] = []
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        own = [seed for seed, _ in batch]
        given = {name: value[[choice for _, choice in batch]] for name, value in conditions.items()}
        images = sample(space.inputs(own)[0], given, space.noise(own)).float()
        check_finite(images, own)
        pixels.append(to_uint8(images if space.decode is None else space.decode(images)))
    grid = torch.cat(pixels).unflatten(0, (seeds, choices)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray(np.ascontiguousarray(grid.squeeze(2).numpy())).save(path)


def _copy_runtime(source: Path, folder: Path) -> None:
    """Copy the files of onnxruntime-web that the page imports, and no others."""
    folder.mkdir()
    found: dict[str, bytes] = {}
    try:
        if source.is_dir():
            found = {name: (source / "dist" / name).read_bytes() for name in _RUNTIME}
        else:
            with tarfile.open(source, "r:gz") as archive:
                for name in _RUNTIME:
                    with _member(archive, f"package/dist/{name}") as file:
                        found[name] = file.read(_LARGEST_FILE)
    except (OSError, KeyError, EOFError, tarfile.TarError) as error:
        raise ValueError(
            f"--runtime {source} is not the npm package onnxruntime-web ({error}): get it with npm pack "
            "onnxruntime-web, and give its .tgz, or the folder node_modules/onnxruntime-web"
        ) from error
    for name, content in found.items():
        (folder / name).write_bytes(content)


def _member(archive: tarfile.TarFile, name: str) -> BinaryIO:
    """A regular file of an archive; never a link out of it."""
    member = archive.getmember(name)
    opened = archive.extractfile(member) if member.isreg() else None
    if opened is None or member.size >= _LARGEST_FILE:
        raise KeyError(f"{name} is no file of less than {_LARGEST_FILE:,} bytes")
    return opened  # type: ignore[return-value]


def _page(
    title: str, graph: GeneratorGraph, size: dict[str, str], names: Sequence[str], seeds: int, of_teacher: int
) -> list[Child]:
    """The page's elements; ``of_teacher`` are the evaluations of the teacher, 0 where it has no pictures."""
    steps = graph.generator.network_evaluations
    student = element(
        "figure", element("figcaption", f"Student, {_evaluations(steps)}, drawn here: ", element("output", id="drawn")),
        element("canvas", id="student", role="img", aria_label="Picture of the student", **size),
    )  # fmt: skip
    beside = None
    if of_teacher:
        caption = f"Teacher, {_evaluations(of_teacher)}, drawn beforehand: "
        beside = element(
            "figure", element("figcaption", caption, element("output", id="beside")),
            element("canvas", id="teacher", role="img", aria_label="Picture of the teacher", **size),
        )  # fmt: skip
    own = element("option", "that of the seed", value="")
    options = [element("option", name, value=str(place)) for place, name in enumerate(names)]
    kind = "Prompt" if beyond_labels(graph.condition_names) else "Class"
    choice = element("select", own, *options, id="choice") if names else None
    last = str(seeds - 1)
    return [
        element("h1", title),
        element("p", "Loading the network.", id="state", class_="state", role="status"),
        element("div", student, beside, class_="pair"),
        element(
            "form",
            _field("from", "Seed", element("input", id="from", type="number", min="0", max=last, value="0")),
            _field("to", "Second seed", element("input", id="to", type="number", min="0", max=last, value="1")),
            None if choice is None else _field("choice", kind, choice),
            _field("between", "Between the two seeds: move it, or drag over the picture",
                   element("input", id="between", type="range", min="0", max="1", step="0.01", value="0"), "wide"),
            element("p", element("button", "Next seed", id="next", type="button"),
                    element("button", "Walk through the seeds", id="walk", type="button", aria_pressed="false"),
                    class_="wide buttons"),
            class_="controls",
        ),
        section("Speed", element("p", element("output", "Nothing is drawn yet.", id="speed"))),
        element("p", element("small", "It runs in this browser by ONNX Runtime Web (MIT licence). Nothing is sent.")),
    ]  # fmt: skip


def _field(name: str, label: str, control: Element, class_: str | None = None) -> Element:
    return element("p", element("label", label, for_=name), control, class_=class_)


def _evaluations(count: int) -> str:
    return f"{count} network evaluation{'' if count == 1 else 's'}"
