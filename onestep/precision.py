"""In which precision networks compute."""

import torch

PRECISIONS = ("auto", "no", "bf16", "fp16")


def choose_precision(precision: str, device: str) -> str:
    """``precision`` as accelerate takes it: ``auto`` is bf16 where the device has instructions for it, else float32.

    On a CPU that is one with AVX-512. Others imitate bf16 in float32, about ten times slower than float32 itself.

    Args:
        precision: one of :data:`PRECISIONS`.
        device: ``auto``, the accelerator if there is one; or ``cpu``.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if device == "cpu" or not torch.accelerator.is_available():
        has_bf16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    else:
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "no"
