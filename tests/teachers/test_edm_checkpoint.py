"""Networks come back from EDM's format and from state dicts as they were, and what is not theirs is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onestep.networks.edm import EDMDenoiser
from onestep.teachers.edm_checkpoint import load_edm
from tests.teachers.edm_format import Call, module_state, persistent, pickled, recorded, snapshot

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
    labels = torch.eye(4)[:3] if original.label_dim else None
    assert torch.equal(ours(x, sigma, labels), original(x, sigma, labels))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_snapshot_comes_back(name: str, tmp_path: Path) -> None:
    original = make(**NETWORKS[name])
    (tmp_path / "in.pkl").write_bytes(pickled(snapshot(original)))
    ours = load_edm(tmp_path / "in.pkl")
    assert_same(ours, original)
    assert (ours.sigma_min, ours.sigma_max) == LEVELS[NETWORKS[name]["preconditioning"]]
    assert ours.config["options"].items() >= original.config["options"].items()


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


def changed(network: Call, **state: Any) -> Call:
    """The persistent object with some attributes changed."""
    meta = network.arguments[0]
    return persistent(meta["class_name"], meta["state"] | state)


def renamed(network: Call, class_name: str) -> Call:
    return persistent(class_name, network.arguments[0]["state"])


def model_of(network: Call) -> Call:
    return network.arguments[0]["state"]["_modules"]["model"]


def with_options(network: Call, **options: Any) -> Call:
    model = model_of(network)
    arguments = model.arguments[0]["state"]["_init_kwargs"]
    return changed(network, _modules={"model": changed(model, _init_kwargs=arguments | options)})


REFUSED: dict[str, tuple[Callable[[Call], Any], str]] = {
    "another class": (lambda n: {"ema": renamed(n, "Precond")}, "class is Precond; EDMPrecond, VPPrecond"),
    "another network": (
        lambda n: {"ema": changed(n, _modules={"model": renamed(model_of(n), "UNet")})},
        "raw network is UNet; SongUNet and DhariwalUNet are known",
    ),
    "no network": (lambda n: {"loss_fn": n}, "expected one network, under 'ema' or .* found 0 among loss_fn"),
    "a list": (lambda n: [1], "it holds a list, no network"),
    "another width": (lambda n: {"ema": with_options(n, model_channels=16)}, "tensors are not those of its settings"),
    "more layers than memory": (lambda n: {"ema": with_options(n, num_blocks=10**9)}, "more blocks than tensors"),
    "huge layers": (lambda n: {"ema": with_options(n, model_channels=10**6)}, "are not those of its settings: "),
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
        lambda n: {"ema": changed(n, _modules={"model": changed(model_of(n), _modules={
            **model_of(n).arguments[0]["state"]["_modules"],
            "map_augment": persistent("Linear", module_state({"weight": torch.full((8, 9), torch.inf)}, set())),
        })})},
        "its model.map_augment.weight has values that are not finite",
    ),
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
    with pytest.raises(ValueError, match="there is no file"):
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
