"""Trainings and samples on CUDA and on Apple's GPU, as far as a device that is not there can show it.

What it computes is the CPU's numbers, so every result must be that of the CPU, bit for bit.
"""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, DiTPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from onestep.build.distillation import distill
from onestep.build.pretraining import pretrain, pretrain_features, pretrain_invertible
from onestep.build.sampling import sample
from onestep.engine.checkpoint import list_checkpoints
from onestep.export.pipeline import OneStepPipeline
from onestep.models.loading import load_generator
from onestep.precision import double, float64_device
from tests.helpers.configs import TINY, TWO_ITERATIONS, configure, tiny_config, tiny_pretraining
from tests.helpers.diffusers_models import build_network, randomize
from tests.helpers.fake_device import fake_device
from tests.helpers.recordings import LORA, PRESETS, save_pipeline

KINDS = ("cuda", "mps")
DIVERGENCES = ("alpha", "forward_kl", "jeffreys", "jensen_shannon", "le_cam", "neyman_chi2", "pearson_chi2",
               "reverse_kl", "softened_reverse_kl", "squared_hellinger")  # fmt: skip
PAIRS = ("pairs.count=8", "pairs.batch_size=4", "pairs.cache={folder}/pairs")
CASES: dict[str, tuple[str, ...]] = {
    **{name: (f"objective={name}", *(PAIRS if name == "dmd" else ())) for name in PRESETS},
    **{f"f_distill {name}": (f"divergence={name}",) for name in DIVERGENCES},
    **{f"uni_instruct {name}": ("objective=uni_instruct", f"divergence={name}") for name in DIVERGENCES},
    "f_distill own": ("divergence=custom", "divergence.f=torch.square"),
    "uni_instruct own": ("objective=uni_instruct", "divergence=custom", "divergence.f=torch.square"),
    "shared encoder": ("discriminator=shared_encoder", "training.accumulation=2"),
    "few steps": ("generator.later_sigmas=[0.5,0.2]", "discriminator=shared_encoder"),
    "channels last": ("channels_last=true", "gradient_checkpointing=true"),
    "bf16": ("precision=bf16",),
    "LoRA": LORA,
    "mixture": ("experiment=mixture",),
    "fashion": ("experiment=fashion", "data=none", "metrics=[]", "evaluation.interim_metrics=null",
                "divergence=reverse_kl", "discriminator=none", "generator.gan_weight=0"),
    "metrics": ("metrics=[fid,kid,is,prdc]", "evaluation.samples=16", "evaluation.interim_samples=16"),
    "churn": ("sampler=stochastic",),
}  # fmt: skip
TEXT = ("experiment=text_to_image", "data.path={folder}/prompts.txt", "teacher.pipeline.cache={folder}/cache",
        "teacher.guidance=3.0", "teacher.size=8", "divergence=reverse_kl", "discriminator=none",
        "generator.gan_weight=0")  # fmt: skip
LATENTS = ("teacher=diffusers", "teacher.path={folder}/dit", "teacher.guidance=2.0", "sampler=euler", "data=latents",
           "data.images.path={folder}/pictures", "teacher.pipeline.cache={folder}/cache", "sigma=vp",
           "sigma@fake_sigma=vp", "features=null", "metrics=[]", "generator.sigma_init=100.0")  # fmt: skip


def weights(run: Path) -> dict[str, Tensor]:
    """All tensors of the last checkpoint: networks, optimisers and the normaliser."""
    files = sorted(list_checkpoints(run)[-1].glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def assert_same(one: Path, other: Path) -> None:
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys() and len(expected) > 10
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def run_twice(task: Callable[[Any], Any], make: Callable[[Path], Any], folder: Path, kind: str) -> None:
    """On the CPU and on the device, with caches of their own."""
    for name in ("cpu", kind):
        AcceleratorState._reset_state()  # holds the precision of the last run
        config = make(folder / name)
        with nullcontext() if name == "cpu" else fake_device(kind) as operations:
            task(config)
        assert operations is None or len(operations.seen) > 30  # it was on the device


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of two iterations, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("cpu") / "run"
    distill(tiny_config(folder, *TWO_ITERATIONS))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_that_of_the_cpu(kind: str, on_the_cpu: Path, tmp_path: Path) -> None:
    shutil.copytree(on_the_cpu, tmp_path / "run")
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1])
    with fake_device(kind) as operations:
        distill(tiny_config(tmp_path / "run", *TWO_ITERATIONS, "resume=auto"))
    assert len(operations.seen) > 30
    assert_same(on_the_cpu, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_every_preset_is_that_of_the_cpu(name: str, kind: str, tmp_path: Path) -> None:
    if name == "LoRA":
        save_pipeline(tmp_path / "pipeline")

    def make(output: Path) -> Any:
        overrides = [override.format(folder=output if "cache" in override else tmp_path) for override in CASES[name]]
        return tiny_config(output, *TINY, *TWO_ITERATIONS, *overrides)

    run_twice(distill, make, tmp_path, kind)
    assert_same(tmp_path / "cpu", tmp_path / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "sigma"), [("sd", 14.6146), ("sdxl", 14.6146), ("sd3", 1e9), ("flux", 1e9)])
def test_text_to_image(family: str, sigma: float, kind: str, pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\nthe sea\nred\n")

    def make(output: Path) -> Any:
        overrides = [override.format(folder=output if "cache" in override else tmp_path) for override in TEXT]
        given = (f"teacher.path={pipelines(family)}", f"generator.sigma_init={sigma}")
        return tiny_config(output, *overrides, *given, *TWO_ITERATIONS)

    run_twice(distill, make, tmp_path, kind)
    if (family, kind) != ("flux", "mps"):  # Flux's positions are float32 on Apple's GPU alone
        assert_same(tmp_path / "cpu", tmp_path / kind)
    options = (f"run={tmp_path / kind}", "count=2", "format=npz", "model=teacher", "sampler=euler", "sampler.steps=2")
    with fake_device(kind):
        sample(configure("sample", *options, f"save_to={tmp_path / 'drawn'}"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_latents(kind: str, tmp_path: Path) -> None:
    from tests.helpers.tiny_pipelines import vae

    torch.manual_seed(0)
    DiTPipeline(build_network("dit"), randomize(vae()), DDIMScheduler()).save_pretrained(tmp_path / "dit")
    for index in range(10):
        file = tmp_path / "pictures" / f"{index}" / "0.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)

    def make(output: Path) -> Any:
        overrides = [override.format(folder=output if "cache" in override else tmp_path) for override in LATENTS]
        return tiny_config(output, *overrides, *TWO_ITERATIONS)

    run_twice(distill, make, tmp_path, kind)
    assert_same(tmp_path / "cpu", tmp_path / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_pretraining(kind: str, tmp_path: Path) -> None:
    augment = ("augment=edm", "augment.probability=1.0", "network.options.augment_dim=9")
    run_twice(pretrain, lambda output: tiny_pretraining(output, *augment), tmp_path, kind)
    assert_same(tmp_path / "cpu", tmp_path / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_network(kind: str, tmp_path: Path) -> None:
    with fake_device(kind):
        config = configure("pretrain_features", "features_training.epochs=1", f"output={tmp_path}")
        assert 0 <= pretrain_features(config)["held_out_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_invertible_network(kind: str, tmp_path: Path) -> None:
    with fake_device(kind):
        overrides = ("data=digits", "invertible_training.total_images=80", f"output={tmp_path}")
        summary = pretrain_invertible(configure("pretrain_invertible", *overrides))
        assert summary["held_out_bits"] < summary["gaussian_bits"]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_their_metrics_are_those_of_the_cpu(
    kind: str, finished_run: Path, drawn: list[Tensor], tmp_path: Path
) -> None:
    metrics = ("metrics=[fid,is]", "format=png")
    of_teacher = ("model=teacher", "sampler=stochastic", "sampler.steps=3", "format=npz")
    for number, options in enumerate([metrics, of_teacher]):
        results = []
        for name in ("cpu", kind):
            folder = tmp_path / f"{name}_{number}"
            config = configure("sample", f"run={finished_run}", "count=12", *options, f"save_to={folder}")
            with nullcontext() if name == "cpu" else fake_device(kind):
                results.append(sample(config))
        assert torch.equal(*drawn[-2:])
        if number == 0:
            assert results[1]["fid"] == pytest.approx(results[0]["fid"], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_pipeline(kind: str, finished_run: Path) -> None:
    generator = load_generator(finished_run / "generator")
    expected = OneStepPipeline(generator.denoiser, None, generator.sigma_init)([3, 4], output_type="pt").images
    with fake_device(kind) as operations:
        pipeline = OneStepPipeline(generator.denoiser, None, generator.sigma_init).to(kind)
        assert torch.equal(pipeline([3, 4], output_type="pt").images, expected) and operations.seen
    generator.to("cpu")


def test_float64_is_where_a_device_has_it() -> None:
    with fake_device("cuda"):
        assert double(torch.ones(2, device="cuda")).device.type == float64_device(torch.device("cuda")).type == "cuda"
    with fake_device("mps"):
        values = torch.ones(2, device="mps", requires_grad=True)
        exact = double(values)
        assert exact.dtype == torch.float64 and exact.device.type == "cpu"
        exact.sum().backward()
        assert values.grad is not None and values.grad.device.type == "mps"


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("cuda", lambda x: x + torch.ones(2), "on the same device"),
        ("cuda", lambda x: torch.ones(2).mul_(x), "on the same device"),
        ("cuda", lambda x: torch.stack([x.sum(), torch.ones(())]), "on the same device"),
        ("cuda", lambda x: torch.ones(2)[x.long()], "on the same device"),
        ("cuda", lambda x: torch.nn.Linear(2, 2)(x), "on the same device"),
        ("cuda", lambda x: x.numpy(), "to numpy"),
        ("cuda", lambda x: np.asarray(x), "to numpy"),
        ("cuda", lambda x: x.pin_memory(), "cannot pin"),
        ("cuda", lambda x: torch.randn(2, generator=torch.Generator(), device="cuda"), "for generator"),
        ("cuda", lambda x: torch.randn(2, generator=torch.Generator("cuda")), "for generator"),
        ("mps", lambda x: x.double(), "float64"),
        ("mps", lambda x: x.to("cpu", torch.float64), "float64"),
        ("mps", lambda x: torch.zeros(2, dtype=torch.float64, device="mps"), "float64"),
        ("mps", lambda x: torch.nn.Linear(2, 2).double().to("mps"), "float64"),
    ],
)
def test_the_device_refuses(kind: str, wrong: Callable[[Tensor], Any], message: str) -> None:
    with fake_device(kind), pytest.raises((RuntimeError, TypeError), match=message):
        wrong(torch.ones(2, device=kind))


def test_the_device_takes_what_cuda_takes() -> None:
    with fake_device("cuda"):
        x = torch.ones(3, device="cuda", requires_grad=True)
        ((x * torch.tensor(2.0))[torch.tensor([0, 2])].sum() + torch.zeros_like(x).sum()).backward()
        assert x.grad is not None and (x.grad.device, x.grad.tolist()) == (torch.device("cuda", 0), [2.0, 0.0, 2.0])
        network = torch.nn.Linear(3, 1).to("cuda")
        assert {p.device.type for p in network.parameters()} == {"cuda"} and network(
            x
        ).detach().cpu().numpy().shape == (1,)
        assert torch.zeros(3).copy_(x).device.type == x.new_zeros(2, device="cpu").device.type == "cpu"
