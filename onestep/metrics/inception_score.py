"""The Inception Score (Salimans et al. 2016, arXiv 1606.03498, sec. 4)."""

import math

import torch
from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.ranges import Steps, checked
from onestep.seeding import seeded_rng


@checked
class InceptionScore:
    """``exp E KL(p(class | x) || p(class))``, the mean over random parts of the samples.

    The parts are a function of the samples, not of their order: in consecutive parts of files that are sorted by class,
    the score would be about 1.

    Args:
        splits: the number of parts; at most the number of samples.
        features: the metric's network; None for the evaluator's.
    """

    reads: Kind = "logits"
    title = "Inception Score"
    higher_is_better = True

    def __init__(self, splits: Steps, features: FeatureNetwork | None = None) -> None:
        self.splits, self.features = splits, features

    def __call__(self, real: Tensor | None, generated: Tensor) -> float:
        """The Inception Score, from 1 to the number of classes, of logits ``generated`` [N, K]; ``real`` is unused."""
        scores = []
        for part in _in_random_order(generated.double()).tensor_split(min(self.splits, len(generated))):
            log_p = part.log_softmax(1)
            log_marginal = log_p.logsumexp(0) - math.log(len(part))
            scores.append((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())
        return float(torch.stack(scores).mean())


def _in_random_order(logits: Tensor) -> Tensor:
    """The rows of ``logits`` [N, K] in a random order that is the same for every order of them."""
    rng = seeded_rng(0)
    sorted_rows = (logits @ torch.randn(logits.shape[1], generator=rng, dtype=logits.dtype)).argsort()
    return logits[sorted_rows[torch.randperm(len(logits), generator=rng)]]
