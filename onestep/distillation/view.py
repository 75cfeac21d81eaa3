"""What a discriminator sees of a sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onestep.data.diff_augment import DifferentiableAugmentation
from onestep.noise import Noised
from onestep.objectives.base import Objective


@dataclass(frozen=True)
class View:
    """What a discriminator sees of a sample in its own loss and in the adversarial term.

    Args:
        noise_level: of all samples, in data units; None for the levels of the losses.
        augment: of all samples before the noise; None for none.
    """

    noise_level: float | None = None
    augment: DifferentiableAugmentation | None = None

    @property
    def is_own(self) -> bool:
        """True if it sees other samples than the losses' noised ones."""
        return self.noise_level is not None or self.augment is not None

    def __call__(self, x: Tensor, noised: Noised, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What it sees of samples ``x`` [B, ...] with the noise of ``noised``, and the noise levels [B].

        Raises:
            ValueError: if the augmentation's uniform ``numbers`` [B, K] are missing.
        """
        if self.augment is not None:
            if numbers is None:
                raise ValueError("numbers are missing: the discriminator's augmentation takes uniform numbers")
            x = self.augment(x, numbers)
        if self.noise_level is not None:
            noised = Noised(torch.full_like(noised.sigma, self.noise_level), noised.noise)
        return noised.add_to(x), noised.sigma

    def check(self, objective: Objective) -> None:
        """Check that its log p/q, which is that of what it sees, is not to be that of the losses' samples.

        Raises:
            ValueError: if the objective needs the density ratio, and it sees other samples.
        """
        if not objective.needs_ratio:
            return
        needs = "this divergence needs the density ratio at every noise level, and the discriminator sees"
        if self.noise_level is not None:
            raise ValueError(
                f"discriminator.noise_level={self.noise_level}: {needs} samples at one: use divergence=reverse_kl, or "
                "another discriminator"
            )
        if self.augment is not None:
            raise ValueError(
                f"diff_augment=...: {needs} augmented samples, which have another: use divergence=reverse_kl, or "
                "diff_augment=none"
            )
