"""From the configuration to the evaluation of samples: metrics, their reference, and the decoder of latents."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from onestep.data.dataset import ImageDataset, NoData, TrainingDataset
from onestep.data.latents import LatentDataset
from onestep.data.prompts import PromptDataset
from onestep.evaluation.generate import SampleSpace
from onestep.metrics.evaluator import Evaluator, Metric
from onestep.metrics.extraction import Reference
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.statistics import Moments


def build_evaluator(
    config: DictConfig, metrics: Mapping[str, Metric], features: FeatureNetwork | None, reference: Reference | None,
    device: torch.device,
) -> Evaluator:  # fmt: skip
    """The ``metrics`` against the moments that ``config.reference`` names, else ``reference``.

    Args:
        config: of a training or of ``sample.py``.
        metrics: by name.
        features: the feature network of those without one; None for points.
        reference: the real images; None where there are none.
        device: where the feature networks run.
    """
    real = reference if config.reference is None else Moments.load(config.reference)
    return Evaluator(features, dict(metrics), real, device, config.features_cache)


def reference_of(data: TrainingDataset | NoData) -> Reference | None:
    """The images that samples of a network trained on ``data`` are compared with; None where it holds none."""
    if isinstance(data, LatentDataset):
        return data.images
    return data if isinstance(data, ImageDataset) else None


def sample_space(network: Any, data: TrainingDataset | NoData) -> SampleSpace:
    """The space in which a training on ``data`` samples from ``network``: its conditions are the prompts in turn.

    Raises:
        ValueError: for latents without an autoencoder, and for a network of other conditions than there are.
    """
    conditions = data.embeddings if isinstance(data, PromptDataset) else None
    return SampleSpace.of(network, conditions=conditions, decode=_decoder(network, data))


def _decoder(network: Any, data: TrainingDataset | NoData) -> Callable[[Tensor], Tensor] | None:
    if isinstance(data, LatentDataset | PromptDataset):
        return data.pipeline.decode
    if not network.denoises_latents:
        return None
    if network.pipeline is None:
        raise ValueError("the teacher denoises latents, and teacher.pipeline, which decodes them, is null")
    return network.pipeline.decode
