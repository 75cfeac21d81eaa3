"""Random numbers as functions of their key."""

from itertools import islice

import pytest
import torch

from onestep.evaluation.generate import SampleSpace
from onestep.noise import LogUniformSigma
from onestep.seeding import SEEDS, BatchRandom, noise_from_latents, seeded_inputs, seeded_noise, seeded_rng

SHAPE = (3, 4, 4)


def test_a_seed_gives_the_same_sample_in_any_company() -> None:
    together, condition = seeded_inputs(list(range(64)), SHAPE, label_dim=10)
    for seed in (0, 17, 63):
        alone, own = seeded_inputs([seed], SHAPE, label_dim=10)
        assert torch.equal(alone[0], together[seed]) and torch.equal(own["labels"][0], condition["labels"][seed])
    assert len({latent.sum().item() for latent in together}) == 64


def test_latents_do_not_depend_on_the_classes() -> None:
    latents = [seeded_inputs([3, 8], SHAPE, *rest)[0] for rest in ((0,), (10,), (10, [4]))]
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[0], latents[2])


def test_latents_are_standard_normal() -> None:
    """48,000 values: within 4 standard errors of mean and variance, 0.0046 and 0.0065."""
    latents, condition = seeded_inputs(list(range(1000)), SHAPE, label_dim=0)
    assert condition == {}
    assert latents.mean().item() == pytest.approx(0, abs=0.0183)
    assert latents.var().item() == pytest.approx(1, abs=0.0258)


def test_drawn_classes_are_uniform() -> None:
    """Each of the 4 classes is expected 250 times in 1000, within 4 standard deviations of 13.7."""
    labels = seeded_inputs(list(range(1000)), (1, 1, 1), label_dim=4)[1]["labels"]
    assert labels.shape == (1000, 4) and (labels.sum(1) == 1).all()
    assert (labels.sum(0) - 250).abs().max() <= 55


def test_given_classes_cycle_by_the_seed() -> None:
    labels = seeded_inputs([0, 1, 2, 3, 10, 4], SHAPE, label_dim=5, classes=[4, 0, 2])[1]["labels"]
    assert labels.argmax(1).tolist() == [4, 0, 2, 4, 0, 0]


@pytest.mark.parametrize("classes, label_dim", [([0, 10], 10), ([-1], 10), ([0], 0)])
def test_class_that_the_network_does_not_have(classes: list[int], label_dim: int) -> None:
    with pytest.raises(ValueError, match=rf"classes=\[.*{classes[-1]}\]: this network has {label_dim} classes"):
        seeded_inputs([0], SHAPE, label_dim, classes)


def test_rngs_differ_by_their_full_key() -> None:
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 2, 3), (3, 2, 1)]
    first = {key: torch.rand(4, generator=seeded_rng(*key)) for key in keys}
    assert len({tuple(values.tolist()) for values in first.values()}) == len(keys)
    assert all(torch.equal(torch.rand(4, generator=seeded_rng(*key)), first[key]) for key in keys)


def test_noise_from_latents_is_the_same_in_any_company() -> None:
    latents, _ = seeded_inputs(list(range(8)), SHAPE, label_dim=0)
    together = list(islice(noise_from_latents(latents), 3))
    for i in (0, 5):
        alone = list(islice(noise_from_latents(latents[i : i + 1]), 3))
        assert all(torch.equal(one[0], many[i]) for one, many in zip(alone, together, strict=True))
    assert len({noise[i].sum().item() for noise in together for i in range(8)}) == 24


def test_noise_from_latents_is_standard_normal_and_independent_of_the_latents() -> None:
    """48,000 values, as above; the standard error of the correlations is also 0.0046."""
    latents, _ = seeded_inputs(list(range(1000)), SHAPE, label_dim=0)
    first, second = islice(noise_from_latents(latents, torch.float64), 2)
    assert first.dtype == torch.float64
    for noise in (first, second):
        assert noise.mean().item() == pytest.approx(0, abs=0.0183)
        assert noise.var().item() == pytest.approx(1, abs=0.0258)
        assert (noise * latents).mean().item() == pytest.approx(0, abs=0.0183)
    assert (first * second).mean().item() == pytest.approx(0, abs=0.0183)


@pytest.mark.parametrize("label_dim", [0, 10])
def test_further_noise_goes_on_behind_the_latents(label_dim: int) -> None:
    seeds = [3, 5]
    latents, _ = seeded_inputs(seeds, SHAPE, label_dim)
    noises = seeded_noise(seeds, SHAPE, label_dim)
    first, second = next(noises), next(noises)
    for row, seed in enumerate(seeds):
        rng = torch.Generator().manual_seed(seed)
        assert torch.equal(torch.randn(SHAPE, generator=rng), latents[row])
        if label_dim:
            torch.randint(label_dim, (), generator=rng)
        assert torch.equal(torch.randn(SHAPE, generator=rng), first[row])
        assert torch.equal(torch.randn(SHAPE, generator=rng), second[row])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_all_processes_are_the_global_batch(processes: int) -> None:
    distribution = LogUniformSigma(0.1, 10.0)

    def draw(rows: slice) -> list[torch.Tensor]:
        random = BatchRandom(3, 0, 7, batch_size=8, rows=rows)
        drawn = [random.normal(SHAPE), random.sigma(distribution), random.normal(SHAPE)]
        return [*drawn, random.uniform((3,)), random.labels(1000)]

    batch = draw(slice(None))
    parts = [draw(slice(8 // processes * rank, 8 // processes * (rank + 1))) for rank in range(processes)]
    for number, drawn in enumerate(batch):
        assert torch.equal(torch.cat([part[number] for part in parts]), drawn) and len(drawn) == 8
    # The stream is that of the key.
    rng = seeded_rng(3, 0, 7)
    expected = [torch.randn((8, *SHAPE), generator=rng), distribution.sample(8, rng)]
    assert torch.equal(batch[0], expected[0]) and torch.equal(batch[1], expected[1])


def test_seeds_beyond_32_bits_would_repeat_others() -> None:
    alike = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, SEEDS + 5)]
    assert torch.equal(*alike)  # torch's rng: the reason of the limit
    last, _ = seeded_inputs([SEEDS - 1], SHAPE, 0)
    assert torch.equal(last[0], torch.randn(SHAPE, generator=torch.Generator().manual_seed(SEEDS - 1)))
    for seeds in ([SEEDS], [3, -1], [2**64]):
        for draw in (lambda seeds: seeded_inputs(seeds, SHAPE, 0), lambda seeds: next(seeded_noise(seeds, SHAPE))):
            with pytest.raises(ValueError, match="seeds: got the seeds from .* expected seeds from 0 to 4294967295"):
                draw(seeds)


@pytest.mark.parametrize("classes", [[99], [10], [-1], [1.5], ["a"], [True], []])
def test_classes_are_checked_before_anything_is_drawn(classes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"classes=\[.*\]: this network has 10 classes, numbered from 0"):
        SampleSpace(SHAPE, 10, classes)
    with pytest.raises(ValueError, match=r"this network has 0 classes: set classes=null"):
        SampleSpace(SHAPE, 0, classes)
