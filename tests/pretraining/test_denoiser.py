"""Small complete pretrainings: a teacher, with and without augmentation, and a feature network."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onestep.build.pretraining import pretrain, pretrain_features
from onestep.config import instantiate
from onestep.data.dataset import PositionSampler
from onestep.data.digits import Digits
from onestep.data.idx import IDXImages
from onestep.engine.log import read_log
from onestep.evaluation.of_run import RunEvaluator
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier
from onestep.metrics.result import Measurement
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.loading import load_teacher
from onestep.noise import add_noise
from onestep.pretraining import denoiser
from onestep.reports.plots import save_curves
from onestep.seeding import BatchRandom
from tests.helpers.configs import configure, tiny_pretraining


def test_a_teacher_is_kept_and_scored(tmp_path: Path) -> None:
    overrides = ("evaluation.seed_ranges=2", "evaluation.interim_metrics=[fid]")
    summary = pretrain(tiny_pretraining(tmp_path, *overrides))
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    of_run = [line for line in read_log(tmp_path / "log.jsonl") if "fid" in line]
    assert [line["iteration"] for line in of_run] == [3, 6] and not any("recall" in line for line in of_run)
    best = min(of_run, key=lambda line: line["fid"])
    assert summary["images_seen"] == best["images_seen"] and summary["seconds"] > 0
    teacher = summary["teacher"]
    assert (teacher["network_evaluations"], teacher["samples"]) == (3, 32)
    assert teacher["samples_per_second"] > 0 and 0 <= teacher["recall"] <= 1
    records = summary["results"]["teacher"]
    expected = [("fid", [0, 31]), ("recall", [0, 31]), ("fid", [32, 63])]
    assert [(record["metric"], record["seeds"]) for record in records] == expected
    assert records[0]["value"] == teacher["fid"] != records[2]["value"]
    assert load_teacher(str(tmp_path / "teacher"), guidance=1.0).image_shape == (1, 8, 8)


def assert_kept(run: Path, iteration: int) -> None:
    """The run's teacher is the EMA of ``iteration``."""
    average = load_file(run / "checkpoints" / f"iteration_{iteration:08d}" / "network_ema.safetensors")
    kept = load_file(run / "teacher" / "diffusion_pytorch_model.safetensors")
    assert len(kept) > 10 and all(torch.equal(value, average[name]) for name, value in kept.items())


def test_the_teacher_of_the_best_recall_is_kept(tmp_path: Path) -> None:
    """The largest recall of the evaluations, the first of equals."""
    overrides = ("metrics=[recall]", "training.evaluate_every=2")
    summary = pretrain(tiny_pretraining(tmp_path, *overrides))
    of_run = [line for line in read_log(tmp_path / "log.jsonl") if "recall" in line]
    assert [line["iteration"] for line in of_run] == [2, 4, 6] and not any("fid" in line for line in of_run)
    best = max(of_run, key=lambda line: line["recall"])
    assert summary["images_seen"] == best["images_seen"] and "fid" not in summary["teacher"]
    assert_kept(tmp_path, best["iteration"])


@pytest.mark.parametrize(
    ("second", "moved", "kept"),
    [
        ({4: 9.0, 6: 8.0}, False, 2),  # the best is that before the abandoned iterations
        ({4: 2.5, 6: 2.0}, False, 6),
        ({4: 9.0, 6: 8.0}, True, 6),  # the checkpoint of iteration 2 is not among the run's any more
    ],
)
def test_the_kept_teacher_is_of_the_resumed_course(
    second: dict[int, float], moved: bool, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes back to iteration 2 of a course whose best was that of iteration 4."""
    values = {2: 3.0, 4: 1.0, 6: 5.0}

    def interim(_: RunEvaluator, iteration: int, __: object) -> list[Measurement]:
        return [Measurement("fid", values[iteration], higher_is_better=False)]

    monkeypatch.setattr(RunEvaluator, "interim", interim)
    settings = ("training.evaluate_every=2", "metrics=[fid]", "evaluation.samples=4", "evaluation.grid=1")
    run, back = tmp_path / "run", tmp_path / "run" / "checkpoints" / "iteration_00000002"
    assert pretrain(tiny_pretraining(run, *settings))["images_seen"] == 64
    assert_kept(run, 4)
    if moved:
        back = Path(shutil.move(back, tmp_path / "iteration_00000002"))
    values.update(second)
    summary = pretrain(tiny_pretraining(run, *settings, f"resume={back}", "optimizer.teacher.lr=1e-3"))
    assert summary["images_seen"] == 16 * kept
    assert_kept(run, kept)


def test_without_metrics_the_last_teacher_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "save_curves", save_curves)
    summary = pretrain(tiny_pretraining(tmp_path, "metrics=[]", "features=null"))
    assert summary["images_seen"] == 96 and summary["results"] == {"teacher": []}
    assert summary["teacher"].keys() == {"network_evaluations", "samples", "samples_per_second"}
    assert (tmp_path / "samples" / "iteration_00000006.png").is_file() and (tmp_path / "curves.png").stat().st_size > 0
    assert_kept(tmp_path, 6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("evaluation.best=kid",), r"evaluation\.best=kid .*: fid, recall"),
        (("evaluation.best=recall", "evaluation.interim_metrics=[fid]"), r"evaluation\.best=recall .*: fid;"),
        (("evaluation.best=fid", "metrics=[]"), r"evaluation\.best=fid .*: none"),
    ],
)
def test_a_best_value_that_is_not_measured(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain(tiny_pretraining(tmp_path, *overrides))
    assert not (tmp_path / "config.yaml").exists()


def test_the_network_gets_the_augmentation_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    predict = EDMDenoiser.predict

    def predict_and_keep(network, x_sigma, sigma, condition, **options):  # type: ignore[no-untyped-def]
        if network.training:
            seen.append((x_sigma, condition["augment_labels"], sigma))
        return predict(network, x_sigma, sigma, condition, **options)

    monkeypatch.setattr(EDMDenoiser, "predict", predict_and_keep)
    overrides = ("augment=edm", "network.options.augment_dim=9", "training.accumulation=2")
    config = tiny_pretraining(tmp_path, *overrides)
    pretrain(config)
    noised, labels, levels = (torch.cat(halves) for halves in zip(*seen[:2], strict=True))
    assert labels.shape == (16, 9) and len(seen) == 12  # six iterations of two micro-batches
    # Augmentation parameters are sampled after sigma and noise, which are the same without augmentation.
    random = BatchRandom(0, 0, 0, batch_size=16, rows=slice(None))
    sigma, noise = random.sigma(instantiate(config.sigma)), random.normal((1, 8, 8))
    images, expected = instantiate(config.augment)(Digits().images[next(iter(PositionSampler(1797, 16, 0)))], random)
    assert torch.equal(labels, expected) and torch.equal(levels, sigma)
    torch.testing.assert_close(noised, add_noise(images, noise, sigma))
    # Missing labels are equivalent to labels of 0.
    teacher = load_teacher(str(tmp_path / "teacher"), guidance=1.0)
    x_sigma, sigma = seen[0][0], torch.ones(8)
    assert teacher.config["options"]["augment_dim"] == 9
    without, zero, some = (
        teacher(x_sigma, sigma, condition)
        for condition in ({}, {"augment_labels": torch.zeros(8, 9)}, {"augment_labels": labels[:8]})
    )
    assert torch.equal(without, zero) and not torch.allclose(without, some, atol=1e-6)


def test_a_network_without_a_place_for_the_labels(tmp_path: Path) -> None:
    config = tiny_pretraining(tmp_path, "augment=edm")
    with pytest.raises(
        ValueError, match=r"network\.options\.augment_dim=0: expected 9, .*set network\.options\.augment_dim=9"
    ):
        pretrain(config)


def test_metrics_of_the_run_that_are_not_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"interim_metrics: kid is not among the metrics: fid, recall"):
        pretrain(tiny_pretraining(tmp_path, "evaluation.interim_metrics=[kid]"))


FEATURES = ("precision=no", "features_training.epochs=2")


def test_a_feature_network_is_tested_on_other_data(stores: Path, tmp_path: Path) -> None:
    """The training images as held-out data: the accuracy is that of the saved network on them."""
    given = ("data=idx", f"data.path={stores / 'idx'}", "features_training.batch_size=20")
    held_out = {"_target_": "onestep.data.idx.IDXImages", "path": str(stores / "idx"), "split": "train"}
    config = configure("pretrain_features", *FEATURES, *given, f"output={tmp_path}")
    config.held_out = held_out
    summary = pretrain_features(config)
    network = load_classifier(str(tmp_path / "features.safetensors"))
    images, condition = IDXImages(str(stores / "idx"), split="train").__getitems__(range(60))
    right = int((network.classify(to_uint8(images)).argmax(1) == condition["labels"].argmax(1)).sum())
    assert summary == {"held_out_accuracy": right / 60, "held_out_images": 60, "images": 60}
    assert network.config["held_out_accuracy"] == right / 60 and network.title == "digits classifier"


def test_a_feature_network_of_another_size(stores: Path, tmp_path: Path) -> None:
    """The network of experiment=features/fashion, on digits padded to 32 x 32."""
    given = (f"data.path={stores / 'idx'}", "held_out.split=train", "features_training.batch_size=60")
    config = configure("pretrain_features", "experiment=features/fashion", *FEATURES, *given, f"output={tmp_path}")
    summary = pretrain_features(config)
    network = load_classifier(str(tmp_path / "features.safetensors"))
    assert network(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape == (2, 64)
    assert summary["held_out_images"] == 60 and network.title == "Fashion-MNIST classifier"


def test_a_file_that_holds_no_feature_network(tmp_path: Path) -> None:
    (tmp_path / "features.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no feature network of onestep pretrain features"):
        load_classifier(str(tmp_path / "features.safetensors"))


def test_data_without_classes(stores: Path, tmp_path: Path) -> None:
    given = ("data=idx", f"data.path={stores / 'idx'}", "data.use_labels=false")
    config = configure("pretrain_features", *FEATURES, *given, f"output={tmp_path}")
    with pytest.raises(ValueError, match="a classifier needs images with classes"):
        pretrain_features(config)


@pytest.mark.parametrize(
    "override, message",
    [
        ("features_training.batch_size=4000", r"features_training\.batch_size=4000: .* 1438"),
        ("shard=true", "^shard=True: this training of a small network is in float32 and eager: leave out shard$"),
        ("precision=bf16", "^precision=bf16: this training"),
        ("classifier.num_classes=9", r"classifier\.num_classes=9: data has 10; expected equal ones"),
        ("classifier.image_shape=[1,9,9]", r"classifier\.image_shape=\[1, 9, 9\]: data has \[1, 8, 8\]"),
    ],
)
def test_a_training_of_features_that_is_refused(override: str, message: str, tmp_path: Path) -> None:
    given = (*FEATURES, "features_training.epochs=1", override)
    config = configure("pretrain_features", *given, f"output={tmp_path}")
    with pytest.raises(ValueError, match=message):
        pretrain_features(config)
