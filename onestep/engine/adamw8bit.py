"""AdamW whose moments have 8 bits (Dettmers et al. 2022, arXiv 2110.02861), by bitsandbytes."""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from onestep.engine.shard import is_sharded
from onestep.ranges import Decay, NonNegative, Positive, Rate, checked

_BLOCK = 256  # values with a common scale, of bitsandbytes' kernels
_SMALLEST = 4096  # values of a parameter, as in bitsandbytes' own optimisers; smaller ones have float32 moments
_MOMENTS = ("exp_avg", "exp_avg_sq")


@checked
class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments of 8 bits, each block of 256 of which has a scale in float32: 2.03 bytes a weight, not 8.

    Parameters of fewer than 4,096 values have moments in float32. The state consists of tensors alone, as torch's.

    Args:
        params: the parameters, in full: not sharded.
        lr, betas, eps, weight_decay: as for :class:`torch.optim.AdamW`.

    Raises:
        ValueError: without the package bitsandbytes, or for sharded parameters.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Rate,
        betas: tuple[Decay, Decay],
        eps: Positive,
        weight_decay: NonNegative,
    ) -> None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "optimizer=adamw8bit needs the package bitsandbytes: pip install 'onestep[bitsandbytes]', or use "
                "optimizer=adamw"
            )
        params = list(params)
        if any(is_sharded(parameter) for parameter in params):
            raise ValueError("optimizer=adamw8bit takes no sharded parameters: use shard=false, or optimizer=adamw")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)
        from bitsandbytes.functional import create_dynamic_map

        # The values of the 256 codes, of the second moment without negative ones.
        self.codes = [create_dynamic_map(signed).to(params[0].device) for signed in (True, False)]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """A step with the gradients; a ``closure`` is not called."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(_new_state(parameter))
                if state["exp_avg"].dtype == torch.uint8:
                    self._step_8bit(parameter, parameter.grad, state, group)
                else:
                    _step(parameter, parameter.grad, state, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See the base class, which makes the moments floating-point numbers; these hold 8 bits exactly."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in _MOMENTS if state["exp_avg_scale"].numel() else ():
                state[name] = state[name].to(torch.uint8)

    def _step_8bit(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        state["step"] += 1
        gradient = torch.empty_like(parameter).copy_(gradient)  # the kernel reads memory in the parameter's order
        optimizer_update_8bit_blockwise(
            "adam", gradient, parameter, state["exp_avg"], state["exp_avg_sq"], *group["betas"], 0.0, 0.0,
            group["eps"], int(state["step"]), group["lr"], *self.codes, state["exp_avg_scale"],
            state["exp_avg_sq_scale"], weight_decay=group["weight_decay"],
        )  # fmt: skip


def _new_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    """Zeros; in float32 there are no blocks."""
    eight_bits = parameter.numel() >= _SMALLEST
    blocks = -(-parameter.numel() // _BLOCK) if eight_bits else 0
    dtype = torch.uint8 if eight_bits else torch.float32
    moments = {name: torch.zeros_like(parameter, dtype=dtype) for name in _MOMENTS}
    scales = {f"{name}_scale": torch.zeros(blocks, device=parameter.device) for name in _MOMENTS}
    return {"step": torch.tensor(0.0), **moments, **scales}


def _step(parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    adamw(
        [parameter], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]], amsgrad=False,
        beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
    )  # fmt: skip
