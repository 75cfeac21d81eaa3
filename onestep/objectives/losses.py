"""Per-sample losses with their weights: the result of a method and the input of an optimiser step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """A term of a loss: ``weight`` times the mean of per-sample ``losses`` [B]."""

    losses: Tensor
    weight: float = 1.0

    @property
    def mean(self) -> Tensor:
        """The weighted mean, a scalar."""
        return self.weight * self.losses.mean()

    def detach(self) -> "Term":
        """The same term without its graph."""
        return Term(self.losses.detach(), self.weight)


@dataclass
class Losses:
    """The loss of one update on a batch of samples.

    Args:
        terms: by name; the loss is their sum.
        diagnostics: named tensors for the log, of any shape.
        logit: the discriminator's raw log p/q [B] of the generated samples; None without a discriminator.
    """

    terms: dict[str, Term] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    logit: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The sum of the terms, a scalar to call ``backward`` on."""
        return torch.stack([term.mean for term in self.terms.values()]).sum()
