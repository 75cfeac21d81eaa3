"""A generator in files of other programs, each compared with the original before it is kept."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor

from onestep.denoiser import beyond_labels
from onestep.export.compare import TOLERANCES, DType, Runner, Tolerance, compare
from onestep.export.graph import OUTPUT, GeneratorGraph
from onestep.export.pipeline import OneStepPipeline
from onestep.export.readme import write_readme
from onestep.files import atomic_folder
from onestep.models.generator import Generator
from onestep.reading import one_line

_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights in one file: protobuf ends at 2 GiB
_GRAPH = "model.onnx"
_PROGRAM = "model.pt2"


@dataclass(frozen=True)
class FileFormat:
    """A kind of files.

    Args:
        dtypes: of the weights that it can have.
        write: writes a graph into a folder; returns what runs the written files.
    """

    dtypes: tuple[DType, ...]
    write: Callable[[GeneratorGraph, Path, DType], Runner]


def export_graph(graph: GeneratorGraph, name: str, dtype: DType, output: Path) -> Tolerance:
    """Write ``graph`` in the format ``name``, with a README.md of its inputs, into the new folder ``output``.

    Args:
        graph: the generator.
        name: one of :data:`FORMATS`.
        dtype: of the weights. Inputs and images are float32.
        output: the folder to write, new or empty.

    Returns:
        The differences that were found, of batches of one and of three images.

    Raises:
        ValueError: for a ``dtype`` that the format has not, a missing extra, or files whose images differ from the
            generator's by more than :data:`TOLERANCES`. Nothing is written then.
    """
    file_format = FORMATS[name]
    if dtype not in file_format.dtypes:
        raise ValueError(f"--dtype {dtype}: the format {name} has {', '.join(file_format.dtypes)}")
    try:
        with atomic_folder(output) as temporary:
            found, allowed = compare(graph, file_format.write(graph, temporary, dtype)), TOLERANCES[dtype]
            if not (found.largest <= allowed.largest and found.rms <= allowed.rms):
                raise ValueError(
                    f"{output} is not written: its images differ from the generator's by {found.largest:.2g} (root "
                    f"mean square {found.rms:.2g}), and --dtype {dtype} allows {allowed.largest:g} "
                    f"({allowed.rms:g}): use another --dtype, of {', '.join(file_format.dtypes)}"
                )
            write_readme(graph, name, dtype, found, temporary)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{output} could not be written, and nothing of it is left: {error}") from error
    except RuntimeError as error:  # of torch.export and torch.onnx
        raise ValueError(f"torch cannot write this network as {name}: {one_line(error, 300)}") from error
    return found


def _write_diffusers(graph: GeneratorGraph, folder: Path, dtype: DType) -> Runner:
    if others := beyond_labels(graph.condition_names):
        raise ValueError(
            f"--format diffusers: this generator takes {', '.join(others)}, for which the pipeline has no place. Use "
            "another format; or for prompts the run's folder, whose record names the pipeline of its teacher"
        )
    vae = None if graph.autoencoder is None else graph.autoencoder.vae
    OneStepPipeline.from_generator(graph.generator, vae).save_pretrained(folder)
    stored = OneStepPipeline.from_pretrained(folder)
    again = GeneratorGraph(stored.generator, graph.space, stored.autoencoder)
    return lambda inputs: again(*inputs.values())


def _write_safetensors(graph: GeneratorGraph, folder: Path, dtype: DType) -> Runner:
    generator = graph.generator
    if dtype == "float16":
        generator = copy.deepcopy(generator).half()
    generator.save_pretrained(folder)
    stored = Generator.from_pretrained(folder)
    again = GeneratorGraph(stored, graph.space, graph.autoencoder)
    return lambda inputs: again(*inputs.values())


def _write_torch_export(graph: GeneratorGraph, folder: Path, dtype: DType) -> Runner:
    torch.export.save(_traced(graph), folder / _PROGRAM)
    module = torch.export.load(folder / _PROGRAM).module()
    return lambda inputs: module(*inputs.values())


def _write_onnx(graph: GeneratorGraph, folder: Path, dtype: DType) -> Runner:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError as error:
            raise ValueError(f"--format onnx needs {package}: pip install 'onestep[onnx]' ({error})") from error
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    program = _traced(graph)
    names = list(graph.inputs([0]))
    with _quiet():
        converted: Any = torch.onnx.export(
            program.run_decompositions(_WITHIN_ONNX), dynamo=True, verbose=False, input_names=names,
            output_names=[OUTPUT], optimize=False,
        )  # fmt: skip
        # Its own optimisation drops a sum with less than 1e-8, such as Sana's with 1e-15 before a division.
        for simplify in (optimizer.inline, optimizer.fold_constants, optimizer.remove_unused_nodes):
            simplify(converted.model)
        ClearMetadataAndDocStringPass()(converted.model)  # lines and paths of the code that was traced
        large = sum(one.numel() * one.element_size() for one in graph.parameters()) > _LARGEST_ONNX
        converted.save(folder / _GRAPH, external_data=large)
        _CONVERSIONS[dtype](folder / _GRAPH, large)
    return onnx_runner(folder / _GRAPH)


def _squeezed(x: Tensor, dim: int) -> Tensor:
    return x.select(dim, 0) if x.shape[dim] == 1 else x.view_as(x)


#: ONNX has no searchsorted, the place of a noise level in diffusers' tables, and squeezes no side but of 1.
_WITHIN_ONNX = {
    torch.ops.aten.searchsorted.Tensor: lambda table, values: (table < values[..., None]).sum(-1),
    torch.ops.aten.squeeze.dim: _squeezed,
}


def onnx_runner(path: Path) -> Runner:
    """Runs an ONNX file on the CPU, on as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of what its own optimisation leaves as it is
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {name: tensor.numpy() for name, tensor in inputs.items()})[0])

    return run


def _traced(graph: GeneratorGraph) -> Any:
    """The program of ``graph`` for any batch size."""
    inputs = tuple(graph.inputs([0, 1, 2]).values())
    # AUTO, as diffusers' UNets copy batches of 64 and more, which would bound Dim("batch").
    first, *others = ({0: torch.export.Dim.AUTO} for _ in inputs)
    with torch.no_grad(), _quiet():
        return torch.export.export(graph, inputs, dynamic_shapes=(first, tuple(others)))


def _keep(path: Path, large: bool) -> None:
    """Float32, as it is."""


def _to_float16(path: Path, large: bool) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    halved = convert_float_to_float16(onnx.load(path), keep_io_types=True, disable_shape_infer=large)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save(halved, path, save_as_external_data=large, location=f"{path.name}.data")


def _to_int8(path: Path, large: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Unsigned: onnxruntime's convolutions of signed weights take three times as long on x86.
    quantize_dynamic(path, path, per_channel=True, weight_type=QuantType.QUInt8, use_external_data_format=large)


_CONVERSIONS: dict[DType, Callable[[Path, bool], None]] = {
    "float32": _keep, "float16": _to_float16, "int8": _to_int8,
}  # fmt: skip

FORMATS = {
    "diffusers": FileFormat(("float32",), _write_diffusers),
    "safetensors": FileFormat(("float32", "float16"), _write_safetensors),
    "onnx": FileFormat(get_args(DType), _write_onnx),
    "torch-export": FileFormat(("float32",), _write_torch_export),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.onnx and onnxruntime print and warn of their own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
