"""A TorchScript feature network is loaded only with the expected hash, and fetched completely or not at all.

The stand-in has the interface of the published file, with features and classes in closed form.
"""

import hashlib
from pathlib import Path

import pytest
import torch

from onestep.data.dataset import ImagesInMemory
from onestep.metrics.evaluator import Evaluator, Metric
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.inception import InceptionFeatures
from onestep.metrics.inception_score import InceptionScore


def load(path: Path, url: str | None = None, sha256: str | None = None) -> InceptionFeatures:
    content_hash = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    return InceptionFeatures(str(path), content_hash, url, protocol_samples=50)


def test_features_and_classes(inception_file: Path) -> None:
    network = load(inception_file)
    images = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), images.float().mean((2, 3)))
    grey = images[:, :1]
    torch.testing.assert_close(network(grey), grey.float().mean((2, 3)).expand(5, 3))
    probabilities = images.float().mean((2, 3)).softmax(1)
    torch.testing.assert_close(network.classify(images).exp(), probabilities)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    metrics: dict[str, Metric] = {"fid": FrechetDistance(), "is": InceptionScore(1)}
    evaluator = Evaluator(network, metrics, ImagesInMemory(torch.rand(9, 3, 4, 4)))
    figures = evaluator([torch.rand(9, 3, 4, 4)])
    assert figures["fid"] > 0 and 1 <= figures["is"] <= 3


def test_another_file_is_not_run(inception_file: Path, tmp_path: Path) -> None:
    content = bytearray(inception_file.read_bytes())
    content[-1] ^= 1
    (tmp_path / "changed.pt").write_bytes(content)
    expected = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"changed\.pt has the sha256 \w+, not {expected}, and is not loaded"):
        load(tmp_path / "changed.pt", sha256=expected)


def test_fetching(inception_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "network.pt"
    expected = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"could not be fetched to .*its sha256 is .*fetch it yourself"):
        load(target, url=inception_file.as_uri(), sha256="0" * 64)
    with pytest.raises(ValueError, match="could not be fetched"):
        load(target, url=(tmp_path / "none.pt").as_uri(), sha256=expected)
    assert list(target.parent.iterdir()) == []
    load(target, url=inception_file.as_uri(), sha256=expected)
    assert [path.name for path in target.parent.iterdir()] == ["network.pt"]
    load(target, url="file:///nowhere", sha256=expected)  # the file exists
    with pytest.raises(ValueError, match=r"no feature network at .*features\.url is null"):
        load(tmp_path / "absent.pt", sha256=expected)
