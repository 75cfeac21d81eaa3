"""The discriminator's heads: their starts, shapes and settings. Recorded logits are in test_recorded_heads.py."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onestep.models.discriminator import ChannelMean, Discriminator, PooledHead, StridedHeads
from onestep.models.sample_networks import NOISED_SAMPLES, ConvolutionalNetwork
from onestep.objectives.adversarial import discriminator_loss
from tests.helpers.edm_models import tiny_denoiser

ONES = torch.ones(5)  # noise levels
SHAPES = [(8, 16, 16), (16, 8, 8), (48, 4, 4)]
HEADS: dict[str, tuple[Callable[[], Discriminator], int]] = {  # with the number of logits
    "pooled": (lambda: PooledHead(SHAPES, 0, "teacher", 16, [-1], False), 1),
    "pooled, projected": (lambda: PooledHead(SHAPES, 3, "fake_score", 16, None, True), 3),
    "channel mean": (lambda: ChannelMean(SHAPES, 0, "fake_score", 10.0), 16),
    "strided": (lambda: StridedHeads(SHAPES, 0, "teacher", [-1], 32), 1),
    "strided, first": (lambda: StridedHeads(SHAPES, 0, "fake_score", [0], 32), 1),
    "strided, all": (lambda: StridedHeads(SHAPES, 0, "teacher", None, 32), 3),
}


def features_for(head: Discriminator, shapes: Sequence[tuple[int, int, int]], seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(5, *shapes[level], generator=random) for level in head.levels]


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_float32_whatever_the_precision(name: str) -> None:
    make, count = HEADS[name]
    head = make()
    features = features_for(head, SHAPES)
    logits = head(features, ONES, {})
    assert logits.shape == (5, count)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head([one.bfloat16() for one in features], ONES, {}).dtype == torch.float32


def test_a_fresh_pooled_head_says_nothing_and_learns_from_there() -> None:
    torch.manual_seed(0)
    head = PooledHead(SHAPES, 3, "teacher", 16, [-1, 0], True)
    assert head.levels == (0, 2)
    logits = head(features_for(head, SHAPES), ONES, {"labels": torch.eye(3)[[0, 1, 2, 0, 1]]})
    assert logits.tolist() == [[0, 0]] * 5
    logits.sum().backward()
    for one in head.heads:
        last: Any = one
        assert last.logit.bias.grad.tolist() == [5]
        assert last.logit.weight.grad.abs().max() > 0.01 and last.projection.weight.grad.abs().max() > 0.01


def test_pooled_heads_read_a_level_each_and_project_the_class() -> None:
    """A logit is <w + E y, phi> + b for the pooled features phi of its level, and without a class <w, phi> + b."""
    torch.manual_seed(0)
    head = PooledHead(SHAPES, 3, "teacher", 16, [0, -1], True)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    w, features, labels = head.state_dict(), features_for(head, SHAPES), torch.eye(3)[[0, 1, 2, 0, 1]]
    logits, blind = head(features, ONES, {"labels": labels}), head(features, ONES, {})
    for level, x in enumerate(features):
        of = f"heads.{level}"
        x = nn.functional.group_norm(x, 1, w[f"{of}.norm.weight"], w[f"{of}.norm.bias"])
        for conv in ("conv0", "conv1"):
            x = nn.functional.silu(nn.functional.conv2d(x, w[f"{of}.{conv}.weight"], w[f"{of}.{conv}.bias"], padding=1))
        phi = x.mean((2, 3))
        logit = phi @ w[f"{of}.logit.weight"][0] + w[f"{of}.logit.bias"]
        classes = w[f"{of}.projection.weight"].T[labels.argmax(1)]
        torch.testing.assert_close(blind[:, level], logit)
        torch.testing.assert_close(logits[:, level], logit + (classes * phi).sum(1))


def test_the_channel_mean_has_no_parameters() -> None:
    head = ChannelMean(SHAPES, 0, "fake_score", 10.0)
    features = features_for(head, SHAPES)
    assert not head.state_dict() and head.logit_bound == 10
    torch.testing.assert_close(head(features, ONES, {}), features[0].sum(1).view(5, 16) / 48)


@pytest.mark.parametrize(
    "shape, groups, sizes, found",
    [
        ((768, 8, 8), 32, [4, 4, 1], 32),  # DMD2's and FastGen's on ImageNet-64
        ((256, 32, 32), 32, [4, 4, 4, 4, 1], 32),  # FastGen's on CIFAR-10
        ((64, 8, 8), 4, [4, 4, 1], 4),
        ((16, 8, 8), 32, [4, 4, 1], 4),
        ((48, 4, 4), 32, [4, 1], 24),
        ((8, 2, 2), 32, [2, 1], 2),
        ((3, 6, 6), 32, [4, 3, 1], 1),
    ],
)
def test_strided_layers_follow_until_one_position_is_left(
    shape: tuple[int, int, int], groups: int, sizes: list[int], found: int
) -> None:
    with torch.device("meta"):
        head = StridedHeads([shape], 0, "teacher", [0], groups)
        layers = [*head.heads[0].children()]
        assert [layer.kernel_size[0] for layer in layers if isinstance(layer, nn.Conv2d)] == sizes
        assert {layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)} == {found}
        assert head([torch.empty(2, *shape)], ONES[:2], {}).shape == (2, 1)


@pytest.mark.parametrize(("layers", "pooled"), [(None, False), (1, True)])
def test_a_network_of_its_own_starts_blind_and_sees_level_and_class(layers: int | None, pooled: bool) -> None:
    torch.manual_seed(0)
    network = ConvolutionalNetwork([(3, 16, 16)], 4, "samples", 8, 16, layers, pooled)
    x, sigma, labels = torch.randn(5, 3, 16, 16), torch.linspace(0.1, 2.0, 5), torch.eye(4)[[0, 1, 2, 3, 0]]
    assert network([x], sigma, {"labels": labels}).tolist() == [[0]] * 5
    for last in (network.logit, network.projection):
        nn.init.normal_(last.weight)
    logits = network([x], sigma, {"labels": labels})
    for others in (
        network([x], 1.1 * sigma, {"labels": labels}),
        network([x], sigma, {"labels": labels.roll(1, 1)}),
        network([-x], sigma, {"labels": labels}),
    ):
        assert (others - logits).abs().min() > 1e-4
    assert torch.equal(network([x], sigma, {}), network([x], sigma, {"labels": torch.zeros(5, 4)}))


@pytest.mark.parametrize("with_image", [False, True])
def test_a_network_of_its_own_learns_a_known_ratio(with_image: bool) -> None:
    """Of noise around two opposite means, log p/q = 2 <mean, x_sigma> / (1 + sigma^2), on samples that it never saw.

    The second network learns it in a hundredth of the units, around images of unit variance.
    """
    torch.manual_seed(0)
    unit = 0.01 if with_image else 1.0
    shapes, options = ([(1, 8, 8)] * 2, {"residual_std": unit}) if with_image else ([(1, 8, 8)], {})
    network = ConvolutionalNetwork(shapes, 0, "samples", 16, 16, None, False, **options)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.0, 0.99))
    mean = 0.2 * torch.randn(1, 8, 8)
    sigma = torch.linspace(0.1, 2.0, 256)
    width = (1 + sigma**2).sqrt()[:, None, None, None]

    def logits(x: Tensor) -> Tensor:
        condition = {"image": torch.randn(256, 1, 8, 8)} if with_image else {}
        x_sigma = sum(condition.values()) + unit * x
        result: Tensor = network(NOISED_SAMPLES(x_sigma, unit * sigma, condition), unit * sigma, condition)
        return result

    for _ in range(300):
        real, generated = mean + width * torch.randn(256, 1, 8, 8), -mean + width * torch.randn(256, 1, 8, 8)
        optimizer.zero_grad()
        discriminator_loss(logits(real), logits(generated)).mean().backward()
        optimizer.step()
    x = mean + width * torch.randn(256, 1, 8, 8)
    exact = 2 * (mean * x / width**2).flatten(1).sum(1)
    error = logits(x)[:, 0].detach() - exact
    assert 1 - error.var() / exact.var() > 0.8


def test_patches_are_compared_wherever_they_are() -> None:
    torch.manual_seed(0)
    network = ConvolutionalNetwork([(1, 32, 32)], 0, "samples", 8, 8, layers=2, pooled=True)
    nn.init.normal_(network.logit.weight)
    assert network.logit.in_features == 16
    for module in network.modules():  # which reads the whole image
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.GroupNorm):
            module[-1] = nn.Identity()
    patch = torch.zeros(2, 1, 32, 32)
    patch[0, :, 12:14, 12:14] = patch[1, :, 16:18, 12:14] = 9.0
    first, moved = network([patch], ONES[:2], {})[:, 0]
    empty = network([torch.zeros(1, 1, 32, 32)], ONES[:1], {})[0, 0]
    assert abs(first - moved) < 1e-5 < 1e-2 < abs(first - empty)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ChannelMean(SHAPES, 0, "teacher", 10.0), "features_from=teacher: expected fake_score"),  # type: ignore[arg-type]
        (
            lambda: StridedHeads(SHAPES, 0, "teacher", [3], 32),
            r"levels=\[3\]: the network has features at 3 levels: .* -3 to 2",
        ),
        (
            lambda: PooledHead(SHAPES, 0, "teacher", 16, [-4], False),
            r"levels=\[-4\]: the network has features at 3 levels",
        ),
        (lambda: StridedHeads(SHAPES, 0, "teacher", [2, -1], 32), r"levels=\[2, -1\]: .*expected different"),
        (lambda: StridedHeads(SHAPES, 0, "teacher", [], 32), "levels=.*: expected a list of at least 1"),
        (lambda: StridedHeads([(8, 64, 4)], 0, "teacher", [0], 32), "features are too narrow for strided convolutions"),
        (
            lambda: ConvolutionalNetwork([(2, 1, 1)], 0, "samples", 8, 8, None, False),
            "1x1 samples are too narrow for strided convolutions$",
        ),
        (
            lambda: ConvolutionalNetwork([(2, 8, 16)], 0, "samples", 8, 8, 4, True),
            "8x16 samples are too narrow for strided convolutions in layers=4: use fewer",
        ),
    ],
)
def test_heads_that_cannot_be(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_a_compiled_network_returns_its_features_from_one_graph() -> None:
    network = tiny_denoiser()
    compiled: Any = torch.compile(network, backend="eager", fullgraph=True)
    inputs = torch.randn(2, 1, 8, 8), torch.ones(2)
    for options in ({"outputs": "features", "levels": (0,)}, {"outputs": "both", "levels": (0, 1)}):
        results = zip(compiled(*inputs, **options), network(*inputs, **options), strict=True)
        assert all(torch.equal(one, other) for one, other in results)


@torch.no_grad()
@pytest.mark.parametrize("levels", [(-1,), (0,), (0, 1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"encoder_type": "residual", "num_blocks": 2}, {"architecture": "DhariwalUNet"}, {"architecture": "EDM2UNet"}],
    ids=["ddpm++", "ncsn++", "adm", "edm2"],
)
def test_a_network_returns_the_levels_asked_for(options: dict[str, Any], levels: tuple[int, ...]) -> None:
    """They are the outputs of the encoder's last layer at each resolution, and nothing behind them runs."""
    network = tiny_denoiser(**options)
    seen: dict[str, Tensor] = {}
    for name, layer in [*network.model.enc.items(), *network.model.dec.items()]:
        layer.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 5.0])
    blocks = [[name for name in network.model.enc if name.startswith(f"{side}x")][-1] for side in (8, 4)]
    features = network(*inputs, outputs="features", levels=levels)
    expected = [seen[blocks[level]] for level in levels]
    assert all(torch.equal(one, other) for one, other in zip(features, expected, strict=True))
    assert [one.shape[1:] for one in features] == [network.feature_shapes[level] for level in levels]
    assert list(seen)[-1] == blocks[levels[-1]]
    prediction, *again = network(*inputs, outputs="both", levels=levels)
    assert all(torch.equal(one, other) for one, other in zip(again, features, strict=True))
    assert torch.equal(prediction, network(*inputs))
