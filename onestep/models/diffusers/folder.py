"""The folder of a diffusers pipeline on this machine: its index, and the download of a hub id.

The folder may come from anybody. Its index is data: no module that it names is imported, and no code in it is run.
"""

import importlib.util
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep.models.describe import describe
from onestep.models.weights import DIFFUSERS_BASE, TRANSFORMERS_BASE, Weights
from onestep.reading import one_line, read_json

INDEX = "model_index.json"
SCHEDULER_CONFIG = "scheduler_config.json"

_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # the last for the safety checker, which is not used
#: What pipelines work without: the third encoder is SD3's.
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder", "text_encoder_3", "tokenizer_3")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class PipelineIndex:
    """What ``model_index.json`` says.

    Attributes:
        kind: the class of the pipeline.
        components: class names of its components by name, which is their folder.
        settings: its other settings, such as ``force_zeros_for_empty_prompt``.
    """

    kind: str
    components: dict[str, str]
    settings: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "PipelineIndex":
        """The index of the pipeline in ``folder``, without the optional components that are not there.

        Raises:
            ValueError: as :meth:`read`.
        """
        index = cls.read(folder / INDEX)
        missing = [name for name in _OPTIONAL if name in index.components and not (folder / name).is_dir()]
        if missing:
            warnings.warn(f"{folder} is read without {', '.join(missing)}: there is no such folder", stacklevel=2)
        present = {name: kind for name, kind in index.components.items() if name not in missing}
        return cls(index.kind, present, index.settings)

    @classmethod
    def read(cls, file: Path) -> "PipelineIndex":
        """The index in ``file``.

        Raises:
            ValueError: if it is damaged, or names code other than that of diffusers and transformers.
        """
        content = read_json(file, dict[str, Any])
        kind = content.get("_class_name")
        if not isinstance(kind, str) or not kind.isidentifier():
            raise ValueError(
                f"{file}: _class_name={one_line(repr(kind))}: expected the name of a pipeline of diffusers; a "
                "pipeline with code of its own is not run"
            )
        components: dict[str, str] = {}
        settings: dict[str, Any] = {}
        for name, entry in content.items():
            if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
                if not name.isidentifier() or not _is_known(entry[0]):
                    raise ValueError(
                        f"{file}: {one_line(repr(name))}={one_line(repr(entry))}: expected a folder of the "
                        "pipeline, and a class of diffusers or transformers; code of a pipeline's own is not run"
                    )
                components[name] = entry[1]
            elif not name.startswith("_") and entry != [None, None]:
                settings[name] = entry
        return cls(kind, components, settings)


def required_parts(pipeline_class: Any) -> list[str]:
    """The names of the components that a pipeline's constructor asks for, if only as None."""
    arguments = inspect.signature(pipeline_class.__init__).parameters.values()
    return [argument.name for argument in arguments if argument.default is argument.empty and argument.name != "self"]


def _is_known(library: str) -> bool:
    return library in _LIBRARIES or library.startswith("onestep.")


def pipeline_folder(
    path: str,
    local_files_only: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    weights: bool = True,
) -> Path:
    """The folder of the pipeline at ``path``, or the download of a hub id: configs, vocabularies and safetensors.

    Args:
        path: folder or hub id.
        local_files_only: if True, search the local cache alone for a hub id.
        revision: revision of a hub id; None for the newest.
        variant: the variant of the weights; None for the default.
        weights: False to download no safetensors.

    Raises:
        ValueError: if there is no pipeline.
    """
    folder = Path(path).expanduser()
    if (folder / INDEX).is_file():
        return folder
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"no pipeline of diffusers at {path!r}, which has no {INDEX}: {describe(folder)}")
    expected = f"no pipeline of diffusers at {path!r}: expected a folder with {INDEX}, or a hub id"
    if not _HUB_ID.fullmatch(path):
        raise ValueError(expected)
    from huggingface_hub import hf_hub_download, snapshot_download

    options: dict[str, Any] = {"local_files_only": local_files_only, "revision": revision}
    with downloading(expected):
        index = PipelineIndex.read(Path(hf_hub_download(path, INDEX, **options)))
        names = list(index.components)
        plain = [INDEX, *(f"{name}/{file}" for name in names for file in ("*.json", "*.txt", "*.model", "*.jinja"))]

        def download(patterns: list[str]) -> Path:
            return Path(snapshot_download(path, allow_patterns=[*plain, *patterns], **options))

        return _with_weights(download, names, variant) if weights else download([])


def autoencoder_folder(
    path: str, local_files_only: bool = False, revision: str | None = None, variant: str | None = None
) -> Path:
    """The folder of an autoencoder alone, such as stabilityai/sd-vae-ft-mse, or the download of its hub id.

    Args:
        path: folder with config.json and safetensors, or hub id.
        local_files_only: if True, search the local cache alone for a hub id.
        revision: revision of a hub id; None for the newest.
        variant: the variant of the weights; None for the default.

    Raises:
        ValueError: if there is none.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    expected = f"no autoencoder at {path!r}: expected a folder with config.json and safetensors, or a hub id"
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{expected}; {describe(folder)}")
    if not _HUB_ID.fullmatch(path):
        raise ValueError(expected)
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"local_files_only": local_files_only, "revision": revision}
    with downloading(expected):
        return _with_weights(
            lambda patterns: Path(snapshot_download(path, allow_patterns=["config.json", *patterns], **options)),
            [""], variant,
        )  # fmt: skip


@contextmanager
def downloading(expected: str) -> Iterator[None]:
    """Context of downloads from the hub: their errors become one line after what was ``expected``, with what to do.

    Raises:
        ValueError: for any error.
    """
    try:
        yield
    except Exception as error:  # also those of the library below huggingface_hub
        raise ValueError(f"{expected}. {_advice(error)}{one_line(error, 400)}") from error


def _advice(error: BaseException | None) -> str:
    """What to do about an error of the hub, which another library may have passed on; empty for any other."""
    from huggingface_hub import errors

    advice: dict[Any, str] = {  # the first that fits
        errors.GatedRepoError: "Accept its conditions on its page on the hub, and log in by hf auth login or HF_TOKEN",
        errors.RepositoryNotFoundError: "Check the id, or log in by hf auth login or HF_TOKEN if it is private",
        errors.RevisionNotFoundError: "Check the revision",
        (
            errors.LocalEntryNotFoundError,
            errors.OfflineModeIsEnabled,
        ): "It is not in the cache of this machine, and "
        "the hub is out of reach or switched off: download it elsewhere (hf download) and give its folder",
        errors.EntryNotFoundError: "It lacks a file: choose another id, or a folder",
    }
    while error is not None:
        for kind, text in advice.items():
            if isinstance(error, kind):
                return f"{text}. "
        error = error.__cause__ or error.__context__
    return ""


def part_files(folder: Path, variant: str | None) -> dict[Path, str]:
    """The files of a pipeline's component in a fixed order, with their names in a pipeline without variant.

    Of its weights it has those of the ``variant`` alone, see :meth:`Weights.find`.

    Raises:
        ValueError: if it has weights, but none as safetensors.
    """
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    plain = {file: file.name for file in files if not _is_weights(file)}
    if len(plain) == len(files) or not (folder / "config.json").is_file():
        return plain
    base = TRANSFORMERS_BASE if any(file.name.startswith(TRANSFORMERS_BASE) for file in files) else DIFFUSERS_BASE
    weights = Weights.find(folder, base, variant, floats=False)
    return plain | {file: weights.default_name(file) for file in weights.files}


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".h5") or ".index." in file.name


@contextmanager
def quiet() -> Iterator[None]:
    """Disable the progress bars and warnings of diffusers, and of transformers if it is there."""
    from diffusers.utils import logging as diffusers_logging

    loggers: list[Any] = [diffusers_logging]
    if importlib.util.find_spec("transformers") is not None:
        from transformers.utils import logging as transformers_logging

        loggers.append(transformers_logging)
    before = [(logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, (verbosity, bars) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()


def _with_weights(download: Callable[[list[str]], Path], components: list[str], variant: str | None) -> Path:
    """The folder of a ``download`` of files by patterns, with the weights of the ``components``.

    They are of the ``variant``; of a component that lacks it, of the default, and else of whatever variants there are.
    """
    lacking = components
    for chosen in dict.fromkeys((variant, None, "*")):
        if lacking:
            folder = download(_weights(lacking, chosen))
        networks = [name for name in lacking if (folder / name / "config.json").is_file()]
        lacking = [name for name in networks if not _has_weights(folder / name, chosen)]
    return folder


def _has_weights(folder: Path, variant: str | None) -> bool:
    return any(file for pattern in _weights([""], variant) for file in folder.glob(pattern))


def _weights(components: list[str], variant: str | None) -> list[str]:
    middle = "" if variant is None else f".{variant}"
    bases = (DIFFUSERS_BASE, TRANSFORMERS_BASE)
    endings = (f"{middle}.safetensors", f"{middle}-?????-of-?????.safetensors")
    return [f"{name}/{base}{ending}".removeprefix("/") for name in components for base in bases for ending in endings]
