"""The classes of one-step students of long-tailed data, by divergence: does forward KL keep what reverse KL loses?

    python benchmarks/long_tail.py FOLDER [--data FOLDER] [--plot FILE] [OVERRIDE ...]

The data are Fashion-MNIST at 16x16, with 6,000 images of the most frequent class down to 60 of the rarest, without
labels. A teacher of its own is trained, then a student for each divergence and seed by f-distill without an adversarial
term: the weights of the divergence are the only difference. OVERRIDE is a setting of all students. 10,000 samples of
each are enlarged to 32x32 and measured by the bundled classifier: their classes, Frechet distance and recall. What
FOLDER has already is not computed again, so that a stopped command goes on.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.build.distillation import build_distillation
from onestep.build.pretraining import pretrain
from onestep.build.run import started_run
from onestep.config import compose, instantiate
from onestep.data.dataset import ImageDataset, ImagesInMemory
from onestep.data.idx import read_idx
from onestep.distillation.loop import distill
from onestep.distillation.parts import Distillation
from onestep.evaluation.generate import SampleFunction, generate_all
from onestep.files import to_json, write_text
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier
from onestep.metrics.evaluator import Evaluator, Metric
from onestep.reports.plots import new_figure, save_figure
from onestep.seeding import seeded_rng

#: From the most frequent class to the rarest. The classifier confuses the five kinds of tops, and the three of shoes,
#: among each other; the four rarest are unlike the frequent ones.
CLASSES = {
    0: "T-shirt", 2: "pullover", 4: "coat", 6: "shirt", 3: "dress",
    5: "sandal", 7: "sneaker", 9: "ankle boot", 1: "trousers", 8: "bag",
}  # fmt: skip
RARE = 4  # classes whose share is in the table
LARGEST, SMALLEST = 6000, 60
SAMPLES = 10_000
STEPS = 10  # of the teacher's sampler: 19 evaluations
LEVELS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)  # of noise, in data units
DIVERGENCES = ("reverse_kl", "jensen_shannon", "forward_kl")

Measures = dict[str, Any]


def write_data(source: Path, folder: Path) -> None:
    """IDX files of the first images of each class of the training set in ``source``, in the set's order, at 16x16."""
    images, labels = read_idx(source, "train-images-idx3-ubyte", 3), read_idx(source, "train-labels-idx1-ubyte", 1)
    counts = np.geomspace(LARGEST, SMALLEST, len(CLASSES)).round().astype(int)
    kept = [np.flatnonzero(labels == label)[:count] for label, count in zip(CLASSES, counts, strict=True)]
    chosen = np.sort(np.concatenate(kept))
    folder.mkdir(parents=True, exist_ok=True)
    padded = np.pad(images[chosen], ((0, 0), (2, 2), (2, 2)))  # 28x28 to 32x32
    halved = padded.reshape(-1, 16, 2, 16, 2).mean((2, 4)).round().astype(np.uint8)
    for name, array in (("labels-idx1", labels[chosen]), ("images-idx3", halved)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / f"train-{name}-ubyte").write_bytes(header + array.tobytes())


def train_teacher(folder: Path, images: int) -> None:
    """An unconditional denoiser in ``folder/teacher``, with the settings of the bundled one."""
    settings = [
        "experiment=pretrain/fashion",
        f"data.path={folder / 'data'}",
        "data.use_labels=false",
        "data.pad_to=null",
        "network.label_dim=0",
        "network.image_shape=[1,16,16]",
        "metrics=[]",
        "evaluation.interim_metrics=null",
        f"training.total_images={images}",
        f"output={folder / 'teacher'}",
        "resume=auto",
    ]
    pretrain(compose("pretrain", settings))


def student_settings(folder: Path, divergence: str, seed: int, overrides: Sequence[str] = ()) -> list[str]:
    """The settings of a student."""
    return [
        "experiment=fashion",
        f"data.path={folder / 'data'}",
        "data.use_labels=false",
        "data.pad_to=null",
        "teacher=local",
        f"teacher.path={folder / 'teacher/teacher'}",
        f"divergence={divergence}",
        f"discriminator={'none' if divergence == 'reverse_kl' else 'convolutional'}",
        "generator.gan_weight=0",
        "evaluation.interim_metrics=null",
        f"training.evaluate_every={2**20}",
        f"seed={seed}",
        f"output={folder / f'{divergence}_{seed}'}",
        *overrides,
    ]


def train_student(folder: Path, divergence: str, seed: int, overrides: Sequence[str]) -> tuple[Distillation, Measures]:
    """The parts of a finished training, and its summary."""
    settings = student_settings(folder, divergence, seed, ["metrics=[]", "resume=auto", *overrides])
    config = compose("train", settings)
    with started_run(config) as run:
        parts = build_distillation(config, run=run)
        return parts, distill(parts)


def enlarged(images: Tensor) -> Tensor:
    """``images`` [N, 1, 16, 16] in [-1, 1] at 32x32."""
    return F.interpolate(images, scale_factor=2, mode="nearest")


class Judge:
    """Measures sets of images: their Frechet distance to the data, their recall, and their classes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = compose("train", [*student_settings(folder, "reverse_kl", 0), "metrics=[]", f"sampler.steps={STEPS}"])
        self.parts = build_distillation(config)  # to sample, not to train
        assert isinstance(self.parts.data, ImageDataset)
        self.images = torch.cat([*self.parts.data.batches(1000)])
        self.real = enlarged(self.images)
        self.classifier = load_classifier("fashion")
        with_metrics = compose("train", ["experiment=fashion", "metrics=[fid,recall]"])
        metrics: dict[str, Metric] = instantiate(with_metrics.metrics)
        self.evaluator = Evaluator(self.classifier, metrics, ImagesInMemory(self.real))

    def counts(self, images: Tensor) -> list[int]:
        """The number of ``images`` [N, 1, 32, 32] in [-1, 1] of each of ``CLASSES``, as the classifier sees them."""
        found = torch.cat([self.classifier.classify(batch).argmax(1) for batch in to_uint8(images).split(1000)])
        return [int((found == label).sum()) for label in CLASSES]

    def samples(self, sample: SampleFunction) -> Measures:
        """The measures of ``SAMPLES`` samples of the same seeds."""
        run, size = self.parts.run, self.parts.evaluation.batch_size
        images = enlarged(generate_all(sample, range(SAMPLES), size, self.parts.space, run.accelerator))
        return {**self.evaluator([images]), "counts": self.counts(images)}

    def data(self) -> Measures:
        """The classes of the data."""
        return {"counts": self.counts(self.real)}

    @torch.no_grad()
    def classes_kept(self) -> Measures:
        """The part of images of the data whose class is the same after noise of a level and one denoising step."""
        images = self.images[::10]
        noise = torch.randn(images.shape, generator=seeded_rng(0))
        before = self.classifier.classify(to_uint8(enlarged(images))).argmax(1)
        kept = {}
        for level in LEVELS:
            sigma = torch.full((len(images),), level)
            x0 = self.parts.method.teacher(images + level * noise, sigma)
            after = self.classifier.classify(to_uint8(enlarged(x0))).argmax(1)
            kept[f"{level:g}"] = (after == before).float().mean().item()
        return kept

    def teacher(self) -> Measures:
        """The measures of the teacher."""
        return self.samples(partial(self.parts.sampler, self.parts.method.teacher))

    def student(self, divergence: str, seed: int, overrides: Sequence[str]) -> Measures:
        """The measures of a student, which is trained, and the last diagnosis of its training."""
        parts, summary = train_student(self.folder, divergence, seed, overrides)
        average = next(iter(parts.averages.evaluated(parts.student).values()))
        kept = {key: summary[key] for key in ("diagnosis", "images_seen", "seconds") if key in summary}
        return self.samples(parts.drawing(average)) | kept


def cached(file: Path, measure: Callable[[], Measures]) -> Measures:
    """The measures in the ``file``, which are computed if there is none."""
    if not file.is_file():
        write_text(file, to_json(measure()))
    found: Measures = json.loads(file.read_text(encoding="utf-8"))
    return found


def shares(measures: Measures) -> np.ndarray:
    """The share of each of ``CLASSES``, with half a sample more in each so that none is zero."""
    counts = np.array(measures["counts"]) + 0.5
    result: np.ndarray = counts / counts.sum()
    return result


def values(measures: Measures, teacher: Measures) -> dict[str, float]:
    """The columns of the table."""
    q, p = shares(measures), shares(teacher)
    return {
        "FID": measures.get("fid", math.nan),
        "recall": measures.get("recall", math.nan),
        "total variation": float(np.abs(q - p).sum() / 2),
        "KL(teacher, student)": float((p * np.log(p / q)).sum()),
        "KL(student, teacher)": float((q * np.log(q / p)).sum()),
        f"{RARE} rarest, %": 100 * float(q[-RARE:].sum()),
        "trousers, %": 100 * float(q[-2]),
    }


def by_chance(teacher: Measures) -> float:
    """The expected total variation between two sets of ``SAMPLES`` of the teacher."""
    p = shares(teacher)
    return float(np.sqrt(p * (1 - p) / (math.pi * SAMPLES)).sum())


def table(data: Measures, teacher: Measures, students: dict[str, list[Measures]]) -> str:
    """A table in Markdown: the mean of each divergence's students, and the least and the largest of them."""
    columns = [*values(teacher, teacher)]
    lines = [f"| | students | {' | '.join(columns)} |", f"| --- | ---: |{' ---: |' * len(columns)}"]
    for name, one in (("data", data), ("teacher", teacher)):
        cells = ["" if math.isnan(value) else f"{value:.3g}" for value in values(one, teacher).values()]
        lines.append(f"| {name} | | {' | '.join(cells)} |")
    for name, found in students.items():
        rows = [values(one, teacher) for one in found]
        cells = []
        for column in columns:
            numbers = [row[column] for row in rows]
            cells.append(f"{statistics.fmean(numbers):.3g} ({min(numbers):.3g} to {max(numbers):.3g})")
        lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def save_plot(data: Measures, teacher: Measures, students: dict[str, list[Measures]], path: Path) -> None:
    """The share of each class relative to the teacher's, a point for each student."""
    figure = new_figure(figsize=(10, 4), layout="tight")
    axis = figure.subplots()
    x = np.arange(len(CLASSES))
    for number, (name, found) in enumerate(students.items()):
        offset = 0.2 * (number - (len(students) - 1) / 2)
        ratios = np.array([shares(one) / shares(teacher) for one in found])
        axis.bar(x + offset, ratios.mean(0), 0.18, alpha=0.5, color=f"C{number}", label=name)
        for row in ratios:
            axis.plot(x + offset, row, ".", color=f"C{number}")
    axis.axhline(1, color="black", linewidth=1)
    names = [f"{name}\n{share:.1%}" for name, share in zip(CLASSES.values(), shares(data), strict=True)]
    axis.set_xticks(x, names, fontsize=8)
    axis.set_ylabel("share of the samples / the teacher's")
    axis.legend()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist", help="the IDX files")
    parser.add_argument("--divergences", nargs="+", default=DIVERGENCES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training")
    parser.add_argument("--teacher-images", type=int, default=192_000)
    parser.add_argument("--plot", type=Path, help="a file for a picture")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if not (folder / "data/train-images-idx3-ubyte").is_file():
        write_data(options.data, folder / "data")
    if not (folder / "teacher/summary.json").is_file():
        train_teacher(folder, options.teacher_images)
    judge = Judge(folder)
    data, teacher = cached(folder / "data.json", judge.data), cached(folder / "teacher.json", judge.teacher)
    students: dict[str, list[Measures]] = {}
    for seed in options.seeds:  # outside, so that a stopped command has seeds of all divergences
        for divergence in options.divergences:
            measure = partial(judge.student, divergence, seed, options.overrides)
            students.setdefault(divergence, []).append(cached(folder / f"{divergence}_{seed}.json", measure))
    print(table(data, teacher, students))
    print(f"The total variation between two sets of samples of the teacher is about {by_chance(teacher):.3f}.")
    kept = cached(folder / "classes_kept.json", judge.classes_kept)
    print("Images whose class outlasts noise: " + ", ".join(f"{part:.0%} at {level}" for level, part in kept.items()))
    if options.plot is not None:
        save_plot(data, teacher, students, options.plot)


if __name__ == "__main__":
    main()
