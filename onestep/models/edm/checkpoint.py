"""Networks from the checkpoints of EDM and its descendants.

NVlabs/edm's pickles contain a network with one of four preconditionings, those of NVlabs/edm2 one of EDM2; the one-step
generators of SiD, SiDA and Uni-Instruct have the same formats. DMD2's ImageNet generator is the state dict of such a
network. The files are read as data (:mod:`onestep.models.edm.torch_file`); no code in them is run.
"""

import inspect
import math
import re
from collections import Counter
from math import prod
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from onestep.models.edm.denoiser import ARCHITECTURES, EDMDenoiser
from onestep.models.edm.safe_unpickler import Recorded, short
from onestep.models.edm.torch_file import RecordedTensor, read_checkpoint
from onestep.reading import one_line

_PRECONDITIONINGS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
_PRECONDITIONING_OPTIONS = {
    "vp": {"beta_d": "beta_d", "beta_min": "beta_min", "M": "steps"},
    "iddpm": {"C_1": "c_1", "C_2": "c_2", "M": "steps"},
}
_MODELS = {"SongUNet": "SongUNet", "DhariwalUNet": "DhariwalUNet"}  # to the names of this package
_EDM2 = ("Precond", "EDM_2_Precond", "EDM_2_Precond_Generator")  # the latter two of SiDA
_EDM2_MODELS = {"UNet": "EDM2UNet"}
_LATENT_CHANNELS = 4  # of EDM2's networks at 512 pixels, which denoise Stable Diffusion's latents
_SHARED_ENCODER = "_EncoderDecoder"  # suffix of these classes in SiDA and Uni-Instruct
_ARGUMENTS_OF_DENOISER = ("img_resolution", "img_channels", "in_channels", "out_channels", "label_dim")
_ARGUMENTS_OF_SIDA = ("force_normalization", "use_gan")  # of its training of EDM2's networks
_EDM_DEFAULTS = {"SongUNet": {"channel_mult": [1, 2, 2, 2]}}  # where this package has other ones
# Limits, because a small file can refer to its parts so often that they fill the memory.
_MAX_NAME_LENGTH = 200
_MAX_MEMBERS = 10_000
_MAX_STEPS = 10_000

Tensors = dict[str, RecordedTensor]


def load_edm(path: str | Path) -> EDMDenoiser:
    """The network of an EDM checkpoint (the average, ``ema``), in float32 and eval mode.

    A state dict, bare or under ``ema``, must be that of an ADM network, whose settings follow from names and shapes.
    Its preconditioning is EDM's with a ``sigma_data`` of 0.5, as for DMD2.

    Args:
        path: a pickle of EDM or one of its descendants, or a file of torch.save with such a network's state dict.

    Raises:
        ValueError: if the file is absent or damaged, or contains anything that is not part of the format.
    """
    content = read_checkpoint(path)
    try:
        network = content.get("ema") if type(content) is dict else content
        if isinstance(network, Recorded):
            return _from_object(network)
        if type(content) is dict:
            return _from_state_dict(network if type(network) is dict else content)
        raise ValueError(f"it holds {short(content)}, no network")
    except ValueError as error:
        raise ValueError(f"{path} holds no network that can be read: {one_line(error, 500)}") from error


def _from_object(network: Recorded) -> EDMDenoiser:
    """The denoiser of a recorded preconditioned network."""
    kind = network.class_name.removesuffix(_SHARED_ENCODER)
    is_edm2 = kind in _EDM2
    preconditioning = "edm" if is_edm2 else _PRECONDITIONINGS.get(kind)
    if preconditioning is None:
        raise ValueError(
            f"its class is {short(network.class_name)}; {', '.join(_PRECONDITIONINGS)} of EDM and "
            f"{', '.join(_EDM2)} of EDM2 are known"
        )
    tensors = _tensors_of(network)
    models = _EDM2_MODELS if is_edm2 else _MODELS
    model = network.state["_modules"].get("unet" if is_edm2 else "model")
    name = model.class_name.removesuffix(_SHARED_ENCODER) if isinstance(model, Recorded) else model
    if not isinstance(model, Recorded) or name not in models:
        raise ValueError(f"its raw network is {short(name)}; expected {' or '.join(models)}")
    renamed = _PRECONDITIONING_OPTIONS.get(preconditioning, {})
    settings: dict[str, Any] = {
        "preconditioning": preconditioning,
        "preconditioning_options": {ours: _positive(network, theirs) for theirs, ours in renamed.items()},
    }
    channels, size = _number(network, "img_channels"), _number(network, "img_resolution")
    options = _options(models[name], model)
    if preconditioning == "edm":
        settings["sigma_data"] = _positive(network, "sigma_data")
    if preconditioning == "iddpm":
        levels, steps = tensors.pop("u", None), settings["preconditioning_options"]["steps"]
        if levels is None or levels.shape != (steps + 1,) or steps > _MAX_STEPS:
            raise ValueError(f"its table of noise levels (u) is not of its number of steps (M), up to {_MAX_STEPS:,}")
        tensors["precondition.u"] = levels
    if is_edm2:
        tensors = {re.sub(r"^(unet\.|(?=logvar_))", "model.", name): value for name, value in tensors.items()}
        uncertainty = tensors.get("model.logvar_fourier.freqs")
        options["logvar_channels"] = 0 if uncertainty is None else prod(uncertainty.shape)
        settings["latent"] = channels == _LATENT_CHANNELS
    else:
        sigma_min, sigma_max = _number(network, "sigma_min"), _number(network, "sigma_max")
        if 0 < sigma_min < sigma_max < math.inf:  # EDM's networks have 0 and infinity, for no limit
            settings |= {"sigma_min": sigma_min, "sigma_max": sigma_max}
    return _build(
        tensors,
        image_shape=(channels, size, size),
        label_dim=_number(network, "label_dim"),
        architecture=models[name],
        options=options,
        **settings,
    )


def _number(record: Recorded, name: str) -> Any:
    value: Any = record.state.get(name)
    if type(value) not in (int, float) or not value >= 0:
        raise ValueError(f"its {name} is {short(value)}")
    return value


def _positive(record: Recorded, name: str) -> Any:
    if not 0 < (value := _number(record, name)) < math.inf:
        raise ValueError(f"its {name} is {value}")
    return value


def _options(architecture: str, model: Recorded) -> dict[str, Any]:
    """The constructor arguments of the raw network, which its object records."""
    arguments = model.state.get("_init_kwargs")
    if type(arguments) is not dict or model.state.get("_init_args") != ():
        raise ValueError("it does not say what its raw network was made with")
    given = (*_ARGUMENTS_OF_DENOISER, *(_ARGUMENTS_OF_SIDA if architecture == "EDM2UNet" else ()))
    options = _EDM_DEFAULTS.get(architecture, {}) | {k: v for k, v in arguments.items() if k not in given}
    if (decoder := options.pop("decoder_type", "standard")) != "standard":
        raise ValueError(f"its decoder_type is {short(decoder)}; only the standard one is known")
    known = inspect.signature(ARCHITECTURES[architecture]).parameters
    for name, value in options.items():
        items = value if type(value) is list else [value]
        if name not in known or not all(type(item) in (int, float, str, NoneType) for item in items):
            raise ValueError(f"its raw network was made with {short(name)}={short(value)}, which is not known")
    return options


def _tensors_of(network: Recorded) -> Tensors:
    """All parameters and buffers by their names in a state dict."""
    tensors: Tensors = {}
    pending, seen, count = [("", network)], {id(network)}, 0
    while pending:
        prefix, module = pending.pop()
        for kind in ("_parameters", "_buffers", "_modules"):
            members = module.state.get(kind)
            if type(members) is not dict:
                raise ValueError(f"its module {prefix!r} has no {kind}")
            count = _counted(count, members)
            for key, value in members.items():
                name = _name(prefix, key)
                if isinstance(value, RecordedTensor) and kind != "_modules":
                    tensors[name] = value
                elif isinstance(value, Recorded) and kind == "_modules" and id(value) not in seen:
                    seen.add(id(value))  # a module that contains itself would not end
                    pending.append((f"{name}.", value))
                elif value is not None:
                    raise ValueError(f"its {name} is {short(value)}, where {kind} was expected")
    return tensors


def _counted(count: int, members: dict[Any, Any]) -> int:
    if count + len(members) > _MAX_MEMBERS:
        raise ValueError(f"it has more than {_MAX_MEMBERS:,} tensors and modules")
    return count + len(members)


def _name(prefix: str, key: Any) -> str:
    if len(name := f"{prefix}{key}") > _MAX_NAME_LENGTH:
        raise ValueError(f"its tensors and modules have names as long as {short(name)}")
    return name


def _from_state_dict(content: dict[Any, Any]) -> EDMDenoiser:
    """The denoiser of the tensors of an ADM network, with any common prefix of their names."""
    found: dict[str, Any] = {}
    count = _counted(0, content)
    for key, value in content.items():
        if type(value) is dict:
            count = _counted(count, value)
            found |= {_name(f"{key}.", name): inner for name, inner in value.items()}
        else:
            found[str(key)] = value
    anchor = "map_layer0.weight"
    prefixes = sorted(name.removesuffix(anchor) for name in found if name.endswith(anchor))
    if len(prefixes) != 1:
        keys = ", ".join(short(str(key)) for key in list(content)[:8])
        raise ValueError(
            f"expected one network, under 'ema' or as a state dict, found {len(prefixes)} among {keys}: choose one, "
            "and save its state dict alone: torch.save(torch.load(FILE, weights_only=True)[KEY], NEW_FILE)"
        )
    tensors = {
        f"model.{name.removeprefix(prefixes[0])}": value
        for name, value in found.items()
        if name.startswith(prefixes[0]) and isinstance(value, RecordedTensor)
    }
    if "model.out_norm.weight" not in tensors:
        raise ValueError("it is a state dict of another network than ADM, which does not tell its settings")
    try:
        return _build(tensors, architecture="DhariwalUNet", **_adm_settings(tensors))
    except (LookupError, ArithmeticError, TypeError) as error:
        raise ValueError(f"its state dict is none of an ADM network ({type(error).__name__}: {error})") from error


def _adm_settings(tensors: Tensors) -> dict[str, Any]:
    """The settings of an ADM network, from its tensors' names and shapes."""

    def shape(name: str) -> tuple[int, ...]:
        return tensors[f"model.{name}"].shape

    def width(name: str) -> int:
        return shape(name)[1] if f"model.{name}" in tensors else 0

    blocks = [
        match for name in tensors if (match := re.fullmatch(r"model\.enc\.(\d+)x\1_block(\d+)\.conv1.weight", name))
    ]
    levels = sorted({int(match[1]) for match in blocks}, reverse=True)
    if not levels:
        raise ValueError("its state dict has no residual blocks of an ADM network, such as enc.64x64_block0")
    embedding_channels, model_channels = shape("map_layer0.weight")
    options = {
        "augment_dim": width("map_augment.weight"),
        "model_channels": model_channels,
        "channel_mult": [shape(f"enc.{r}x{r}_block0.conv1.weight")[0] // model_channels for r in levels],
        "channel_mult_emb": embedding_channels // model_channels,
        "num_blocks": len(blocks) // len(levels),
        "attn_resolutions": [r for r in levels if f"model.enc.{r}x{r}_block0.qkv.weight" in tensors],
        "dropout": 0.0,  # not in the tensors; DMD2's is 0
    }
    channels = shape(f"enc.{levels[0]}x{levels[0]}_conv.weight")[1]
    return {
        "image_shape": (channels, levels[0], levels[0]),
        "label_dim": width("map_label.weight"),
        "options": options,
    }


def _build(tensors: Tensors, **settings: Any) -> EDMDenoiser:
    """The network of ``settings`` with the weights ``tensors``.

    It is built on the meta device and compared with the file first, so that settings cannot request more memory than
    the file has.

    Raises:
        ValueError: if settings and weights do not fit each other.
    """
    options = settings["options"]
    try:
        if len(options.get("channel_mult", ())) * max(options.get("num_blocks", 1), 1) > len(tensors):
            raise ValueError("it has more blocks than tensors")
        with torch.device("meta"):
            denoiser = EDMDenoiser(**settings)
    except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"its settings make no network: {error}") from error
    expected = {name: tuple(value.shape) for name, value in denoiser.state_dict().items()}
    shapes = {name: value.shape for name, value in tensors.items()}
    if wrong := sorted(name for name in expected | shapes if expected.get(name) != shapes.get(name)):
        first = ", ".join(f"{short(n)} ({shapes.get(n)} for {expected.get(n)})" for n in wrong[:4])
        raise ValueError(f"{len(wrong)} of its tensors are not those of its settings: {first}")
    taken: Counter[int] = Counter()
    for name, value in tensors.items():
        taken[id(value.storage)] += prod(value.shape)
        if taken[id(value.storage)] > value.storage.size:
            raise ValueError(f"its {name} and others do not fit into their storage of {value.storage.size} numbers")
    if other := [name for name, value in tensors.items() if not value.storage.dtype.is_floating_point]:
        raise ValueError(f"its {other[0]} holds {tensors[other[0]].storage.dtype} and no floating-point numbers")
    weights = {
        name: value.tensor().float().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise ValueError(f"its {broken[0]} has values that are not finite")
    denoiser.load_state_dict(weights, assign=True)
    return denoiser.eval()
