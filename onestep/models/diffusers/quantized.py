"""Frozen linear layers in 8 or 4 bits, by bitsandbytes: the base of LoRA students (QLoRA, arXiv 2305.14314)."""

import importlib.util
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.models.base import Network, copy_trained

Bits = Literal[8, 4]
_BLOCKS = {8: 256, 4: 64}  # values with a common scale, bitsandbytes' defaults
_SMALLEST = 4096  # weights of a layer; smaller ones save nothing


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a weight of 8 bits (dynamic, arXiv 2110.02861) or 4 (NF4, arXiv 2305.14314).

    Each pass dequantises it, and so does each backward pass: the gradient is that of the quantised layer. Scales are
    stored as bytes, which a conversion of the network leaves as they are.

    Args:
        layer: the layer; its bias is kept.
        bits: 8 or 4.

    Attributes:
        in_state: False leaves the weight out of the ``state_dict``, for students that share it.
    """

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        self.dtype, self.in_state = layer.weight.dtype, True
        weight, scales, codes = _quantize(layer.weight.detach(), bits)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias
        self.scales = nn.Parameter(scales.view(torch.uint8), requires_grad=False)
        self.codes = nn.Parameter(codes.view(torch.uint8), requires_grad=False)

    def dequantized(self) -> Tensor:
        """The weight [out_features, in_features] in the dtype of the original one."""
        from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

        state = QuantState(
            absmax=self.scales.view(torch.float32), shape=torch.Size((self.out_features, self.in_features)),
            code=self.codes.view(torch.float32), blocksize=_BLOCKS[self.bits], quant_type="nf4", dtype=self.dtype,
        )  # fmt: skip
        return (dequantize_4bit if self.bits == 4 else dequantize_blockwise)(self.weight, state)

    def plain(self) -> nn.Linear:
        """A linear layer of the dequantised weight."""
        with torch.device("meta"):
            layer = nn.Linear(self.in_features, self.out_features)
        layer.weight, layer.bias = nn.Parameter(self.dequantized(), requires_grad=False), self.bias
        return layer

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in () if self.in_state else ("weight", "scales", "codes"):
            del destination[prefix + name]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing_keys: list[str],
                              unexpected_keys: list[str], error_msgs: list[str]) -> None:  # fmt: skip
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        absent = () if self.in_state else ("weight", "scales", "codes")
        missing_keys[:] = [key for key in missing_keys if key not in {prefix + name for name in absent}]


class _Product(torch.autograd.Function):
    """A linear layer that keeps no dequantised weight for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantized(), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantized().to(gradient.dtype), None


def quantize_layers(network: nn.Module, bits: Bits) -> None:
    """Replace the linear layers of ``network``, but for small ones, by frozen ones of 8 or 4 bits.

    Raises:
        ValueError: without the package bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"teacher.quantize={bits} needs the package bitsandbytes: pip install 'onestep[bitsandbytes]', or set "
            "teacher.quantize=null"
        )
    for parent in [*network.modules()]:
        for name, layer in [*parent.named_children()]:
            if type(layer) is nn.Linear and layer.weight.numel() >= _SMALLEST:
                setattr(parent, name, QuantizedLinear(layer, bits))


def is_quantized(network: nn.Module) -> bool:
    """True if a layer of ``network`` has 8 or 4 bits."""
    return any(isinstance(module, QuantizedLinear) for module in network.modules())


def dequantized(network: Network) -> Network:
    """``network``, or a copy with plain linear layers if some have 8 or 4 bits."""
    if not is_quantized(network):
        return network
    copied = copy_trained(network)
    copied.__dict__.pop("state_dict", None)  # one that full_state_dict has put there is of the quantised layers
    for parent in [*copied.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, QuantizedLinear):
                setattr(parent, name, layer.plain())
    return copied


def _quantize(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor, Tensor]:
    """The packed weight, the scale of each block and the values of the codes, both in float32."""
    from bitsandbytes.functional import quantize_4bit, quantize_blockwise

    packed, state = (
        quantize_4bit(weight, blocksize=_BLOCKS[4], quant_type="nf4")
        if bits == 4
        else quantize_blockwise(weight, blocksize=_BLOCKS[8])
    )
    return packed, state.absmax, state.code
