"""The floating-point precision of networks, and float64 on devices that may have none."""

import os
import re
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

#: The precision of a calculation, or "auto": autocast's, "no" for float32.
Precision = Literal["auto", "no", "bf16", "fp16"]
#: The precision of a distillation: "bf16_critics" is bf16 in the critics' updates and float32 in the generator's.
DistillationPrecision = Literal["auto", "no", "bf16", "fp16", "bf16_critics"]


def choose_precision(precision: str, device: str, with_bf16: Precision | DistillationPrecision = "bf16") -> str:
    """``precision``; ``auto`` is ``with_bf16`` if the device has instructions for bf16, else float32.

    On CPUs this means AVX-512. Other CPUs emulate bf16 in float32, about ten times slower than float32.

    Args:
        precision: one of :data:`Precision`, or ``with_bf16``.
        device: ``auto`` for the accelerator if there is one, ``cpu``, or the name of the accelerator.
        with_bf16: the choice of ``auto``.

    Raises:
        ValueError: for an unknown precision, fp16 on a CPU, or an accelerator that there is not.
    """
    if precision not in (known := dict.fromkeys((*get_args(Precision), with_bf16))):
        raise ValueError(f"precision={precision}: choose one of {', '.join(known)}")
    on_cpu = _is_cpu(device)
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
    return with_bf16 if has_bf16 else "no"


def _is_cpu(device: str) -> bool:
    return device == "cpu" or not torch.accelerator.is_available()


def describe_precision(asked: str, chosen: str, device: str, subtracts_scores: bool) -> str:
    """The line at the start of a run: its precision and why.

    Args:
        asked: the setting.
        chosen: the result of :func:`choose_precision`.
        device: the setting.
        subtracts_scores: True for a distillation.
    """
    name = {"no": "float32", "bf16_critics": "bf16 for the critics"}.get(chosen, chosen)
    if asked != "auto":
        reason = f"precision={asked} is set"
    else:
        unit = "CPU" if _is_cpu(device) else "GPU"
        reason = f"this {unit} has {'no ' if chosen == 'no' else ''}instructions for bf16"
    line = f"precision: {name}, because {reason}"
    if not subtracts_scores or "bf16" not in chosen:
        return line
    exact = "float32" if chosen == "bf16_critics" else "teacher and fake score in float32"
    return f"{line}; {exact} for the generator, because bf16 would round off the difference of its scores"


def autocast_of(precision: str) -> str:
    """The precision of accelerate's autocast: "no", "bf16" or "fp16"."""
    return "bf16" if precision == "bf16_critics" else precision


def without_bf16(network: nn.Module, device: torch.device) -> AbstractContextManager[object]:
    """Context in which ``network`` calculates in float32 where autocast is to bf16.

    For predictions that are subtracted: bf16 has 8 significant bits, and teacher and fake score often agree in 6.
    Weights of less than float32 stay under autocast, which converts them.
    """
    if not torch.is_autocast_enabled(device.type) or torch.get_autocast_dtype(device.type) is not torch.bfloat16:
        return nullcontext()
    return torch.autocast(device.type, enabled=any(weight.itemsize < 4 for weight in network.parameters()))


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


def allow_tf32(allowed: bool) -> None:
    """Let CUDA round the inputs of float32 matrix products and convolutions to TF32 (10 bits) in this process, or not.

    torch's default is convolutions alone. The newer ``fp32_precision`` is a view of the same settings, but where it is
    set, torch's compiler cannot read ``allow_tf32``.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


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
