"""An app of gradio in which a generator draws, as on a hub's space; it is served on this machine alone."""

import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from onestep.denoiser import Condition, beyond_labels
from onestep.evaluation.generate import SampleFunction, SampleSpace, check_finite, generate_local
from onestep.export.graph import GeneratorGraph
from onestep.images import to_uint8
from onestep.pages.demo import check_pictures
from onestep.seeding import check_seeds

#: The inputs of seeds for classes or for prompts; None for those of the deployment.
SpaceOf = Callable[[list[int] | None, list[str] | None], SampleSpace]
_MOST = 16  # pictures at once
_OF_THE_SEED = -1  # the choice of a seed's own class


class Drawing:
    """Pictures of a generator and of its teacher, drawn as ``onestep sample`` draws them.

    Args:
        graph: the generator.
        space_of: the inputs of seeds.
        teacher: its sampler, and network evaluations per picture; None for none.
    """

    def __init__(
        self, graph: GeneratorGraph, space_of: SpaceOf, teacher: tuple[SampleFunction, int] | None = None
    ) -> None:
        self.graph, self.space_of, self.teacher = graph, space_of, teacher
        self._accelerator = Accelerator(cpu=True)

    def draw(
        self, seed: int, count: int, steps: int, choice: int | str, beside: bool
    ) -> tuple[list[Image.Image], list[Image.Image], str]:
        """The student's pictures of the seeds from ``seed`` on, the teacher's of the same, and their milliseconds.

        Args:
            seed: the first seed.
            count: the number of pictures.
            steps: the first steps of the generator that are made, from 1 to all.
            choice: a prompt; or a class, -1 for each seed's own.
            beside: whether the teacher draws too.

        Raises:
            ValueError: for seeds, classes or prompts that there are not.
        """
        check_seeds(seed, seed + count - 1, f"seed {seed}")
        seeds, generator = range(seed, seed + count), self.graph.generator

        def student(latents: Tensor, condition: Condition, noises: Iterator[Tensor]) -> Tensor:
            return generator.simulate([latents, *islice(noises, steps - 1)], condition)

        classes = [choice] if isinstance(choice, int) and choice != _OF_THE_SEED else None
        space = self.space_of(classes, [choice] if isinstance(choice, str) else None)
        drawn, text = self._pictures(student, seeds, space, f"student, {_steps(steps)}")
        if self.teacher is None or not beside:
            return drawn, [], text
        sample, evaluations = self.teacher
        of_teacher, slower = self._pictures(sample, seeds, space, f"teacher, {_steps(evaluations)}")
        return drawn, of_teacher, f"{text}; {slower}"

    def _pictures(
        self, sample: SampleFunction, seeds: range, space: SampleSpace, name: str
    ) -> tuple[list[Image.Image], str]:
        started = time.perf_counter()
        images = torch.cat(list(generate_local(sample, seeds, len(seeds), space, self._accelerator)))
        milliseconds = 1000 * (time.perf_counter() - started) / len(seeds)
        check_finite(images, seeds)
        pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
        pictures = [Image.fromarray(np.squeeze(each, 2) if each.shape[2] == 1 else each) for each in pixels]
        return pictures, f"{name}: {milliseconds:.1f} ms a picture"


def build_app(title: str, graph: GeneratorGraph, space_of: SpaceOf, teacher: tuple[SampleFunction, int] | None) -> Any:
    """The app, gradio's ``Blocks``, whose function ``/draw`` is :meth:`Drawing.draw`.

    Args:
        title: the page's.
        graph, space_of, teacher: see :class:`Drawing`.

    Raises:
        ValueError: without the extra gradio, or for a generator that takes an image or draws none.
    """
    gradio = _gradio()
    check_pictures(graph, title)
    drawing = Drawing(graph, space_of, teacher)

    def draw(*given: Any) -> Any:
        try:
            seed, count, steps, choice, beside = given
            drawn = drawing.draw(int(seed), int(count), int(steps), choice, beside)
        except (TypeError, ValueError) as error:  # an empty field is None
            raise gradio.Error(str(error)) from error
        return drawn if teacher is not None else (drawn[0], drawn[2])

    space, steps = graph.space, graph.generator.network_evaluations
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 600)) as app:  # files of pictures
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
            count = gradio.Slider(1, _MOST, 4, step=1, label="Pictures, of this seed and those after it")
            made = gradio.Slider(1, max(2, steps), steps, step=1, label="Steps of the student", visible=steps > 1)
        if beyond_labels(graph.condition_names):
            choice = gradio.Textbox(next(iter(space.prompts or [""])), label="Prompt")
        else:
            classes = range(space.label_dim) if space.classes is None else sorted({*space.classes})
            names = [("that of the seed", _OF_THE_SEED), *((f"class {number}", number) for number in classes)]
            choice = gradio.Dropdown(names, value=_OF_THE_SEED, label="Class", visible=bool(space.label_dim))
        beside = gradio.Checkbox(teacher is not None, label="The teacher draws too", visible=teacher is not None)
        button = gradio.Button("Draw", variant="primary")
        with gradio.Row():
            outputs = [_gallery(gradio, "Student")]
            if teacher is not None:
                outputs.append(_gallery(gradio, "Teacher, the same seeds"))
        outputs.append(gradio.Textbox(label="Time", interactive=False))
        inputs = [seed, count, made, choice, beside]
        button.click(draw, inputs, outputs, api_name="draw")
        app.load(draw, inputs, outputs, api_visibility="private")
    return app


def serve_app(app: Any, port: int) -> str:
    """Serve ``app`` on the loopback address alone, shared with nobody; its address. ``app.block_thread()`` waits.

    Raises:
        ValueError: for a port that is in use; 0 is a free one.
    """
    try:
        _, address, _ = app.launch(
            server_name="127.0.0.1", server_port=port or None, share=False, quiet=True, prevent_thread_lock=True,
            ssr_mode=False, mcp_server=False, enable_monitoring=False, run_history=False, footer_links=[],
            css="img { image-rendering: pixelated; }",
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port}: {error}; give another one, or 0 for a free one") from error
    return address


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else its import and its app send telemetry
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f"--gradio needs gradio: pip install 'onestep[gradio]' ({error})") from error
    return gradio


def _gallery(gradio: Any, label: str) -> Any:
    return gradio.Gallery(label=label, format="png", columns=4, height="auto", object_fit="contain", interactive=False)


def _steps(count: int) -> str:
    return "one evaluation" if count == 1 else f"{count} evaluations"
