"""Normalisation of an estimated density ratio r = p/q to its exact mean, E_q[r] = 1, at every noise level.

f-distill's normalisation has two stages (Xu, Nie, Vahdat 2025, arXiv 2502.15681). :class:`RatioNormalizer` divides the
ratio by its mean at similar noise levels. :func:`global_mean` is the divisor of the weights.
"""

import torch
from torch import Tensor, nn

from onestep.noise import SigmaDistribution
from onestep.precision import double
from onestep.processes import sum_over_processes
from onestep.ranges import Decay, Steps, checked


def global_mean(values: Tensor) -> Tensor:
    """The mean of ``values`` [B] over the batches of all processes, a detached scalar of the same dtype.

    The sum is in float64. Every process must call it. The processes' batches may differ in size.
    """
    exact = double(values.detach())
    total_and_count = sum_over_processes(torch.stack([exact.sum(), torch.ones_like(exact).sum()]))
    return total_and_count[0].div(total_and_count[1]).to(values)


@checked
class RatioNormalizer(nn.Module):
    """Divides r by its running mean in its bin of sigma. Inputs and outputs are logarithms.

    The bin edges are quantiles of ``sigma_distribution``, the distribution of the noise levels. Each of the ``bins``
    therefore gets the same expected number of samples. An update multiplies a bin's sum and count by ``decay`` before
    it adds the new samples, so their quotient is a weighted mean from the first update on. Raises ValueError for
    ``bins`` < 1 or a ``decay`` outside [0, 1).

    ``forward`` reads the means and ``update`` changes them. Normalize a batch first and update with it afterwards: a
    sample must not be divided by a mean that contains it.
    """

    log_ratio_bound = 40.0  # |log r| is clamped to this before it enters a mean: exp of a saturated logit is infinite

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
        ratio = double(log_ratio).clamp(-self.log_ratio_bound, self.log_ratio_bound).exp()
        # A product with the one-hot membership: scattered additions are not deterministic on a GPU. (torch's one_hot
        # validates its input, which would synchronise with the device.)
        membership = double(self._bin(sigma)[:, None] == torch.arange(self.bins, device=sigma.device))
        sums, counts = sum_over_processes(torch.stack([ratio, torch.ones_like(ratio)]) @ membership)
        kept = torch.where(counts > 0, self.decay, 1.0)
        self.sums.mul_(kept).add_(sums)
        self.counts.mul_(kept).add_(counts)

    def _bin(self, sigma: Tensor) -> Tensor:
        return (self.sigma_distribution.cdf(sigma) * self.bins).long().clamp(0, self.bins - 1)
