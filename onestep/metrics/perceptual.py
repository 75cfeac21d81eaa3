"""LPIPS and CLIP-IQA of samples."""

from typing import Any

import torch
from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.fidelity import PairMetric, Pairs, Restored
from onestep.metrics.transformer_features import CLIPFeatures
from onestep.models.perceptual import PerceptualDistance
from onestep.ranges import checked
from onestep.reading import one_line

_PIXELS = 1 << 20  # of the images in one pass, whose maps take 64 numbers for each
_PROMPTS = ["Good photo.", "Bad photo."]  # CLIP-IQA's pair for quality


class LPIPS(PairMetric):
    """The mean over images of :class:`PerceptualDistance`.

    Args:
        network: whose feature maps are compared; of LPIPS, or any other one.
    """

    higher_is_better = False

    def __init__(self, network: FeatureNetwork) -> None:
        self.features: FeatureNetwork | None = network
        self._title = f"{network.title}, RGB in [-1, 1], no border"
        self.distance = PerceptualDistance(network)

    @property
    def title(self) -> str:
        return self._title

    def check(self, pairs: Pairs) -> None:
        self.distance.check(pairs.image_shape, "metrics: lpips")

    @torch.no_grad()
    def measure(self, restored: Restored) -> Tensor:
        pairs = [levels.float() / 127.5 - 1 for levels in (restored.samples, restored.originals)]
        part = max(1, _PIXELS // pairs[0][0, 0].numel())
        device = next(self.distance.parameters()).device
        parts = zip(*(levels.split(part) for levels in pairs), strict=True)
        return torch.cat([self.distance(*(levels.to(device) for levels in one)).cpu() for one in parts])


class CLIPIQA:
    """CLIP-IQA (Wang, Chan and Loy 2023, arXiv 2207.12396), of single images, without the originals.

    Args:
        features: of two class logits, those of a good and of a bad photograph.
    """

    reads: Kind = "logits"
    higher_is_better = True

    def __init__(self, features: FeatureNetwork) -> None:
        self.features: FeatureNetwork | None = features
        self._title = f"CLIP-IQA, {features.title}"

    @property
    def title(self) -> str:
        return self._title

    def __call__(self, real: Any, generated: Tensor) -> float:
        """The mean over images of the probability of a good photograph, of logits [N, 2]; ``real`` is unused."""
        return float(generated.double().softmax(1)[:, 0].mean())


@checked
class CLIPQuality(CLIPFeatures):
    """A CLIP model with the class logits of CLIP-IQA; images are resized to its side, and positions are embedded.

    Args:
        path: a folder, or an id on the hub; only safetensors are read.

    Raises:
        ValueError: without the extra, or if there is no such model.
    """

    def classify(self, images: Tensor) -> Tensor:
        """The logits [B, 2] of a good and of a bad photograph, of uint8 images [B, 1 or 3, H, W]."""
        return self.network.logit_scale.exp() * self(images) @ self.embed(_PROMPTS).T


class PublishedCLIPIQA(FeatureNetwork):
    """The CLIP-IQA of published tables, by the library piq: CLIP's RN50 on whole images, without positions.

    Raises:
        ValueError: without the extra, or if piq cannot fetch its weights.
    """

    title = "RN50 of CLIP without positions, by piq"

    def __init__(self) -> None:
        super().__init__()
        try:
            import piq
        except Exception as error:  # a torchvision of another torch has errors of its own
            raise ValueError(
                f"clip_iqa needs an extra: pip install 'onestep[perceptual]' ({one_line(error, 200)}); clip_iqa_vit "
                "needs transformers alone"
            ) from error
        try:
            self.network: Any = piq.CLIPIQA(data_range=255)
        except Exception as error:  # of a download
            raise ValueError(f"clip_iqa: piq could not fetch its weights of CLIP: {one_line(error, 300)}") from error
        self.eval().requires_grad_(False)

    def classify(self, images: Tensor) -> Tensor:
        """The log of the probabilities [B, 2] of a good and of a bad photograph, of uint8 images [B, 1 or 3, H, W]."""
        good = self.network(images.expand(-1, 3, -1, -1).float()).flatten()
        return torch.stack([good, 1 - good], 1).clamp_min(torch.finfo(good.dtype).tiny).log()
