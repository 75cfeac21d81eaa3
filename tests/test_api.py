"""The package from Python, as its users write it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import onestep
from onestep.build.distillation import distill
from onestep.denoiser import Condition
from onestep.models.weights import DIFFUSERS_BASE
from onestep.objectives.divergences import ForwardKL, ReverseKL
from onestep.objectives.f_distill import FDistill
from onestep.objectives.weighting import PowerWeighting
from onestep.seeding import seeded_inputs
from tests.helpers.configs import configure

SMALL: dict[str, Any] = {
    "device": "cpu", "precision": "no", "sampler": "heun",
    "training": {"total_images": 48, "batch_size": 16, "log_every": 1},
    "evaluation": {"samples": 32, "interim_samples": 16, "batch_size": 16, "grid": 10}, "diagnosis": {"samples": 16},
}  # fmt: skip


def digits() -> TensorDataset:
    """The bundled digits as a user would have them."""
    bunch = load_digits()
    return TensorDataset(torch.tensor(bunch.images).float().unsqueeze(1) / 8 - 1, torch.tensor(bunch.target))


class OwnTeacher(onestep.DenoiserNetwork):
    """The bundled teacher's raw layers under a preconditioning that is written by hand."""

    image_shape, label_dim, feature_shapes = (1, 8, 8), 10, [(32, 4, 4)]
    sigma_min, sigma_max, sigma_data = 0.002, 80.0, 0.75

    def __init__(self, raw: Any) -> None:
        super().__init__()
        self.raw = raw

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        s = sigma[:, None, None, None]
        total = s**2 + self.sigma_data**2
        embedding = self.raw.embed(sigma.log() / 4, condition["labels"])
        output = self.raw.decode(self.raw.encode(x_sigma / total.sqrt(), embedding), embedding)
        return self.sigma_data**2 / total * x_sigma + s * self.sigma_data / total.sqrt() * output

    @property
    def feature_blocks(self) -> list[nn.Module]:
        return [list(self.raw.enc.values())[-1]]


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "generator" / f"{DIFFUSERS_BASE}.safetensors")


def test_the_same_run_from_python_and_from_hydra(tmp_path: Path) -> None:
    """Objects and names give the same weights, bit for bit, and the same metrics."""
    distilled = onestep.distill(
        onestep.load_teacher("digits"),
        digits(),
        output=tmp_path / "python",
        experiment="digits",
        metrics=["fid"],
        **SMALL,
    )
    flat = [f"{block}.{name}={value}" for block, values in SMALL.items() if isinstance(values, dict)
            for name, value in values.items()]  # fmt: skip
    flags = [f"{name}={value}" for name, value in SMALL.items() if not isinstance(value, dict)]
    by_hydra = distill(
        configure("train", "experiment=digits", *flags, *flat, "metrics=[fid]", f"output={tmp_path / 'hydra'}")
    )
    ours, theirs = weights_of(tmp_path / "python"), weights_of(tmp_path / "hydra")
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert distilled.summary["student"]["fid"] == by_hydra["student"]["fid"]
    assert distilled.folder == tmp_path / "python" and (distilled.folder / "side_by_side.png").is_file()
    latents, condition = seeded_inputs([0, 1], (1, 8, 8), 10)
    with torch.no_grad():
        samples = distilled.generator(latents, condition)
        reread = onestep.Generator.from_pretrained(tmp_path / "python" / "generator")(latents, condition)
    assert torch.equal(samples, reread) and samples.std() > 0.1


def test_a_hand_written_teacher_reaches_the_same_fid(tmp_path: Path) -> None:
    """Of the same function, written by hand, the same training gives the same student but for rounding."""
    settings: dict[str, Any] = SMALL | {
        "experiment": "digits",
        "training": {"total_images": 160, "batch_size": 32, "warmup_images": 0},
        "averages": {"ema": {"halflife": 40}},
        "metrics": ["fid"],
        "diagnosis": {"samples": 0},
        "evaluation": {"samples": 200, "evaluate_teacher": False},
    }  # fmt: skip
    usual = onestep.load_teacher("digits")
    own = OwnTeacher(onestep.load_teacher("digits").model).requires_grad_(False).eval()
    fids = []
    for name, teacher in (("usual", usual), ("own", own)):
        distilled = onestep.distill(teacher, digits(), output=tmp_path / name, **settings)
        fids.append(distilled.summary["student"]["fid"])
    assert fids[1] == pytest.approx(fids[0], rel=1e-4) and fids[0] < 13.4  # after one iteration, it is 13.49
    generator = onestep.Generator.from_pretrained(tmp_path / "own" / "generator", own)
    latents, condition = seeded_inputs([0, 1], (1, 8, 8), 10)
    with torch.no_grad():
        assert torch.equal(generator(latents, condition), distilled.generator(latents, condition))
    with pytest.raises(ValueError, match=r"OwnTeacher.*from_pretrained\(folder, denoiser\)"):
        onestep.Generator.from_pretrained(tmp_path / "own" / "generator")


class OwnStudent(nn.Module):
    """A student that is no denoiser: a decoder from noise to pixels."""

    noise_shape, network_evaluations = (4,), 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(14, 64), nn.SiLU(), nn.Linear(64, 64), nn.Tanh())

    @property
    def networks(self) -> list[nn.Module]:
        return []

    def simulate(self, noises: Any, condition: Condition) -> Tensor:
        inputs = torch.cat([noises[0], condition["labels"]], 1)
        return self.layers(inputs).unflatten(1, (1, 8, 8))

    def forward(self, latents: Tensor, condition: Condition, noises: Any = None) -> Tensor:
        return self.simulate([latents], condition)

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True)
        torch.save(self.state_dict(), Path(folder) / "weights.pt")


def test_objects_for_the_method_and_a_student_of_ones_own(tmp_path: Path) -> None:
    """Without data: reverse KL needs none."""
    student = OwnStudent()
    before = [parameter.detach().clone() for parameter in student.parameters()]
    distilled = onestep.distill(
        onestep.load_teacher("digits"), output=tmp_path / "run", student=student, discriminator=None,
        objective=FDistill(ReverseKL(), PowerWeighting(2.0), normalize_weight=False), divergence="reverse_kl",
        generator={"gan_weight": 0.0}, fake_score={"steps": 1}, optimizer="small", **SMALL,
    )  # fmt: skip
    assert all(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
    assert distilled.summary["student"]["network_evaluations"] == 1
    assert "objective: onestep.objectives.f_distill.FDistill" in (tmp_path / "run" / "config.yaml").read_text()


class Unbounded(onestep.DenoiserNetwork):
    """A teacher that does not say at which noise levels it was trained."""

    image_shape = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, 1, 1)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (nn.Conv2d(1, 1, 3), "Conv2d is no teacher, it has no image_shape"),
        (Unbounded(), "generator.sigma_init is null and the teacher has no sigma_max"),
    ],
)
def test_a_module_that_is_no_teacher(teacher: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        onestep.distill(teacher, output=tmp_path, objective="sid", **SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objektive": "sid"}, "unknown key 'objektive'; did you mean 'objective'"),
        ({"training": {"images": 3}}, "unknown key 'training.images'"),
        ({"objective": "best"}, "unknown choice objective=best. The choices are: adversarial, diff_instruct, "),
        ({"generator": {"gan_weight": -1.0}}, "generator.gan_weight=-1.0: expected a number of at least 0"),
        ({"objective": "sidd"}, "unknown choice objective=sidd; did you mean 'sid'"),
        (
            {"divergence": "forward_kl", "objective": FDistill(ReverseKL(), PowerWeighting(2.0), False)},
            "divergence=onestep.objectives.divergences.ForwardKL has no effect: the given objective has ReverseKL",
        ),
        (
            {"student": OwnStudent(), "generator": {"later_sigmas": [0.5]}},
            r"generator.later_sigmas=\[0.5\] has no effect: student=\.\.\. replaces the generator; use student=none",
        ),
        (
            {"augment": OwnStudent()},
            "augment is of class OwnStudent: expected a value, a choice or a mapping of",
        ),
        ({"seed": OwnStudent()}, "seed is of class OwnStudent: expected a value, a choice or a mapping of"),
        (
            {"divergence": ForwardKL(), "objective": "sid", "discriminator": None},
            "SiD minimises reverse KL only, got divergence=ForwardKL",
        ),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        onestep.distill(onestep.load_teacher("digits"), digits(), output=tmp_path, **(SMALL | settings))


class TiedTeacher(OwnTeacher):
    """It holds its layers under two names, and its guidance runs away from the even mixture of classes."""

    supports_guidance = True

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self.same = raw


def test_tied_weights_and_an_unconditional_condition(tmp_path: Path) -> None:
    even = {"labels": torch.full((1, 10), 0.1)}
    teacher = TiedTeacher(onestep.load_teacher("digits").model).set_guidance(2.0, even)
    onestep.distill(teacher, output=tmp_path, objective="sid", **SMALL)
    assert teacher.unconditional is even
    weights = weights_of(tmp_path)
    tied = [name for name in weights if name.startswith("same.")]
    assert tied and all(torch.equal(weights[name], weights[name.replace("same", "raw", 1)]) for name in tied)


class AngleTeacher(OwnTeacher):
    """Its condition is a point on a circle, which stands for the classes."""

    label_dim, condition_keys = 0, ("angle",)

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        torch.testing.assert_close(condition["angle"].norm(dim=1), torch.ones(len(sigma)))  # one of the data's
        return super().denoise(x_sigma, sigma, {"labels": condition["angle"].repeat(1, 5)})


class Angles(torch.utils.data.Dataset[Any]):
    """Digits, each with its class as an angle."""

    def __init__(self) -> None:
        self.items = digits()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        image, label = self.items[index]
        angle = label * torch.pi / 5
        return image, {"angle": torch.stack([angle.cos(), angle.sin()])}


def test_a_condition_of_ones_own(tmp_path: Path) -> None:
    teacher = AngleTeacher(onestep.load_teacher("digits").model)
    run = onestep.distill(teacher, Angles(), output=tmp_path, features="digits", metrics=["fid"], **SMALL)
    assert run.summary["student"]["samples"] == 32
    with pytest.raises(ValueError, match="takes a condition of angle, got none"):
        onestep.distill(teacher, digits().tensors[0], output=tmp_path / "other", features="digits", **SMALL)
