"""Memory layout and compilation of networks change results only by rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onestep.config import CONF
from onestep.engine.shard import full_state_dict
from onestep.models.generator import Generator
from onestep.profiling.subject import Subject
from tests.helpers.configs import TINY

pytestmark = pytest.mark.usefixtures("process_as_it_was")

PRESETS = sorted(file.stem for file in (CONF / "objective").glob("*.yaml"))


def gradients(subject: Subject, iterations: int) -> list[float]:
    """The norms of the gradients of every update."""
    updates = [update for _ in range(iterations) for update in subject.iteration()]
    return [value.item() for update in updates for name, value in update.items() if name.endswith("_gradient")]


def test_channels_last_is_the_same_training(tmp_path: Path) -> None:
    plain, laid_out = Subject("digits", TINY, 4), Subject("digits", [*TINY, "channels_last=true"], 4)
    assert gradients(laid_out, 2) == pytest.approx(gradients(plain, 2), rel=1e-3)
    generator = laid_out.parts.student
    weights = [
        parameter for parameter in generator.parameters() if parameter.ndim == 4 and min(parameter.shape[1:]) == 3
    ]
    assert len(weights) > 20 and not any(weight.is_contiguous() for weight in weights)
    with full_state_dict(generator.denoiser):  # safetensors needs contiguous tensors
        generator.save_pretrained(tmp_path)
    read = Generator.from_pretrained(tmp_path)
    assert all(torch.equal(*pair) for pair in zip(read.parameters(), generator.parameters(), strict=True))


def test_channels_last_and_shared_networks_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="channels_last=true and shard=true"):
        Subject("digits", [*TINY, "channels_last=true", "shard=true"], 4)


def test_the_mode_of_compile_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="compile=fastest: expected true or false, or one of default, reduce-overhead"):
        Subject("digits", [*TINY, "compile=fastest"], 4)
    modes: list[str | None] = []
    monkeypatch.setattr(nn.Module, "compile", lambda _, mode: modes.append(mode))
    for choice, mode in (("true", None), ("reduce-overhead", "reduce-overhead")):
        modes.clear()
        Subject("digits", [*TINY, f"compile={choice}"], 4)
        assert modes == [mode] * 4  # generator, fake score, teacher, average


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_compiles(preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch._dynamo.reset()
    counters: Any = torch._dynamo.utils.counters
    counters.clear()
    options = [*TINY, f"objective={preset}"]
    eager, compiled = Subject("digits", options, 16), Subject("digits", [*options, "compile=true"], 16)
    assert gradients(compiled, 2) == pytest.approx(gradients(eager, 2), rel=1e-2)
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]
