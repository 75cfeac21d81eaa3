"""Networks come back from EDM's format and from state dicts as they were, and what is not theirs is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onestep.models.edm.checkpoint import load_edm
from onestep.models.edm.denoiser import EDMDenoiser
from tests.helpers.edm_format import Call, persistent, pickled, recorded, repickled, snapshot

SMALL: dict[str, Any] = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
ADM = SMALL | {"model_channels": 32, "channel_mult_emb": 2}
NCSNPP = SMALL | {
    "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "ddpmpp_edm": {"preconditioning": "edm", "options": SMALL | {"augment_dim": 9}},
    "ddpmpp_vp": {"preconditioning": "vp", "options": SMALL, "label_dim": 4},
    "ncsnpp_ve": {"preconditioning": "ve", "options": NCSNPP},
    "adm_iddpm": {"preconditioning": "iddpm", "architecture": "DhariwalUNet", "options": ADM, "label_dim": 4},
}
LEVELS = {"edm": (0.002, 80.0), "vp": (0.001, 152.2), "ve": (0.02, 100.0), "iddpm": (0.0064, 20291.0)}


def make(**settings: Any) -> EDMDenoiser:
    denoiser = EDMDenoiser((3, 8, 8), **settings).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) / parameter[0].numel() ** 0.5)
    return denoiser


@torch.no_grad()
def assert_same(ours: EDMDenoiser, original: EDMDenoiser) -> None:
    assert not ours.training and ours.config["preconditioning"] == original.config["preconditioning"]
    weights = original.state_dict()
    assert ours.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in ours.state_dict().items())
    x, sigma = torch.randn(3, 3, 8, 8), torch.tensor([0.05, 0.9, 30.0])
    labels = {"labels": torch.eye(4)[:3]} if original.label_dim else {}
    assert torch.equal(ours(x, sigma, labels), original(x, sigma, labels))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_snapshot_comes_back(name: str, tmp_path: Path) -> None:
    original = make(**NETWORKS[name])
    (tmp_path / "in.pkl").write_bytes(pickled(snapshot(original)))
    ours = load_edm(tmp_path / "in.pkl")
    assert_same(ours, original)
    assert (ours.sigma_min, ours.sigma_max) == LEVELS[NETWORKS[name]["preconditioning"]]
    assert ours.config["options"].items() >= original.config["options"].items()


@pytest.mark.parametrize("architecture, options", [("SongUNet", SMALL), ("DhariwalUNet", ADM)])
def test_a_generator_of_sida_or_uni_instruct_comes_back(
    architecture: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Whose classes have names of their own: they also return what the encoder makes, for the discriminator."""
    original = make(architecture=architecture, options=options, label_dim=4)
    network = renamed(snapshot(original)["ema"], "EDMPrecond_EncoderDecoder")
    network = changed(network, _modules={"model": renamed(model_of(network), f"{architecture}_EncoderDecoder")})
    (tmp_path / "in.pkl").write_bytes(pickled({"ema": network}))
    assert_same(load_edm(tmp_path / "in.pkl"), original)


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_other_protocols(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own pickler spells bytes and sets in its own way in each of them; EDM's files are of protocol 4."""
    original = make(**NETWORKS["ddpmpp_edm"])
    (tmp_path / "in.pkl").write_bytes(repickled(snapshot(original), protocol, monkeypatch))
    assert_same(load_edm(tmp_path / "in.pkl"), original)


def test_tensors_that_are_parts_of_one_storage_or_of_any_strides(tmp_path: Path) -> None:
    original = make(architecture="DhariwalUNet", options=ADM | {"dropout": 0.0}, label_dim=4)
    weights = original.state_dict()
    parts = torch.cat([value.flatten() for value in weights.values()]).split([v.numel() for v in weights.values()])
    together = {key: part.view(weights[key].shape) for key, part in zip(weights, parts, strict=True)}
    ordered = {key: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for key, v in weights.items()}
    for state in (together, ordered):
        torch.save(state, tmp_path / "in.bin")
        assert_same(load_edm(tmp_path / "in.bin"), original)


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "feedforward_model.model."])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_state_dict_of_adm_comes_back(prefix: str, new_format: bool, tmp_path: Path) -> None:
    """As DMD2's ImageNet generator: no settings beside the weights."""
    original = make(architecture="DhariwalUNet", options=ADM | {"num_blocks": 2, "dropout": 0.0}, label_dim=4)
    weights = {f"{prefix}{key.removeprefix('model.')}": value for key, value in original.state_dict().items()}
    torch.save(weights, tmp_path / "in.bin", _use_new_zipfile_serialization=new_format)
    ours = load_edm(tmp_path / "in.bin")
    assert_same(ours, original)
    assert ours.config["options"] == {"augment_dim": 0} | original.config["options"]
    assert (ours.label_dim, ours.config["sigma_data"]) == (4, 0.5)


def test_half_precision_is_read_in_float32(tmp_path: Path) -> None:
    original = make(architecture="DhariwalUNet", options=ADM, label_dim=4).half()
    torch.save({"model": original.model.state_dict()}, tmp_path / "in.bin")
    assert_same(load_edm(tmp_path / "in.bin"), original.float())


def endless(length: int) -> Call:
    """A tensor that says it has this length; there is one number in it."""
    one = recorded(torch.ones(1))
    return Call(one.module, one.name, (one.arguments[0], 0, (length,), (0,), False, {}))


def changed(network: Call, **state: Any) -> Call:
    """The persistent object with some attributes changed."""
    meta = network.arguments[0]
    return persistent(meta["class_name"], meta["state"] | state)


def renamed(network: Call, class_name: str) -> Call:
    return persistent(class_name, network.arguments[0]["state"])


def with_tensor(network: Call, value: Any) -> Call:
    """The network with another weight of its labels' augmentation, [8, 9]."""
    layers = model_of(network).arguments[0]["state"]["_modules"]
    other = changed(layers["map_augment"], _parameters={"weight": value})
    return changed(network, _modules={"model": changed(model_of(network), _modules=layers | {"map_augment": other})})


def model_of(network: Call) -> Call:
    return network.arguments[0]["state"]["_modules"]["model"]


def with_options(network: Call, **options: Any) -> Call:
    model = model_of(network)
    arguments = model.arguments[0]["state"]["_init_kwargs"]
    return changed(network, _modules={"model": changed(model, _init_kwargs=arguments | options)})


REFUSED: dict[str, tuple[Callable[[Call], Any], str]] = {
    "another class": (lambda n: {"ema": renamed(n, "PrecondX")}, "class is PrecondX; EDMPrecond, .* Precond, .* are"),
    "EDM's network in EDM2's class": (lambda n: {"ema": renamed(n, "Precond")}, "raw network is None; expected UNet"),
    "another network": (
        lambda n: {"ema": changed(n, _modules={"model": renamed(model_of(n), "UNet")})},
        "raw network is UNet; expected SongUNet or DhariwalUNet",
    ),
    "no network": (lambda n: {"loss_fn": n}, "expected one network, under 'ema' or .* found 0 among loss_fn"),
    "a list": (lambda n: [1], "it holds a list, no network"),
    "another width": (lambda n: {"ema": with_options(n, model_channels=16)}, "tensors are not those of its settings"),
    "more layers than memory": (lambda n: {"ema": with_options(n, num_blocks=10**9)}, "more blocks than tensors"),
    "huge layers": (lambda n: {"ema": with_options(n, model_channels=10**6)}, "options.model_channels=1000000: "),
    "no layers": (lambda n: {"ema": with_options(n, model_channels=0)}, "its settings make no network"),
    "another decoder": (lambda n: {"ema": with_options(n, decoder_type="skip")}, "its decoder_type is skip"),
    "an unknown setting": (lambda n: {"ema": with_options(n, mp_add=0.3)}, "made with mp_add=0.3, which is not known"),
    "no settings": (lambda n: {"ema": changed(n, sigma_data=None)}, "its sigma_data is None"),
    "a module in itself": (
        lambda n: {"ema": changed(n, _modules={"model": model_of(n), "other": persistent("Layer", {})})},
        "module 'other.' has no _parameters",
    ),
    "a tensor too many": (
        lambda n: {"ema": changed(n, _parameters={"stray": recorded(torch.ones(1))})},
        r"1 of its tensors are not those of its settings: stray \(\(1,\) for None\)",
    ),
    "infinite weights": (
        lambda n: {"ema": with_tensor(n, recorded(torch.full((8, 9), torch.inf)))},
        "its model.map_augment.weight has values that are not finite",
    ),
    "whole numbers": (
        lambda n: {"ema": with_tensor(n, recorded(torch.ones(8, 9, dtype=torch.int64)))},
        r"its model.map_augment.weight holds torch\.int64",
    ),
    "no noise": (lambda n: {"ema": changed(n, sigma_data=0.0)}, r"its sigma_data is 0\.0"),
    "no levels": (lambda n: {"ema": with_options(n, channel_mult=[])}, "its settings make no network"),
    "levels without end": (
        lambda n: {"ema": changed(with_options(n, channel_mult=[1] * 10_000, num_blocks=0), img_resolution=0)},
        "more blocks than tensors",
    ),
    "dropout of 7": (lambda n: {"ema": with_options(n, dropout=7.0)}, r"dropout=7\.0: expected a number"),
    "noise levels without end": (
        lambda n: {"ema": changed(
            renamed(n, "iDDPMPrecond"), M=10**9, C_1=0.001, C_2=0.008, _buffers={"u": endless(10**9 + 1)}
        )},
        "its table of noise levels .u. is not of its number of steps .M., up to 10,000",
    ),
    "more members than memory": (
        lambda n: {"ema": changed(n, _buffers=dict.fromkeys(map(str, range(10_001))))},
        "more than 10,000 tensors and modules",
    ),
    "a name without end": (lambda n: {"ema": changed(n, _buffers={"x" * 300: None})}, "have names as long as xxxxx"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_network_of_the_format(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    network = snapshot(make(**NETWORKS["ddpmpp_edm"]))["ema"]
    (tmp_path / "in.pkl").write_bytes(pickled(change(network)))
    with pytest.raises(ValueError, match=f"in.pkl holds no network that can be read: .*{message}"):
        load_edm(tmp_path / "in.pkl")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_snapshot(kept: float, tmp_path: Path) -> None:
    content = pickled(snapshot(make(**NETWORKS["ddpmpp_edm"])))
    (tmp_path / "in.pkl").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="in.pkl cannot be read: "):
        load_edm(tmp_path / "in.pkl")


def test_state_dicts_that_do_not_tell(tmp_path: Path) -> None:
    file = tmp_path / "in.bin"
    torch.save(make(options=SMALL).state_dict(), file)
    with pytest.raises(ValueError, match="state dict of another network than ADM"):
        load_edm(file)
    adm = make(architecture="DhariwalUNet", options=ADM, label_dim=4).state_dict()
    torch.save({**adm, **{f"fake.{key}": value for key, value in adm.items()}}, file)
    with pytest.raises(ValueError, match="expected one network, .* found 2"):
        load_edm(file)
    torch.save({key: value for key, value in adm.items() if "16x16" not in key and "out_conv" not in key}, file)
    with pytest.raises(ValueError, match=re.escape("model.out_conv.bias (None for (3,))")):
        load_edm(file)
    with pytest.raises(ValueError, match="absent.pkl: no such file"):
        load_edm(tmp_path / "absent.pkl")


def test_damaged_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever a byte is changed to, the file loads or raises ValueError: nothing else."""
    tiny = {"model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    content = pickled(snapshot(EDMDenoiser((1, 4, 4), options=tiny)))
    random = np.random.default_rng(0)
    refused = 0
    for position, byte in zip(random.integers(len(content), size=100), random.integers(256, size=100), strict=True):
        (tmp_path / "in.pkl").write_bytes(content[:position] + bytes([byte]) + content[position + 1 :])
        try:
            load_edm(tmp_path / "in.pkl")
        except ValueError as error:
            assert "in.pkl " in str(error)
            refused += 1
    assert refused > 50
