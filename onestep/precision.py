"""The floating-point precision of networks, and float64 on devices that may have none."""

import os
import re
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

#: The precision of accelerate, or "auto".
Precision = Literal["auto", "no", "bf16", "fp16"]


def choose_precision(precision: str, device: str) -> str:
    """``precision`` for accelerate; ``auto`` is bf16 if the device has instructions for it, else float32.

    On CPUs this means AVX-512. Other CPUs emulate bf16 in float32, about ten times slower than float32.

    Args:
        precision: one of :data:`Precision`.
        device: ``auto`` for the accelerator if there is one, ``cpu``, or the name of the accelerator.

    Raises:
        ValueError: for an unknown precision, fp16 on a CPU, or an accelerator that there is not.
    """
    if precision not in (known := get_args(Precision)):
        raise ValueError(f"precision={precision}: choose one of {', '.join(known)}")
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    if device not in ("auto", "cpu"):
        found = None if on_cpu else torch.accelerator.current_accelerator()
        if found is None or found.type != device:
            has = "no accelerator" if found is None else f"an accelerator of the type {found.type}"
            limit = _limit_of_devices()
            raise ValueError(
                f"device={device}: torch finds {has} on this machine{limit}; use device=auto or device=cpu"
            )
    if precision == "fp16" and on_cpu:
        raise ValueError("precision=fp16: on a CPU it would be computed in float32; use precision=no, or bf16")
    if precision != "auto":
        return precision
    if on_cpu:
        has_bf16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    else:
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "no"


def choose_device(name: Any) -> str:
    """The way to one of several devices, for the message that refuses ``name``, such as cuda:3."""
    if not isinstance(name, str) or not (numbered := re.fullmatch(r"cuda:([0-9]+)", name)):
        return ""
    count = torch.cuda.device_count()
    return (
        f"; torch finds {count} CUDA device{'' if count == 1 else 's'}{_limit_of_devices()}: a process takes the first "
        f"that it sees, so start it with CUDA_VISIBLE_DEVICES={numbered[1]}, and set device=cuda"
    )


def _limit_of_devices() -> str:
    limit = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if limit is None else f" (CUDA_VISIBLE_DEVICES={limit})"


@cache
def float64_device(device: torch.device) -> torch.device:
    """The device of float64 numbers for a computation on ``device``: the CPU if it has none, as Apple's GPUs."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


def double(values: Tensor) -> Tensor:
    """``values`` in float64, on their :func:`float64_device`; differentiable."""
    return values.to(float64_device(values.device)).double()
