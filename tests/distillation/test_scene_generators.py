"""A generator of scenes as the student of a distillation: objectives, resumption, samples, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import onestep
from onestep.build.distillation import build_distillation, distill
from onestep.build.sampling import sample
from onestep.data.classes import ClassSubset
from onestep.export.export import export
from onestep.models.scene import generator
from onestep.models.scene.generator import SceneGenerator
from onestep.seeding import seeded_inputs
from tests.helpers.configs import TINY, configure, refused, tiny_config
from tests.helpers.killed_run import assert_same_checkpoint, distill_until_iteration_5
from tests.helpers.scripts import run_python

AMBIGRAMS = ("experiment=ambigrams",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of six iterations."""
    folder = tmp_path_factory.mktemp("ambigrams") / "run"
    distill(tiny_config(folder, *AMBIGRAMS, "terms=[sparsity]"))
    return folder


def test_the_files_of_a_run(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["student"].keys() >= {"fid", "recall"} and summary["student"]["network_evaluations"] == 1
    assert summary["results"]["student"][0]["classes"] == "3 of 10 in turn"
    assert summary["views"].keys() == {"student", "mesh", "initial", "hull", "teacher", "azimuth", "elevation"}
    assert all(0 < of_view["pixel_distance"] < 1 for of_view in summary["views"]["student"].values())
    assert all(of_view["pixel_distance"] == 0 for of_view in summary["views"]["initial"].values())  # balls
    one = onestep.SceneGenerator.from_pretrained(finished / "generator")
    density = torch.from_numpy(np.load(finished / "density.npz")["density"])
    torch.testing.assert_close(density, one.draw(64).density, rtol=0, atol=1e-5)
    with Image.open(finished / "objects.png") as picture:
        assert picture.size == (10 * 100, 3 * 100)
    raw = load_file(finished / "generator_raw" / "scene_generator.safetensors")
    assert all((raw[name] - value).abs().max() > 0 for name, value in one.state_dict().items())  # the average


@pytest.mark.parametrize(
    "objective, ratio",
    [
        (("objective=f_distill", "divergence=forward_kl"), True),
        (("objective=uni_instruct", "divergence=jensen_shannon"), True),
        (("objective=f_distill", "divergence=reverse_kl"), False),
        (("objective=vsd",), False),
        (("objective=sid",), False),
        (("objective=f_distill", "divergence=reverse_kl", "generator.gan_weight=0.1"), True),
    ],
)
def test_objectives_of_solids_without_end(objective: Sequence[str], ratio: bool, tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, *AMBIGRAMS, *objective, "features=none", "metrics=[]"))
    assert isinstance(parts.student, SceneGenerator) and parts.student.classes == [3, 7, 4]
    assert (parts.method.discriminator is not None) == ratio and isinstance(parts.data, ClassSubset)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("shard=true",), "shard=true: the grid of a scene is not sharded"),
        (("student.scene.objects=2",), "student: scene.objects=2: expected 1, as the noise draws the solids"),
        (("student.scene.image_shape=[1,16,16]",), "the student does not fit the data: resolution [16, 16] against"),
        (("terms=[total_variation]",), "terms.total_variation: it is a regulariser of a Scene or ColouredScene"),
        (("student.widths=[]",), "student.widths=[]: expected"),
        (("generator.sigma_init=0.5",), "generator.sigma_init=0.5 has no effect: student=... replaces the generator"),
    ],
)  # fmt: skip
def test_what_it_cannot_do(overrides: Sequence[str], message: str, tmp_path: Path) -> None:
    found = refused(tiny_config(tmp_path, *AMBIGRAMS, *overrides))
    assert found.replace("(", "[").replace(")", "]").startswith(message) and "\n" not in found


def test_a_resumed_run_is_the_same(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*AMBIGRAMS, "terms=[sparsity]", "training.checkpoint_every=3", "features=none", "metrics=[]")
    distill_until_iteration_5(monkeypatch, tiny_config(tmp_path, *overrides))
    distill(tiny_config(tmp_path, *overrides, "resume=auto"))
    assert_same_checkpoint(*(folder / "checkpoints" / "iteration_00000006" for folder in (finished, tmp_path)))


def test_samples_of_a_generator(finished: Path, tmp_path: Path) -> None:
    asked = configure("sample", f"run={finished}", "count=4", "classes=[7]", "format=npz", f"save_to={tmp_path / 's'}")
    assert sample(asked)["count"] == 4
    images = np.load(next((tmp_path / "s").rglob("*.npz")))["images"]
    one = SceneGenerator.from_pretrained(finished / "generator")
    renders = one(*seeded_inputs([0, 1, 2, 3], one.noise_shape, 10, [7])).detach().permute(0, 2, 3, 1)
    assert np.abs(images - (renders.numpy() + 1) * 127.5).max() <= 0.51  # rounded to grey levels
    other = configure("sample", f"run={finished}", "classes=[3,5]", f"save_to={tmp_path / 'other'}")
    assert refused(other, sample).startswith("classes=[3, 5]: [5] have no view in this scene, [3, 7, 4] have")


def test_export_of_a_generator(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the densities of the first seeds, and their meshes if the extra is installed."""
    monkeypatch.setattr(generator, "_SOLIDS", 2)
    export(finished, tmp_path / "exported")
    one = SceneGenerator.from_pretrained(tmp_path / "exported")
    stored = np.load(tmp_path / "exported" / "density.npz")
    np.testing.assert_allclose(stored["density"], one.draw(2).density.detach().numpy(), rtol=1e-5)
    assert stored["level"].shape == (2,)


@pytest.mark.slow
def test_two_processes_train_the_same_generator(tmp_path: Path) -> None:
    """Each renders half of a batch; the gradients differ by the order of a sum."""
    program = "import sys\nfrom onestep.build.distillation import distill\nfrom onestep.config import compose\n"
    (tmp_path / "run.py").write_text(program + 'distill(compose("train", sys.argv[1:]))\n')
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "run.py"))
    overrides = (*AMBIGRAMS, *TINY)
    ended = run_python(*launch, *overrides, f"output={tmp_path / 'two'}")
    assert ended.returncode == 0, ended.stderr
    distill(configure("train", *overrides, f"output={tmp_path / 'one'}"))
    two, one = (SceneGenerator.from_pretrained(tmp_path / name / "generator_raw") for name in ("two", "one"))
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=0, atol=1e-4)
