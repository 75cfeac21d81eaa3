"""Super-resolution of the digits by the two recipes, for a few iterations, and the fidelity of what they make."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from onestep.build.distillation import build_distillation, distill
from onestep.build.pretraining import pretrain
from onestep.build.sampling import sample
from onestep.data.paired import PairedImages
from tests.helpers.configs import NO_DIAGNOSIS, TINY, TWO_ITERATIONS, as_given, configure

METRICS = ["fid", "psnr_rgb", "consistency", "seed_spread"]
FEW = (*TINY, *TWO_ITERATIONS, "evaluation.samples=24", "evaluation.interim_metrics=[fid]")


@pytest.fixture(scope="module")
def few(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight of the digits."""
    folder = tmp_path_factory.mktemp("few")
    for file in sorted((stores / "classes").glob("*/*.png"))[::8]:
        shutil.copy(file, folder / file.name)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Path:
    """The run of the recipe of the teacher."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    pretrain(configure("pretrain", "experiment=pretrain/digits_sr", *FEW, *of_eight(few), f"output={folder}"))
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, few: Path, teacher: Path) -> Path:
    """The run of the recipe of the student."""
    folder = tmp_path_factory.mktemp("student") / "run"
    distill(config_of(teacher, few, f"output={folder}"))
    return folder


def of_eight(few: Path) -> list[str]:
    return ["+data@data.evaluation=image_folder", f"data.evaluation.path={few}", "data.evaluation.use_labels=false"]


def config_of(teacher: Path, few: Path, *overrides: str) -> Any:
    recipe = ("experiment=digits_sr", f"teacher.path={teacher / 'teacher'}", *FEW, *NO_DIAGNOSIS, "fake_score.steps=1")
    return as_given(configure("train", *recipe, *of_eight(few), *overrides), overrides)


def test_a_summary_has_the_fidelity_beside_the_distance(teacher: Path, student: Path) -> None:
    found = json.loads((student / "summary.json").read_text())
    assert json.loads((teacher / "summary.json").read_text())["teacher"].keys() >= {*METRICS}
    for side in ("teacher", "student"):
        values = found[side]
        assert values.keys() >= {*METRICS, "recall"}
        assert 3 < values["psnr_rgb"] < 30 and 0 < values["consistency"] < 128 and values["seed_spread"] > 1
    of_psnr = next(record for record in found["results"]["student"] if record["metric"] == "psnr_rgb")
    assert of_psnr["title"] == "PSNR of all channels, peak 255, border 0" and of_psnr["samples"] == 24
    record = json.loads((student / "generator" / "generator.json").read_text())
    assert (record["start"], record["upscale_factor"], record["sigma_init"]) == ("image", 2, 0.5)


def test_samples_of_a_run_restore_its_images(student: Path, tmp_path: Path) -> None:
    """Its record names the data; drawn in any form, samples have the same values."""
    drawn = sample(
        configure("sample", f"run={student}", "count=16", f"save_to={tmp_path / 'png'}", f"metrics={METRICS}")
    )
    files = sample(configure("sample", f"run={student}", f"images={tmp_path / 'png'}", f"metrics={METRICS}"))
    summary = json.loads((student / "summary.json").read_text())
    for name in METRICS:
        assert files[name] == pytest.approx(drawn[name], rel=1e-5)
    assert drawn["psnr_rgb"] == pytest.approx(summary["student"]["psnr_rgb"], rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("classes=[1]",), r"^classes=\[1\]: samples have the classes of the images: set classes=null"),
        (
            ("data=digits", "data.use_labels=false"),
            "^a network that takes degraded images needs them: set run=",
        ),
        (
            ("data=digits", "metrics=[psnr_rgb]"),
            "^metrics: psnr_rgb compares samples with what they restore",
        ),
    ],
)
def test_what_a_sampling_refuses(overrides: tuple[str, ...], message: str, student: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sample(configure("sample", f"run={student}", "count=4", f"save_to={tmp_path}", *overrides))


def test_fidelity_of_a_network_that_does_not_see_the_image(tmp_path: Path) -> None:
    paired = ("data=paired", "data@data.images=digits", "degradation=area", "metrics=[psnr_rgb]")
    network = ("model=teacher", "teacher=digits", "sampler=euler", "sampler.steps=2", "count=4", "features=digits")
    with pytest.raises(ValueError, match="what they restore, and this network takes no degraded images: re"):
        sample(configure("sample", *network, *paired, f"save_to={tmp_path}"))


def test_pairs_of_the_teacher_are_of_the_training(teacher: Path, few: Path, tmp_path: Path) -> None:
    """What is kept for the evaluation plays no part in the regression."""
    chosen = ("pairs=teacher", "pairs.count=9", "pairs.batch_size=9", f"pairs.cache={tmp_path}")
    config = config_of(teacher, few, *chosen, "generator.regression_weight=1", f"output={tmp_path / 'run'}")
    parts = build_distillation(config)
    assert isinstance(parts.data, PairedImages) and parts.pairs is not None
    assert torch.equal(parts.pairs.condition["image"], parts.data.__getitems__(range(9))[1]["image"])
    assert not torch.equal(parts.pairs.condition["image"][:8], parts.space.inputs(range(8))[1]["image"])


def test_a_spread_of_one_sample_of_each_image_is_refused(teacher: Path, few: Path, tmp_path: Path) -> None:
    """Before the training; the interim metrics do not include it."""
    pairs = len(list(few.iterdir()))
    config = config_of(teacher, few, f"evaluation.samples={pairs}", f"output={tmp_path / 'run'}")
    with pytest.raises(ValueError, match=f"seed_spread needs at least {pairs + 1} samples, got {pairs}"):
        build_distillation(config)
    more = (f"evaluation.samples={pairs + 1}", f"evaluation.interim_samples={pairs}", f"output={tmp_path / 'more'}")
    build_distillation(config_of(teacher, few, *more))
