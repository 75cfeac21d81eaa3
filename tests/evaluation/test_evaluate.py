"""Evaluation: the same samples have the same values in every form, and a value says what it is of."""

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState, PartialState
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from onestep.build.sampling import sample
from onestep.metrics.statistics import Moments
from onestep.models.generator import Generator
from tests.helpers.configs import configure

Evaluate = Callable[..., dict[str, Any]]
ALL = "metrics=[fid,is,kid,prdc]"


@pytest.fixture
def evaluate(finished_run: Path, tmp_path: Path) -> Evaluate:
    """Runs ``sample`` on the finished run, each time into a new folder."""

    def run(*overrides: str) -> dict[str, Any]:
        place = tempfile.mkdtemp(dir=tmp_path, prefix=".drawn")
        return sample(configure("sample", f"run={finished_run}", f"save_to={place}", *overrides))

    return run


def test_every_form_of_the_same_samples_has_the_same_values(evaluate: Evaluate, tmp_path: Path) -> None:
    drawn = evaluate("count=60", "seed=3", ALL, f"save_to={tmp_path / 'png'}")
    evaluate("count=60", "seed=3", "format=npz", f"save_to={tmp_path / 'npz'}", "batch_size=7")
    of_folder = evaluate(f"images={tmp_path / 'png'}", ALL)
    of_array = evaluate(f"images={tmp_path / 'npz' / 'samples.npz'}", ALL)
    metrics = ["fid", "is", "kid", "precision", "recall", "density", "coverage"]
    assert [name for name in drawn if name in metrics] == metrics
    for name in metrics:
        assert of_folder[name] == pytest.approx(drawn[name], rel=1e-6)
        assert of_array[name] == pytest.approx(drawn[name], rel=1e-6)
    assert drawn["fid"] > 1
    for result in (drawn, of_folder, of_array):
        assert [record["seeds"] for record in result["results"]] == [[3, 62]] * 7
    assert drawn["results"][0] == {
        "name": "fid", "metric": "fid", "value": drawn["fid"], "title": "FID", "higher_is_better": False,
        "features": "digits classifier",
        "reference": "Digits, 1,797 images", "samples": 60, "protocol_samples": None, "seeds": [3, 62],
        "network_evaluations": 1, "classes": "10 at random",
    }  # fmt: skip
    assert of_folder["results"][0]["network_evaluations"] is None


def sample_in_a_process(rank: int, config: DictConfig, folder: Path, port: int) -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()  # those of the parent
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    (folder / f"{rank}.json").write_text(json.dumps(sample(config)))


def test_two_processes_share_the_samples(evaluate: Evaluate, finished_run: Path, tmp_path: Path) -> None:
    options = ("count=61", "seed_ranges=2", ALL, "format=npz", "features_cache=null")
    alone = evaluate(*options, f"save_to={tmp_path / 'one'}")
    config = configure("sample", f"run={finished_run}", f"save_to={tmp_path / 'two'}", *options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(sample_in_a_process, (config, tmp_path, port), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    together, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    arrays = [np.load(tmp_path / place / "samples.npz") for place in ("one", "two")]
    assert np.abs(arrays[0]["images"].astype(int) - arrays[1]["images"]).max() <= 1  # batches decide rounding
    assert np.array_equal(arrays[0]["seeds"], arrays[1]["seeds"])
    for name in ("fid", "is", "kid", "precision", "recall", "fid_least_of_2"):
        assert together[name] == pytest.approx(alone[name], rel=1e-4)
    assert [record["seeds"] for record in together["results"]] == [record["seeds"] for record in alone["results"]]
    assert "fid" not in other and other["images"] is None


def test_the_least_of_several_ranges_of_seeds(evaluate: Evaluate) -> None:
    three = evaluate("count=40", "seed_ranges=3", "metrics=[fid,recall]", "format=npz")
    singles = [evaluate("count=40", f"seed={seed}", "metrics=[fid]", "format=npz")["fid"] for seed in (0, 40, 80)]
    assert len(set(singles)) == 3
    assert three["fid"] == singles[0] and three["fid_least_of_3"] == min(singles)
    assert [record["value"] for record in three["results"] if record["name"] == "fid"] == singles
    assert "recall_least_of_3" not in three


def test_an_exported_pipeline(evaluate: Evaluate, finished_run: Path, tmp_path: Path) -> None:
    generator = Generator.from_pretrained(finished_run / "generator")
    generator.denoiser.save_pretrained(tmp_path / "exported" / "denoiser")
    index = {"_class_name": "OneStepPipeline", "sigma_init": generator.sigma_init, "later_sigmas": []}
    (tmp_path / "exported" / "model_index.json").write_text(json.dumps(index))
    pipeline = ("run=null", f"checkpoint={tmp_path / 'exported'}", "data=digits", "features=digits")
    of_pipeline = evaluate(*pipeline, "count=40", ALL)
    assert of_pipeline["fid"] == evaluate("count=40", ALL)["fid"]
    (tmp_path / "exported" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model_index\.json: sigma_init is missing"):
        evaluate("run=null", f"checkpoint={tmp_path / 'exported'}")


def test_a_published_value_needs_its_protocol(inception_file: Path, stores: Path, tmp_path: Path) -> None:
    def run(*overrides: str) -> dict[str, Any]:
        config = configure(
            "sample", f"images={stores / 'classes'}",
            "data=edm_zip", f"data.path={stores / 'images.zip'}", "features=inception",
            f"features.path={inception_file}", f"save_to={tmp_path}",
            f"features.sha256={hashlib.sha256(inception_file.read_bytes()).hexdigest()}", *overrides,
        )  # fmt: skip
        return sample(config)

    with pytest.raises(ValueError, match=r"fid50k needs 50,000 samples, got 60"):
        run("metrics=[fid50k]")
    result = run("metrics=[fid]")
    assert "fid" not in result and result["fid0.06k"] == pytest.approx(0, abs=1e-8)  # the very same images
    assert result["results"][0]["reference"] == "images.zip, 60 images"
    run("metrics=[fid]", f"save_reference={tmp_path / 'ref.npz'}")
    written, expected = Moments.load(tmp_path / "ref.npz"), Moments.of(features_of(stores))
    torch.testing.assert_close(written.mean, expected.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(written.covariance, expected.covariance, rtol=1e-5, atol=0)
    by_moments = run("metrics=[fid]", f"reference={tmp_path / 'ref.npz'}")
    assert by_moments["fid0.06k"] == pytest.approx(0, abs=1e-8)
    assert by_moments["results"][0]["reference"] == "ref.npz"


def features_of(stores: Path) -> Tensor:
    """The stand-in's features of the stored digits: the mean pixel, three times."""
    means = [np.asarray(Image.open(path), np.float32).mean() for path in sorted((stores / "classes").rglob("*.png"))]
    return torch.tensor(np.array(means))[:, None].expand(-1, 3)


def test_what_cannot_be_evaluated(evaluate: Evaluate, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images=.*expected metrics"):
        evaluate(f"images={tmp_path}")
    with pytest.raises(ValueError, match="it has no images"):
        evaluate(f"images={tmp_path}", "metrics=[fid]")
    for name, arrays, message in (
        ("other", {"x": np.zeros(3)}, "its arrays are x, expected images"),
        ("floats", {"images": np.zeros((3, 8, 8, 1))}, r"got float64 \(3, 8, 8, 1\)"),
        ("pickled", {"images": np.array([{}], dtype=object)}, "images.npy holds object, expected numbers"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            evaluate(f"images={tmp_path / name}.npz", "metrics=[fid]")
    shutil.copy(tmp_path / "other.npz", tmp_path / "cut.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cut\.npz: no .npz of images"):
        evaluate(f"images={tmp_path / 'cut.npz'}", "metrics=[fid]")
    for name in ("rgb.png", "rgb_2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"the samples have the shape \(3, 8, 8\) .* the reference \(1, 8, 8\)"):
        evaluate(f"images={tmp_path}", "metrics=[fid]")
