"""A network that knows the step of the few-step generator whose samples it is about."""

from typing import Any

import torch
from torch import Tensor, nn

from onestep.models.base import DenoiserNetwork


class StepEmbedding(nn.Module):
    """A vector for each step of a generator, which is added to a network's embedding of the noise level.

    The samples of two steps have different distributions. A fake score that is not told the step estimates the score of
    their mixture, which is neither's.

    Args:
        steps: of the generator.
        width: size of the network's embedding.

    Attributes:
        step: the step of the network's next passes, counted from 0.
    """

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(steps, width))  # at first the network is the one without it
        self.step = 0

    def add_to(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """A forward hook of the layer with the ``output`` [B, width]."""
        return output + self.weight[self.step].to(output.dtype)


def add_step_embedding(network: DenoiserNetwork, steps: int, setting: str) -> None:
    """Let ``network`` know which of ``steps`` it is about, as :func:`set_step` says; its predictions do not change yet.

    Raises:
        ValueError: naming the ``setting``, if the network's embedding of the noise level is not known.
    """
    layers: Any = network.level_embeddings
    if not layers:
        raise ValueError(
            f"{setting}=true: no level_embeddings of this {type(network).__name__} are known, to which that of a step "
            f"could be added: set {setting}=false, or define them"
        )
    embedding = StepEmbedding(steps, layers[0].weight.shape[0]).to(network.device)
    network.step_embedding = embedding
    for layer in layers:
        layer.register_forward_hook(embedding.add_to)


def set_step(network: nn.Module | None, step: int) -> None:
    """Set the ``step`` of the passes of ``network`` that follow; without effect on one that knows no steps."""
    embedding = getattr(network, "step_embedding", None)
    if embedding is not None:
        embedding.step = step
