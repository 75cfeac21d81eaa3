"""Pipelines that people store otherwise than as a folder of diffusers: made into one, once, in the cache."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from onestep.cache import fingerprint
from onestep.files import atomic_folder
from onestep.models.describe import describe, is_lora, is_safetensors
from onestep.models.diffusers.families import FAMILIES, diffusers_class
from onestep.models.diffusers.folder import INDEX, PipelineIndex, pipeline_folder, quiet
from onestep.models.diffusers.text_encoder import TextEncoder, require_text_libraries
from onestep.models.weights import Weights, load_network, read_config
from onestep.reading import one_line, open_tensors, read_tensors

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


def find_pipeline(
    path: str,
    local_files_only: bool,
    revision: str | None,
    variant: str | None,
    config: str | None,
    lora: str | None,
    cache: str,
) -> Path:
    """The folder of a pipeline: that of a single file, or of a pipeline with a LoRA merged, is made in the ``cache``.

    Args:
        path: folder, hub id, or a single file of safetensors in the names of a model's original code.
        local_files_only, revision, variant: see :func:`pipeline_folder`.
        config: folder of a pipeline of the same kind, which has the configs, tokenizers and other parts that a single
            file lacks; None for a ``path`` that is none.
        lora: file or folder of a LoRA that is merged into the pipeline's weights at full strength; None for none. It
            needs the package peft.
        cache: folder in whose folder ``pipelines`` new pipelines are kept.

    Raises:
        ValueError: if there is no pipeline, or the parts do not fit each other.
    """
    single, folders = Path(path).expanduser(), Path(cache).expanduser() / "pipelines"
    if single.is_file():
        root = _of_single_file(single, config, folders)
    elif config is None:
        root = pipeline_folder(path, local_files_only, revision, variant)
    else:
        raise ValueError(f"teacher.config={config} is for a single file, and {path} is none: set teacher.config=null")
    return root if lora is None else _with_lora(root, Path(lora).expanduser(), variant, folders)


def _once(folder: Path, make: Callable[[Path], None], setting: str) -> Path:
    """The ``folder``, which ``make`` writes if it is not there, on each machine by one process.

    Raises:
        ValueError: with the ``setting``, for whatever diffusers raises, or if it cannot be written.
    """
    with PartialState().local_main_process_first():
        if folder.is_dir():
            return folder
        try:
            with atomic_folder(folder) as temporary, quiet():
                make(temporary)
        except Exception as error:  # diffusers raises many types for weights that do not fit
            if folder.is_dir():  # another machine with the same disk was first
                return folder
            reason = one_line(
                error if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}", 400
            )
            raise ValueError(
                f"{setting}: no pipeline could be made of it in {folder} (teacher.pipeline.cache): {reason}"
            ) from error
    return folder


def _of_single_file(file: Path, config: str | None, cache: Path) -> Path:
    """The pipeline of the single ``file`` with the parts that it lacks from the folder ``config``."""
    import diffusers

    if not is_safetensors(file) or is_lora(file) or config is None:
        raise ValueError(describe(file))
    require_text_libraries()
    base = Path(config).expanduser()
    index = PipelineIndex.of(base)
    _check_parts(base, index)
    with open_tensors(file) as opened:
        first = next((opened.get_slice(name).get_dtype() for name in opened.keys()), "F32")  # noqa: SIM118

    def make(folder: Path) -> None:
        pipeline_class: Any = getattr(diffusers, index.kind)
        pipeline = pipeline_class.from_single_file(
            str(file), config=str(base), local_files_only=True, torch_dtype=_DTYPES.get(first, torch.float32)
        )
        pipeline.save_pretrained(folder)

    # Of the folder the configs are hashed, and its weights, which stand in for what the file lacks, named.
    named = sorted(f"{part.resolve()} {part.stat().st_size}" for part in base.glob("*/*.safetensors"))
    key = fingerprint({"weights": named}, files=[file, *sorted(base.glob("*.json")), *sorted(base.glob("*/*.json"))])
    return _once(cache / key, make, f"teacher.path={file}, teacher.config={config}")


def _check_parts(base: Path, index: PipelineIndex) -> None:
    """Check that diffusers can read the parts in ``base`` without running or unpickling anything.

    Raises:
        ValueError: for code of a model's own, or weights that are not safetensors.
    """
    TextEncoder.check_kinds(base, index)
    for file in base.glob("*/*config.json"):
        read_config(file)
    for name in index.components:
        if not list((base / name).glob("*.safetensors")) and any((base / name).glob("*.bin")):
            raise ValueError(describe(base / name))


def _with_lora(root: Path, lora: Path, variant: str | None, cache: Path) -> Path:
    """The pipeline in ``root`` with the weights of ``lora`` merged into its network and text encoders."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"teacher.lora={lora} needs the package peft: pip install 'onestep[lora]'")
    file = lora if lora.is_file() else lora / "pytorch_lora_weights.safetensors"
    if not file.is_file() or not is_safetensors(file) or not is_lora(file):
        raise ValueError(f"teacher.lora={lora}: expected a LoRA as safetensors, or a folder with {file.name}")
    index = PipelineIndex.of(root)
    name = next((name for name, kind in index.components.items() if kind in FAMILIES), None)
    if name is None:
        raise ValueError(f"teacher.lora={lora}: {root} has no network that is supported")
    kind, weights = index.components[name], Weights.find(root / name, variant=variant)

    def make(folder: Path) -> None:
        network: Any = load_network(
            lambda: diffusers_class(kind).from_config(read_config(root / name / "config.json")),
            weights,
            None,
        )
        encoder = TextEncoder(root, dtype=network.dtype, variant=variant)
        pipeline = encoder.pipeline
        setattr(pipeline, name, network)
        before = {part: getattr(pipeline, part) for part in encoder.encoders(index)}
        pipeline.load_lora_weights(read_tensors(file))
        changed = sorted(pipeline.get_list_adapters())
        if not changed:
            raise ValueError(f"none of its layers is one of {kind} or of the text encoders")
        pipeline.fuse_lora(components=changed)
        pipeline.unload_lora_weights()
        for part in changed:
            {**before, name: network}[part].save_pretrained(folder / part, variant=weights.variant)
        for part in root.iterdir():
            if part.name not in changed:
                (folder / part.name).symlink_to(part.resolve())

    # The parts that it does not change are links to this root.
    files = [file, root / INDEX, *weights.files, *TextEncoder.files(root, variant)]
    key = fingerprint({"root": str(root.resolve()), "variant": variant}, files=files)
    return _once(cache / key, make, f"teacher.lora={lora}")
