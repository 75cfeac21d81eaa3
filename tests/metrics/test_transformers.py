"""DINOv2's and CLIP's features of small random models against transformers' outputs; the other protocols."""

import hashlib
import math
import sys
from pathlib import Path

import pytest
import torch
import transformers

from onestep.data.dataset import ImagesInMemory
from onestep.metrics.clip_score import CLIPScore
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.protocols import CleanFeatures, TorchFidelityFeatures
from onestep.metrics.transformer_features import CLIPFeatures, DINOv2Features, normalize


def random_pixels(count: int, side: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_dinov2(dinov2_folder: Path) -> None:
    network = DINOv2Features(str(dinov2_folder), resolution=28, protocol_samples=None)
    images = random_pixels(4, side=28)
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = transformers.Dinov2Model.from_pretrained(dinov2_folder)((images / 255 - mean) / std).pooler_output
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
        larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert (network(larger) - expected).abs().max() < 0.1 * expected.abs().max()
    assert DINOv2Features(str(dinov2_folder), 14, None).fingerprint() != network.fingerprint()
    data = ImagesInMemory(images.float() / 127.5 - 1)
    assert Evaluator(None, {"fd": FrechetDistance(network)}, data)([data.images])["fd"] == pytest.approx(0, abs=1e-9)


def test_normalising() -> None:
    images = torch.full((2, 1, 5, 7), 255, dtype=torch.uint8)
    found = normalize(images, 4, (0.5, 0.0, 1.0), (0.5, 1.0, 0.25))
    assert found.shape == (2, 3, 4, 4)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.tensor([1.0, 1.0, 0.0]))


def test_clip_score(clip_folder: Path) -> None:
    """Against transformers' logits per image, which are the cosines times a known scale."""
    network, images, prompts = CLIPFeatures(str(clip_folder)), random_pixels(5, side=8), ["a b", "b", "a a", "b a", "a"]
    model, tokens = (
        transformers.CLIPModel.from_pretrained(clip_folder),
        network.tokenizer(prompts, padding=True, return_tensors="pt"),
    )
    pixels = normalize(images, 8, network.processor.image_mean, network.processor.image_std)
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits_per_image / model.logit_scale.exp()
    data = ImagesInMemory(images.float() / 127.5 - 1)
    evaluator = Evaluator(None, {"clip": CLIPScore(network)}, data)
    figures = evaluator(data.images.split(2), prompts=prompts)
    assert figures["clip"] == pytest.approx(100 * logits.diagonal().clamp_min(0).mean().item(), rel=1e-4)
    assert not math.isclose(figures["clip"], evaluator([data.images], prompts=prompts[::-1])["clip"], rel_tol=1e-3)
    with pytest.raises(ValueError, match="compares images with prompts, and there are none"):
        evaluator([data.images])
    assert CLIPScore(network)(None, torch.tensor([0.5, -1.0])) == 25


@pytest.mark.usefixtures("other_protocols")
def test_other_protocols(inception_file: Path) -> None:
    """The libraries' inputs and the use of their outputs, with stand-ins for the libraries."""
    images = random_pixels(3, side=8)
    fidelity = TorchFidelityFeatures(None, 50000)
    torch.testing.assert_close(fidelity(images), images.float().mean((2, 3)))
    torch.testing.assert_close(fidelity.classify(images), images.float().amax((2, 3)))
    assert fidelity.network.weights is None  # torch-fidelity's own
    assert TorchFidelityFeatures("weights.pth", 50000).network.weights == "weights.pth"
    content_hash = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    clean = CleanFeatures(str(inception_file), content_hash, None, 50000)
    expected = (images[:, :, ::2, ::2].float().mean((2, 3)) - 128) / 128 / 2
    torch.testing.assert_close(clean(images), expected)
    assert clean.fingerprint() != content_hash and clean.title == "clean-fid, stand_in.pt"


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no Dinov2Model there"):
        DINOv2Features(str(tmp_path), 224, None)
    for name in ("transformers", "torch_fidelity", "cleanfid"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install 'onestep\[text\]'"):
        CLIPFeatures(str(tmp_path))
    with pytest.raises(ValueError, match=r"pip install 'onestep\[torch-fidelity\]'"):
        TorchFidelityFeatures(None, 50000)
    with pytest.raises(ValueError, match=r"pip install 'onestep\[clean-fid\]'"):
        CleanFeatures("none", "0", None, 50000)
