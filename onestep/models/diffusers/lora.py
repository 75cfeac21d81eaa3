"""Students that train a low-rank change of a frozen network (LoRA, Hu et al. 2021, arXiv 2106.09685), by peft."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from onestep.models.base import DenoiserNetwork, copy_trained
from onestep.models.diffusers.denoiser import DiffusersDenoiser

STUDENTS = ("generator", "fake_score")


@dataclass(frozen=True)
class LoRA:
    """Which students are low-rank changes of their initial network, and how.

    Args:
        rank: of the change of each weight.
        alpha: the change is scaled by ``alpha / rank``.
        targets: the names, or their ends, of the layers that change.
        students: which networks: "generator", "fake_score" or both.

    Raises:
        ValueError: for a number or a name that cannot be, or without the package peft.
    """

    rank: int
    alpha: float
    targets: Sequence[str]
    students: Sequence[str]

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"lora needs rank >= 1 and alpha > 0, got rank={self.rank}, alpha={self.alpha}")
        if not self.students or not set(self.students) <= set(STUDENTS):
            raise ValueError(f"lora.students={list(self.students)}: choose from {', '.join(STUDENTS)}")
        if importlib.util.find_spec("peft") is None:
            raise ValueError("LoRA students need the package peft: pip install 'onestep[lora]'")

    def apply(self, network: DenoiserNetwork) -> DiffusersDenoiser:
        """A student that starts as ``network``, whose parameters it shares, frozen; only its change is trained.

        The change is kept in float32, whatever the precision of the frozen weights.

        Raises:
            ValueError: if it is no network of diffusers, or has no layers of these names.
        """
        if not isinstance(network, DiffusersDenoiser):
            raise ValueError("lora changes networks of diffusers alone: choose another teacher, or lora=null")
        student = copy_trained(network.requires_grad_(False))
        student.add_lora(self.rank, self.alpha, list(self.targets))
        return student
