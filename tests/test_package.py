"""The package's requirements and files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from onestep.assets import ASSETS
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier
from onestep.models.loading import load_generator, load_teacher
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs
from tests.helpers.configs import CPU
from tests.helpers.paths import REPOSITORY
from tests.helpers.scripts import run_python

# None in sys.modules makes an import fail, as for a package that is not installed.
IMPORT_EVERYTHING = """
import gc, importlib, pkgutil, sys
gc.disable()
absent = ("torchvision", "wandb", "tensorboard", "xformers")
sys.modules.update(dict.fromkeys(absent))
import onestep
names = [module.name for module in pkgutil.walk_packages(onestep.__path__, "onestep.")]
for name in names:
    importlib.import_module(name)
assert all(sys.modules[name] is None for name in absent)
print(len(names))
"""


def test_every_module_imports_without_the_optional_packages() -> None:
    finished = run_python("-c", IMPORT_EVERYTHING)
    assert finished.returncode == 0, finished.stderr
    files = [file for file in (REPOSITORY / "onestep").rglob("*.py") if file.parent != REPOSITORY / "onestep"]
    assert int(finished.stdout) >= len(files)


@pytest.mark.slow
def test_an_installed_wheel_runs_in_an_empty_folder(tmp_path: Path) -> None:
    build = "import sys\nfrom hatchling.build import build_wheel\nbuild_wheel(sys.argv[1])"
    pytest.importorskip("hatchling")  # of the extra test
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=REPOSITORY, check=True)
    (wheel,) = tmp_path.glob("onestep-0.1.0-*.whl")
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def onestep(*arguments: str) -> str:
        finished = subprocess.run(
            [str(target / "bin" / "onestep"), *arguments],
            capture_output=True, text=True, timeout=600, cwd=folder, env=environment,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    onestep("train", CPU, "training.total_images=256", "sampler.steps=2", "evaluation.samples=64",
            "evaluation.interim_samples=64", "hydra.run.dir=run")  # fmt: skip
    assert json.loads((folder / "run" / "summary.json").read_text())["images_seen"] == 256
    onestep("sample", "run=run", "count=2", "hydra.run.dir=images", CPU)
    onestep("export", "run", "exported")
    assert (folder / "images" / "000001.png").is_file() and (folder / "exported" / "README.md").is_file()
    files = {str(file.relative_to(target / "onestep")) for file in (target / "onestep").rglob("*.*")}
    ours = REPOSITORY / "onestep"
    assert {str(file.relative_to(ours)) for file in ours.rglob("*.*") if "__pycache__" not in str(file)} <= files


def test_the_assets_are_small_and_hold_no_pickle() -> None:
    files = [file for file in ASSETS.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {str(file.relative_to(ASSETS)) for file in files} >= {
        "digits/config.json",
        "digits/diffusion_pytorch_model.safetensors",
        "digits_features.safetensors",
        "fashion/config.json",
        "fashion/diffusion_pytorch_model.safetensors",
        "emoji/emoji.parquet",
        "emoji/LICENSE",
        "emoji/model_index.json",
        "emoji/agreement/model.safetensors",
        "emoji/text_encoder/model.safetensors",
        "emoji/unet/diffusion_pytorch_model.safetensors",
        "fashion_features.safetensors",
        "generators/emoji/diffusion_pytorch_model.safetensors",
        "generators/fashion/config.json",
        "generators/fashion/diffusion_pytorch_model.safetensors",
        "generators/fashion/generator.json",
        "generators/photographs/config.json",
        "generators/photographs/diffusion_pytorch_model.safetensors",
        "generators/photographs/generator.json",
        "invertible/photographs/config.json",
        "invertible/photographs/model.safetensors",
    }
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".py", ".parquet", ""}
    assert sum(file.stat().st_size for file in files) < 24e6
    assert (ASSETS / "digits" / "diffusion_pytorch_model.safetensors").stat().st_size < 4e6


def test_the_bundled_teacher_is_float32_and_of_the_digits() -> None:
    config = json.loads((ASSETS / "digits" / "config.json").read_text())
    assert (config["image_shape"], config["label_dim"]) == ([1, 8, 8], 10)
    with safe_open(ASSETS / "digits" / "diffusion_pytorch_model.safetensors", "pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    assert all(str(tensor.dtype) == "torch.float32" and bool(tensor.isfinite().all()) for tensor in tensors)


def test_the_bundled_fashion_networks_agree_on_what_a_class_is() -> None:
    """The classifier names the classes of the teacher's and the generator's samples."""
    latents, condition = seeded_inputs(list(range(50)), (1, 32, 32), label_dim=10, classes=list(range(10)))
    classifier = load_classifier("fashion")
    assert classifier.config["held_out_accuracy"] > 0.9
    with torch.no_grad():
        drawn = {
            "teacher": HeunSampler(8, 0.002, 80.0)(load_teacher("fashion", guidance=1.0), latents, condition),
            "generator": load_generator("fashion")(latents, condition),
        }
    for name, images in drawn.items():
        right = classifier.classify(to_uint8(images)).argmax(1) == condition["labels"].argmax(1)
        assert right.double().mean() > 0.7, name  # of the real images 0.9, by chance 0.1
