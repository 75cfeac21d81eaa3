"""A scene as the student of a distillation: objectives, classes, regularisers, resumption, and the verdict."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from onestep.build.distillation import build_distillation, distill
from onestep.build.sampling import sample
from onestep.data.classes import ClassSubset
from onestep.data.digits import Digits
from onestep.distillation import report
from onestep.distillation.loop import updates
from onestep.engine.batches import Batches
from onestep.evaluation import turns, views
from onestep.evaluation.turns import shares_by_angle
from onestep.evaluation.views import ViewsReport, best_hull
from onestep.export.export import export
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier
from onestep.models.scene.hull import visual_hull
from onestep.models.scene.mesh import surface_levels
from onestep.models.scene.scene import Scene
from onestep.noise import AnnealedSigma
from onestep.objectives.scenes import Opacity, Sparsity, TotalVariation
from onestep.objectives.terms import GeneratorTerm, TermInputs
from onestep.profiling.subject import Subject
from onestep.seeding import BatchRandom, one_hot, seeded_inputs
from tests.helpers.configs import TINY, configure, refused, tiny_config
from tests.helpers.killed_run import assert_same_checkpoint, distill_until_iteration_5
from tests.helpers.scenes import FRONT, VIEWS, scene
from tests.helpers.scripts import run_python

AMBIGRAM = ("experiment=ambigram",)
ANNEALED = ("sigma=annealed", "sigma.sigma_end=0.5", "sigma@fake_sigma=annealed", "fake_sigma.sigma_end=1")
SHORT = ("training.total_images=48", "training.evaluate_every=2", "training.checkpoint_every=3")


def no_teacher(*inputs: object) -> Tensor:
    raise AssertionError("one object is not compared with a teacher")


def config(output: Path, *overrides: str) -> object:
    return tiny_config(output, *AMBIGRAM, *overrides)


@pytest.fixture
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write no pictures and judge few renders, which take longer than what is tested."""
    for module, name, count in ((views, "_RENDERS", 20), (views, "_TRIED", 10), (turns, "_RENDERS", 1)):
        monkeypatch.setattr(module, name, count)
    for module, name in (
        (report, "save_curves"), (report, "save_side_by_side"), (views, "save_turntable"), (views, "save_views"),
        (views, "save_turns"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of six iterations."""
    folder = tmp_path_factory.mktemp("ambigram") / "run"
    distill(tiny_config(folder, *AMBIGRAM, *ANNEALED, "terms=[sparsity,total_variation]"))
    return folder


def test_the_files_of_a_run(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["views"].keys() == {"student", "mesh", "initial", "hull", "azimuth", "elevation"}
    for verdict in summary["views"].values():
        assert verdict.keys() == {"3", "4", "7"}
        assert all(0 <= value <= 1 for of_view in verdict.values() for value in of_view.values())
    # The hull of real digits, which six iterations are far from; nobody takes a ball for a 3.
    assert min(of_view["accuracy"] for of_view in summary["views"]["hull"].values()) > 0.75
    assert summary["views"]["initial"]["3"]["accuracy"] < 0.1
    solid = Scene.from_pretrained(finished / "generator")
    assert torch.equal(torch.from_numpy(np.load(finished / "density.npz")["density"]), solid.density.detach())
    assert torch.equal(torch.from_numpy(np.load(finished / "density.npz")["level"]), surface_levels(solid))
    if find_spec("skimage") and find_spec("trimesh"):
        assert (finished / "mesh.glb").read_bytes()[:4] == b"glTF" and (finished / "mesh.ply").is_file()
    with Image.open(finished / "turns.png") as picture:
        assert picture.size == (900, 300)
    with Image.open(finished / "turntable.gif") as picture:
        assert picture.size == (96, 96) and getattr(picture, "n_frames", 1) > 50
    with Image.open(finished / "views.png") as picture:
        assert picture.size == (10 * 100, 3 * 100)
    raw = load_file(finished / "generator_raw" / "scene.safetensors")["logits"]
    assert (raw - solid.logits).abs().max() > 1e-3  # the average


@pytest.mark.parametrize("objective", ["sds", "diff_instruct", "sim", "sid"])
def test_objectives_of_one_scene(objective: str, tmp_path: Path) -> None:
    parts = build_distillation(config(tmp_path, f"objective={objective}", "features=none"))  # type: ignore[arg-type]
    assert len(parts.student.logits) == 1 and parts.method.discriminator is None
    assert (parts.method.fake_score is None) == (objective == "sds")
    assert isinstance(parts.data, ClassSubset) and len(parts.data) == 183 + 179 + 181


@pytest.mark.parametrize("data", ["digits", "none"])
@pytest.mark.usefixtures("quick_report")
def test_only_classes_with_a_view_are_drawn(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By training, interim evaluation, grids and diagnosis; a scene refuses the others."""
    drawn = set()
    cameras = Scene.cameras

    def record(solid: Scene, latents: Tensor, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        drawn.update(condition["labels"].argmax(1).tolist())
        return cameras(solid, latents, condition)

    monkeypatch.setattr(Scene, "cameras", record)
    options = ("generator.labels=uniform", "diagnosis.samples=16", "objective=sds", "features=none", f"data={data}")
    distill(config(tmp_path, *SHORT, *options))  # type: ignore[arg-type]
    assert drawn == {3, 4, 7}


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("objective=f_distill", "discriminator=teacher_features", "divergence=jensen_shannon"),
         "student.objects=1: this divergence needs the ratio p/q of densities"),
        (("objective=uni_instruct", "discriminator=teacher_features", "divergence=forward_kl"),
         "student.objects=1: this divergence needs the ratio p/q of densities"),
        (("objective=sds", "discriminator=teacher_features", "generator.gan_weight=0.1"),
         "student.objects=1: generator.gan_weight > 0 learns the ratio p/q of densities"),
        (("shard=true",), "shard=true: the grid of a scene is not sharded"),
        (("student.image_shape=[1,16,16]",), "the student does not fit the data: resolution [16, 16] against [8, 8]"),
        (("student.label_dim=9",), "the student does not fit the data: classes 9 against 10"),
        (("student.distance=1",), "student.distance=1: expected a number above 1.75"),
        (("generator.sigma_init=0.5",), "generator.sigma_init=0.5 has no effect: student=... replaces the generator"),
        (("generator.frozen=[*]",), "generator.frozen"),
        (("generator.dropout=0.1",), "generator.dropout"),
        (("terms=[haar]",), "terms=[haar] compare a sample with the ground truth"),
        (("pairs=teacher", "generator.regression_weight=1"), "pairs: their noise has the teacher's shape (1, 8, 8)"),
    ],
)  # fmt: skip
def test_what_a_scene_cannot_do(overrides: Sequence[str], message: str, tmp_path: Path) -> None:
    found = refused(config(tmp_path, *overrides))  # type: ignore[arg-type]
    assert found.replace("(", "[").replace(")", "]").startswith(message.replace("(", "[").replace(")", "]"))
    assert "\n" not in found


def test_annealed_levels_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares of the distributions in each iteration: first the critics' levels, then the generator's."""
    parts = build_distillation(config(tmp_path, *ANNEALED, "features=none"))  # type: ignore[arg-type]
    shares = []
    draw = BatchRandom.sigma

    def record(random: BatchRandom, distribution: AnnealedSigma) -> Tensor:
        shares.append(distribution.share)
        return draw(random, distribution)

    monkeypatch.setattr(BatchRandom, "sigma", record)
    data = next(Batches(parts.run, parts.settings, parts.data).start_at(0))
    for iteration in (0, 3):  # of six
        list(updates(parts, iteration, parts.run.random(parts.settings, iteration), data))

    def root(sigma: float) -> float:
        return sigma ** (1 / 7) - parts.method.teacher.sigma_min ** (1 / 7)

    assert shares == pytest.approx([1, 1, (1 + root(1) / root(2)) / 2, (1 + root(0.5) / root(2)) / 2])


@pytest.mark.usefixtures("quick_report")
@pytest.mark.parametrize("objective", ["f_distill", "uni_instruct"])
def test_several_objects_have_a_ratio(objective: str, tmp_path: Path) -> None:
    many = ("student.objects=4", "student.randomness=0.1", "discriminator=teacher_features", "features=none")
    choice = (f"objective={objective}", "divergence=jensen_shannon", "training.total_images=16")
    summary = distill(config(tmp_path, *choice, *many))  # type: ignore[arg-type]
    assert summary["images_seen"] == 16 and summary["views"] == {}  # without a classifier
    with Image.open(tmp_path / "objects.png") as picture:
        assert picture.size == (4 * 100, 3 * 100)


@pytest.mark.usefixtures("quick_report")
def test_the_variety_of_several_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The objects begin nearly equal, and the teacher's samples of a class differ, even of two steps."""
    many = ("student.objects=4", "student.randomness=0.1", "training.total_images=16", "objective=sds")
    found = distill(config(tmp_path, *many))["views"]  # type: ignore[arg-type]
    assert found.keys() == {"student", "mesh", "initial", "hull", "teacher", "azimuth", "elevation"}
    assert "pixel_distance" not in found["hull"]["3"]
    for label in ("3", "7", "4"):
        assert 0 < found["initial"][label]["pixel_distance"] < 0.03 < 0.3 < found["teacher"][label]["pixel_distance"]
    assert "mean distance of two objects in a view: of pixels, of" in " ".join(capsys.readouterr().out.split())


def test_regularisers_of_other_students(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "terms=[opacity]"))
    assert message.startswith(
        "terms.opacity: it is a regulariser of a Scene or SceneGenerator, and the student is a Generator"
    )


@pytest.mark.parametrize(
    "term, expected",
    [
        (Sparsity(1.0), [(0.01**0.5 + 0.26**0.5 + 2 * 1.01**0.5) / 4, 0.1]),
        (Opacity(1.0), [float(np.log(2)) / 4, 0.0]),  # one pixel of four is half transparent
        # Neighbours along x differ by 4 and 4, of which 3 x 9 differences of pairs of 2 are the mean.
        (TotalVariation(1.0), [4.0, 4.0]),
    ],
)
def test_values_of_the_regularisers(term: GeneratorTerm, expected: list[float]) -> None:
    solid = scene(size=3).requires_grad_(False)
    depths = torch.zeros(1, 3, 3, 3)
    depths[..., 1] = 4.0
    opacities = torch.tensor([[[[0.0, 0.5], [1.0, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    inputs = TermInputs(solid.with_depths(depths), 2 * opacities - 1, None, {}, None, None, {}, None)
    assert term.losses(inputs).tolist() == pytest.approx(expected, abs=2e-3)


@pytest.mark.usefixtures("quick_report")
def test_a_resumed_scene_is_the_same(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annealed noise levels too."""
    same = (*AMBIGRAM, *ANNEALED, "terms=[sparsity,total_variation]", "training.checkpoint_every=3", "features=none")
    distill_until_iteration_5(monkeypatch, tiny_config(tmp_path, *same))
    distill(tiny_config(tmp_path, *same, "resume=auto"))
    assert_same_checkpoint(*(folder / "checkpoints" / "iteration_00000006" for folder in (finished, tmp_path)))


def test_samples_of_a_scene(finished: Path, tmp_path: Path) -> None:
    result = sample(configure("sample", f"run={finished}", "count=6", f"save_to={tmp_path / 'samples'}", "format=npz"))
    assert result["count"] == 6
    again = configure("sample", f"checkpoint={finished / 'generator'}", "count=2", "classes=[7]", "format=npz")
    again.save_to = str(tmp_path / "again")
    sample(again)
    images = [np.load(next((tmp_path / name).rglob("*.npz")))["images"] for name in ("samples", "again")]
    assert images[0].shape == (6, 8, 8, 1) and np.array_equal(images[0][1], images[1][1])  # seed 1 is of class 7
    asked = configure("sample", f"run={finished}", "classes=[3,5]", f"save_to={tmp_path / 'other'}")
    assert refused(asked, sample).startswith("classes=[3, 5]: [5] have no view in this scene, [3, 7, 4] have")


def test_export_of_a_scene(finished: Path, tmp_path: Path) -> None:
    """The scene itself, with its densities, and its mesh if the extra is installed."""
    export(finished, tmp_path / "exported", weights="raw")
    loaded, raw = (Scene.from_pretrained(folder) for folder in (tmp_path / "exported", finished / "generator_raw"))
    assert torch.equal(loaded.logits, raw.logits)
    stored = np.load(tmp_path / "exported" / "density.npz")
    assert np.array_equal(stored["density"], raw.density.detach().numpy()) and stored["level"].shape == (1,)
    written = {path.name for path in (tmp_path / "exported").iterdir()} - {"mesh.ply", "mesh.glb"}
    assert written == {"scene.json", "scene.safetensors", "density.npz"}


def test_a_scene_has_no_network_to_measure(process_as_it_was: None) -> None:
    with pytest.raises(ValueError, match="a Scene has no network to be measured"):
        Subject("digits", [*AMBIGRAM], 4)


def test_a_hull_shows_nothing_but_its_images() -> None:
    """Of compatible images the hull shows all, and of others a part."""
    box = torch.zeros(8, 8, 8)
    box[1:3, 2:7, 3:5] = 1.0  # z, y, x
    solid = scene(classes=[3, 7, 4], views=VIEWS, oversampling=1).requires_grad_(False)
    numbers = torch.zeros(3, dtype=torch.long)

    def views_of(depths: Tensor) -> Tensor:
        renders = solid.with_depths(depths[None]).render(torch.tensor(VIEWS), torch.zeros(3, 2), numbers)
        return ((renders[:, 0] + 1) / 2).round()

    shadows = views_of(100 * box)
    assert [int(shadow.sum()) for shadow in shadows] == [10, 10, 4]
    assert torch.equal(visual_hull(shadows[None], VIEWS, 8)[0], box)
    rng = torch.Generator().manual_seed(0)
    images = (torch.rand(3, 8, 8, generator=rng) < 0.5).float()
    seen = views_of(100 * visual_hull(images[None], VIEWS, 8)[0])
    assert (seen <= images).all() and 0 < (images - seen).sum() < 30


def test_the_verdict_of_an_extruded_digit() -> None:
    """A real 3, as deep as the cube, is a 3 from the front."""
    digits = Digits()
    assert digits.labels is not None
    three = digits.images[digits.labels[:, 3] == 1][0, 0]
    solid = scene(classes=[3], views=[FRONT], jitter=[5, 5, 5], shift=0.05).requires_grad_(False)
    depths = -torch.log1p(-((three + 1) / 2).clamp(max=0.98)) / 8
    report = ViewsReport(load_classifier("digits"), None, no_teacher)
    verdict = report.judge(solid.with_depths(depths.expand(1, 8, 8, 8)))
    assert verdict["3"]["accuracy"] > 0.95 and verdict["3"]["probability"] > 0.9
    # From the front, as a mirror image, as a bar, and from above.
    shares = shares_by_angle(solid.with_depths(depths.expand(1, 8, 8, 8)), load_classifier("digits"))
    assert {angle: share for angle, share in shares["azimuth"]["3"].items() if int(angle) % 90 == 0} == {
        "0": 1.0, "90": 0.0, "180": 0.0,
    }  # fmt: skip
    assert shares["elevation"]["3"]["0"] == 1 and shares["elevation"]["3"]["90"] == 0
    turned = scene(classes=[3], views=[[35, 0, 0]], jitter=[0, 5, 5], shift=0.05).requires_grad_(False)
    renders = turned.with_depths(depths.expand(1, 8, 8, 8))(*seeded_inputs(list(range(20)), (6,), 10, [3]))
    named = load_classifier("digits").classify(to_uint8(renders)).argmax(1) == 3
    assert shares["azimuth"]["3"]["35"] == named.double().mean() > 0.5 > shares["elevation"]["3"]["35"]
    assert [len(shares[name]["3"]) for name in ("azimuth", "elevation")] == [37, 19]
    empty = report.judge(solid.with_depths(torch.zeros(1, 8, 8, 8)))
    assert empty["3"]["accuracy"] == 0 and empty["3"]["probability"] < 0.1


def test_images_of_some_classes() -> None:
    subset = ClassSubset(Digits(), [7, 3])
    images, condition = subset.__getitems__(range(len(subset)))
    assert {*condition["labels"].argmax(1).tolist()} == {3, 7} and subset.class_cycle == [3, 7]
    assert len(images) == 183 + 179 and subset.fingerprint() != Digits().fingerprint()
    best = best_hull(scene().requires_grad_(False), subset)
    assert best.logits.shape == (1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"no images of the classes \[4\]"):
        ClassSubset(subset, [3, 4])
    assert one_hot(3, 10).shape == (10,)


PROCESS = """
import sys
from onestep.build.distillation import distill
from onestep.config import compose
distill(compose("train", sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_train_the_same_scene(tmp_path: Path) -> None:
    """Each renders half of a batch; the gradients differ by the order of a sum."""
    (tmp_path / "run.py").write_text(PROCESS)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "run.py"))
    overrides = (*AMBIGRAM, *TINY)
    finished = run_python(*launch, *overrides, f"output={tmp_path / 'two'}")
    assert finished.returncode == 0, finished.stderr
    distill(configure("train", *overrides, f"output={tmp_path / 'one'}"))
    two, one = (Scene.from_pretrained(tmp_path / name / "generator_raw").logits for name in ("two", "one"))
    start = Scene.from_pretrained(tmp_path / "one" / "generator").initial().logits
    assert (one - start).abs().max() > 0.1
    torch.testing.assert_close(two, one, rtol=0, atol=1e-3)
    found = [json.loads((tmp_path / name / "summary.json").read_text())["views"] for name in ("two", "one")]
    assert found[0]["hull"] == found[1]["hull"]
