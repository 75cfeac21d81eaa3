"""``onestep export``: a generator as a diffusers pipeline, or in files of other programs; a scene as meshes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from onestep.export.compare import TOLERANCES, DType
from onestep.export.export import check_output, export
from onestep.export.formats import FORMATS, export_graph

_EPILOG = """\
formats:
  diffusers      a pipeline with a model card; of a scene the densities and meshes. To publish it:
                 hf upload USER/NAME OUTPUT
  safetensors    a folder for onestep.Generator.from_pretrained
  onnx           one graph with the noise of each step and the condition as inputs, the decoder included
  torch-export   the same graph for torch.export.load

The README.md has the inputs, code that draws with them, and the difference from the original. An export that differs
by more than is allowed is refused."""


def main(arguments: Sequence[str]) -> None:
    """Export a generator.

    Raises:
        ValueError: as :func:`onestep.export.export.export`, :class:`onestep.build.deployment.Deployment` and
            :func:`onestep.export.formats.export_graph`.
    """
    parser = argparse.ArgumentParser(
        prog="onestep export",
        description="Write a generator as a diffusers pipeline with a model card, or for other programs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", help="a run's folder, such as outputs/digits_long/2026-01-31_12-00-00_123456; a generator's folder or "
        "file; or the name of a bundled generator: emoji, fashion, photographs"
    )  # fmt: skip
    parser.add_argument("output", help="the folder to write, which must not exist yet")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of onestep sample, such as "
                        "sigma_init=2.5; not for diffusers of a run")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="diffusers", help="default: diffusers")
    parser.add_argument("--dtype", choices=get_args(DType), default="float32", help="of the weights; default: float32")
    parser.add_argument(
        "--weights", help="an average of the run, such as ema, or raw: the last iterate; default: the first"
    )
    options = parser.parse_intermixed_args(arguments)  # settings on either side of the options
    if options.format == "diffusers" and (Path(options.run) / "config.yaml").is_file():  # with what the run measured
        if options.settings or options.dtype != "float32":
            parser.error("--format diffusers of a run is in float32, and takes no settings")
        print(f"written: {export(options.run, options.output, options.weights)}")
        return
    from onestep.build.deployment import Deployment

    check_output(Path(options.output))
    settings = [*options.settings, *([] if options.weights is None else [f"weights={options.weights}"])]
    graph = Deployment(options.run, settings).graph
    found = export_graph(graph, options.format, options.dtype, Path(options.output))
    allowed = TOLERANCES[options.dtype]
    print(
        f"written: {options.output}, whose images differ from the original's by {found.largest:.1e} (allowed "
        f"{allowed.largest:g}), root mean square {found.rms:.1e} (allowed {allowed.rms:g})"
    )
