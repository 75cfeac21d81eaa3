"""The transformer of classes: DiT, and SiT with a scheduler of flow matching."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily, timestep_layers


class DiT(TransformerFamily):
    """``DiTTransformer2DModel``; the last row of its class embedding is for no class."""

    def label_dim(self, config: Mapping[str, Any]) -> int:
        return config["num_embeds_ada_norm"]

    def requires_condition(self, config: Mapping[str, Any]) -> bool:
        return False

    def level_embeddings(self, network: Any) -> list[nn.Module]:
        return timestep_layers(network)  # each block has its own

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        classes = self.label_dim(network.config)
        labels = torch.full(x.shape[:1], classes, device=x.device)
        if condition:
            labels = torch.where(condition["labels"].any(1), condition["labels"].argmax(1), labels)
        return network(x, timestep=timestep, class_labels=labels).sample
