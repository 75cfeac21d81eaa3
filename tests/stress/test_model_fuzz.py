"""Damaged files of models: whatever bytes change, a reader returns a network or raises ValueError, in little memory.

``ONESTEP_FUZZ_SECONDS`` is the time of each reader, ``ONESTEP_FUZZ_SEED`` the first seed; a failure names its seed.
"""

import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from onestep.models.diffusers.loading import load_diffusers
from onestep.models.edm.checkpoint import load_edm
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator, load_denoiser
from tests.helpers.diffusers_models import build_network
from tests.helpers.edm_format import numpy_array, persistent, pickled, snapshot
from tests.helpers.edm_models import tiny_denoiser

SECONDS = float(os.environ.get("ONESTEP_FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("ONESTEP_FUZZ_SEED", "0"))
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2, 7, 10**6, 10**9, 10**30, 1e308, -0.5, "", "x", "8", "../x", [], [1], [[]], {}, {"a": 1},
    [8, 8, 8], "DDPMScheduler", "EDMDenoiser", "UNet2DModel", ["evil", "Model"], ["diffusers", "UNet2DModel"],
]  # fmt: skip


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """``content`` with some bytes changed, cut, doubled or removed; near its start or its end half of the time."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = len(data)
        at = rng.randrange(size) if rng.random() < 0.5 else rng.choice((rng.randrange(min(size, 600)), size - 1))
        match rng.randrange(6):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randrange(1, 64)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 64)]
            case 4:
                data[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\x80" + b"\0" * 7, b"\0" * 7 + b"\x80"))
            case _:
                data = data[: max(1, at)] if rng.random() < 0.2 else data
    return bytes(data)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """``value`` with one entry, at any depth, changed, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(["lora", "auto_map", "quantization_config", "x", rng.choice(list(value))])] = (
                    rng.choice(VALUES)
                )
            case _:
                changed[key] = mutate_json(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_json(value[at], rng), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((-value, value * 2, value + 1, value * 1000, value / 3, str(value)))
    return rng.choice(VALUES)


class Subject:
    """A model on the disk, a reader of it, and its files, one of which changes each time."""

    def __init__(self, place: Path, read: Callable[[Path], Any]) -> None:
        self.place, self.read = place, read
        files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
        self.files = {file: file.read_bytes() for file in files}

    def try_seed(self, seed: int) -> bool:
        """True if the file that ``seed`` damages is refused.

        Raises:
            AssertionError: for an error other than ValueError, or one of several lines or over 1,500 characters.
        """
        rng = random.Random(seed)
        file = rng.choice(list(self.files))
        content = self.files[file]
        if file.suffix == ".json" and rng.random() < 0.8:
            changed = json.loads(content)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                changed = mutate_json(changed, rng)
            file.write_text(json.dumps(changed))
        else:
            file.write_bytes(mutate_bytes(content, rng))
        try:
            self.read(self.place)
        except ValueError as error:
            text = str(error)
            assert "\n" not in text and 0 < len(text) < 1500, f"seed {seed}: {text[:3000]}"
            return True
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {file.name}: {type(error).__name__}: {error}") from error
        finally:
            file.write_bytes(content)
        return False


def make_subject(kind: str, folder: Path) -> Subject:
    torch.manual_seed(0)
    tiny = {"model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    place = folder / kind
    match kind:
        case "pickle":
            place.write_bytes(pickled(snapshot(EDMDenoiser((1, 4, 4), options=tiny))))
            return Subject(place, load_edm)
        case "edm2_pickle":
            network = EDMDenoiser((4, 4, 4), 2, architecture="EDM2UNet", options=tiny | {"logvar_channels": 4})
            encoder = persistent("StabilityVAEEncoder", {"scale": numpy_array([0.1] * 4)})
            place.write_bytes(pickled({"encoder": encoder, **snapshot(network)}))
            return Subject(place, load_edm)
        case "edm2_folder":
            network = EDMDenoiser((4, 4, 4), 2, architecture="EDM2UNet", options=tiny | {"logvar_channels": 4})
            network.save_pretrained(place)
            return Subject(place, load_denoiser)
        case "torch_zip" | "torch_legacy":
            adm = EDMDenoiser((1, 8, 8), architecture="DhariwalUNet", options=tiny | {"channel_mult_emb": 1})
            torch.save(adm.model.state_dict(), place, _use_new_zipfile_serialization=kind == "torch_zip")
            return Subject(place, load_edm)
        case "folder":
            tiny_denoiser(model_channels=4).save_pretrained(place)
            return Subject(place, load_denoiser)
        case "generator":
            Generator(tiny_denoiser(model_channels=4), 2.5).save_pretrained(place)
            return Subject(place, Generator.from_pretrained)
    diffusers.DDPMPipeline(build_network("unet"), diffusers.DDPMScheduler()).save_pretrained(place)
    shutil.rmtree(place / ".cache", ignore_errors=True)
    return Subject(place, lambda path: load_diffusers(str(path), 1.0, None, "float32", None, None, True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["pickle", "edm2_pickle", "torch_zip", "torch_legacy", "folder", "edm2_folder", "generator", "pipeline"],
)
def test_damage_is_refused_or_harmless(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = make_subject(kind, tmp_path)
    subject.read(subject.place)
    start, seed, refused, longest = time.monotonic(), SEED, 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() - start < SECONDS:
        began = time.monotonic()
        refused += subject.try_seed(seed)
        longest = max(longest, time.monotonic() - began)
        seed += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    with capsys.disabled():
        print(f"\n{kind}: {seed - SEED} files, {refused} refused, {longest:.1f} s at most, {grown} MB more")
    assert refused > 0 and longest < 10 and grown < 1000
