"""A device that is not there: tensors of the CPU that are said to be on it, under the rules of CUDA or of Apple's GPU.

Real numbers are computed, so a whole training runs, and raises where the device would:

- tensors of the device and of the CPU in one operation, but for CPU scalars and the indices of a device tensor;
- an rng of the other device;
- NumPy's or pinned memory of a device tensor;
- with ``mps``: float64 on the device.

A storage is on the device or not, so views and gradients are where their base is. Threads other than the caller's see
the CPU alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
_NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
_aten = torch.ops.aten
# The operations that read from one device and write to another.
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
# Their CPU scalars are no exception.
_STRICT = {_aten.cat.default, _aten.stack.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}


class _Placement:
    """The storages that are on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._storages: dict[int, StorageWeakRef] = {}  # a weak reference keeps its address from being used again

    def holds(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in self._storages

    def place(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Say that the storage of ``tensor`` is on ``device``."""
        storage = tensor.untyped_storage()
        if device.type == "cpu":
            self._storages.pop(storage._cdata, None)
            return tensor
        if device.type == "mps" and tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError(_NO_FLOAT64)
        self._storages[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def of(self, tensor: Tensor) -> torch.device:
        return self.device if self.holds(tensor) else tensor.device


class _Operations(TorchDispatchMode):
    """Checks where the inputs of every operation are, also in a backward pass, and places its outputs."""

    def __init__(self, placement: _Placement) -> None:
        super().__init__()
        self.placement = placement
        self.moving = False  # within a call that names its device
        self.inherited = False  # within a call with tensors of the device, which its factories take as an example
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in inputs if self.placement.holds(tensor)]
        if here and not self.moving:
            self.seen.add(func)
            self._check(func, args, inputs)
        known = {tensor.untyped_storage()._cdata for tensor in inputs if tensor.layout == torch.strided}
        result = func(*args, **(kwargs or {}))
        for output in tree_leaves(result):
            if (
                (here or (self.inherited and not inputs))
                and isinstance(output, Tensor)
                and output.untyped_storage()._cdata not in known
            ):
                self.placement.place(output, self.placement.device)
        return result

    def _check(self, func: Any, args: Any, inputs: list[Tensor]) -> None:
        if func in _COPIES:
            return
        if func in _INDEXED and self.placement.holds(args[0]):
            inputs = [args[0], *(value for value in args[2:3] if isinstance(value, Tensor))]
        absent = [tensor for tensor in inputs if not self.placement.holds(tensor)]
        changes_first = func._schema.is_mutable and bool(args) and any(args[0] is tensor for tensor in absent)
        if changes_first or any(tensor.dim() > 0 or func in _STRICT for tensor in absent):
            raise RuntimeError(
                f"{func}: Expected all tensors to be on the same device, but found at least two devices, "
                f"{self.placement.device} and cpu"
            )


class _Move(torch.autograd.Function):
    """A copy on another device; its gradient goes back to the first."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device, operations: _Operations) -> Tensor:
        ctx.back, ctx.operations = operations.placement.of(tensor), operations
        operations.moving = True
        copy = tensor.clone()
        operations.moving = False
        return operations.placement.place(copy, device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Move.apply(gradients[0], ctx.back, ctx.operations), None, None


class _Calls(TorchFunctionMode):
    """The device as Python sees it: the attributes of tensors, the arguments ``device`` and ``generator``."""

    def __init__(self, placement: _Placement, operations: _Operations) -> None:
        super().__init__()
        self.placement, self.operations = placement, operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        placement: _Placement = self.placement
        first: Any = args[0] if args else None
        if func == Tensor.device.__get__:
            return placement.of(first)
        for name in ("cuda", "mps", "cpu"):
            if func == getattr(Tensor, f"is_{name}").__get__:
                return placement.of(first).type == name
        here = any(isinstance(leaf, Tensor) and placement.holds(leaf) for leaf in tree_leaves((args, kwargs)))
        if func in (Tensor.numpy, Tensor.__array__) and here:
            raise TypeError(f"can't convert {placement.device} device type tensor to numpy. Use Tensor.cpu() first")
        if func == Tensor.pin_memory and here:
            raise RuntimeError("cannot pin a tensor of the device: only dense CPU tensors can be pinned")
        if func == Tensor.__deepcopy__:
            return placement.place(func(*args, **kwargs), placement.of(first))
        if func in (Tensor.to, Tensor.cpu):
            return self._move(func, *args, **kwargs)
        named = kwargs.get("device")
        device = torch.device(named) if named is not None else placement.device if here else CPU
        if (generator := kwargs.get("generator")) is not None and generator.device.type != device.type:
            raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{generator.device}'")
        if func == Tensor.backward:
            with self:
                return torch.autograd.backward(first, kwargs.pop("gradient", None), **kwargs)
        if named is None or device.type not in ("cpu", placement.device.type):  # another is meta
            return self._inheriting(here, func, *args, **kwargs)
        return self._placed(device, func, *args, **kwargs | {"device": CPU})

    def _move(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        now = self.placement.of(tensor)
        if func == Tensor.cpu:
            args, kwargs = ("cpu",), {}
        other = args[0] if args else kwargs.get("other")
        if isinstance(other, Tensor):
            args, kwargs = (), {"device": self.placement.of(other), "dtype": other.dtype}
        copy = kwargs.pop("copy", False)
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        device = now if device is None else device
        backward = tensor.requires_grad and torch.is_grad_enabled()
        if torch.float64 in (dtype, tensor.dtype if dtype and backward else dtype) and "mps" in (now.type, device.type):
            raise TypeError(_NO_FLOAT64)  # also in a call that moves to the CPU: the cast comes first
        options: dict[str, Any] = {} if memory_format is None else {"memory_format": memory_format}
        if "meta" in (device.type, now.type):
            return func(tensor, *args, **kwargs)
        if device.type == now.type:
            return Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=copy, **options)
        if now.type == "cpu":
            tensor = Tensor.to(tensor, dtype=dtype or tensor.dtype)
        moved = _Move.apply(tensor, device, self.operations)
        return self._inheriting(device.type != "cpu", Tensor.to, moved, dtype=dtype or tensor.dtype, **options)

    def _inheriting(self, here: bool, func: Any, *args: Any, **kwargs: Any) -> Any:
        before, self.operations.inherited = self.operations.inherited, here
        try:
            return func(*args, **kwargs)
        finally:
            self.operations.inherited = before

    def _placed(self, place: torch.device, func: Any, *args: Any, **kwargs: Any) -> Any:
        self.operations.moving = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.operations.moving = False
        if isinstance(result, Tensor):
            return self.placement.place(result, place)
        return result


def _of_cpu(function: Any, device_type: str = "cpu", *arguments: Any, **options: Any) -> Any:
    """The result of a ``function`` of autocast for the CPU, whose kernels calculate, in place of the device."""
    return function("cpu", *arguments, **options)


@contextmanager
def fake_device(kind: str) -> Iterator[_Operations]:
    """Context in which accelerate's device is a ``cuda`` or ``mps`` that behaves as one; gives the operations on it."""
    device = torch.device(kind, 0)
    placement = _Placement(device)
    operations = _Operations(placement)

    class Generator(torch.Generator):
        """An rng of the CPU that is said to be on its device."""

        where = CPU

        def __new__(cls, where: Any = CPU) -> Any:
            made = torch._C.Generator.__new__(cls, CPU)  # type: ignore[call-arg]
            made.where = torch.device(where)
            return made

        device = property(lambda self: self.where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(Accelerator, "device", property(lambda self: device))
        patch.setattr(torch.cuda, "get_device_name", lambda where: f"a {where} of the tests")
        for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
            patch.setattr(torch, name, partial(_of_cpu, getattr(torch, name)))
        with operations, _Calls(placement, operations):
            yield operations
