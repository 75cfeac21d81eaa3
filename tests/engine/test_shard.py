"""Activation checkpointing does not change gradients, and adds none for frozen parameters."""

import pytest
import torch
from torch import Tensor

from onestep.engine.shard import checkpoint_activations
from onestep.models.freezing import frozen
from tests.helpers.edm_models import tiny_denoiser


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("freeze", [False, True])
def test_gradients_without_kept_activations(freeze: bool, compiled: bool) -> None:
    """Also for a critic that is frozen in the forward pass and trainable again before the backward pass."""

    def gradients(saving: bool) -> tuple[Tensor, list[Tensor | None]]:
        network = tiny_denoiser()
        if saving:
            checkpoint_activations(network)
            if compiled:
                network.compile()
        random = torch.Generator().manual_seed(0)
        x_sigma = torch.randn(2, 1, 8, 8, generator=random).requires_grad_(True)
        with frozen(network if freeze else None):
            x0 = network(x_sigma, torch.tensor([0.5, 2.0]), {"labels": torch.eye(3)[:2]})
        x0.square().sum().backward()
        assert x_sigma.grad is not None and all(p.requires_grad for p in network.parameters())
        return x_sigma.grad, [p.grad for p in network.parameters()]

    (kept, of_weights), (anew, of_weights_anew) = gradients(False), gradients(True)
    torch.testing.assert_close(anew, kept)
    assert kept.norm() > 1 and [g is None for g in of_weights_anew] == [freeze] * len(of_weights)
    if not freeze:
        torch.testing.assert_close(of_weights_anew, of_weights)
