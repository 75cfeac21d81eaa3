"""The photographs of a command, the files of their results, and the work through them, which resumes where it ended."""

import glob
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from onestep.files import hash_file, remove_unfinished
from onestep.images import DamagedImageError
from onestep.reading import check_file
from onestep.upscaling.photograph import (
    FORMATS,
    INPUT_SUFFIXES,
    SOFTWARE,
    SUFFIXES,
    FileFormat,
    Photograph,
    check_format,
    format_of,
    read_photograph,
    write_photograph,
)
from onestep.upscaling.resize import resize
from onestep.upscaling.upscaler import Upscaler, size_of

#: The folder of the before-and-after pictures, beside the results.
COMPARE = "compare"


@dataclass(frozen=True)
class Job:
    """A photograph and the file of its result."""

    image: Path
    result: Path

    @property
    def comparison(self) -> Path:
        """The file of the before-and-after picture."""
        return self.result.parent / COMPARE / self.result.name


def find_images(paths: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The photographs that ``paths`` name, and the files of their folders that are none by their suffix.

    Args:
        paths: files, folders, whose files are taken without those of their subfolders and hidden ones, or patterns with
            ``*``, ``?`` and ``[...]``.

    Raises:
        ValueError: for a path without any photograph.
    """
    found: list[Path] = []
    others: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            own = [file for file in files if file.suffix.lower() in INPUT_SUFFIXES]
            others += [file for file in files if file not in own]
            if not own:
                raise ValueError(f"{path}: none of its {len(files)} files is a photograph ({', '.join(FORMATS)})")
        elif path.exists():
            check_file(path)
            own = [path]
        else:
            own = sorted(file for name in glob.glob(str(path)) if (file := Path(name)).is_file())
            if not own:
                raise ValueError(f"{path}: no such file")
        found += own
    return list({file.resolve(): file for file in found}.values()), others


def plan(
    images: Sequence[Path], folders: Sequence[Path], output: Path, format: FileFormat | None, compare: bool = False
) -> list[Job]:
    """The files of the results: in the folder ``output`` by the photographs' names, or ``output`` itself of one.

    Photographs whose names differ by the suffix alone keep it: a.jpg.png and a.bmp.png.

    Args:
        images: the photographs.
        folders: the folders that the user named.
        output: a folder, or, with the suffix of a format, the file of the only photograph.
        format: of the results; None for that of the output's suffix, else PNG.
        compare: before-and-after pictures are written too.

    Raises:
        ValueError: for results that would overwrite photographs, each other, or be photographs of the next start.
    """
    by_suffix = format_of(output)
    if by_suffix is not None and not output.is_dir():
        if len(images) > 1:
            raise ValueError(f"-o {output}: it names one picture, for {len(images)} photographs: give a folder")
        if format not in (None, by_suffix):
            raise ValueError(f"format={format}: -o {output} is another format; leave one of them out")
        jobs = [Job(images[0], output)]
    else:
        if output.exists() and not output.is_dir():
            raise ValueError(f"-o {output}: it is a file: give a folder, or the name of a picture")
        if any(folder.resolve() == output.resolve() for folder in folders):
            raise ValueError(f"-o {output}: the next start would take the results for photographs: give another folder")
        suffix = SUFFIXES[format or "png"][0]
        stems = [image.stem.casefold() for image in images]
        names = [f"{it.stem if stems.count(it.stem.casefold()) == 1 else it.name}{suffix}" for it in images]
        jobs = [Job(image, output / name) for image, name in zip(images, names, strict=True)]
    inputs = {image.resolve() for image in images}
    taken: dict[str, Path] = {}
    for job in jobs:
        for written in (job.result, *([job.comparison] if compare else [])):
            if written.resolve() in inputs:
                raise ValueError(f"-o {output}: {written} would overwrite a photograph: give another folder")
        other = taken.setdefault(str(job.result).casefold(), job.image)
        if other is not job.image:
            raise ValueError(f"{other} and {job.image} would both become {job.result}: give each a folder of its own")
    return jobs


def unfinished(jobs: Sequence[Job], description: str, compare: bool, overwrite: bool) -> list[Job]:
    """Those of ``jobs`` without a result.

    Args:
        jobs: all.
        description: the settings, which a result's EXIF holds.
        compare: a result without a before-and-after picture is unfinished.
        overwrite: all are.

    Raises:
        ValueError: for a file that is not the result of these settings and this photograph.
    """
    if overwrite:
        return list(jobs)
    left = []
    for job in jobs:
        if not job.result.exists():
            left.append(job)
            continue
        with suppress(Exception):  # any file may be there
            with Image.open(job.result, formats=FORMATS) as image:
                found = image.getexif().get(SOFTWARE)
            if found == describe(job, description):
                left += [job] if compare and not job.comparison.exists() else []
                continue
        raise ValueError(
            f"{job.result} exists, of other settings or another photograph: give another folder, or set overwrite=true"
        )
    return left


def describe(job: Job, description: str) -> str:
    """What a result's EXIF says of its origin: the settings, and the photograph's hash."""
    return f"onestep upscale {description} of={hash_file(job.image)[:16]}"


def upscale_files(
    jobs: Iterable[Job],
    upscaler: Upscaler,
    factor: float,
    description: str,
    compare: bool,
) -> Mapping[Path, str]:
    """Upscale the photographs, and write each as soon as it is complete.

    Args:
        jobs: what is left to do.
        upscaler: for the pixels.
        factor: of the results.
        description: see :func:`unfinished`.
        compare: write the bicubic picture and the result side by side too.

    Returns:
        The reason for each photograph that could not be upscaled.

    Raises:
        ValueError: if the network's output is not finite.
        OSError: if a result cannot be written.
    """
    jobs = list(jobs)
    failed: dict[Path, str] = {}
    for job in tqdm(jobs, "upscaling", unit="photograph", disable=len(jobs) < 2, leave=False):
        try:
            photograph = read_photograph(job.image)
            check_format(photograph, *size_of(photograph.levels, factor), job.result)
        except (DamagedImageError, ValueError) as error:
            failed[job.image] = " ".join(str(error).split())
            tqdm.write(f"skipped {job.image}: {failed[job.image]}", file=sys.stderr)
            continue
        if photograph.note:
            tqdm.write(f"{job.image}: {photograph.note}", file=sys.stderr)
        result = _upscale(photograph, upscaler, factor, job.image.name)
        result.exif[SOFTWARE] = describe(job, description)
        remove_unfinished(job.result)
        remove_unfinished(job.comparison)
        if compare:
            height, width = result.levels.shape[:2]
            before = resize(photograph.levels, height, width, photograph.levels.dtype)
            both = replace(result, levels=np.hstack([before, result.levels]), alpha=None)
            write_photograph(job.comparison, both)
        write_photograph(job.result, result)
    return failed


def _upscale(photograph: Photograph, upscaler: Upscaler, factor: float, name: str) -> Photograph:
    tiles = upscaler.tiling.count(*upscaler.size(photograph.levels))
    with tqdm(total=tiles, desc=name, unit="tile", leave=False) as bar:
        levels = upscaler(photograph.levels, factor, bar.update)
    alpha = photograph.alpha
    if alpha is not None:
        alpha = resize(alpha, levels.shape[0], levels.shape[1], alpha.dtype)
    return replace(photograph, levels=levels, alpha=alpha)
