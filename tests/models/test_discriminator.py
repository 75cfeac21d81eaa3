"""The discriminator's head."""

import torch

from onestep.models.discriminator import Discriminator


def test_a_fresh_one_says_nothing_and_learns_from_there() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(feature_channels=8, features_from="teacher", hidden=16)
    features = torch.randn(5, 8, 4, 4)
    logits = discriminator(features)
    assert logits.tolist() == [0] * 5
    logits.sum().backward()
    assert discriminator.logit.bias.grad.tolist() == [5]  # type: ignore[union-attr]
    assert discriminator.logit.weight.grad.abs().max() > 0.01  # type: ignore[union-attr]


def test_logits_are_float32_whatever_the_precision() -> None:
    discriminator = Discriminator(8, "fake_score", 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert discriminator(torch.randn(2, 8, 4, 4)).dtype == torch.float32
