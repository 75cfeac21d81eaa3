"""Features of DINOv2 and CLIP, from the library transformers; they need the extra ``text``."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.metrics.features import FeatureNetwork
from onestep.models.diffusers.folder import downloading
from onestep.ranges import PathText, Samples, Side

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of the pixels in [0, 1]


class DINOv2Features(FeatureNetwork):
    """DINOv2's class token after its last norm.

    Frechet distances of these features agree better with human judgement than Inception's (Stein et al. 2023, arXiv
    2306.04675).

    Args:
        path: a folder, or an id on the hub; only safetensors are read.
        resolution: images are resized to this side, bicubic with antialiasing.
        protocol_samples: samples of a published value.

    Raises:
        ValueError: without the extra, or if there is no such model.
    """

    differentiable = True

    def __init__(self, path: PathText, resolution: Side, protocol_samples: Samples | None) -> None:
        super().__init__()
        self.network = load_transformer("Dinov2Model", path)
        self.resolution, self.protocol_samples = resolution, protocol_samples
        self.title = f"DINOv2 {path.rstrip('/').rpartition('/')[2]} at {resolution}"
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D] of uint8 images [B, 1 or 3, H, W]."""
        return self._outputs(images).last_hidden_state[:, 0]

    def maps(self, images: Tensor) -> list[Tensor]:
        """The patches' tokens after each layer."""
        side = self.resolution // self.network.config.patch_size
        tokens = [state[:, 1:].mT for state in self._outputs(images, output_hidden_states=True).hidden_states[1:]]
        return [one.unflatten(2, (side, side)) for one in tokens]

    def _outputs(self, images: Tensor, **options: Any) -> Any:
        return self.network(pixel_values=normalize(images, self.resolution, *_IMAGENET), **options)

    def fingerprint(self) -> str:
        return f"{self.resolution} {super().fingerprint()}"


class CLIPFeatures(FeatureNetwork):
    """CLIP's image and text embeddings (Radford et al. 2021, arXiv 2103.00020).

    Args:
        path: a folder, or an id on the hub; only safetensors are read.

    Raises:
        ValueError: without the extra, or if there is no such model.
    """

    def __init__(self, path: PathText) -> None:
        super().__init__()
        self.network = load_transformer("CLIPModel", path)
        self.tokenizer = load_transformer("CLIPTokenizer", path)
        self.processor = load_transformer("CLIPImageProcessor", path)
        self.title = f"CLIP {path.rstrip('/').rpartition('/')[2]}"
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings [B, D] of norm 1 of uint8 images [B, 1 or 3, H, W]."""
        side = self.network.config.vision_config.image_size
        pixels = normalize(images, side, self.processor.image_mean, self.processor.image_std)
        vision = self.network.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.network.visual_projection(vision), dim=1)

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosine [B] of the embeddings of each image and its prompt."""
        return (self(images) * self.embed(prompts)).sum(1)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings [N, D] of norm 1 of prompts."""
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        text = self.network.text_model(**tokens.to(self.network.device)).pooler_output
        return F.normalize(self.network.text_projection(text), dim=1)


def load_transformer(name: str, path: str) -> Any:
    """``transformers.<name>.from_pretrained(path)``, from safetensors only and without remote code.

    Raises:
        ValueError: without the extra, or if there is no such model.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError("these features need an extra: pip install 'onestep[text]'") from error
    with downloading(f"{path}: no {name} there: give a folder or an id as ...features.path=..."):
        loader = getattr(transformers, name)
        return loader.from_pretrained(path, **({"use_safetensors": True} if name.endswith("Model") else {}))


def normalize(images: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images [B, 1 or 3, H, W] in [0, 255] as floats [B, 3, side, side], normalised by mean and standard deviation."""
    pixels = images.expand(-1, 3, -1, -1).float() / 255
    if pixels.shape[2:] != (side, side):
        pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
    shift, scale = (torch.tensor(list(values), device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels - shift) / scale
