"""Discriminators in the updates of a distillation."""

from pathlib import Path
from typing import Any

import torch

from onestep.build.distillation import build_distillation
from tests.helpers.configs import TWO_ITERATIONS, tiny_config
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
