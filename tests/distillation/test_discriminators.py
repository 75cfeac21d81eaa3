"""Discriminators in the updates of a distillation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from onestep.build.distillation import build_distillation, distill
from onestep.data.diff_augment import DifferentiableAugmentation
from onestep.distillation import loop
from onestep.distillation.parts import Distillation
from onestep.engine.state import TrainingState
from onestep.metrics.classifier import Classifier
from onestep.seeding import BatchRandom
from tests.helpers.configs import TWO_ITERATIONS, refused, tiny_config
from tests.helpers.updates import take_updates

SMALL = (*TWO_ITERATIONS, "metrics=[]", "features=null", "generator.gan_weight=0.1")


def test_projected_heads_at_every_level_learn_the_classes(tmp_path: Path) -> None:
    options = ("discriminator=shared_encoder", "discriminator.head.levels=null", "discriminator.head.projection=true")
    parts = build_distillation(tiny_config(tmp_path, *SMALL, *options))
    discriminator: Any = parts.method.discriminator
    assert discriminator.levels == (0, 1)
    critics, generator = take_updates(parts)
    # log r is 0 in the first update: 2 log 2 and log 2.
    torch.testing.assert_close(critics["discriminator_loss"].mean().item(), 1.386294, rtol=1e-6, atol=0)
    assert 0 < abs(generator["adversarial_loss"].mean().item() - 0.693147) < 0.1
    for head in discriminator.heads:
        assert head.projection.weight.shape == (64, 10) and head.projection.weight.any()


PRETRAINED = ("discriminator=pretrained_features", "features@discriminator.network=digits")


def test_pretrained_features_stay_as_they_are(tmp_path: Path) -> None:
    """They are no part of a checkpoint, and the head on them learns from clean samples."""
    parts = build_distillation(tiny_config(tmp_path, *SMALL, *PRETRAINED, "objective=dmd2"))
    seen: list[torch.Tensor] = []
    host: Any = parts.method.host
    host.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = [parameter.clone() for parameter in host.parameters()]
    list(take_updates(parts, 2))
    assert all(map(torch.equal, before, host.parameters())) and parts.method.view.noise_level == 0
    head = parts.trained_networks["discriminator"].state_dict()
    assert head.keys() == {f"heads.{level}.{name}.{part}" for level in range(3) for part in ("weight", "bias")
                           for name in ("norm", "conv0", "conv1", "logit")}  # fmt: skip
    assert all(head[f"heads.{level}.logit.weight"].any() for level in range(3))
    data: Any = parts.data
    real = data.__getitems__(range(len(data)))[0]
    assert all(any(torch.equal(one, image) for image in real) for one in seen[0][:4])


def test_a_resumed_run_has_the_same_pretrained_network(tmp_path: Path) -> None:
    Classifier("other", [1, 8, 8], 10, 64, [32], [2]).save(other := tmp_path / "other.safetensors")
    options = (*SMALL, *PRETRAINED, "objective=dmd2", "fake_score.steps=1")
    summary = distill(tiny_config(tmp_path / "run", *options, "training.total_images=4"))
    assert summary["images_seen"] == 4
    moved = ("resume=auto", f"discriminator.network.path={other}")
    said = refused(tiny_config(tmp_path / "run", *options, *moved))
    assert "with other settings: discriminator.network.weights: " in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (PRETRAINED, "discriminator.noise_level=0.0: this divergence needs the density ratio at every noise level"),
        ((*PRETRAINED, "discriminator.noise_level=null"), "discriminator.noise_level is null: "),
        ((*PRETRAINED, "objective=dmd2", "discriminator.network=null"), "discriminator.network is null: "),
        (("objective=dmd2", "discriminator.noise_level=0"), "discriminator.noise_level=0: this discriminator takes "),
        (
            (*PRETRAINED, "discriminator.noise_level=-1"),
            "discriminator.noise_level=-1: expected a number of ",
        ),
    ],
)
def test_views_that_do_not_fit(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    said = refused(tiny_config(tmp_path, *SMALL, *overrides))
    assert said.startswith(message) and "\n" not in said


AUGMENTED = ("divergence=reverse_kl", "diff_augment=published")


def test_a_resumed_discriminator_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Its estimates of singular values follow each step, and are a part of the checkpoint."""
    options = ("discriminator.spectral_norm=true", "optimizer.discriminator.lr=0.002", *AUGMENTED)
    config = tiny_config(tmp_path, *SMALL, *options)
    first, second = build_distillation(config), build_distillation(config)
    checkpoint = TrainingState(first.saved_networks, first.optimizers)
    discriminator: Any = first.method.discriminator
    estimates = [value.clone() for value in discriminator.buffers()]
    for iteration in range(2):
        advance(first, iteration)
    # But for one: the left singular vector of the last layer is a number.
    assert sum(map(torch.equal, discriminator.buffers(), estimates)) == 1 < len(estimates)
    checkpoint.iteration = 2
    folder = checkpoint.save(tmp_path, 1)
    advance(first, 2)
    TrainingState(second.saved_networks, second.optimizers).load(folder)
    advance(second, 2)
    for name, network in first.trained_networks.items():
        ours, theirs = network.state_dict(), second.trained_networks[name].state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert 0.9 < torch.linalg.svdvals(discriminator.heads[0].conv1.weight.flatten(1))[0] < 1.1


def test_both_updates_augment_and_processes_share_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of real and of generated images, and of generated ones with a graph in the generator's update."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    augment = DifferentiableAugmentation.__call__

    def record(self: DifferentiableAugmentation, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        calls.append((images, numbers))
        return augment(self, images, numbers)

    monkeypatch.setattr(DifferentiableAugmentation, "__call__", record)
    config = tiny_config(tmp_path, *SMALL, *AUGMENTED)
    numbers = []
    for rows in (slice(0, 4), slice(0, 2), slice(2, 4)):
        calls.clear()
        advance(build_distillation(config), 0, rows)
        numbers.append(torch.stack([given for _, given in calls]))
        assert [images.requires_grad for images, _ in calls] == [False, False, True]
    whole, *halves = numbers
    assert torch.equal(torch.cat(halves, 1), whole) and len(whole.unique()) == 3 * 4 * 7


def advance(parts: Distillation, iteration: int, rows: slice = slice(4)) -> None:
    settings, device = parts.settings, parts.run.device
    random = BatchRandom(0, 0, iteration, batch_size=settings.batch_size, rows=rows, device=device)
    data: Any = parts.data
    list(loop.updates(parts, iteration, random, [data.__getitems__(range(4)[rows])]))
