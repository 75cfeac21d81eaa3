"""Iterations of the published codes, replayed by a recipe: recorded draws in; losses, gradients and averages out.

``python -m tests.helpers.published FOLDER NAME...`` takes what the tests need from a folder of recordings: numbers that
the public codes computed on tiny networks. They are each draw, and the gradients that reached each optimiser's step, as
a norm and a projection of every parameter.
"""

import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.build.distillation import build_distillation
from onestep.config import check_config, compose
from onestep.data.dataset import Batch, ImagesInMemory
from onestep.distillation import loop
from onestep.distillation.method import Method
from onestep.models.base import DenoiserNetwork
from onestep.objectives.losses import Losses
from tests.helpers.paths import REFERENCE

FOLDER = REFERENCE / "published_training"
#: The phases of a cycle in each code's order. What a phase's name starts with tells what it trains.
PHASES = {
    "sid": ("fake", "generator"),
    "dmd2": ("generator", *(f"guidance{k}" for k in range(5))),
    "fastgen": (*(f"fake{k}" for k in range(4)), "generator"),
}
#: The seed-free start of each network: w (1 + 0.1 sin(a i + b)), i the index in the teacher's tensor.
STARTS = {"fake_score": (1.3, 0.5), "G": (0.9, 1.1), "average": (0.0, 0.0)}
DRAWN = ("z", "noise", "noise_real", "noise_gan", "real", "labels", "labels_real", "label_index", "fake_sigma",
         "teacher_sigma", "sigma_index", "sigma_index_real", "sigma_index_gan")  # fmt: skip
EXPECTED = ("backward_value", "grad_x_generated", "grad_norm", "grad_proj", "ema_delta_norm", "ema_delta_proj")


def family(name: str) -> str:
    return "fastgen" if "fastgen" in name else "dmd2" if "dmd2" in name else "sid"


def project(tensors: list[Tensor]) -> Tensor:
    """Norms and projections on v_i = cos(0.7 i + 0.3) of the tensors [2, P], in float64."""
    flat = [tensor.detach().double().flatten() for tensor in tensors]
    weights = [torch.cos(0.7 * torch.arange(len(x), dtype=torch.float64) + 0.3) for x in flat]
    products = [(x * weight).sum() for x, weight in zip(flat, weights, strict=True)]
    return torch.stack([torch.stack([x.norm() for x in flat]), torch.stack(products)])


def error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


class RecordedRandom:
    """The recorded draws of an iteration in the order of the loop's calls, in place of ``BatchRandom``."""

    def __init__(self) -> None:
        self.normals, self.sigmas, self.classes = deque[Tensor](), deque[Tensor](), deque[Tensor]()

    def normal(self, shape: Any) -> Tensor:
        drawn = self.normals.popleft()
        assert drawn.shape[1:] == tuple(shape)
        return drawn

    def sigma(self, distribution: Any) -> Tensor:
        drawn = self.sigmas.popleft()
        assert drawn.ndim == 1
        return drawn

    def labels(self, label_dim: int, classes: None) -> Tensor:
        return F.one_hot(self.classes.popleft(), label_dim).float()


@dataclass
class Pass:
    """What a backward pass of ours had: the losses, and the gradient by the samples in the generator's."""

    losses: Losses
    gradient: list[Tensor] = field(default_factory=list)


class Replay:
    """A recipe on a recording's tiny networks.

    Args:
        name: of the recording.
        recording: its arrays, and its description as JSON under ``description``.
        teacher: its teacher.
        recipe: the experiment.
        overrides: the sizes and the network.
    """

    def __init__(
        self, name: str, recording: Mapping[str, Any], teacher: DenoiserNetwork, recipe: str, *overrides: str
    ) -> None:
        self.recording, self.teacher = recording, teacher
        self.about: dict[str, Any] = json.loads(str(recording["description"]))
        self.family, self.rounds = family(name), self.about["rounds"]
        images, labels = torch.zeros(4, *teacher.image_shape), torch.zeros(4, dtype=torch.long)
        given = {"teacher": teacher, "data": ImagesInMemory(images, labels, teacher.label_dim)}
        sizes = (f"training.batch_size={self.about['batch']}", f"training.accumulation={self.rounds}")
        plain = ("device=cpu", "precision=no", "metrics=[]", "features=null", "evaluation.best=null", "output=unused")
        off = ("training.warmup_images=0", "generator.dropout=0", "fake_score.dropout=0")
        config = compose("train", [f"experiment={recipe}", *off, *plain, *sizes, *overrides])
        config.augment = None
        check_config(config, given=("teacher", "data"))
        self.parts = build_distillation(config, given)
        self.networks: dict[str, nn.Module] = {
            "G": self.parts.student.denoiser, **{
                name: network for name, network in (
                    ("fake_score", self.parts.method.fake_score), ("discriminator", self.parts.method.discriminator)
                ) if network is not None
            },
        }  # fmt: skip
        for network in ("G", "fake_score"):
            self._start(self.networks[network], network)
        for average in self.parts.averages.networks.values():
            self._start(average.denoiser, "average")
        if "discriminator" in self.about["parameters"]:
            with torch.no_grad():
                names = self.about["parameters"]["discriminator"]
                for own, key in zip(self.networks["discriminator"].parameters(), names, strict=True):
                    own.copy_(torch.as_tensor(recording[f"init/discriminator:{key}"]))
        self.iteration = self.about.get("images_seen_at_start", 0) // self.about["batch"]
        self.steps: dict[str, deque[Tensor]] = {}
        self.passes = deque[Pass]()
        for optimizer in self.parts.optimizers.values():
            for name, one in optimizer.optimizers.items():
                self._record_steps({"generator": "G"}.get(name, name), one)

    def _start(self, network: nn.Module, name: str) -> None:
        a, b = STARTS[name]
        with torch.no_grad():
            for parameter, weight in zip(network.parameters(), self.teacher.parameters(), strict=True):
                index = torch.arange(weight.numel(), dtype=torch.float64)
                factor = (1 + 0.1 * torch.sin(a * index + b)).reshape(weight.shape)
                parameter.copy_((weight.double() * (1 if name == "average" else factor)).float())

    def _record_steps(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        kept = self.steps.setdefault(name, deque())
        parameters = [p for p, _ in self._matched(name)]

        def enter(*_: Any) -> None:
            kept.append(project([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]))

        optimizer.register_step_pre_hook(enter)

    def _matched(self, name: str) -> list[tuple[nn.Parameter, int]]:
        """The parameters of a network that the recording has, each with its index there."""
        network = self.networks[name]
        if name == "discriminator":  # whose modules have other names
            return [(parameter, index) for index, parameter in enumerate(network.parameters())]
        order = {key: index for index, key in enumerate(self.about["parameters"][name])}
        return [(parameter, order[key]) for key, parameter in network.named_parameters() if key in order]

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        critic_losses, generator_losses = Method.critic_losses, Method.generator_losses

        def critics(method: Method, x_generated: Tensor, *others: Any, **named: Any) -> Losses:
            self.passes.append(Pass(critic_losses(method, x_generated, *others, **named)))
            return self.passes[-1].losses

        def generator(method: Method, x_generated: Tensor, *others: Any, **named: Any) -> Losses:
            self.passes.append(Pass(generator_losses(method, x_generated, *others, **named)))
            x_generated.register_hook(self.passes[-1].gradient.append)
            return self.passes[-1].losses

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Method, "critic_losses", critics)
            patch.setattr(Method, "generator_losses", generator)
            yield

    def of(self, phase: str, name: str) -> Tensor:
        """A recorded array, the rounds together."""
        keys = [f"{phase}/r{number}/{name}" for number in range(self.rounds)]
        return torch.cat([torch.as_tensor(np.asarray(self.recording[key])) for key in keys])

    def has(self, phase: str, name: str) -> bool:
        return f"{phase}/r0/{name}" in self.recording

    def _draws(self, phase: str, random: RecordedRandom) -> Batch:
        """Add a phase's draws to ``random``; returns its data."""
        if self.has(phase, "z"):
            random.normals.append(self.of(phase, "z"))
            if self.has(phase, "label_index"):
                random.classes.append(self.of(phase, "label_index").long())
        for suffix in ("", "_real", "_gan"):
            if self.has(phase, f"noise{suffix}"):
                random.normals.append(self.of(phase, f"noise{suffix}"))
            if self.family == "sid" and not suffix:
                random.sigmas.append(self.of(phase, "teacher_sigma" if "generator" in phase else "fake_sigma"))
            elif self.has(phase, f"sigma_index{suffix}"):
                table = torch.as_tensor(self.recording["sigma_law/table_of_sigmas"])
                random.sigmas.append(table[self.of(phase, f"sigma_index{suffix}").long().flatten()].float())
        x_real = self.of(phase, "real") if self.has(phase, "real") else torch.zeros_like(self.of(phase, "noise"))
        if "discriminator" not in self.networks and "generator" not in phase:
            random.normals.append(torch.zeros_like(x_real))  # of the real images, which the loop draws in any case
        name = "labels_real" if self.has(phase, "labels_real") else "labels"
        return x_real, {"labels": self.of(phase, name).float()}

    def cycle(self, number: int, first: float, later: float) -> None:
        """Replay a cycle, and compare its losses, gradients and averages.

        Args:
            number: of the cycle.
            first: relative tolerance of its first update.
            later: of the other updates.
        """
        phases = [f"c{number}/{phase}" for phase in PHASES[self.family]]
        images_seen, batch = (self.iteration + number) * self.about["batch"], self.about["batch"]
        if self.parts.generator.weights(images_seen) is None:
            phases = [phase for phase in phases if "generator" not in phase]
        random, batches = RecordedRandom(), []
        for phase in phases:
            data = self._draws(phase, random)
            if not (self.family == "dmd2" and "generator" in phase):  # whose images are those of the first guidance
                batches.append(data)
        averages = self.parts.averages.networks
        before = {name: [p.clone() for p in average.denoiser.parameters()] for name, average in averages.items()}
        with self._recorded():
            for _ in loop.updates(self.parts, self.iteration + number, random, batches):  # type: ignore[arg-type]
                self.parts.averages.after_update(self.parts.student)
        self.parts.averages.after_iteration(self.parts.student, images_seen, batch)
        assert not (random.normals or random.sigmas or random.classes)
        for phase in phases:
            self._compare(phase, first if phase == phases[0] else later)
        assert not self.passes and not any(self.steps.values())
        for name, average in averages.items():
            self._compare_average(f"c{number}/{'G_ema' if self.family == 'sid' else name}", average, before[name])

    def _compare(self, phase: str, tolerance: float) -> None:
        for number in range(self.rounds):
            ours, at = self.passes.popleft(), f"{phase}/r{number}"
            if ours.gradient:
                assert error(ours.gradient[0], torch.as_tensor(self.recording[f"{at}/grad_x_generated"])) < tolerance
            if not ours.gradient or self.family == "sid":  # DMD's surrogate has other values and the same gradient
                value = ours.losses.total.item() / self.rounds
                assert value == pytest.approx(float(self.recording[f"{at}/backward_value"]), rel=tolerance)
        for name, steps in self.steps.items():
            if f"{phase}/{name}/grad_norm" in self.recording:
                kinds = [torch.as_tensor(self.recording[f"{phase}/{name}/grad_{kind}"]) for kind in ("norm", "proj")]
                places = [place for _, place in self._matched(name)]
                assert error(steps.popleft(), torch.stack(kinds)[:, places]) < tolerance, (phase, name)

    def _compare_average(self, key: str, average: Any, before: list[Tensor]) -> None:
        """The size of an average's movement: where a gradient is rounding noise, so is its sign, Adam's first step."""
        order = {name: index for index, name in enumerate(self.about["parameters"]["G"])}
        named = zip(average.denoiser.named_parameters(), before, strict=True)
        moved = {order[name]: (new - old).norm() for (name, new), old in named if name in order}
        found, expected = torch.stack([*moved.values()]), torch.as_tensor(self.recording[f"{key}/ema_delta_norm"])
        assert error(found.norm(), expected[[*moved]].norm()) < 1e-5, key


def take(folder: Path, name: str) -> None:
    """Take what the replay of the recording ``name`` needs from ``folder`` into :data:`FOLDER`."""
    recording, about = np.load(folder / f"{name}.npz"), json.loads((folder / f"{name}.json").read_text())
    kept = {key: recording[key] for key in recording.files
            if key.rpartition("/")[2] in (*DRAWN, *EXPECTED) or key.startswith(("init/", "sigma_law/"))}  # fmt: skip
    description = {key: about[key] for key in ("parameters", "batch", "images_seen_at_start") if key in about}
    description["rounds"] = about.get("rounds", 1)
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / f"{name}.npz", description=json.dumps(description), **kept)


if __name__ == "__main__":
    for recording_name in sys.argv[2:]:
        take(Path(sys.argv[1]), recording_name)
