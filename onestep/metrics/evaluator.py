"""Evaluation of several metrics with one pass of the samples through each feature network."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from onestep.images import to_uint8
from onestep.metrics.extraction import OF_SAMPLES, Extraction, Kind, Reference
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.fidelity import Measures, Pairs, check_pairs
from onestep.metrics.reference import reference_features
from onestep.metrics.result import Description, Result
from onestep.metrics.statistics import Moments
from onestep.processes import rank_and_count, sum_over_processes


class Metric(Protocol):
    """One or several values that compare generated samples with real ones.

    A single value has the metric's name in the configuration as its key. Several values have keys of their own.

    Attributes:
        reads: the metric's input. "vectors": features [N, D] of real and generated samples. "moments": their mean and
            covariance. Of the generated samples alone: "logits" [N, K], "similarities" [N] to the prompts, "of_prompts"
            [N, 1 + D], or "pairs", see :data:`Kind` and :class:`onestep.metrics.fidelity.PairMetric`.
        features: the metric's feature network; None for the evaluator's.
        title: the value's name in tables and plots; for several values, the titles by key.
        higher_is_better: the direction of the value; for several values, one for all or a direction by key.
        fewest: the fewest generated samples; 1 unless it is an attribute, and 2 for moments.
    """

    reads: Kind
    features: FeatureNetwork | None

    @property
    def title(self) -> str | Mapping[str, str]: ...

    @property
    def higher_is_better(self) -> bool | Mapping[str, bool]: ...

    def __call__(self, real: Any, generated: Any) -> float | dict[str, float]: ...


class Evaluator:
    """Computes every metric on images, quantised to uint8 as for published values.

    Every process makes one, and calls it with its part of the samples (``distributed``) or with all samples.

    Args:
        features: the feature network of metrics without one. None for points [B, D, 1, 1], which are used as features.
        metrics: the metrics by name.
        reference: the real images, or their published moments; None if no metric reads them.
        device: device of the feature networks.
        cache: folder for the reference's features, under a hash of data and network; None for no cache.
        pairs: of metrics that read them: the sample of seed ``s`` is of the pair ``s`` modulo their number.

    Attributes:
        descriptions: title and direction of each value by key, in the order of the metrics.

    Raises:
        ValueError: if two metrics have a value with the same key, a feature network takes images of another shape than
            the reference's, or a metric needs more than moments and the reference is moments.
    """

    def __init__(
        self,
        features: FeatureNetwork | None,
        metrics: dict[str, Metric],
        reference: Reference | Moments | None,
        device: torch.device | str = "cpu",
        cache: str | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        self.metrics, self.reference, self.device, self.pairs = metrics, reference, device, pairs
        self.descriptions: dict[str, Description] = {}
        self._metric_of: dict[str, str] = {}
        for name, metric in metrics.items():
            for key, description in _describe(name, metric).items():
                if key in self.descriptions:
                    raise ValueError(f"metrics: {self._metric_of[key]} and {name} both measure {key}: remove one")
                self.descriptions[key], self._metric_of[key] = description, name
        self.network_of = {
            name: network if (network := getattr(metric, "features", None)) or metric.reads == "pairs" else features
            for name, metric in metrics.items()
        }
        check_pairs(metrics, pairs)
        self.real: dict[FeatureNetwork | None, dict[Kind, Any]] = {}
        for network, kinds in self._wanted().items():
            wanted = kinds - OF_SAMPLES
            if reference is None:
                self._require_none(wanted)
            self._check(network)
            if reference is None:
                self.real[network] = {}
            elif isinstance(reference, Moments):
                self.real[network] = self._of_moments(reference, wanted)
            else:
                self.real[network] = reference_features(reference, network, wanted, device, cache)

    def __call__(
        self,
        batches: Iterable[Tensor],
        distributed: bool = False,
        prompts: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        only: Collection[str] | None = None,
        failures: dict[str, str] | None = None,
    ) -> dict[str, float]:
        """The values by key, over all images [B, C, H, W] of ``batches``; empty outside the main process.

        Args:
            batches: the samples in [-1, 1], or points.
            distributed: ``batches`` is this process's part of the samples, in the order of the ranks. The values are
                those of all samples.
            prompts, seeds: those of each sample of ``batches``, for metrics that read prompts or pairs.
            only: the names of the metrics to compute; None for all.
            failures: receives the reason of each value that cannot be computed, by key; None raises the error.

        Raises:
            ValueError: without ``failures``, if a sample or a feature is not finite, or a metric cannot be computed.
        """
        wanted = self._wanted(only)
        extractions = {network: Extraction(network, kinds, self.device) for network, kinds in wanted.items()}
        measures = Measures(self._chosen(only), self.pairs, self.device)
        position, broken = 0, torch.zeros((), dtype=torch.long, device=self.device)
        for batch in batches:
            self._check_shape(batch)
            broken += (~batch.flatten(1).isfinite().all(1)).sum().to(self.device)
            texts = None if prompts is None else prompts[position : position + len(batch)]
            measures.add(batch, None if seeds is None else seeds[position : position + len(batch)])
            position += len(batch)
            pixels: Tensor | None = None
            for network, extraction in extractions.items():
                if network is not None and pixels is None:
                    pixels = to_uint8(batch)
                extraction.add(batch if network is None or pixels is None else pixels, texts)
        if distributed:
            sum_over_processes(broken)
        generated = {network: _outputs(extraction, distributed) for network, extraction in extractions.items()}
        measured = measures.finish(distributed)
        values: dict[str, float] = {}
        if rank_and_count()[0] > 0:
            return values
        for name, metric in self._chosen(only).items():
            network = self.network_of[name]
            try:
                if broken:
                    raise ValueError(f"{int(broken):,} of the samples are not finite: check the network's weights")
                if metric.reads == "pairs":
                    value = metric(None, measured[name])
                else:
                    outputs = generated[network]
                    if isinstance(outputs, ValueError):
                        raise outputs
                    value = metric(self.real[network].get(metric.reads), outputs[metric.reads])
            except (ValueError, torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
                if failures is None:
                    raise
                failures |= dict.fromkeys(self.keys([name]), str(error))
                continue
            values |= value if isinstance(value, dict) else {name: value}
        return values

    def save_reference(self, path: str) -> None:
        """Write the mean and covariance of the reference's features in EDM's format, in the main process.

        Raises:
            ValueError: unless exactly one feature network's moments are in use.
        """
        found = [real["moments"] for real in self.real.values() if "moments" in real]
        if len(found) != 1 and rank_and_count()[0] == 0:
            raise ValueError("save_reference needs one metric that reads mean and covariance: choose metrics=[fid]")
        for moments in found:
            moments.save(path)

    def check_samples(self, count: int, only: Collection[str] | None = None) -> None:
        """Check ``count`` against the fewest samples of the metrics in ``only``, and the number in a name like fid50k.

        Raises:
            ValueError: for too few or another number, or for features outside the metric's published protocol.
        """
        for name, metric in self.metrics.items():
            if only is not None and name not in only:
                continue
            fewest = 2 if metric.reads == "moments" else getattr(metric, "fewest", 1)
            if count < fewest:
                raise ValueError(f"{name} needs at least {fewest:,} samples, got {count:,}: generate more")
            promised = getattr(metric, "samples", None)
            if promised is None:
                continue
            network = self.network_of[name]
            if count != promised:
                raise ValueError(f"{name} needs {promised:,} samples, got {count:,}: choose metrics=[fid] instead")
            if network is None or network.protocol_samples != promised:
                title = "points" if network is None else network.title
                raise ValueError(f"{name} is not defined in the features of {title}: choose the published features")

    def keys(self, only: Collection[str] | None = None) -> list[str]:
        """The keys of the values of the metrics named in ``only``; None for all."""
        return [key for key, name in self._metric_of.items() if only is None or name in only]

    def results(
        self,
        values: dict[str, float],
        samples: int,
        seeds: list[int] | None,
        network_evaluations: int | None,
        classes: str | None = None,
    ) -> list[dict[str, Any]]:
        """A complete record of each of ``values``, see :class:`Result`."""
        records = []
        for key, value in values.items():
            network, description = self.network_of[self._metric_of[key]], self.descriptions[key]
            result = Result(
                metric=key,
                value=value,
                title=description.title,
                higher_is_better=description.higher_is_better,
                features="the samples themselves" if network is None else network.title,
                reference="none" if self.reference is None else self.reference.description,
                samples=samples,
                protocol_samples=None if network is None else network.protocol_samples,
                seeds=seeds,
                network_evaluations=network_evaluations,
                classes=classes,
            )
            records.append({"name": result.name} | asdict(result))
        return records

    def _chosen(self, only: Collection[str] | None) -> dict[str, Metric]:
        return {name: metric for name, metric in self.metrics.items() if only is None or name in only}

    def _wanted(self, only: Collection[str] | None = None) -> dict[FeatureNetwork | None, set[Kind]]:
        """The kinds of features that the metrics in ``only`` read from each network; None for all metrics."""
        wanted: dict[FeatureNetwork | None, set[Kind]] = {}
        for name, metric in self._chosen(only).items():
            if metric.reads != "pairs":
                wanted.setdefault(self.network_of[name], set()).add(metric.reads)
        return wanted

    def _check_shape(self, samples: Tensor) -> None:
        """Check that ``samples`` have the shape of the reference's images, which feature networks would resize."""
        if isinstance(self.reference, Moments | None) or not any(self.real.values()):
            return
        given, expected = tuple(samples.shape[1:]), tuple(self.reference.image_shape)
        if given != expected:
            raise ValueError(
                f"the samples have the shape {given} (channels, height, width), the reference {expected}: give a "
                "reference of the samples' shape, such as by data.resolution=... and data.channels=..."
            )

    def _check(self, network: FeatureNetwork | None) -> None:
        given = None if isinstance(self.reference, Moments | None) else tuple(self.reference.image_shape)
        if network is None:
            if given is None or given[1:] != (1, 1):
                raise ValueError(
                    "features=null is for points; metrics of images need a feature network: choose features=..."
                )
        elif given is not None and network.image_shape is not None and tuple(network.image_shape) != given:
            raise ValueError(
                f"the feature network takes images {tuple(network.image_shape)}, the data has {given}: choose other "
                "features=..."
            )

    def _of_moments(self, moments: Moments, kinds: set[Kind]) -> dict[Kind, Any]:
        if "vectors" in kinds:
            names = [name for name, metric in self.metrics.items() if metric.reads == "vectors"]
            raise ValueError(
                f"{', '.join(names)}: the reference has only mean and covariance, and single features are needed: give "
                "data=..."
            )
        return {"moments": moments}

    def _require_none(self, kinds: set[Kind]) -> None:
        if kinds:
            raise ValueError(
                f"metrics={list(self.metrics)} need real images, and there are none: give data=... with images and "
                "features=..., or reference=..., an .npz of moments; or choose metrics=[]"
            )


def _outputs(extraction: Extraction, distributed: bool) -> dict[Kind, Any] | ValueError:
    """The outputs of ``extraction``, or the error, which all processes have."""
    try:
        return extraction.finish(distributed)
    except ValueError as error:
        return error


def _describe(name: str, metric: Metric) -> dict[str, Description]:
    """The description of each value of the ``metric`` configured as ``name``, by key."""
    titles, better = metric.title, metric.higher_is_better
    by_key = {name: titles} if isinstance(titles, str) else titles
    return {
        key: Description(title, better if isinstance(better, bool) else better[key]) for key, title in by_key.items()
    }
