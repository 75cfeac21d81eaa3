"""Students that train a low-rank change of a frozen network (LoRA, Hu et al. 2021, arXiv 2106.09685), by peft."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import MinLen

from onestep.models.base import DenoiserNetwork, copy_trained
from onestep.models.diffusers.quantized import QuantizedLinear
from onestep.ranges import Positive, Text, Width, checked

if TYPE_CHECKING:
    from onestep.models.diffusers.denoiser import DiffusersDenoiser


@checked
@dataclass(frozen=True)
class LoRA:
    """Settings of students that are low-rank changes of their initial network.

    Args:
        rank: rank of the change of each weight.
        alpha: the scale of the change is ``alpha / rank``.
        targets: names of the changed layers, or their suffixes.
        students: "generator", "fake_score" or both.

    Raises:
        ValueError: for a number out of range, an unknown student, or if the package peft is missing.
    """

    rank: Width
    alpha: Positive
    targets: Annotated[Sequence[Text], MinLen(1)]
    students: Annotated[Sequence[Literal["generator", "fake_score"]], MinLen(1)]

    def __post_init__(self) -> None:
        if importlib.util.find_spec("peft") is None:
            raise ValueError("LoRA students need the package peft: pip install 'onestep[lora]'")

    def apply(self, network: DenoiserNetwork) -> "DiffusersDenoiser":
        """A student that starts as ``network`` and shares its frozen parameters; only the change is trained.

        The change is in float32, for every precision of the frozen weights.

        Raises:
            ValueError: if ``network`` is not of diffusers, or has no layers of these names.
        """
        from onestep.models.diffusers.denoiser import DiffusersDenoiser  # imports diffusers

        if not isinstance(network, DiffusersDenoiser):
            raise ValueError("lora supports networks of diffusers only: use another teacher, or lora=null")
        student = copy_trained(network.requires_grad_(False))
        student.add_lora(self.rank, self.alpha, list(self.targets))
        for layer in student.modules():
            if isinstance(layer, QuantizedLinear):
                layer.in_state = False  # a checkpoint has the change alone
        return student
