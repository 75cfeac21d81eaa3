"""The variety of several objects of a scene."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from onestep.data.digits import Digits
from onestep.denoiser import Condition
from onestep.evaluation.variety import variety_of
from onestep.evaluation.views import ViewsReport
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier
from tests.helpers.scenes import FRONT, scene


def digits_of(label: int, count: int) -> Tensor:
    digits = Digits()
    assert digits.labels is not None
    return digits.images[digits.labels[:, label] == 1][:count]


def test_distances_of_pairs() -> None:
    """Against a loop over the pairs in numpy."""
    images, network = to_uint8(digits_of(3, 7)), load_classifier("digits")
    levels, features = images.numpy().astype(float), network(images).numpy().astype(float)
    pairs = list(combinations(range(7), 2))
    found = variety_of(images, network)
    in_pixels = [np.sqrt(np.mean(((levels[i] - levels[j]) / 127.5) ** 2)) for i, j in pairs]
    in_features = [np.linalg.norm(features[i] - features[j]) for i, j in pairs]
    assert found["pixel_distance"] == pytest.approx(np.mean(in_pixels), rel=1e-6)
    assert found["feature_distance"] == pytest.approx(np.mean(in_features), rel=1e-5)
    assert variety_of(images[:1].expand(4, -1, -1, -1), network) == {"pixel_distance": 0.0, "feature_distance": 0.0}


def test_objects_differ_as_their_digits_and_not_by_their_cameras() -> None:
    """Three real digits, as deep as the cube, are as far from each other in their view as the digits are."""
    classifier, digits = load_classifier("digits"), digits_of(3, 3).clamp(max=0.98)
    solid = scene(classes=[3], views=[FRONT], jitter=[9, 9, 9], shift=0.1, oversampling=1).requires_grad_(False)
    depths = -torch.log1p(-(digits + 1) / 2) / 8

    def same(latents: Tensor, condition: Condition, noises: Iterator[Tensor]) -> Tensor:
        return digits[:1].expand(len(latents), -1, -1, -1)

    report = ViewsReport(classifier, None, same)
    verdict = report.judge(solid.with_depths(depths.expand(-1, 8, 8, 8)))["3"]
    expected = variety_of(to_uint8(digits), classifier)
    assert verdict["pixel_distance"] == pytest.approx(expected["pixel_distance"], rel=0.01)
    assert verdict["feature_distance"] == pytest.approx(expected["feature_distance"], rel=0.02)
    assert verdict["pixel_distance"] > 0.3 and report.judge_teacher(solid)["3"]["pixel_distance"] == 0
    assert report.judge(solid.with_depths(depths[:1].expand(-1, 8, 8, 8)))["3"].keys() == {"accuracy", "probability"}
