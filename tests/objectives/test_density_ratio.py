"""The normalisation of the ratio recovers a known mean in every bin, in one process and over several."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor

from onestep.noise import KarrasSigma, LogNormalSigma, LogUniformSigma, SigmaDistribution
from onestep.objectives.adversarial import log_ratio_of
from onestep.objectives.density_ratio import LinearBins, QuantileBins, global_mean
from onestep.objectives.divergences import (
    Divergence,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    NeymanChi2,
    SoftenedReverseKL,
    SquaredHellinger,
)
from tests.helpers.harness import run_together
from tests.helpers.paths import REFERENCE

SIGMA_DISTRIBUTION = LogUniformSigma(1.0, 16.0)
SIGMA = torch.tensor([1.5, 3.0, 6.0, 12.0])  # one in each of four bins
PUBLISHED: dict[str, Divergence] = {  # by FastGen's names
    "kl": ForwardKL(), "js": JensenShannon(), "sf": SoftenedReverseKL(), "neyman": NeymanChi2(),
    "sh": SquaredHellinger(), "jf": Jeffreys(),
}  # fmt: skip


@pytest.mark.parametrize(
    "distribution", [LogNormalSigma(-1.2, 1.2), LogUniformSigma(0.02, 80.0), KarrasSigma(0.002, 80.0)]
)
def test_a_ratio_of_sigma_alone_normalizes_to_one(distribution: SigmaDistribution) -> None:
    """The mean over each bin."""
    normalizer = QuantileBins(distribution, bins=20, decay=0.99)
    rng = torch.Generator().manual_seed(0)

    def log_ratio(sigma: Tensor) -> Tensor:
        return 2 * torch.sin(sigma.log())

    for _ in range(50):
        sigma = distribution.sample(2000, rng)
        normalizer.update(log_ratio(sigma), sigma)
    assert normalizer.counts.max() / normalizer.counts.min() < 1.1  # equally many samples in each bin
    sigma = distribution.sample(40_000, rng)
    ratio = normalizer(log_ratio(sigma), sigma).exp()
    in_bin = (distribution.cdf(sigma) * 20).long()
    for k in range(20):
        assert ratio[in_bin == k].mean().item() == pytest.approx(1, abs=0.03)


def test_mean_is_that_of_the_ratio_and_not_of_its_logarithm() -> None:
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=1, decay=0.9)
    log_ratio = torch.tensor([0.0, 3.0, -2.0, 1.0])
    normalizer.update(log_ratio, SIGMA)
    torch.testing.assert_close(normalizer(log_ratio, SIGMA), log_ratio - log_ratio.exp().mean().log())


def test_running_mean_forgets_and_is_right_from_the_first_update() -> None:
    """Updates with 2 samples of ratio 1, then 1 sample of ratio 4, at decay 0.5: (0.5 * 2 + 4) / (0.5 * 2 + 1)."""
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.5)
    one = torch.ones(1)
    normalizer.update(torch.zeros(2), SIGMA[[0, 0]])
    assert normalizer(torch.zeros(1), SIGMA[:1]).item() == 0
    normalizer.update((4 * one).log(), SIGMA[:1])
    assert normalizer(torch.zeros(1), SIGMA[:1]).exp().item() == pytest.approx(1 / 2.5)


def test_a_bin_never_seen_leaves_the_ratio_and_bins_do_not_mix() -> None:
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.5)
    log_ratio = torch.tensor([0.5, 1.0, -1.0, 2.0])
    assert torch.equal(normalizer(log_ratio, SIGMA), log_ratio)
    normalizer.update(torch.tensor([3.0]), SIGMA[1:2])
    torch.testing.assert_close(normalizer(log_ratio, SIGMA), log_ratio - torch.tensor([0.0, 3.0, 0.0, 0.0]))
    for _ in range(2000):  # a bin without samples keeps its mean, and does not decay to 0/0
        normalizer.update(torch.zeros(1), SIGMA[:1])
    torch.testing.assert_close(normalizer(log_ratio, SIGMA), log_ratio - torch.tensor([0.0, 3.0, 0.0, 0.0]))


def test_a_lone_sample_is_not_divided_by_itself() -> None:
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.99)
    normalizer.update(torch.zeros(100), SIGMA[:1].expand(100))
    surprising = torch.tensor([5.0])
    normalized = normalizer(surprising, SIGMA[:1])
    normalizer.update(surprising, SIGMA[:1])
    assert normalized.item() == 5.0


def test_reading_does_not_write() -> None:
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.5)
    normalizer(torch.ones(4), SIGMA)
    assert (normalizer.counts == 0).all()


def test_extreme_ratios_keep_the_mean_finite() -> None:
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=1, decay=0.5)
    normalizer.update(torch.tensor([1e4, -1e4]), SIGMA[:2])
    assert normalizer(torch.zeros(1), SIGMA[:1]).item() == pytest.approx(-math.log(100 / 2), rel=1e-6)


def test_a_saturated_logit_is_not_the_mean_of_its_bin() -> None:
    """At decay 0.99 its ratio of exp(40) would be, for 4,000 updates. It counts as 100 times the mean of 1."""
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.99)
    normalizer.update(torch.zeros(999), SIGMA[:1].expand(999))
    normalizer.update(torch.tensor([40.0]), SIGMA[:1])
    expected = math.log((0.99 * 999 + 100) / (0.99 * 999 + 1))
    assert normalizer(torch.zeros(1), SIGMA[:1]).item() == pytest.approx(-expected, rel=1e-5)


def test_an_offset_of_all_logits_is_found() -> None:
    """The bound is relative to the mean: logits of 12 have ratios of 163,000."""
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.9)
    for _ in range(150):
        normalizer.update(torch.full((10,), 12.0), SIGMA[:1].expand(10))
    assert normalizer(torch.full((1,), 12.0), SIGMA[:1]).item() == pytest.approx(0.0, abs=1e-4)


def test_levels_outside_the_law_fall_in_the_outer_bins() -> None:
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.5)
    normalizer.update(torch.zeros(3), torch.tensor([0.1, 16.0, 100.0]))
    assert normalizer.counts.tolist() == [1, 0, 0, 2]


def test_gradient_passes_through_the_ratio_and_not_the_mean() -> None:
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.5)
    log_ratio = torch.tensor([0.5, 1.0, -1.0, 2.0], requires_grad=True)
    normalizer.update(log_ratio, SIGMA)
    (gradient,) = torch.autograd.grad(normalizer(log_ratio, SIGMA).sum(), log_ratio)
    assert gradient.tolist() == [1, 1, 1, 1] and not normalizer.sums.requires_grad


def test_saved_and_loaded_it_is_the_same() -> None:
    normalizer, other = (QuantileBins(SIGMA_DISTRIBUTION, bins=4, decay=0.9) for _ in range(2))
    for _ in range(3):
        normalizer.update(torch.randn(4, generator=torch.Generator().manual_seed(0)), SIGMA)
    state = normalizer.state_dict()
    assert set(state) == {"sums", "counts"} and all(v.dtype == torch.float64 for v in state.values())
    other.load_state_dict(state)
    assert torch.equal(other(torch.ones(4), SIGMA), normalizer(torch.ones(4), SIGMA))
    assert not torch.equal(other(torch.ones(4), SIGMA), torch.ones(4))


@pytest.mark.parametrize(("name", "decay", "divergence"), [("js", 0.5, JensenShannon()), ("kl", 0.0, ForwardKL())])
def test_the_published_normalization(name: str, decay: float, divergence: Divergence) -> None:
    """Recorded bins and weights of f-distill's code in two cycles of two micro-batches each."""
    normalizer = LinearBins(SIGMA_DISTRIBUTION, 10, 0.002, 80.0, decay, ratio_min=0.1, ratio_max=20.0)
    with np.load(REFERENCE / "published_heads.npz") as file:
        for batch in ("00", "01", "10", "11"):
            record = {
                key: torch.from_numpy(file[f"{name}/normalizer/{batch}/{key}"])
                for key in ("logits_fake", "sigma", "bins_before", "bins_after", "h")
            }
            torch.testing.assert_close(normalizer.means.float(), record["bins_before"], rtol=1e-5, atol=0)
            log_ratio = log_ratio_of(record["logits_fake"])
            weight = divergence.weight(normalizer(log_ratio, record["sigma"]))
            torch.testing.assert_close(normalizer.means.float(), record["bins_after"], rtol=1e-5, atol=0)
            torch.testing.assert_close(weight / weight.mean(), record["h"], rtol=1e-5, atol=0)
            normalizer.update(log_ratio, record["sigma"])  # changes nothing, as the next batch shows
    assert (normalizer.means != 1).sum() >= 3


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_weights_of_every_divergence(name: str, decay: float) -> None:
    """Of 256 mean logits of three heads, and of others, one after the other; FastGen's code for reverse KL raises."""
    recorded = np.load(REFERENCE / "published_weights.npz")
    logits, sigma = torch.as_tensor(recorded["logits"]), torch.as_tensor(recorded["t"])
    normalizer = LinearBins(SIGMA_DISTRIBUTION, 10, 0.002, 80.0, decay, ratio_min=0.1, ratio_max=20.0)
    for call, values in (("first", logits), ("second", 0.7 * logits.flip(0))):
        weight = PUBLISHED[name].weight(normalizer(log_ratio_of(values), sigma))
        expected = torch.as_tensor(recorded[f"{name}/ema_rate_{decay}/normalised/h_{call}"])
        torch.testing.assert_close(weight / weight.mean(), expected, rtol=1e-5, atol=0)
    bins = torch.as_tensor(recorded[f"{name}/ema_rate_{decay}/normalised/bins"])
    torch.testing.assert_close(normalizer.means.float(), bins, rtol=1e-6, atol=0)


def linear_bins(decay: float = 0.5) -> LinearBins:
    """Four bins with edges 1, 2, 3, 4 and 5, for ratios in [1/4, 4]."""
    return LinearBins(SIGMA_DISTRIBUTION, 4, sigma_min=1.0, sigma_max=5.0, decay=decay, ratio_min=0.25, ratio_max=4.0)


def test_linear_bins_clamp_the_ratio_and_contain_the_batch_itself() -> None:
    normalizer = linear_bins()
    sigma = torch.tensor([0.1, 1.9, 4.9, 60.0])  # outer bins
    ratio = torch.tensor([1.0, 3.0, 100.0, 0.001])
    result = normalizer(ratio.log(), sigma).exp()
    means = [0.5 * 1 + 0.5 * 2, 0.5 * 1 + 0.5 * 2.125]
    assert normalizer.means.tolist() == pytest.approx([means[0], 1, 1, means[1]], rel=1e-5)
    assert result.tolist() == pytest.approx([1 / means[0], 3 / means[0], 4 / means[1], 0.25 / means[1]], rel=1e-5)


def test_a_skipped_step_leaves_linear_bins_as_they_were() -> None:
    normalizer = linear_bins()
    result = normalizer(torch.tensor([math.nan, 1.0]), torch.tensor([1.5, 2.5]))
    assert result.isnan().tolist() == [True, False] and normalizer.means.tolist() == [1, 1, 1, 1]
    normalizer(torch.tensor([math.inf, 1.0]), torch.tensor([1.5, 2.5]))
    assert normalizer.means.tolist() == pytest.approx([2.5, (1 + math.e) / 2, 1, 1], rel=1e-5)


def test_linear_bins_are_saved_and_have_an_order() -> None:
    normalizer, other = linear_bins(), linear_bins()
    normalizer(torch.ones(4), torch.tensor([1.5, 2.5, 3.5, 4.5]))
    other.load_state_dict(normalizer.state_dict())
    assert torch.equal(other.means, normalizer.means) and (other.means > 1.5).all()
    with pytest.raises(ValueError, match=r"normalizer.ratio_min=2.0, ratio_max=1.0: expected ascending"):
        LinearBins(SIGMA_DISTRIBUTION, 4, 1.0, 5.0, 0.5, ratio_min=2.0, ratio_max=1.0)
    with pytest.raises(ValueError, match="sigma_min=5.0, sigma_max=1.0"):
        LinearBins(SIGMA_DISTRIBUTION, 4, 5.0, 1.0, 0.5, ratio_min=0.1, ratio_max=20.0)


def test_global_mean_alone() -> None:
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    mean = global_mean(values)
    assert mean.item() == 3 and mean.shape == () and mean.dtype == torch.float32 and not mean.requires_grad
    assert global_mean(torch.full((4,), 3e38)).item() == pytest.approx(3e38)  # whose sum overflows float32


def on_process(folder: str) -> None:
    """The first process has one sample, the second three."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    values = torch.tensor([[1.0], [2.0, 3.0, 10.0]][rank])
    normalizer = QuantileBins(SIGMA_DISTRIBUTION, bins=1, decay=0.5)
    normalizer.update(values.log(), SIGMA[: len(values)])
    linear = linear_bins(decay=0.0)
    linear(values.log(), torch.full_like(values, 1.5))
    torch.save((global_mean(values), normalizer.sums, normalizer.counts, linear.means), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_means_are_over_all_processes(tmp_path: Path) -> None:
    run_together(2, on_process, str(tmp_path))
    for rank in range(2):
        mean, sums, counts, means = torch.load(tmp_path / f"{rank}.pt")
        assert mean.item() == 4 and means.tolist() == pytest.approx([2.5, 1, 1, 1], rel=1e-5)
        assert sums.item() == pytest.approx(16, rel=1e-6) and counts.item() == 4
