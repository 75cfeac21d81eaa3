"""Pretraining of a text-to-image network: the dropout of its prompts, and the pipeline that it becomes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from onestep.build.pretraining import pretrain
from onestep.config import instantiate
from onestep.pretraining.dropout import PromptDropout
from onestep.seeding import BatchRandom
from tests.helpers.configs import configure, refused, tiny_pretraining
from tests.helpers.pictures import encode

PROMPTS = ["a cat", "the sea", "red", "a dog", "blue", "a cat"]


@pytest.fixture
def overrides(pipelines: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """Of a tiny pretraining on prompts with images."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(PROMPTS), 16, 16, 3), dtype=np.uint8)
    table = pa.table({"prompt": PROMPTS, "image": [encode(Image.fromarray(one)) for one in pixels]})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    return [
        "experiment=pretrain/emoji", f"data.path={tmp_path / 'data.parquet'}", f"network.path={pipelines('sd')}",
        "network.size=8", f"network.pipeline.cache={tmp_path / 'cache'}", "precision=no", "sampler.steps=2",
    ]  # fmt: skip


def test_dropout_replaces_whole_prompts() -> None:
    """A share of the rows, in all tensors the same; the others are as they were."""
    condition = {"text": torch.rand(4000, 3, 2) + 1, "pooled": torch.rand(4000, 2) + 1}
    empty = {"text": torch.full((1, 3, 2), 5.0), "pooled": torch.full((1, 2), 6.0)}
    random = BatchRandom(0, batch_size=8000, rows=slice(4000, 8000))
    found = PromptDropout(0.3, empty)(condition, random)
    dropped = (found["text"] == 5).all(2).all(1)
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)
    assert torch.equal(dropped, (found["pooled"] == 6).all(1))
    for name, rows in found.items():
        assert torch.equal(rows[~dropped], condition[name][~dropped])


def test_a_pipeline_is_trained_on(overrides: list[str], pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    """The result is the pipeline with another network, which a distillation and diffusers read."""
    output = tmp_path / "run"
    summary = pretrain(tiny_pretraining(output, *overrides))
    source, teacher = pipelines("sd"), output / "teacher"
    names = {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()}
    assert {str(file.relative_to(teacher)) for file in teacher.rglob("*") if file.is_file()} == names
    written = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json"}
    for name in names - written - {"unet/diffusion_pytorch_model.safetensors"}:
        assert (teacher / name).read_bytes() == (source / name).read_bytes()
    before, after = (load_file(place / "unet" / "diffusion_pytorch_model.safetensors") for place in (source, teacher))
    assert before.keys() == after.keys() and summary["images_seen"] > 0
    moved = [float((after[name] - value).abs().max()) for name, value in before.items()]
    assert 0 < max(moved) < 0.1  # a few small steps
    options = ["teacher=diffusers", f"teacher.path={teacher}", f"teacher.pipeline.cache={tmp_path / 'cache'}"]
    read = instantiate(configure("train", *options, "teacher.guidance=2").teacher)
    assert read.condition_keys == ("encoder_hidden_states",) and read.guidance == 2


def test_the_share_of_dropped_prompts_counts(overrides: list[str], tmp_path: Path) -> None:
    """Without prompts it is refused."""
    weights = []
    for share in ("0", "0.9"):
        output = tmp_path / share
        pretrain(tiny_pretraining(output, *overrides, f"prompt_dropout={share}"))
        weights.append(load_file(output / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"))
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    config = tiny_pretraining(tmp_path / "digits", "prompt_dropout=0.5")
    assert "prompt_dropout=0.5 has no effect: the data have no prompts" in refused(config, pretrain)


def test_prompts_without_images_are_refused(overrides: list[str], tmp_path: Path) -> None:
    config = tiny_pretraining(tmp_path / "run", *overrides, "data.image_column=null")
    assert "of data=prompts, set data.image_column=..." in refused(config, pretrain)
