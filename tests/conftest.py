"""Fixtures for tests of several folders."""

import gzip
import io
import json
import os
import struct
import sys
import tarfile
import tempfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image
from sklearn.datasets import load_digits

from onestep.build.distillation import distill
from onestep.config import compose
from onestep.models.edm.denoiser import EDMDenoiser
from tests.tiny_pipelines import build_pipeline

# The networks of the tests are too small to share among threads, which wait for each other; nor do subprocesses.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# A cache of this session's own.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="onestep_tests_")

ComposeConfig = Callable[..., DictConfig]
TrainConfig = Callable[..., DictConfig]

pytest_plugins = ["tests.fixtures.runs"]

DATA = Path(__file__).parent / "reference"
SMALL = (
    "device=cpu",
    "precision=no",
    "sampler.steps=2",
    "evaluation.samples=32",
    "evaluation.interim_samples=16",
    "evaluation.batch_size=16",
    "evaluation.grid=10",
    "training.total_images=96",
    "training.batch_size=16",
    "fake_score.steps=1",
    "training.warmup_images=0",
    "training.log_every=1",
    "training.checkpoint_every=1",
    "training.evaluate_every=3",
    "training.keep_last=6",
    "training.max_skipped_steps=1",
)


@pytest.fixture
def process_as_it_was() -> Iterator[None]:
    """Restores the global state of accelerate and Hydra, which a profile's subject replaces."""
    states = [state._shared_state for state in (AcceleratorState, PartialState, GradientState)]
    kept, config = [dict(state) for state in states], HydraConfig.instance().cfg
    yield
    for state, values in zip(states, kept, strict=True):
        state.clear()
        state.update(values)
    HydraConfig.instance().cfg = config


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
        return compose(name, overrides)

    return build


@pytest.fixture(scope="session")
def train_config(compose_config: ComposeConfig) -> TrainConfig:
    """The configuration of a distillation of six small iterations into a folder, at full learning rate."""

    def build(output: Path, *overrides: str) -> DictConfig:
        recipe = [] if any(override.startswith("experiment=") for override in overrides) else ["experiment=digits"]
        return compose_config("train", *recipe, *SMALL, f"output={output}", *overrides)

    return build


@pytest.fixture(scope="session")
def finished_run(train_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished distillation of six iterations; read-only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    distill(train_config(folder))
    return folder


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first 60 digits in every format that there is a reader for, grey from 0 to 240, all ten
    classes among them: images.zip, classes/, shards/, idx/, table/ and, for each, the same order."""
    bunch = load_digits()
    pixels, labels = (bunch.images[:60] * 15).astype(np.uint8), bunch.target[:60].tolist()
    order = sorted(range(60), key=lambda index: (labels[index], index))  # by class, as folders sort
    pixels, labels = pixels[order], [labels[index] for index in order]
    folder = tmp_path_factory.mktemp("stores")
    for name in ("shards", "idx"):
        (folder / name).mkdir()
    files = {}
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        file = folder / "classes" / f"digit_{label}" / f"{index:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        files[f"00000/img{index:08d}.png"] = file
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, file in files.items():
            archive.write(file, name)
        archive.writestr("dataset.json", json.dumps({"labels": list(zip(files, labels, strict=True))}))
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"digits-{shard:03d}.tar", "w") as tar:
            for index, file in list(enumerate(files.values()))[30 * shard : 30 * (shard + 1)]:
                for suffix, content in ((".png", file.read_bytes()), (".cls", str(labels[index]).encode())):
                    member = tarfile.TarInfo(f"{index:04d}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    header = struct.pack(">4B3I", 0, 0, 8, 3, 60, 8, 8)
    (folder / "idx" / "train-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    (folder / "idx" / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 60) + bytes(labels))
    )
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files.values()], "label": labels}
    datasets.Dataset.from_dict(rows, features).save_to_disk(folder / "table")
    return folder


class HalvedMeans(torch.nn.Module):
    """The layers of the stand-in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3]) / 2


class InceptionStandIn(torch.nn.Module):
    """The interface of NVIDIA's TorchScript Inception: features are the mean colour, classes its softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = HalvedMeans()

    def forward(self, x: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        means = 2 * self.layers(x.to(torch.float32))
        if return_features:
            return means
        return means.softmax(dim=1)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript file."""
    file = tmp_path_factory.mktemp("inception") / "stand_in.pt"
    torch.jit.script(InceptionStandIn()).save(str(file))
    return file


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of 8 channels with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder := tmp_path_factory.mktemp("dinov2") / "tiny")
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 8 channels with random weights, whose words are a and b."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({"a</w>": 0, "b</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = str(folder / "vocab.json"), str(folder / "merges.txt")
    CLIPTokenizer(*words, model_max_length=8).save_pretrained(folder / "tiny")
    CLIPImageProcessor().save_pretrained(folder / "tiny")
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 4, "max_position_embeddings": 8, "bos_token_id": 2, "eos_token_id": 3}
    vision = small | {"image_size": 8, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).save_pretrained(folder / "tiny")
    return folder / "tiny"


class TorchFidelityStandIn(torch.nn.Module):
    """The interface of torch-fidelity's extractor, which needs torchvision and is not installed for the tests."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048", "logits_unbiased"])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.float().mean((2, 3)), x.float().amax((2, 3))


@pytest.fixture
def other_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for torch-fidelity and clean-fid; the latter's resizing keeps every second pixel."""
    import torchmetrics.image.kid  # noqa: F401 # looks for torch-fidelity as it is imported: before there is a stand-in

    fidelity = {"FeatureExtractorInceptionV3": TorchFidelityStandIn}
    halve = {"clean": lambda image: image[::2, ::2].astype(np.float32)}
    clean = {"build_resizer": halve.__getitem__}
    modules = {"torch_fidelity": {}, "torch_fidelity.feature_extractor_inceptionv3": fidelity}
    for name, content in (modules | {"cleanfid": {}, "cleanfid.resize": clean}).items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline of each kind, built on first use; read-only."""
    root = tmp_path_factory.mktemp("pipelines")
    return lambda kind: root / kind if (root / kind).exists() else build_pipeline(kind, root / kind)
