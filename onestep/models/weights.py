"""Networks from a folder of a config and safetensors weights, which may come from anybody.

The names and shapes in the headers of the weights limit what a config can ask for: the network is built without memory
first, and compared with them. Nothing is unpickled, and no name in a file is imported.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from accelerate import init_empty_weights
from pydantic import BaseModel, create_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from onestep.files import atomic_file, write_text
from onestep.models.describe import check_whole, describe
from onestep.reading import one_line, open_tensors, read_json

Network = TypeVar("Network", bound=nn.Module)

#: Names of the weights in a network's folder without their ending, of diffusers and of transformers.
DIFFUSERS_BASE = "diffusion_pytorch_model"
TRANSFORMERS_BASE = "model"

_FLOATS = ("F16", "BF16", "F32", "F64")
_NUMBER_LIMIT = 2**20  # of integers in a config; real ones, such as vocabularies, have less than 300,000
_BUFFER_LIMIT = 2**24  # numbers in buffers that are computed, such as tables of positions
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_FOREIGN_CODE = ("auto_map", "quantization_config", "custom_pipelines", "trust_remote_code")
_FOREIGN_KERNELS = ("_attn_implementation", "attn_implementation", "_experts_implementation")


class _ShardIndex(BaseModel):
    weight_map: dict[str, str]


@dataclass(frozen=True)
class Weights:
    """The weights of a network: the safetensors files in its folder, and what their headers say.

    Attributes:
        folder: the network's folder.
        files: the file, or its shards, and the shards' index.
        variant: the variant of the files; None for the default.
        shapes: shapes by names without the prefixes of ``torch.compile`` and of parallel wrappers.
        names: names in the files by those names.
    """

    folder: Path
    files: tuple[Path, ...]
    variant: str | None
    shapes: dict[str, tuple[int, ...]]
    names: dict[str, str]

    @classmethod
    def find(cls, folder: Path, base: str = DIFFUSERS_BASE, variant: str | None = None, floats: bool = True) -> Self:
        """The weights in ``folder``: those of the ``variant``, else of the default, else of its only variant.

        Args:
            folder: the network's folder.
            base: the files' name without its ending.
            variant: a variant, such as "fp16".
            floats: require floating-point numbers in all tensors.

        Raises:
            ValueError: if there are none as safetensors, or several variants and no default, a file is damaged or
                outside the folder, or a tensor is of another dtype.
        """
        present = _variants(folder, base)
        for chosen in dict.fromkeys((variant, None, *(present if len(present) == 1 else ()))):
            if files := _files(folder, base, chosen):
                names: dict[str, str] = {}
                shapes: dict[str, tuple[int, ...]] = {}
                for file in files:
                    if file.suffix == ".safetensors":
                        shapes |= _shapes(file, floats)
                for name, plain in zip(shapes, _plain(list(shapes)), strict=True):
                    names[plain] = name
                if len(names) < len(shapes):
                    raise ValueError(f"{folder}: tensors whose names differ by a prefix alone")
                if chosen not in (variant, None):
                    warnings.warn(f"{folder}: its weights are of the variant {chosen} alone: read", stacklevel=2)
                return cls(folder, files, chosen, {plain: shapes[name] for plain, name in names.items()}, names)
        raise ValueError(_absent(folder, base, present))

    @property
    def count(self) -> int:
        """The number of numbers in all tensors."""
        return sum(map(prod, self.shapes.values()))

    def default_name(self, file: Path) -> str:
        """The name of one of the ``files`` as weights of the default; shards keep theirs."""
        return file.name if self.variant is None else file.name.replace(f".{self.variant}.", ".")

    def renamed(self, rename: Callable[[str], str]) -> Self:
        """The same weights by other names."""
        return type(self)(
            self.folder,
            self.files,
            self.variant,
            {rename(name): shape for name, shape in self.shapes.items()},
            {rename(name): original for name, original in self.names.items()},
        )

    def check(self, network: nn.Module, name: str = "config.json") -> None:
        """Check that the ``network`` of this ``name`` has tensors of these names and shapes.

        Raises:
            ValueError: with a few of those that differ.
        """
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        wrong = [name for name in {**expected, **self.shapes} if expected.get(name) != self.shapes.get(name)]
        if wrong:
            raise ValueError(
                f"the weights at {str(self.folder)!r} do not fit {name}: {len(wrong)} tensors differ, such as "
                f"{', '.join(_difference(n, self.shapes, expected) for n in sorted(wrong)[:3])}"
            )

    def read(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The tensors by name, in ``dtype``, or that of the file.

        Raises:
            ValueError: with the name of a tensor that is not finite, or if a file is damaged.
        """
        plain = {original: name for name, original in self.names.items()}
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            if path.suffix == ".safetensors":
                with open_tensors(path) as file:
                    for original in file.keys():  # noqa: SIM118
                        tensor: Tensor = file.get_tensor(original)
                        if not tensor.isfinite().all():
                            raise ValueError(
                                f"{path}: the weight {original} is not finite: take an earlier checkpoint, or other "
                                "weights"
                            )
                        tensors[plain[original]] = tensor if dtype is None else tensor.to(dtype)
        return tensors


@cache
def arguments_of(target: Any) -> type[BaseModel]:
    """The arguments of a class with their types, to read them from a file."""
    parameters = inspect.signature(target).parameters.values()
    fields: dict[str, Any] = {
        one.name: (one.annotation, ... if one.default is one.empty else one.default) for one in parameters
    }
    return create_model(target.__name__, **fields)


def save_network(network: nn.Module, folder: Path, config: str, base: str, name: str = "config.json") -> None:
    """Write the weights of ``network`` as safetensors of the name ``base``, and its config as the file ``name``."""
    # Copies, as safetensors refuses tied weights.
    weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in network.state_dict().items()}
    with atomic_file(folder / f"{base}.safetensors") as temporary:
        save_file(weights, temporary)
    write_text(folder / name, config + "\n")


def load_network(make: Callable[[], Network], weights: Weights, dtype: torch.dtype | None = torch.float32) -> Network:
    """The network that ``make`` builds from a config, with the ``weights`` in ``dtype`` or their own, in eval mode.

    Raises:
        ValueError: if the config describes no network, or another one than that of the weights.
    """
    weights.check(build_outline(make, weights))
    with init_empty_weights():
        network = make()
    network.load_state_dict(weights.read(dtype), assign=True)
    return network.eval()


def build_outline(make: Callable[[], Network], weights: Weights) -> Network:
    """The network that ``make`` builds from a config, without memory.

    Raises:
        ValueError: if the config describes none, or a larger one than that of the ``weights``.
    """
    try:
        with _at_most(len(weights.shapes)), torch.device("meta"):
            outline = make()
    except Exception as error:  # whatever a constructor of another package raises for a config's values
        reason = one_line(error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}", 400)
        raise ValueError(f"the config.json of {str(weights.folder)!r} describes no network: {reason}") from error
    buffers = dict(outline.named_buffers())
    computed = sum(value.numel() for name, value in buffers.items() if name not in weights.shapes)
    if weights.files and computed > _BUFFER_LIMIT + weights.count:  # without files, nothing is allocated
        raise ValueError(f"the config.json of {str(weights.folder)!r} describes tables of {computed:,} numbers")
    return outline


def read_config(path: Path) -> dict[str, Any]:
    """The config of a network, scheduler or encoder: plain values within limits, without private keys.

    Raises:
        ValueError: with the file, for code of its own, quantisation, or numbers beyond those of any network.
    """
    config = read_json(path, dict[str, Any])
    _check_values(config, path, "")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _check_values(value: Any, path: Path, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in _FOREIGN_CODE or (name in _FOREIGN_KERNELS and "/" in str(inner)):
                raise ValueError(
                    f"{path} has {name}: code and quantisation of a model's own are not supported, and nothing in the "
                    "folder was run; expected plain weights of diffusers or transformers"
                )
            _check_values(inner, path, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            _check_values(inner, path, key)
    elif isinstance(value, int | float) and abs(value) > _NUMBER_LIMIT and type(value) is int:
        raise ValueError(f"{path}: {key}={str(value)[:30]}: expected at most {_NUMBER_LIMIT:,}, as in any network")


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Context in which networks can register parameters for about as many ``tensors``; layers without end stop."""
    registered = 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal registered
        registered += 1
        if registered > 2 * tensors + 64:  # some layers are made and replaced
            raise ValueError(f"it has more layers than the weights, which have {tensors} tensors")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def _files(folder: Path, base: str, variant: str | None) -> tuple[Path, ...]:
    """The file, or index and shards; empty if there is neither."""
    middle = "" if variant is None else f".{variant}"
    single, index = folder / f"{base}{middle}.safetensors", folder / f"{base}.safetensors.index{middle}.json"
    if single.exists():
        return (single,)
    if not index.exists():
        return ()
    shards = sorted(set(read_json(index, _ShardIndex).weight_map.values()))
    for name in shards:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names the shard {name[:80]!r}: expected a .safetensors file in its folder")
    return (*(folder / name for name in shards), index)


def _shapes(path: Path, floats: bool) -> dict[str, tuple[int, ...]]:
    check_whole(path)
    shapes = {}
    with open_tensors(path) as file:
        for name in file.keys():  # noqa: SIM118
            view = file.get_slice(name)
            counter = name.endswith(".num_batches_tracked")  # of a batch norm, as in FLUX.2's autoencoder
            if floats and not counter and (dtype := view.get_dtype()) not in _FLOATS:
                raise ValueError(f"{path}: {name} is of dtype {dtype}, expected floating-point numbers")
            shapes[name] = tuple(view.get_shape())
    return shapes


def _plain(names: list[str]) -> list[str]:
    """The ``names`` without the prefixes of wrappers."""
    for wrapper in _WRAPPERS:  # also of submodules
        names = [name.replace(wrapper, "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def _difference(name: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    if name not in found:
        return f"{name} (missing)"
    return f"{name[:200]} ({found[name]}, expected {expected.get(name, 'none of this name')})"


def _variants(folder: Path, base: str) -> list[str]:
    """The variants of the weights in ``folder``, without the default."""
    others = (*folder.glob(f"{base}.*.safetensors"), *folder.glob(f"{base}.safetensors.index.*.json"))
    names = (file.name.removeprefix(f"{base}.").removeprefix("safetensors.index.") for file in others)
    return sorted({re.split(r"[.-]", name)[0] for name in names})


def _absent(folder: Path, base: str, variants: list[str]) -> str:
    if variants:
        return f"{folder} has weights of the variants {', '.join(variants)} alone: set teacher.variant={variants[0]}"
    return f"no weights {base}.safetensors in {folder}: {describe(folder)}"
