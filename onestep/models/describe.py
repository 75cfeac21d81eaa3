"""What a path is that holds no network in a form that this package reads, and how to make one of it."""

from collections.abc import Iterable
from pathlib import Path

from onestep.reading import check_file, open_tensors

_LORA = "pytorch_lora_weights.safetensors"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def check_whole(path: Path) -> None:
    """Check that the file of weights at ``path`` is a regular file that is not empty, nor mostly a hole.

    Raises:
        ValueError: saying which.
    """
    check_file(path)
    stat = path.stat()
    if stat.st_size == 0:
        raise ValueError(f"{path} is empty: copy or download it again")
    # Weights do not compress to a half. Memory is not spent on what is not there.
    if getattr(stat, "st_blocks", stat.st_size) * 512 < stat.st_size // 2 - 2**20:
        raise ValueError(
            f"{path} says that it has {stat.st_size:,} bytes, and most of them were never written: an incomplete "
            "copy or download; copy or download it again"
        )


def is_safetensors(path: Path) -> bool:
    """True if the file's name or its first bytes are those of safetensors: a length, and an object in JSON."""
    check_whole(path)
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**27)


def is_lora(path: Path) -> bool:
    """True if the names in a safetensors file are those of a LoRA."""
    with open_tensors(path) as file:
        return _is_lora(file.keys())


def describe(path: Path) -> str:
    """What ``path`` is, and how to use it, in one line. Tensors are not read."""
    if path.is_dir():
        return _describe_folder(path)
    try:
        check_whole(path)
    except ValueError as error:
        return str(error)
    if not is_safetensors(path):
        return (
            f"{path} is a single file: expected a folder. For a network of EDM's format use teacher=local; that of a "
            f"Stable Diffusion becomes a folder, where it may run code, by {_single_file(path)}"
        )
    try:
        with open_tensors(path) as file:
            names = list(file.keys())
    except ValueError as error:
        return str(error)
    if _is_lora(names):
        return _describe_lora(path)
    if (path.parent / "config.json").is_file():
        return f"{path} is the weights of the network in {path.parent}: give that folder"
    return (
        f"{path} is a single file of {len(names)} tensors, such as {names[0] if names else 'none'}, without the config "
        "of its network: expected a folder; a checkpoint of a text-to-image model is read by teacher=diffusers "
        f"teacher.path={path} teacher.config=BASE, with BASE the folder of a pipeline of its kind"
    )


def _describe_folder(folder: Path) -> str:
    if (folder / "model_index.json").is_file():
        return f"{folder} is a pipeline of diffusers: use teacher=diffusers teacher.path={folder}"
    files = sorted(file for file in folder.glob("*") if file.is_file())
    if (folder / _LORA).is_file() or (folder / "adapter_config.json").is_file():
        return _describe_lora(folder)
    if pickles := [file.name for file in files if file.suffix in _PICKLES]:
        return (
            f"{folder} has its weights as {pickles[0]}, which can run code and is not opened: where it may run, make "
            f"safetensors of it by {_converting(folder)} and give NEW"
        )
    if singles := [file for file in files if file.suffix == ".safetensors"]:
        return describe(singles[0]) if not (folder / "config.json").is_file() else f"found {singles[0].name}"
    return f"{folder} holds {', '.join(file.name for file in files[:5]) or 'no files'}"


def _is_lora(names: Iterable[str]) -> bool:
    return any("lora" in name for name in names)


def _describe_lora(path: Path) -> str:
    return (
        f"{path} is a LoRA, a change of another network: give the pipeline of that network, with the LoRA merged into "
        f"it, by teacher=diffusers teacher.path=BASE teacher.lora={path}"
    )


def _single_file(path: Path) -> str:
    command = _python(f"StableDiffusionPipeline.from_single_file('{path}', config='BASE')")
    return f"{command}, with BASE the folder of a pipeline of its kind"


def _converting(folder: Path) -> str:
    """The command that saves the pipeline or network in ``folder``, or that it is a part of, as safetensors."""
    if (folder.parent / "model_index.json").is_file():
        return _python(f"DiffusionPipeline.from_pretrained('{folder.parent}')")
    return _python(f"AutoModel.from_pretrained('{folder}')")


def _python(model: str) -> str:
    return f"python -c \"import diffusers; diffusers.{model}.save_pretrained('NEW')\""
