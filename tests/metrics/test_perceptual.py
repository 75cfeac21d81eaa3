"""LPIPS and CLIP-IQA against their formulas; what is missing is named before any training."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from onestep.data.dataset import ImagesInMemory
from onestep.data.degradation import AreaReduction
from onestep.data.paired import PairedImages
from onestep.images import from_uint8
from onestep.metrics.classifier import load_classifier
from onestep.metrics.evaluator import Evaluator, Metric
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.lpips import LPIPSFeatures
from onestep.metrics.perceptual import CLIPIQA, LPIPS, CLIPQuality, PublishedCLIPIQA
from onestep.models.perceptual import PerceptualDistance
from onestep.objectives.perceptual import Perceptual

Files = dict[str, dict[str, Any]]
# By convolution: stride and padding; before which the sides are halved; after which LPIPS reads.
SHAPES: dict[str, Any] = {
    "alex": ([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)], {1, 2}, {0, 1, 2, 3, 4}, 3),
    "vgg": ([(1, 1)] * 13, {2, 4, 7, 10}, {1, 3, 6, 9, 12}, 2),
}


def pixels(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def lpips(backbone: str, file: str, a: Tensor, b: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """LPIPS [B] of images in [-1, 1] in float64, from the file of torchvision's form."""
    state = torch.load(file, weights_only=True)
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("features.")})
    shapes, pooled, read, window = SHAPES[backbone]
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).double()[:, :, None, None]
    maps: list[list[Tensor]] = []
    for x in (a, b):
        x = (x.double() - shift) / scale
        maps.append([])
        for place, (number, (stride, padding)) in enumerate(zip(numbers, shapes, strict=True)):
            x = F.max_pool2d(x, window, 2) if place in pooled else x
            kernel, bias = (state[f"features.{number}.{name}"].double() for name in ("weight", "bias"))
            x = F.conv2d(x, kernel, bias, stride, padding).relu()
            maps[-1] += [x / x.norm(dim=1, keepdim=True)] if place in read else []
    layers = zip(*maps, weights, strict=True)
    return sum((((p - q) ** 2 * w.double()[:, None, None]).sum(1).mean((1, 2)) for p, q, w in layers), torch.zeros(1))


@pytest.mark.parametrize(("backbone", "side"), [("alex", 36), ("vgg", 16)])
def test_lpips(lpips_files: Files, backbone: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = lpips_files[backbone]
    network = LPIPSFeatures(**given)
    assert network.map_weights is not None and min(float(weight.min()) for weight in network.map_weights) >= 0
    originals, samples = pixels(3, 3, side), pixels(3, 3, side, seed=1)
    expected = lpips(backbone, given["path"], from_uint8(samples), from_uint8(originals), network.map_weights)
    pairs = PairedImages(ImagesInMemory(from_uint8(originals)), AreaReduction(2.0)).evaluated
    monkeypatch.setattr("onestep.metrics.perceptual._PIXELS", 2 * side**2)  # two images in a pass
    metrics: dict[str, Metric] = {"lpips": LPIPS(network)}
    evaluator = Evaluator(load_classifier("digits"), metrics, None, pairs=pairs)
    values = evaluator([from_uint8(samples)], seeds=range(3))
    assert values["lpips"] == pytest.approx(float(expected.mean()), rel=1e-5)
    (record,) = evaluator.results(values, 3, [0, 2], 1)
    assert record["features"] == network.title and network.title.startswith("LPIPS 0.1, ")
    assert evaluator([from_uint8(originals)], seeds=range(3))["lpips"] == 0


def test_the_distance_in_another_network_is_a_loss() -> None:
    """In the digits classifier, against the formula; differentiable in the samples alone, also beyond [-1, 1]."""
    network = load_classifier("digits")
    a, b = (1.2 * from_uint8(pixels(4, 1, 8, seed)) for seed in (0, 1))
    term = Perceptual(network, 2.0)
    term.check((1, 8, 8))
    losses = term(a.requires_grad_(), b)
    pairs = zip(*(network.maps(127.5 * (x + 1)) for x in (a, b)), strict=True)
    expected = [(F.normalize(p, dim=1) - F.normalize(q, dim=1)).square().sum(1).mean((1, 2)) for p, q in pairs]
    torch.testing.assert_close(losses, torch.stack(expected).sum(0), rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), a)
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())
    direction, step = torch.randn(a.shape, generator=torch.Generator().manual_seed(2)), 1e-2
    gradient = gradient.detach()
    moved = [PerceptualDistance(network.double())((a.detach() + sign * step * direction).double(), b.double()).sum()
             for sign in (1, -1)]  # fmt: skip
    assert float((moved[0] - moved[1]) / (2 * step)) == pytest.approx(float((gradient * direction).sum()), rel=0.02)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_clip_iqa(clip_folder: Path) -> None:
    """Against transformers' logits of the two prompts; no originals, reference or features are needed."""
    network, images = CLIPQuality(str(clip_folder)), pixels(5, 3, 8)
    tokens = network.tokenizer(["Good photo.", "Bad photo."], padding=True, truncation=True, return_tensors="pt")
    mean, std = (
        torch.tensor(one)[:, None, None] for one in (network.processor.image_mean, network.processor.image_std)
    )
    model = transformers.CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        logits = model(pixel_values=(images / 255 - mean) / std, **tokens).logits_per_image
    found = Evaluator(None, {"clip_iqa": CLIPIQA(network)}, None)(from_uint8(images).split(2))
    assert found["clip_iqa"] == pytest.approx(float(logits.softmax(1)[:, 0].mean()), rel=1e-4)


@pytest.mark.usefixtures("other_protocols")
def test_clip_iqa_as_published() -> None:
    images = pixels(4, 1, 8)
    images[0] = 255  # a probability of 1, whose counterpart has no finite logarithm
    found = Evaluator(None, {"clip_iqa": CLIPIQA(PublishedCLIPIQA())}, None)([from_uint8(images)])
    assert found["clip_iqa"] == pytest.approx(float(images.float().mean() / 255), rel=1e-5)


class Vectors(FeatureNetwork):
    title = "an Inception"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere.pth"}, "no weights of AlexNet at nowhere.pth: give torchvision's file https://none/"),
        ({"sha256": "00000000"}, r"alex has the sha256 \w+, expected one that begins with 00000000 \(8 digits"),
        ({"sha256": ""}, "sha256"),
        ({"backbone": "vgg"}, "holds no weights of torchvision's VGG-16: Error"),
        (
            {"path": None, "url": "file:///nowhere/alex.pth"},
            r"could not be fetched to .*alex.pth .*: fetch it yourself",
        ),
    ],
)
def test_weights_that_are_missing(
    change: dict[str, Any], message: str, lpips_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=message):
        LPIPSFeatures(**lpips_files["alex"] | change)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_what_a_distance_refuses(lpips_files: Files) -> None:
    alex = PerceptualDistance(LPIPSFeatures(**lpips_files["alex"]))
    alex.check((1, 31, 31), "network")
    for network, shape, message in (
        (alex, (3, 16, 16), "network: the LPIPS 0.1, AlexNet takes no images of 16x16 .*: choose another network"),
        (PerceptualDistance(load_classifier("digits")), (3, 8, 8), "takes 1 channels, and the samples have 3: choose"),
        (PerceptualDistance(Vectors()), (3, 16, 16), "an Inception has no feature maps for a discriminator or a dist"),
    ):
        with pytest.raises(ValueError, match=message):
            network.check(shape, "network")
    with pytest.raises(ValueError, match="has feature maps alone, and this metric needs features"):
        alex.network(pixels(1, 3, 32))


def test_the_extra_of_clip_iqa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "piq", None)
    with pytest.raises(ValueError, match=r"pip install 'onestep\[perceptual\]' .*; clip_iqa_vit needs transformers"):
        PublishedCLIPIQA()
