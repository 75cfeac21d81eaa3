"""What tests of several folders build on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from onestep.networks.edm import EDMDenoiser
from onestep.training.distillation import distill

# The networks of the tests are too small to share among threads, which wait for each other; nor do subprocesses.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

ComposeConfig = Callable[..., DictConfig]
TrainConfig = Callable[..., DictConfig]

REPOSITORY = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
SMALL = (
    "device=cpu",
    "precision=no",
    "sampler.steps=2",
    "evaluation.samples=32",
    "evaluation.interim_samples=16",
    "evaluation.batch_size=16",
    "evaluation.grid=10",
    "training.images=96",
    "training.batch_size=16",
    "training.fake_score_steps=1",
    "training.warmup_images=0",
    "training.log_every=1",
    "training.checkpoint_every=1",
    "training.evaluate_every=3",
    "training.keep_last=6",
)


@pytest.fixture
def data_folder() -> Path:
    """The folder of the reference data."""
    return DATA


@pytest.fixture
def tiny_denoiser() -> Callable[..., EDMDenoiser]:
    """Builds small class-conditional denoisers, in eval mode, all of whose weights are random.

    A fresh network ends in a layer that is nearly zero, which would hide almost any mistake.
    """

    def build(seed: int = 0, label_dim: int = 3, channels: int = 1, **options: object) -> EDMDenoiser:
        defaults: dict[str, object] = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
        options = defaults | {"attn_resolutions": []} | options
        denoiser = EDMDenoiser((channels, 8, 8), label_dim, options=options)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
                parameter.copy_(torch.randn(parameter.shape, generator=random) / fan_in**0.5)
        return denoiser.eval()

    return build


@pytest.fixture(scope="session")
def compose_config() -> ComposeConfig:
    """Composes a primary file of ``conf/`` with overrides, as the command line does."""

    def build(name: str, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            return compose(name, list(overrides))

    return build


@pytest.fixture(scope="session")
def train_config(compose_config: ComposeConfig) -> TrainConfig:
    """The configuration of a distillation of six small cycles into a folder, at full learning rate from the first."""

    def build(output: Path, *overrides: str) -> DictConfig:
        return compose_config("train", *SMALL, f"output={output}", *overrides)

    return build


@pytest.fixture(scope="session")
def finished_run(train_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished distillation of six cycles; not to be written to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    distill(train_config(folder))
    return folder
