"""The evaluation of samples, built from a configuration: metrics, their reference and the decoder of latents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from onestep.data.dataset import ImageDataset, NoData, TrainingDataset
from onestep.data.latents import LatentDataset
from onestep.data.map_style import ItemConditions
from onestep.data.paired import PairedData
from onestep.data.prompts import PromptDataset
from onestep.denoiser import keys_of_data
from onestep.evaluation.generate import Conditions, SampleSpace
from onestep.metrics.evaluator import Evaluator, Metric
from onestep.metrics.extraction import Reference
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.statistics import Moments


def build_evaluator(
    config: DictConfig, metrics: Mapping[str, Metric], features: FeatureNetwork | None, data: Any, device: torch.device
) -> Evaluator:  # fmt: skip
    """The evaluator of ``metrics`` against the moments in the file ``config.reference``, or against ``data``.

    Args:
        config: configuration of a training or of ``onestep sample``.
        metrics: metrics by name.
        features: feature network of the metrics that do not have one; None for points.
        data: where real images are from, and pairs; None for none.
        device: device of the feature networks.
    """
    real = reference_of(data) if config.reference is None else Moments.load(config.reference)
    pairs = data.evaluated if isinstance(data, PairedData) else None
    return Evaluator(features, dict(metrics), real, device, config.features_cache, pairs)


def reference_of(data: Any) -> Reference | None:
    """The real images with which samples are compared; None if ``data`` has none."""
    if isinstance(data, LatentDataset):
        return data.images
    if isinstance(data, PairedData):
        return data.evaluated.originals
    if isinstance(data, PromptDataset):
        return data.images
    return data if isinstance(data, ImageDataset) else None


def sample_space(network: Any, data: TrainingDataset | NoData) -> SampleSpace:
    """The sample space of ``network`` with the conditions and the decoder of ``data``.

    Raises:
        ValueError: for latents without an autoencoder, or a network whose conditions ``data`` does not have.
    """
    conditions: Conditions | None = data.embeddings if isinstance(data, PromptDataset) else None
    others = keys_of_data(network)
    if others and isinstance(data, ImageDataset):
        conditions = ItemConditions(data.evaluated if isinstance(data, PairedData) else data)
    classes = data.classes if isinstance(data, NoData) else classes_of(reference_of(data))
    return SampleSpace.of(network, classes, conditions, _decoder(network, data))


def training_space(space: SampleSpace, data: TrainingDataset | NoData) -> SampleSpace:
    """The sample ``space`` with the conditions of the training, where those of the evaluation are others."""
    if space.conditions is None or not isinstance(data, PairedData):
        return space
    return replace(space, conditions=ItemConditions(data))


def classes_of(reference: Any) -> Sequence[int] | None:
    """The cycle of classes of samples that are compared with ``reference``; None for random ones."""
    return reference.class_cycle if isinstance(reference, ImageDataset) and reference.label_dim else None


def _decoder(network: Any, data: TrainingDataset | NoData) -> Callable[[Tensor], Tensor] | None:
    if isinstance(data, LatentDataset | PromptDataset):
        return data.pipeline.decode
    if not network.denoises_latents:
        return None
    if network.pipeline is None:
        raise ValueError(
            "teacher.pipeline=null: expected a pipeline with an autoencoder, because the teacher denoises latents; for "
            "a file of EDM2 use teacher=edm2_imagenet512 teacher.path=..."
        )
    return network.pipeline.decoder(network.image_shape[0])
