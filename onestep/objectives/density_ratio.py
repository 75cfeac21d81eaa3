"""Normalisation of an estimated density ratio r = p/q to its exact mean, E_q[r] = 1, at every noise level.

f-distill's normalisation has two stages (Xu, Nie, Vahdat 2025, arXiv 2502.15681). A :class:`RatioNormalizer` divides
the ratio by its mean at similar noise levels. :func:`global_mean` is the divisor of the weights.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from onestep.noise import SigmaDistribution, check_levels
from onestep.precision import double
from onestep.processes import sum_over_processes
from onestep.ranges import Decay, Positive, Steps, checked


def global_mean(values: Tensor) -> Tensor:
    """The mean of ``values`` [B] over the batches of all processes, a detached scalar of the same dtype.

    The sum is in float64. Every process must call it. The processes' batches may differ in size.
    """
    exact = double(values.detach())
    total_and_count = sum_over_processes(torch.stack([exact.sum(), torch.ones_like(exact).sum()]))
    return total_and_count[0].div(total_and_count[1]).to(values)


class RatioNormalizer(nn.Module, ABC):
    """Divides r by its running mean in its bin of sigma. Inputs and outputs are logarithms.

    Attributes:
        of_rounds: True if a micro-batch is normalised by itself, the weights' mean too; False for the full batch.
    """

    of_rounds = False

    @abstractmethod
    def forward(self, log_ratio: Tensor, sigma: Tensor) -> Tensor:
        """``log_ratio`` [B] at ``sigma`` [B], normalised; once per update of the generator and micro-batch."""

    @abstractmethod
    def update(self, log_ratio: Tensor, sigma: Tensor) -> None:
        """Called after each step of the generator with the ratios [B] of its batch, in every process."""

    def _sums(self, log_ratio: Tensor, bins: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The sum of r and the number of samples in each of ``count`` bins, over all processes, in float64."""
        ratio = double(log_ratio.detach()).exp()
        # A product with the one-hot membership: scattered additions are not deterministic on a GPU. (torch's one_hot
        # validates its input, which would synchronise with the device.)
        membership = double(bins[:, None] == torch.arange(count, device=bins.device))
        sums, counts = sum_over_processes(torch.stack([ratio, torch.ones_like(ratio)]) @ membership)
        return sums, counts


@checked
class QuantileBins(RatioNormalizer):
    """The running mean in bins of equally many samples.

    The bin edges are quantiles of ``sigma_distribution``, the distribution of the noise levels. Each of the ``bins``
    therefore gets the same expected number of samples. An update multiplies a bin's sum and count by ``decay`` before
    it adds the new samples, so their quotient is a weighted mean from the first update on. Raises ValueError for
    ``bins`` < 1 or a ``decay`` outside [0, 1).

    ``forward`` reads the means and ``update`` changes them. Normalize a batch first and update with it afterwards: a
    sample must not be divided by a mean that contains it.
    """

    log_ratio_bound = 40.0  # |log r| is clamped to this before it enters a mean: exp of a saturated logit is infinite
    #: A ratio enters a mean as at most this, times the mean if that is above 1. One saturated logit of 40 would
    #: otherwise be the mean of its bin, and all weights there nearly 0, until ``decay ** updates`` is below exp(-40):
    #: 4,000 updates at 0.99. As E_q[r] = 1, less than a hundredth of exact ratios is larger (Markov's inequality).
    largest_ratio = 100.0

    def __init__(self, sigma_distribution: SigmaDistribution, bins: Steps, decay: Decay) -> None:
        super().__init__()
        self.sigma_distribution = sigma_distribution
        self.bins = bins
        self.decay = decay
        self.sums: Tensor  # [bins], decayed sum of r
        self.counts: Tensor  # [bins], decayed count of samples
        self.register_buffer("sums", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.float64))

    def forward(self, log_ratio: Tensor, sigma: Tensor) -> Tensor:
        """``log_ratio`` [B] minus the log of the mean ratio in the bin of ``sigma`` [B]; unchanged in an empty bin.

        Differentiable by ``log_ratio``. The mean is a constant.
        """
        log_mean = torch.where(self.counts > 0, (self.sums / self.counts).log(), 0.0)
        return log_ratio - log_mean.to(log_ratio)[self._bin(sigma)]

    @torch.no_grad()
    def update(self, log_ratio: Tensor, sigma: Tensor) -> None:
        """Add the ratios of generated samples, ``log_ratio`` [B] at ``sigma`` [B], to the means of their bins.

        Every process must call it. Sums and counts are reduced over processes, so all processes hold the same means.
        """
        bins = self._bin(sigma)
        means = torch.where(self.counts > 0, self.sums / self.counts, 1.0).clamp(min=1.0)
        largest = (self.largest_ratio * means).log().to(log_ratio)[bins]
        bounded = log_ratio.clamp(-self.log_ratio_bound, self.log_ratio_bound).minimum(largest)
        sums, counts = self._sums(bounded, bins, self.bins)
        kept = torch.where(counts > 0, self.decay, 1.0)
        self.sums.mul_(kept).add_(sums)
        self.counts.mul_(kept).add_(counts)

    def _bin(self, sigma: Tensor) -> Tensor:
        return (self.sigma_distribution.cdf(sigma) * self.bins).long().clamp(0, self.bins - 1)


@checked
class LinearBins(RatioNormalizer):
    """f-distill's published code: a running mean in bins of equal width in sigma that includes the batch itself.

    The ratio is clamped first. In each bin with samples, ``mean <- decay * mean + (1 - decay) * mean of the batch``
    then precedes the division. With micro-batches each is a batch of its own.

    Args:
        sigma_distribution: of the noise levels; not used.
        bins: number of bins.
        sigma_min, sigma_max: the range of the bins, in data units; levels outside belong to the outer bins.
        decay: weight of the old mean; 0 for the batch's alone.
        ratio_min, ratio_max: r is clamped to this range.

    Raises:
        ValueError: for a range that is not ascending.
    """

    of_rounds = True
    smallest = 1e-6  # added to counts and means, as there

    def __init__(
        self,
        sigma_distribution: SigmaDistribution,
        bins: Steps,
        sigma_min: Positive,
        sigma_max: Positive,
        decay: Decay,
        ratio_min: Positive,
        ratio_max: Positive,
    ) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = check_levels(sigma_min, sigma_max)
        if not ratio_min < ratio_max:
            raise ValueError(f"normalizer.ratio_min={ratio_min}, ratio_max={ratio_max}: expected ascending values")
        self.log_min, self.log_max = math.log(ratio_min), math.log(ratio_max)
        self.decay = decay
        self.means: Tensor  # [bins], of r
        self.register_buffer("means", torch.ones(bins, dtype=torch.float64))

    def forward(self, log_ratio: Tensor, sigma: Tensor) -> Tensor:
        """``log_ratio`` [B] minus the log of the mean ratio in the bin of ``sigma`` [B], which it updates first.

        Every process must call it. Differentiable by ``log_ratio``. A batch with a ratio that is not a number changes
        no mean: its step is skipped.
        """
        bounded = log_ratio.clamp(self.log_min, self.log_max)
        bins = len(self.means)
        position = (double(sigma) - self.sigma_min) / ((self.sigma_max - self.sigma_min) / bins)
        index = position.long().clamp(0, bins - 1)
        sums, counts = self._sums(bounded, index, bins)
        means = torch.lerp(sums / (counts + self.smallest), self.means, self.decay)
        self.means.copy_(torch.where((counts > 0) & means.isfinite(), means, self.means))
        return bounded - (self.means[index] + self.smallest).log().to(bounded)

    def update(self, log_ratio: Tensor, sigma: Tensor) -> None:
        """Nothing: :meth:`forward` has updated the means."""
