"""EDM2's layers against their definitions, its network's magnitudes, its files, and forced weight normalisation.

Its outputs are compared with the original code's in ``test_edm_fixtures.py``.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from onestep.engine.averages import Averages, HalfLife
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.shard import checkpoint_activations, full_tensor, is_sharded, shard
from onestep.models.edm.checkpoint import load_edm
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.edm2.layers import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from onestep.models.edm2.unet import Block
from onestep.models.generator import Generator, load_denoiser
from onestep.models.loading import load_generator
from onestep.objectives.losses import Losses, Term
from tests.helpers.edm_format import Call, Raw, numpy_array, persistent, pickled, recorded, snapshot
from tests.helpers.hostile import refused
from tests.helpers.updates import make_settings

OPTIONS: dict[str, Any] = {
    "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "logvar_channels": 4,
    "channels_per_head": 8,
}  # fmt: skip


def make(image_shape: tuple[int, int, int] = (3, 8, 8), label_dim: int = 4, **options: Any) -> EDMDenoiser:
    """A network of random weights, of no magnitude in particular."""
    denoiser = EDMDenoiser(image_shape, label_dim, architecture="EDM2UNet", options=OPTIONS | options)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(
                0.3 * torch.randn(parameter.shape, generator=random) if parameter.ndim else torch.tensor(0.5)
            )
    return denoiser.eval()


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_layers_preserve_magnitudes() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, channels, 64, 64, generator=random, dtype=torch.float64) for channels in (8, 24))
    fourier, layer, conv = MPFourier(10_000), MPConv(64, 2000, 0).double(), MPConv(8, 100, 3).double()
    assert rms(mp_silu(a)) == pytest.approx(1, rel=5e-3)
    assert rms(mp_sum(a, b[:, :8], 0.3)) == pytest.approx(1, rel=5e-3)
    both = mp_cat(a, b, 0.5)
    # Each half of the sum of squares, whatever the number of its channels.
    assert rms(both) == pytest.approx(1, rel=5e-3)
    assert both[:, :8].square().sum() == pytest.approx(both[:, 8:].square().sum().item(), rel=2e-2)
    assert rms(fourier(torch.linspace(-3, 3, 7))) == pytest.approx(1, rel=2e-2)
    assert rms(layer(torch.randn(500, 64, generator=random, dtype=torch.float64))) == pytest.approx(1, rel=1e-2)
    assert rms(conv(a)[:, :, 1:-1, 1:-1]) == pytest.approx(1, rel=2e-2)
    pixels = normalize(7 * b, dim=1).square().mean(1)
    torch.testing.assert_close(pixels, torch.ones_like(pixels), rtol=1e-3, atol=0)


@torch.no_grad()
def test_only_directions_of_weights_matter() -> None:
    network = make()
    x, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 5.0]), {"labels": torch.eye(4)[:2]}
    before = network(x, sigma, labels)
    for module in network.modules():
        if isinstance(module, MPConv):
            module.weight.mul_(torch.linspace(1, 30, len(module.weight)).reshape(-1, *[1] * (module.weight.ndim - 1)))
    torch.testing.assert_close(network(x, sigma, labels), before, rtol=1e-2, atol=1e-3)  # eps is 1e-4
    network.model.out_gain.mul_(2)
    assert (network(x, sigma, labels) - before).abs().max() > 0.1


@torch.no_grad()
def test_activations_behind_a_block_are_bounded() -> None:
    """All of them, and few reach the published bound of 256."""
    found: list[Tensor] = []
    network = make(clip_act=0.5)
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: found.append(output))
    network(torch.randn(2, 3, 8, 8), torch.tensor([0.3, 5.0]), {"labels": torch.eye(4)[:2]})
    assert len(found) == len(blocks) > 2 and all(x.abs().max() == 0.5 for x in found)


def test_published_size() -> None:
    """EDM2-XS, table 2 of arXiv 2312.02696: 125 million parameters."""
    with torch.device("meta"):
        network = EDMDenoiser((4, 64, 64), 1000, architecture="EDM2UNet", options={"model_channels": 128}, latent=True)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == 125
    assert network.feature_shapes[-1] == (512, 8, 8) and network.denoises_latents


NETWORKS: dict[str, tuple[Callable[[Call], dict[str, Any]], bool, int]] = {  # change, uncertainty, channels
    "images": (lambda n: {"encoder": persistent("StandardRGBEncoder", {}), "ema": n}, True, 3),
    "latents": (
        lambda n: {
            "encoder": persistent("StabilityVAEEncoder", {"scale": numpy_array([0.1] * 4), "_vae": None}),
            "dataset_kwargs": Call("dnnlib.util", "EasyDict"),
            "ema": n,
        }, True, 4,
    ),
    "a student of SiDA": (lambda n: {"ema": without_uncertainty(of_sida(n, "EDM_2_Precond_Generator"))}, False, 4),
    "a fake score of SiDA": (lambda n: {"ema": of_sida(n, "EDM_2_Precond_EncoderDecoder")}, True, 4),
}  # fmt: skip


def of_sida(network: Call, class_name: str) -> Call:
    network = with_options(network, force_normalization=True, use_gan=True)
    unet = renamed(state_of(network)["_modules"]["unet"], "UNet_EncoderDecoder")
    return renamed(with_members(network, "_modules", unet=unet), class_name)


def state_of(network: Call) -> dict[str, Any]:
    state: dict[str, Any] = network.arguments[0]["state"]
    return state


def changed(network: Call, **state: Any) -> Call:
    return persistent(network.arguments[0]["class_name"], state_of(network) | state)


def renamed(network: Call, class_name: str) -> Call:
    return persistent(class_name, state_of(network))


def with_members(network: Call, kind: str, **members: Any) -> Call:
    kept = {name: value for name, value in (state_of(network)[kind] | members).items() if value is not None}
    return changed(network, **{kind: kept})


def without_uncertainty(network: Call) -> Call:
    return with_members(network, "_modules", logvar_fourier=None, logvar_linear=None)


def with_options(network: Call, **options: Any) -> Call:
    unet = state_of(network)["_modules"]["unet"]
    return with_members(network, "_modules", unet=changed(unet, _init_kwargs=state_of(unet)["_init_kwargs"] | options))


def with_frequencies(network: Call, frequencies: Any) -> Call:
    fourier = with_members(state_of(network)["_modules"]["logvar_fourier"], "_buffers", freqs=frequencies)
    return with_members(network, "_modules", logvar_fourier=fourier)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_snapshot_comes_back(name: str, tmp_path: Path) -> None:
    change, uncertainty, channels = NETWORKS[name]
    given: dict[str, Any] = {"dropout": 0, "label_balance": 0.4, "clip_act": None, "channel_mult_noise": None}
    original = make((channels, 8, 8), **given).half()  # as published files are
    (tmp_path / "in.pkl").write_bytes(pickled(change(snapshot(original)["ema"])))
    ours, original = load_edm(tmp_path / "in.pkl"), original.float()
    x, sigma, labels = torch.randn(3, channels, 8, 8), torch.tensor([0.05, 0.9, 30.0]), {"labels": torch.eye(4)[:3]}
    assert torch.equal(ours(x, sigma, labels), original(x, sigma, labels)) and not ours.training
    assert (ours.denoises_latents, hasattr(ours.model, "logvar_linear")) == (channels == 4, uncertainty)
    assert (ours.sigma_min, ours.sigma_max, ours.config["options"]["label_balance"]) == (0.002, 80.0, 0.4)
    load_generator(tmp_path / "in.pkl", 2.5).save_pretrained(tmp_path / "generator")
    student = Generator.from_pretrained(tmp_path / "generator")
    assert torch.equal(student(x, labels), ours(2.5 * x, torch.full((3,), 2.5), labels))
    assert load_denoiser(tmp_path / "generator").denoises_latents == (channels == 4)


def endless(length: int) -> Call:
    """A tensor that says it has this length; there is one number in it."""
    one = recorded(torch.ones(1))
    return Call(one.module, one.name, (one.arguments[0], 0, (length,), (0,), False, {}))


SHELL = Call("os", "system", ("touch MARKER",))
REFUSED: dict[str, tuple[Callable[[Call], Any], str]] = {
    "a command as the encoder": (lambda n: {"encoder": SHELL, "ema": n}, r"asks for os\.system"),
    "a command in its state": (
        lambda n: {"encoder": persistent("StabilityVAEEncoder", {"_vae": SHELL}), "ema": n}, r"asks for os\.system",
    ),
    "a command in a dictionary": (lambda n: {"x": Call("dnnlib.util", "EasyDict", (), SHELL), "ema": n}, r"os\.system"),
    "another function of dnnlib": (
        lambda n: {"x": Call("dnnlib.util", "call_func_by_name", ()), "ema": n}, r"asks for dnnlib.util.call_func_by_n",
    ),
    "an array of objects": (lambda n: {"x": numpy_array([1.0], "O8"), "ema": n}, "dtype O8 is none of a number"),
    "an array of its own": (lambda n: {"x": Call("numpy", "ndarray", ((10**9,),)), "ema": n}, "would call numpy.ndarr"),
    "an array with attributes": (
        lambda n: {"x": Call("numpy.core.multiarray", "_reconstruct", (), {"a": 1}), "ema": n}, "has the state a dict",
    ),
    "a class of another kind": (lambda n: {"ema": renamed(n, "EDMPrecond")}, "raw network is None; expected SongUNet"),
    "another raw network": (
        lambda n: {"ema": with_members(n, "_modules", unet=renamed(state_of(n)["_modules"]["unet"], "DiT"))},
        "raw network is DiT; expected UNet",
    ),
    "text for a raw network": (lambda n: {"ema": with_members(n, "_modules", unet="UNet")}, "its unet is UNet, where"),
    "layers without end": (lambda n: {"ema": with_options(n, num_blocks=10**9)}, "more blocks than tensors"),
    "wide layers": (lambda n: {"ema": with_options(n, model_channels=10**6)}, "options.model_channels=1000000: "),
    "a wide embedding": (lambda n: {"ema": with_options(n, channel_mult_emb=64)}, "tensors are not those of its sett"),
    "an embedding without end": (lambda n: {"ema": with_options(n, channel_mult_emb=10**9)}, "channel_mult_emb=1000"),
    "classes without end": (lambda n: {"ema": changed(n, label_dim=10**9)}, "its settings make no network: label_dim"),
    "an uncertainty without end": (
        lambda n: {"ema": with_frequencies(n, endless(10**9))}, "logvar_channels=1000000000: expected an integer",
    ),
    "half an uncertainty": (
        lambda n: {"ema": with_members(n, "_modules", logvar_fourier=None)}, "logvar_linear.weight .* for None",
    ),
    "a weight beside the network": (
        lambda n: {"ema": with_members(n, "_parameters", out_gain=recorded(torch.ones(())))}, "settings: out_gain",
    ),
    "heads of no channels": (lambda n: {"ema": with_options(n, channels_per_head=0)}, "channels_per_head=0: expected"),
    "a balance of 2": (lambda n: {"ema": with_options(n, res_balance=2.0)}, r"res_balance=2.0: expected a number"),
    "no number": (lambda n: {"ema": with_options(n, clip_act=math.nan)}, "clip_act=nan: expected"),
    "another filter": (lambda n: {"ema": with_options(n, resample_filter=[1, 3, 3, 1])}, "filter=a list, which"),
    "infinite frequencies": (
        lambda n: {"ema": with_frequencies(n, recorded(torch.full((4,), torch.inf)))},
        "logvar_fourier.freqs has values that are not finite",
    ),
    "whole numbers": (
        lambda n: {"ema": with_frequencies(n, recorded(torch.ones(4, dtype=torch.int64)))}, "holds torch.int64",
    ),
    "no scale of the data": (lambda n: {"ema": changed(n, sigma_data=0.0)}, r"its sigma_data is 0\.0"),
    "a name at the end": (lambda n: Raw(b"cnumpy\nndarray\n"), "it holds a Name, no network|numpy.ndarray, no network"),
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Call:
    return snapshot(make())["ema"]


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files(name: str, network: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = REFUSED[name]
    (tmp_path / "in.pkl").write_bytes(pickled(change(network)))
    with refused(tmp_path, f"in.pkl (cannot be read|holds no network that can be read): .*{message}"):
        load_edm(tmp_path / "in.pkl")


def layers_of(network: nn.Module) -> list[MPConv]:
    return [module for module in network.modules() if isinstance(module, MPConv)]


def numpy_normalized(weights: np.ndarray) -> np.ndarray:
    """Equation 66 for weights [outputs, ...]: each output's weights divided by their root mean square and eps."""
    rows = weights.reshape(len(weights), -1)
    size: np.ndarray = np.sqrt((rows**2).sum(1) / rows.shape[1])
    return (rows / (1e-4 + size[:, None])).reshape(weights.shape)


def step(network: nn.Module, optimizer: GuardedOptimizer | None, number: int = 0) -> None:
    """A step of gradient descent towards 0, by ``optimizer`` or by hand."""
    random = torch.Generator().manual_seed(number)
    x, sigma = torch.randn(2, 3, 8, 8, generator=random).double(), torch.tensor([0.3, 5.0]).double()
    losses = network(x, sigma).square().mean((1, 2, 3))
    if optimizer is not None:
        optimizer.backward(Losses({"loss": Term(losses)}), sigma)
        optimizer.step(number)
        return
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad and "logvar" not in name}
    gradients = torch.autograd.grad(losses.mean(), list(trained.values()), allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(trained.values(), gradients, strict=True):
            if gradient is not None:
                parameter.sub_(0.1 * gradient)


def normalize_by_numpy(network: nn.Module) -> None:
    for layer in layers_of(network):
        layer.weight.data = torch.from_numpy(numpy_normalized(layer.weight.detach().numpy()))


@pytest.mark.parametrize("layout", ["plain", "sharded", "checkpointed", "off", "frozen"])
def test_forced_weight_normalisation(layout: str, tmp_path: Path) -> None:
    """The weights and their average after two steps, by the optimiser and by numpy between steps by hand."""
    student = make().double()
    if layout == "frozen":
        for layer in layers_of(student):
            layer.requires_grad_(False)
    plain, normalized = copy.deepcopy(student), layout not in ("off", "frozen")
    averages, average = Averages(student, {"ema": HalfLife(halflife=2.0, rampup=10.0)}), copy.deepcopy(plain)
    averaged = averages.networks["ema"]
    if layout == "sharded":
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        if layout == "sharded":
            for network in (student, averaged):
                shard(network, init_device_mesh("cpu", (1,)))
            assert all(is_sharded(layer.weight) for layer in layers_of(student))
            assert not is_sharded(student.model.out_gain)
        if layout == "checkpointed":
            checkpoint_activations(student)
        descent = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
        settings = make_settings(normalize_weights=layout != "off")
        optimizer = GuardedOptimizer({"network": descent}, settings, networks=[student])
        for number in range(2):
            step(student, optimizer, number)
            averages.after_iteration(student, images_seen=100, batch_size=2)
            if normalized and not number:
                normalize_by_numpy(plain)
            step(plain, None, number)
            if normalized:
                normalize_by_numpy(plain)
            for old, new in zip(average.parameters(), plain.parameters(), strict=True):
                old.data.lerp_(new.data, 0.5 if new.requires_grad else 0.0)
        for ours, theirs in ((student, plain), (averaged, average)):
            for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(full_tensor(one.detach()), other.detach(), rtol=1e-9, atol=1e-9, msg=name)
        sizes = torch.cat(
            [full_tensor(layer.weight.detach()).flatten(1).square().mean(1) for layer in layers_of(student)]
        )
        assert (sizes.sqrt() - 1).abs().max() < 2e-4 if normalized else (sizes.sqrt() - 1).abs().max() > 0.1
    finally:
        if layout == "sharded":
            torch.distributed.destroy_process_group()
