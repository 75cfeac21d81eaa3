"""The evaluator with feature networks whose outputs are known in closed form."""

import math
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from onestep.data.dataset import ImagesInMemory
from onestep.metrics.evaluator import Evaluator, Metric
from onestep.metrics.extraction import Extraction, Kind
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.inception_score import InceptionScore
from onestep.metrics.recall import PRDC, Recall
from onestep.metrics.result import Description, Measurement
from onestep.metrics.statistics import Moments


class MeanPixel(FeatureNetwork):
    """One feature: the mean pixel, 0 to 255. ``seen`` counts its images."""

    title = "mean pixel"
    image_shape = (1, 2, 2)
    protocol_samples: int | None = None
    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.seen += len(images)
        return images.float().mean((1, 2, 3))[:, None]


class TwoPixels(MeanPixel):
    """Another network: two pixels as features, and four classes with probability 1 for the first."""

    title = "two pixels"

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images[:, 0, 0].float()

    def classify(self, images: Tensor) -> Tensor:
        return torch.tensor([100.0, 0.0, 0.0, 0.0]).expand(len(images), 4)


class DifferenceOfMeans:
    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "difference of means"
    higher_is_better = False

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        return float(generated.mean() - real.mean())


class FirstAndCount:
    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "first and count"
    higher_is_better = True

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        return float(generated[0, 0] + 1000 * len(generated) + 1_000_000 * len(real))


METRICS: dict[str, Metric] = {"difference": DifferenceOfMeans(), "first": FirstAndCount()}


def constant_images(*values: float) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def random_images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def test_values_by_hand() -> None:
    """A real pixel of 0 is quantised to 128, generated ones of 0.5 and 9 to 191 and 255."""
    evaluator = Evaluator(MeanPixel(), METRICS, reference=ImagesInMemory(constant_images(0.0, 0.0, 0.0)))
    values = evaluator([constant_images(0.5, 9.0)])
    assert values == {"difference": (191 + 255) / 2 - 128, "first": 191 + 2_000 + 3_000_000}


def test_batches_do_not_matter() -> None:
    reference, images = random_images(2300), random_images(700, seed=1)
    metrics: dict[str, Metric] = METRICS | {"fid": FrechetDistance(), "recall": Recall(3)}
    evaluator = Evaluator(TwoPixels(), metrics, ImagesInMemory(reference))
    full, in_parts, in_ones = evaluator([images]), evaluator(iter(images.split(32))), evaluator(images.split(1))
    for name in ("difference", "first", "recall"):
        assert full[name] == in_parts[name] == in_ones[name]
    assert full["fid"] > 0.1
    assert full["fid"] == pytest.approx(in_parts["fid"], rel=1e-9) == pytest.approx(in_ones["fid"], rel=1e-9)


def test_metrics_share_one_pass_and_may_have_their_own_network() -> None:
    default, other = MeanPixel(), TwoPixels()
    metrics: dict[str, Metric] = {"fid": FrechetDistance(), "recall": Recall(1)}
    metrics |= {"other": FrechetDistance(features=other), "is": InceptionScore(2, other)}
    real, images = random_images(40), random_images(30, seed=1)
    evaluator = Evaluator(default, metrics, ImagesInMemory(real))
    values = evaluator([images])
    assert (default.seen, other.seen) == (70, 70)
    for name, network in (("fid", MeanPixel()), ("other", TwoPixels())):
        alone = Evaluator(network, {"fid": FrechetDistance()}, ImagesInMemory(real))
        assert values[name] == alone([images])["fid"]
    assert values["fid"] != values["other"] and values["is"] == pytest.approx(1)
    assert evaluator([images], only=["fid"]) == {"fid": values["fid"]}
    assert (default.seen, other.seen) == (100, 70)  # no metric reads the other network


def test_the_reference_is_read_once_and_kept(tmp_path: Path) -> None:
    real, images = random_images(40), random_images(30, seed=1)
    fid: dict[str, Metric] = {"fid": FrechetDistance()}
    both = fid | {"recall": Recall(1)}

    def run(metrics: dict[str, Metric], reference: Tensor = real) -> tuple[int, dict[str, float]]:
        network = TwoPixels()
        values = Evaluator(network, metrics, ImagesInMemory(reference), cache=str(tmp_path / "kept"))([images])
        return network.seen - 30, values

    seen, first = run(fid)
    assert seen == 40
    assert run(fid) == (0, first)
    seen, more = run(both)  # the cache had moments only
    assert seen == 40 and more["fid"] == first["fid"]
    assert run(both) == (0, more) and run(fid) == (0, first)
    assert run(fid, random_images(40, seed=9))[0] == 40
    for kind in ("moments", "vectors"):
        (file, *_) = sorted((tmp_path / "kept").rglob(f"{kind}.safetensors"), key=lambda path: path.stat().st_mtime)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert run(both) == (40, more) and run(both) == (0, more)
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to .*a_file.*features_cache=\.\.\."):
        Evaluator(TwoPixels(), fid, ImagesInMemory(real), cache=str(blocked))


def test_moments_alone_as_the_reference(tmp_path: Path) -> None:
    real, images = random_images(40), random_images(30, seed=1)
    network = TwoPixels()
    by_images = Evaluator(network, {"fid": FrechetDistance()}, ImagesInMemory(real))
    by_images.real[network]["moments"].save(tmp_path / "reference.npz")
    moments = Moments.load(tmp_path / "reference.npz")
    by_moments = Evaluator(network, {"fid": FrechetDistance()}, moments)
    assert by_moments([images]) == by_images([images])
    with pytest.raises(ValueError, match=r"recall: .* only mean and covariance.*data="):
        Evaluator(network, {"recall": Recall(1)}, moments)
    with pytest.raises(ValueError, match="features of 2 and 1 dimensions"):
        Evaluator(MeanPixel(), {"fid": FrechetDistance()}, moments)([images])


def test_a_value_of_few_samples_says_so() -> None:
    network = TwoPixels()
    network.protocol_samples = 50
    metrics: dict[str, Metric] = {"fid": FrechetDistance(), "prdc": PRDC(k=3, k_density=5)}
    metrics["fd"] = FrechetDistance(MeanPixel())
    evaluator = Evaluator(network, metrics, ImagesInMemory(random_images(60)))
    images = random_images(50, seed=1)
    for count, suffix in ((50, ""), (40, "0.04k")):
        records = evaluator.results(evaluator([images[:count]]), count, seeds=[0, count - 1], network_evaluations=1)
        names = [f"{metric}{suffix}" for metric in ("fid", "precision", "recall", "density", "coverage")]
        assert [record["name"] for record in records] == [*names, "fd"]
    assert records[0] == {
        "name": "fid0.04k", "metric": "fid", "value": records[0]["value"], "title": "Frechet distance",
        "higher_is_better": False, "features": "two pixels",
        "reference": "ImagesInMemory, 60 images", "samples": 40, "protocol_samples": 50, "seeds": [0, 39],
        "network_evaluations": 1, "classes": None,
    }  # fmt: skip


def test_a_protocol_refuses_other_samples_and_features() -> None:
    network = TwoPixels()
    evaluator = Evaluator(network, {"fid50": FrechetDistance(samples=50)}, ImagesInMemory(random_images(60)))
    evaluator.check_samples(49, only=[])
    with pytest.raises(ValueError, match="fid50 needs 50 samples, got 49"):
        evaluator.check_samples(49)
    with pytest.raises(ValueError, match="fid50 is not defined in the features of"):
        evaluator.check_samples(50)
    network.protocol_samples = 50
    evaluator.check_samples(50)


def test_images_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"takes images \(1, 2, 2\), the data has \(3, 2, 2\)"):
        Evaluator(MeanPixel(), METRICS, ImagesInMemory(torch.zeros(5, 3, 2, 2)))
    with pytest.raises(ValueError, match=r"features=null .*features=\.\.\."):
        Evaluator(None, METRICS, ImagesInMemory(torch.zeros(5, 3, 2, 2)))
    with pytest.raises(ValueError, match="mean pixel has no class logits"):
        Evaluator(MeanPixel(), {"is": InceptionScore(1)}, ImagesInMemory(random_images(5)))([random_images(5)])


class LowAndHigh:
    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title: ClassVar = {"low": "the lower", "high": "the higher"}
    higher_is_better: ClassVar = {"low": False, "high": True}

    def __call__(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        return {"low": float(generated.min()), "high": float(generated.max())}


def test_every_value_has_a_title_and_a_direction() -> None:
    metrics: dict[str, Metric] = {"fid50": FrechetDistance(title="FID"), "several": LowAndHigh(), "recall": Recall(1)}
    evaluator = Evaluator(MeanPixel(), metrics, ImagesInMemory(random_images(5)))
    assert evaluator.descriptions == {
        "fid50": Description("FID", False), "low": Description("the lower", False),
        "high": Description("the higher", True), "recall": Description("recall", True),
    }  # fmt: skip
    assert evaluator.keys() == ["fid50", "low", "high", "recall"] and evaluator.keys(["several"]) == ["low", "high"]
    records = evaluator.results(evaluator([constant_images(0.5, 9.0)], only=["several"]), 2, None, None)
    shown = [(record["metric"], record["value"], record["title"], record["higher_is_better"]) for record in records]
    assert shown == [("low", 191, "the lower", False), ("high", 255, "the higher", True)]


def test_two_metrics_of_the_same_value() -> None:
    metrics: dict[str, Metric] = {"recall": Recall(1), "prdc": PRDC(k=3, k_density=5)}
    with pytest.raises(ValueError, match="recall and prdc both measure recall"):
        Evaluator(MeanPixel(), metrics, ImagesInMemory(random_images(5)))


@pytest.mark.parametrize(("higher_is_better", "best", "worst"), [(False, 1.0, 2.0), (True, 2.0, 1.0)])
def test_which_of_two_measurements_is_better(higher_is_better: bool, best: float, worst: float) -> None:
    better, worse, broken = (Measurement("key", value, higher_is_better) for value in (best, worst, math.nan))
    assert better.is_better_than(worse) and not worse.is_better_than(better) and not better.is_better_than(better)
    assert worse.is_better_than(None) and worse.is_better_than(broken) and not broken.is_better_than(worse)


def reference_in_a_process(rank: int, processes: int, folder: Path, count: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=processes)
    torch.save(reference_outputs(count), folder / f"{rank}.pt")
    dist.destroy_process_group()


def reference_outputs(count: int) -> list[Tensor]:
    """The moments and features of ``count`` images."""
    images = ImagesInMemory(torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    found = Extraction(TwoPixels(), {"moments", "vectors"}, "cpu").all_of(images)
    return [found["moments"].mean, found["moments"].covariance, found["vectors"]]


@pytest.mark.parametrize("count", [2, 4])
def test_fewer_real_images_than_processes(count: int, tmp_path: Path) -> None:
    arguments = (3, tmp_path, count)
    mp.start_processes(reference_in_a_process, arguments, nprocs=3, start_method="fork")  # type: ignore[attr-defined]
    alone = reference_outputs(count)
    for rank in range(3):
        for value, expected in zip(torch.load(tmp_path / f"{rank}.pt"), alone, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "factor, spoil, message",
    [
        (1.0, torch.nan, "2 of the samples are not finite"),
        (1.0, torch.inf, "2 of the samples are not finite"),
        (torch.nan, 0.0, r"some features (\(vectors\) )?are not finite"),
    ],
)
@pytest.mark.parametrize("metric", [FrechetDistance(), Recall(1)])
def test_what_is_not_finite_has_no_value(
    factor: float, spoil: float, message: str, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(6, 1, 2, 2) * 2 - 1
    evaluator = Evaluator(TwoPixels(), {"value": metric}, ImagesInMemory(images.clone()))
    monkeypatch.setattr(TwoPixels, "forward", lambda _, images: images[:, 0, 0].float() * factor)
    images[[1, 4], 0, 0, 0] = spoil
    failures: dict[str, str] = {}
    assert evaluator(images.split(3), failures=failures) == {}
    assert re.match(message, failures["value"])
    with pytest.raises(ValueError, match=message):
        evaluator(images.split(3))


def test_both_sides_have_one_shape() -> None:
    network = TwoPixels()
    network.image_shape = None  # type: ignore[assignment] # of any size, such as Inception
    evaluator = Evaluator(network, {"fid": FrechetDistance()}, ImagesInMemory(torch.rand(6, 1, 2, 2)))
    for shape in ((3, 2, 2), (1, 4, 4)):
        with pytest.raises(ValueError, match=r"the samples have the shape .* the reference \(1, 2, 2\)"):
            evaluator([torch.rand(6, *shape)])
