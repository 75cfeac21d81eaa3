"""A generator leaves as files of other programs, which draw what it draws, or it does not leave."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from onestep.build.deployment import Deployment
from onestep.build.distillation import distill
from onestep.build.sampling import has_bundled_teacher, sample
from onestep.commands import main
from onestep.denoiser import Condition
from onestep.evaluation.generate import SampleSpace
from onestep.export import formats
from onestep.export.compare import TOLERANCES, Tolerance, compare
from onestep.export.formats import export_graph, onnx_runner
from onestep.export.graph import GeneratorGraph
from onestep.images import to_uint8
from onestep.models.base import DenoiserNetwork
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator, Renoise
from onestep.models.loading import load_generator
from onestep.seeding import seeded_inputs, seeded_noise
from tests.helpers.configs import TWO_ITERATIONS, configure, tiny_config
from tests.helpers.diffusers_models import FLOWS, NETWORKS, build_denoiser, random_condition
from tests.helpers.edm_models import randomized, tiny_denoiser

EDM: dict[str, Any] = {
    "SongUNet": {"attn_resolutions": [4]},
    "DhariwalUNet": {"attn_resolutions": [4]},
    "EDM2UNet": {"attn_resolutions": [4]},
}


@pytest.fixture(scope="module")
def onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra onnx")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a generator of points, of two steps and three classes, which is traced soon."""
    folder = tmp_path_factory.mktemp("generator") / "tiny"
    Generator(randomized(EDMDenoiser((2, 1, 1), 3, architecture="MLP")), 2.5, [0.5]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(onnx: None, two_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export") / "tiny"
    main(["export", str(two_steps), str(output), "--format", "onnx"])
    return output


def readme_code(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    assert found is not None
    return found[1]


def test_a_seed_gives_the_image_of_the_generator(exported: Path, two_steps: Path) -> None:
    seeds = [4, 5, 6, 7, 8]
    latents, condition = seeded_inputs(seeds, (2, 1, 1), 3)
    with torch.no_grad():
        expected = load_generator(two_steps)(latents, condition, seeded_noise(seeds, (2, 1, 1), 3))
    second = next(seeded_noise(seeds, (2, 1, 1), 3))
    images = onnx_runner(exported / "model.onnx")({"noise": latents, "noise_2": second, **condition})
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    other = onnx_runner(exported / "model.onnx")({"noise": latents, "noise_2": second * 0, **condition})
    assert (other - expected).abs().max() > 0.1  # each step's noise is used


def test_a_graph_names_no_path_of_this_machine(exported: Path) -> None:
    content = (exported / "model.onnx").read_bytes()
    assert [word for word in (b".py", b"site-packages", b"onestep") if word in content] == []


def test_the_readme_draws_with_onnxruntime_alone(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    code, names = readme_code(exported), dict[str, Any]()
    assert set(re.findall(r"import (.*)", code)) == {"numpy as np, onnxruntime"} and len(code.splitlines()) == 5
    exec(code, names)
    assert names["images"].shape == (4, 2, 1, 1) and np.isfinite(names["images"]).all()
    text = (exported / "README.md").read_text()
    assert "samples with 2 network evaluations, in the format onnx with weights in float32" in text
    for row in ("| `noise_2` | batch x 2 x 1 x 1 | standard normal |",
                "| `labels` | batch x 3 | one-hot of one of 3 classes; zeros for none |",
                "| `images` | batch x 2 x 1 x 1 | about [-1, 1], black to white |"):  # fmt: skip
        assert row in text.splitlines()
    assert "(allowed\n0.0001)" in text


@pytest.mark.parametrize("off", [2e-4, float("nan")])
def test_other_images_are_refused(off: float, two_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch of three alone, as of a graph that has the batch it was traced with."""
    graph = Deployment(str(two_steps)).graph

    def write(graph: GeneratorGraph, folder: Path, dtype: str) -> Any:
        (folder / "model").touch()
        return lambda inputs: graph(*inputs.values()) + (off if len(inputs["noise"]) == 3 else 0)

    monkeypatch.setitem(formats.FORMATS, "onnx", formats.FileFormat(("float32",), write))
    message = r"tiny is not written: its images differ from the generator's by .*, and --dtype float32 allows 0.0001"
    with pytest.raises(ValueError, match=message):
        export_graph(graph, "onnx", "float32", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_original_that_is_not_finite(two_steps: Path, tmp_path: Path) -> None:
    graph = Deployment(str(two_steps)).graph
    next(graph.generator.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        export_graph(graph, "safetensors", "float32", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("an operation\nis unknown"), "torch cannot write this network as onnx: an operation is unknown"),
        (OSError(28, "No space left"), "tiny could not be written, and nothing of it is left: .*No space left"),
    ],
)
def test_a_format_that_fails(
    error: Exception, message: str, two_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setitem(formats.FORMATS, "onnx", formats.FileFormat(("float32",), fail))
    with pytest.raises(ValueError, match=message):
        export_graph(Deployment(str(two_steps)).graph, "onnx", "float32", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_generator_of_some_classes(tmp_path: Path) -> None:
    """The code of its README draws those."""
    Generator(tiny_denoiser(), 2.5, classes=[0, 2]).save_pretrained(tmp_path / "own")
    export_graph(Deployment(str(tmp_path / "own")).graph, "safetensors", "float32", tmp_path / "new")
    assert "seeded_inputs([0, 1, 2, 3], (1, 8, 8), 3, [0, 2])" in readme_code(tmp_path / "new")
    assert "one-hot of one of 3 classes; trained for 0, 2 |" in (tmp_path / "new" / "README.md").read_text()


def test_half_the_size_within_the_tolerance(two_steps: Path, tmp_path: Path) -> None:
    graph = Deployment(str(two_steps)).graph
    found = {dtype: export_graph(graph, "safetensors", dtype, tmp_path / dtype) for dtype in ("float32", "float16")}
    assert found["float32"] == Tolerance(0, 0) and 1e-5 < found["float16"].largest < 5e-2
    sizes = [(tmp_path / dtype / "diffusion_pytorch_model.safetensors").stat().st_size for dtype in found]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_generator_without_a_run_becomes_a_pipeline(two_steps: Path, tmp_path: Path) -> None:
    main(["export", str(two_steps), str(tmp_path / "tiny")])
    assert (tmp_path / "tiny" / "model_index.json").is_file()
    assert 'OneStepPipeline.from_pretrained(".")' in readme_code(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "torch-export", "--dtype", "int8"), "--dtype int8: the format torch-export has float32"),
        (("classes=[3]", "--format", "onnx"), "this network has 3 classes"),
        (("count=3", "--format", "onnx"), "count=3: expected one of the settings weights, sigma_init, prompts"),
        (("--weights", "ema", "--format", "onnx"), "weights=ema: they are those of a run"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], message: str, two_steps: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(["export", str(two_steps), str(tmp_path / "new"), *arguments])
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(two_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(SystemExit, match=r"--format onnx needs onnx: pip install 'onestep\[onnx\]'"):
        main(["export", str(two_steps), str(tmp_path / "new"), "--format", "onnx"])


class Conditions:
    """The random conditions of a network."""

    prompts: Sequence[str] | None = None

    def __init__(self, network: Any) -> None:
        self.network = network

    def __len__(self) -> int:
        return 100

    def __getitem__(self, indices: Any) -> Condition:
        rows = random_condition(self.network, 100)
        return {name: value[list(indices)] for name, value in rows.items()}


def graph_of(network: DenoiserNetwork, sigmas: list[float], renoise: Renoise = "stochastic") -> GeneratorGraph:
    """A graph of several steps of a tiny network, with random conditions."""
    needs = any(key != "labels" for key in network.condition_keys)
    space = SampleSpace.of(network, None, Conditions(network) if needs else None)
    return GeneratorGraph(Generator(network, sigmas[0], sigmas[1:], renoise=renoise), space)


def checked(graph: GeneratorGraph, folder: Path) -> None:
    """Export ``graph``; compare a batch larger than those that the export compares, of which diffusers copies some."""
    found = export_graph(graph, "onnx", "float32", folder)
    assert found.largest <= TOLERANCES["float32"].largest == 1e-4
    inputs = graph.inputs(range(70))
    with torch.no_grad():
        expected: Tensor = graph(*inputs.values())
    images = onnx_runner(folder / "model.onnx")(inputs)
    assert (images - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)
    assert expected.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("architecture", EDM)
def test_networks_of_edm(architecture: str, onnx: None, tmp_path: Path) -> None:
    network = tiny_denoiser(architecture=architecture, **EDM[architecture])
    checked(graph_of(network, [2.5, 0.5]), tmp_path / "new")


def test_a_graph_of_deterministic_steps_has_one_noise(onnx: None, two_steps: Path, tmp_path: Path) -> None:
    stochastic = load_generator(two_steps)
    graph = graph_of(stochastic.denoiser, [2.5, 0.5], renoise="deterministic")
    checked(graph, tmp_path / "new")
    inputs = graph.inputs([4, 5])
    assert list(inputs) == ["noise", "labels"]
    images = onnx_runner(tmp_path / "new" / "model.onnx")(inputs)
    expected = graph.generator(inputs["noise"], {"labels": inputs["labels"]})
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    assert (images - stochastic(inputs["noise"], {"labels": inputs["labels"]})).abs().max() > 0.1
    assert "with 2 network evaluations" in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_diffusers(name: str, onnx: None, tmp_path: Path) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if name in FLOWS else diffusers.DDPMScheduler()
    network = build_denoiser(name, scheduler)
    checked(graph_of(network, [3.0, 0.7]), tmp_path / "new")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion", "photographs"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_bundled_generators(name: str, dtype: Any, onnx: None, tmp_path: Path) -> None:
    graph = Deployment(name).graph
    found = export_graph(graph, "onnx", dtype, tmp_path / name)
    assert found == compare(graph, onnx_runner(tmp_path / name / "model.onnx"))
    assert dtype == "float32" or found.rms > 1e-5  # the weights are others


@pytest.mark.slow
def test_a_program_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = export_graph(Deployment("fashion").graph, "torch-export", "float32", tmp_path / "fashion")
    assert found.largest <= 1e-6
    monkeypatch.chdir(tmp_path / "fashion")
    names: dict[str, Any] = {}
    exec(readme_code(Path()), names)
    assert names["images"].shape == (4, 1, 32, 32)


@pytest.mark.slow
def test_latents_of_prompts(
    onnx: None, pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder is in the graph; the teacher's text encoders give the other input."""
    (tmp_path / "prompts.txt").write_text("a cat\nred\n")
    run, output = tmp_path / "run", tmp_path / "exported"
    distill(tiny_config(
        run, "experiment=text_to_image", f"teacher.path={pipelines('sd')}", f"data.path={tmp_path / 'prompts.txt'}",
        f"teacher.pipeline.cache={tmp_path / 'cache'}", "teacher.size=8", "generator.sigma_init=14.6146",
        "generator.later_sigmas=[1.998015]", *TWO_ITERATIONS, "divergence=reverse_kl", "discriminator=none",
        "generator.gan_weight=0",
    ))  # fmt: skip
    main(["export", str(run), str(output), "--format", "onnx"])
    sample(configure("sample", f"run={run}", "count=2", "seed=1", "prompts=[red]", f"save_to={tmp_path / 'drawn'}"))
    expected = [np.asarray(Image.open(tmp_path / "drawn" / f"{seed:06d}.png")).astype(int) for seed in (1, 2)]
    inputs = Deployment(str(run), ["prompts=[red]"]).graph.inputs([1, 2])
    assert list(inputs) == ["noise", "noise_2", "encoder_hidden_states"]
    pixels = to_uint8(onnx_runner(output / "model.onnx")(inputs)).permute(0, 2, 3, 1).numpy().astype(int)
    assert pixels.shape == (2, 16, 16, 3) and np.abs(pixels - expected).max() <= 1
    monkeypatch.chdir(output)
    names: dict[str, Any] = {}
    exec(readme_code(Path()), names)
    assert names["images"].shape == (4, 3, 16, 16)


def test_which_generators_have_a_bundled_teacher(tmp_path: Path) -> None:
    names = ("fashion", "emoji", "photographs", "digits", str(tmp_path))
    assert [has_bundled_teacher(name) for name in names] == [True, True, False, False, False]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "evaluations"), [("fashion", 35), ("emoji", 100)])
def test_a_bundled_generator_has_the_teacher_of_its_name(name: str, evaluations: int) -> None:
    """With Heun's sampler, or Euler's as the pipelines of diffusers."""
    teacher = Deployment(name).teacher()
    assert teacher is not None and teacher[1] == evaluations
