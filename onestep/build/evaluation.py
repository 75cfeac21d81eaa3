"""From the configuration to what evaluates samples."""

from typing import Any

import torch
from omegaconf import DictConfig

from onestep.config import instantiate
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.extraction import Reference
from onestep.metrics.statistics import Moments


def build_evaluator(config: DictConfig, features: Any, data: Reference | None, device: torch.device) -> Evaluator:
    """The metrics of ``config.metrics`` against the published moments that ``config.reference`` names, else ``data``.

    Args:
        config: of train.py or sample.py.
        features: the node that describes the feature network; None for points.
        data: the real images.
        device: where the feature networks run.

    Raises:
        ValueError: if there are no real images.
    """
    reference = data if config.reference is None else Moments.load(config.reference)
    if reference is None:
        raise ValueError(
            "metrics need run=..., or data=... and features=...; reference=..., an .npz of moments, replaces the data"
        )
    metrics = dict(instantiate(config.get("metrics") or {}))
    return Evaluator(instantiate(features), metrics, reference, device, config.features_cache)
