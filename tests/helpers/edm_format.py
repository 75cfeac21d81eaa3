"""Writes files of EDM's format, and files that only look like it: pickles assembled opcode by opcode."""

import io
import pickle
import struct
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.models.edm.denoiser import EDMDenoiser


@dataclass(frozen=True)
class Call:
    """``module.name(*arguments)``; with a ``state``, that is then set."""

    module: str
    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


def text(value: str) -> bytes:
    content = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def assemble(value: Any) -> bytes:
    """The opcodes that make ``value``."""
    match value:
        case Raw():
            return value.opcodes
        case Call():
            call = text(value.module) + text(value.name) + pickle.STACK_GLOBAL + assemble(value.arguments)
            call += pickle.REDUCE
            return call if value.state is None else call + assemble(value.state) + pickle.BUILD
        case dict():
            items = b"".join(assemble(key) + assemble(item) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case tuple():
            return pickle.MARK + b"".join(map(assemble, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(assemble, value)) + pickle.APPENDS
        case set():
            return pickle.EMPTY_SET + pickle.MARK + b"".join(map(assemble, value)) + pickle.ADDITEMS
    return pickle.dumps(value, protocol=3)[2:-1]  # plain: what is between the protocol and the end


def pickled(value: Any) -> bytes:
    """A whole pickle of ``value``."""
    return pickle.PROTO + b"\x04" + assemble(value) + pickle.STOP


def blob(tensor: Tensor) -> bytes:
    """A storage as torch pickles it on its own."""
    file = io.BytesIO()
    storage = torch.storage.TypedStorage(
        wrap_storage=tensor.flatten().clone().untyped_storage(), dtype=tensor.dtype, _internal=True
    )
    torch.save(storage, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def recorded(tensor: Tensor, content: bytes | None = None) -> Call:
    """A tensor, its storage's bytes replaced by ``content`` if that is given."""
    storage = Call("torch.storage", "_load_from_bytes", (blob(tensor) if content is None else content,))
    hooks = Call("collections", "OrderedDict")
    return Call(
        "torch._utils", "_rebuild_tensor_v2", (storage, 0, tuple(tensor.shape), tuple(tensor.stride()), False, hooks)
    )


def persistent(class_name: str, state: dict[str, Any], source: str = "# nothing") -> Call:
    """An object as EDM's persistence pickles it."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Call("torch_utils.persistence", "_reconstruct_persistent_obj", (meta,))


def module_state(tensors: dict[str, Tensor], buffers: set[str]) -> dict[str, Any]:
    """The state of a module with these tensors, by dotted names, its submodules in it."""
    state: dict[str, Any] = {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}, "_hooks": {"x"}}
    inner: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = tensor
        elif first in buffers:
            state["_buffers"][first] = recorded(tensor)
        else:
            state["_parameters"][first] = Call("torch._utils", "_rebuild_parameter", (recorded(tensor), False, {}))
    for name, members in inner.items():
        state["_modules"][name] = (
            Call("torch.nn.modules.container", "ModuleDict", (), module_state(members, buffers))
            if name in ("enc", "dec")
            else persistent("Layer", module_state(members, buffers))
        )
    return state


CLASSES = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond", "iddpm": "iDDPMPrecond"}
ATTRIBUTES = {
    "edm": {"sigma_data": 0.5, "sigma_min": 0, "sigma_max": float("inf")},
    "vp": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "sigma_min": 0.001, "sigma_max": 152.2},
    "ve": {"sigma_min": 0.02, "sigma_max": 100},
    "iddpm": {"C_1": 0.001, "C_2": 0.008, "M": 1000, "sigma_min": 0.0064, "sigma_max": 20291.0},
}


def snapshot(denoiser: EDMDenoiser, **changes: Any) -> dict[str, Any]:
    """What EDM's or EDM2's training loop would save of ``denoiser``, some attributes of the network changed."""
    config = denoiser.config
    is_edm2 = config["architecture"] == "EDM2UNet"
    tensors = {name.removeprefix("precondition."): value for name, value in denoiser.state_dict().items()}
    if is_edm2:
        tensors = {
            name.removeprefix("model.") if "logvar" in name else name.replace("model.", "unet.", 1): value
            for name, value in tensors.items()
        }
    buffers = {name.rpartition(".")[2] for name, _ in denoiser.named_buffers()}
    state = module_state(tensors, buffers)
    channels, size, _ = config["image_shape"]
    module = "unet" if is_edm2 else "model"
    arguments = {"img_channels": channels, "label_dim": config["label_dim"]} if is_edm2 else {"in_channels": channels}
    options = {name: value for name, value in config["options"].items() if name != "logvar_channels"}
    inner = state["_modules"][module].arguments[0]["state"]
    inner |= {"_init_args": (), "_init_kwargs": {"img_resolution": size} | arguments | options}
    state["_modules"][module] = persistent("UNet" if is_edm2 else config["architecture"], inner)
    state |= {"img_resolution": size, "img_channels": channels, "label_dim": config["label_dim"], "use_fp16": False}
    state |= ({"sigma_data": 0.5} if is_edm2 else ATTRIBUTES[config["preconditioning"]]) | changes
    return {"ema": persistent("Precond" if is_edm2 else CLASSES[config["preconditioning"]], state)}


def numpy_array(values: list[float], dtype: str = "f4") -> Call:
    """A float array as numpy pickles it."""
    description = Call("numpy", "dtype", (dtype, False, True), (3, "<", None, None, None, -1, -1, 0))
    state = (1, (len(values),), description, False, struct.pack(f"<{len(values)}f", *values))
    ndarray = Raw(text("numpy") + text("ndarray") + pickle.STACK_GLOBAL)
    return Call("numpy.core.multiarray", "_reconstruct", (ndarray, (0,), b"b"), state)


def repickled(value: Any, protocol: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """``value`` as Python's own pickler writes it in this protocol."""
    persistence: Any = ModuleType("torch_utils.persistence")
    name = "_reconstruct_persistent_obj"
    setattr(persistence, name, type(name, (), {"__module__": persistence.__name__}))
    for module in (ModuleType("torch_utils"), persistence):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return pickle.dumps(_python_object(value), protocol)


class _Called:
    """An object that is pickled as a call."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def _python_object(value: Any) -> Any:
    match value:
        case Call():
            function = getattr(sys.modules[value.module], value.name)
            return _Called(function, _python_object(value.arguments), _python_object(value.state))
        case dict():
            return {key: _python_object(item) for key, item in value.items()}
        case tuple():
            return tuple(map(_python_object, value))
    return value
