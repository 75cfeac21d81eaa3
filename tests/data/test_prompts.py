"""Prompts: what their conditions and latents are, what is kept of them on disk, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from PIL import Image
from torch import Tensor

from onestep.data.dataset import contents
from onestep.data.prompts import PromptDataset, read_prompts
from onestep.evaluation.generate import SampleSpace
from onestep.images import decode_image, from_uint8
from onestep.models.diffusers.autoencoder import Autoencoder, wrap
from onestep.models.diffusers.families.base import Encode
from onestep.models.diffusers.folder import quiet
from onestep.models.diffusers.pipeline import TeacherPipeline
from onestep.models.diffusers.text_encoder import TextEncoder
from tests.helpers.pictures import encode, huge_png

PROMPTS = ["a cat", "the sea", "red", "a dog", "blue"]
KINDS = ("sd", "sdxl", "sd3", "flux")
Pipelines = Callable[[str], Path]
Make = Callable[..., PromptDataset]


def png(seed: int) -> bytes:
    return encode(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)))


@pytest.fixture
def make(pipelines: Pipelines, tmp_path: Path) -> Make:
    """The tiny pipeline's prompts, two a chunk, in a cache in ``tmp_path``."""

    def build(path: Any = PROMPTS, kind: str = "sd", image_column: str | None = None, **changes: Any) -> PromptDataset:
        options: dict[str, Any] = {"pipeline": str(pipelines(kind)), "size": 8, "dtype": "float32", "batch_size": 2}
        options |= {"cache": str(tmp_path / "cache")} | changes
        pipeline = TeacherPipeline(options.pop("pipeline"), **options)
        return PromptDataset(path if isinstance(path, list) else str(path), "prompt", image_column, pipeline)

    return build


@pytest.fixture
def with_images(tmp_path: Path) -> Path:
    """A parquet file of the prompts with an image each, as Hugging Face datasets keep them."""
    cells = [{"bytes": png(row), "path": f"{row}.png"} for row in range(len(PROMPTS))]
    table = pa.table({"prompt": PROMPTS, "image": cells})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet", row_group_size=3)
    return tmp_path / "data.parquet"


class Calls:
    """How many prompts each call of an encoder was given; it dies at one of them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.dies_at: int | None = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen, encoded = Calls(), TextEncoder._encode

    def watched(
        self: TextEncoder, encode: Encode, prompts: list[str], image_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        if len(seen.sizes) == seen.dies_at:
            raise KeyboardInterrupt
        seen.sizes.append(len(prompts))
        return encoded(self, encode, prompts, image_size)

    monkeypatch.setattr(TextEncoder, "_encode", watched)
    return seen


# What the conditions are.


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipelines_network_is_given_the_same(
    kind: str, pipelines: Pipelines, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the whole pipeline hands to its network under guidance: the empty prompt's, then the prompt's."""
    data = make(kind=kind)
    unconditional = data.pipeline.unconditional()
    with quiet():
        pipeline = DiffusionPipeline.from_pretrained(str(pipelines(kind)))
    pipeline.set_progress_bar_config(disable=True)
    network = pipeline.transformer if kind in ("sd3", "flux") else pipeline.unet
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        network, "forward", lambda *_, forward=network.forward, **named: (given.update(named), forward(*_, **named))[1]
    )
    pipeline(PROMPTS[1], num_inference_steps=1, guidance_scale=3.0, height=16, width=16, output_type="latent")
    given |= given.pop("added_cond_kwargs", None) or {}
    _, condition = data.__getitems__([1])
    assert (set(condition) == {"encoder_hidden_states"}) == (kind == "sd")
    for name, ours in condition.items():
        theirs = given[name] if kind == "flux" else given[name][1:]
        torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-6)
        if kind != "flux":  # whose guidance is an input
            torch.testing.assert_close(unconditional[name], given[name][:1].float(), rtol=0, atol=1e-6)
        assert (ours - unconditional[name]).abs().max() > 0.01 or name == "time_ids"


def test_a_seed_has_its_prompt_by_turns(make: Make) -> None:
    data = make()
    space = SampleSpace(data.image_shape, 0, conditions=data.embeddings)
    rows = space.inputs([7, 2, 12])[1]["encoder_hidden_states"]
    assert torch.equal(rows, data.__getitems__([2, 2, 2])[1]["encoder_hidden_states"])
    assert not torch.equal(rows, space.inputs([0, 1, 3])[1]["encoder_hidden_states"])


def test_what_is_kept_in_half_precision(make: Make) -> None:
    ours, kept = (make(dtype=dtype).embeddings[[0, 1]] for dtype in ("float32", "bfloat16"))
    difference = (ours["encoder_hidden_states"] - kept["encoder_hidden_states"]).abs()
    assert kept["encoder_hidden_states"].dtype == torch.float32
    assert 0 < difference.max() < 0.02 * ours["encoder_hidden_states"].abs().max()  # 8 bits, through two layers
    with pytest.raises(ValueError, match=r"dtype=int8: expected one of float32, bfloat16, float16"):
        make(dtype="int8")


# Latents and images.


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_latents_are_those_of_the_pipelines_autoencoder(
    kind: str, make: Make, with_images: Path, pipelines: Pipelines
) -> None:
    data = make(with_images, kind, "image")
    latents, _ = data.__getitems__([4, 0])
    assert latents is not None
    vae = Autoencoder.from_pretrained(pipelines(kind)).vae
    images = from_uint8(torch.from_numpy(np.stack([decode_image(png(row), (16, 16)) for row in (4, 0)])))
    shift = {"sd": 0.0, "flux": 0.1159}[kind]
    expected = (vae.encode(images).latent_dist.mean - shift) * {"sd": 0.18215, "flux": 0.3611}[kind]
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-6)
    assert data.image_shape == tuple(latents.shape[1:]) and contents(data)[0] and not contents(make())[0]
    decoded = vae.decode(latents / {"sd": 0.18215, "flux": 0.3611}[kind] + shift).sample
    torch.testing.assert_close(data.pipeline.decode(latents), decoded, rtol=0, atol=1e-5)


def test_the_tiny_autoencoder() -> None:
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )  # fmt: skip
    autoencoder, images = wrap(vae), torch.randn(2, 3, 16, 16).clamp(-1, 1)
    latents = autoencoder.encode(images)
    assert latents.shape[2] == 16 // autoencoder.downsampling
    torch.testing.assert_close(latents, vae.encode(images).latents)
    torch.testing.assert_close(autoencoder.decode(latents), vae.decode(latents).sample)
    with pytest.raises(ValueError, match="of class Linear is not supported: expected one of AutoencoderKL, A"):
        wrap(torch.nn.Linear(1, 1))


# What the cache keeps.


def test_an_interrupted_encoding_goes_on_where_it_stopped(make: Make, calls: Calls) -> None:
    calls.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        make()
    assert calls.sizes == [2, 2]
    calls.dies_at = None
    whole = make()
    assert calls.sizes == [2, 2, 1, 1]  # the last prompt, and the empty one
    again = make()
    assert calls.sizes == [2, 2, 1, 1]
    assert torch.equal(again.embeddings[[4]]["encoder_hidden_states"], whole.embeddings[[4]]["encoder_hidden_states"])


def test_what_depends_on_what(make: Make, calls: Calls, pipelines: Pipelines, tmp_path: Path) -> None:
    make()
    calls.sizes = []
    make([*PROMPTS[:4], "green"])  # the first two chunks are known
    assert calls.sizes == [1]
    make(kind="sd3")  # other encoders
    assert calls.sizes == [1, 2, 2, 1, 1]


def test_a_cut_chunk_is_made_again(make: Make, calls: Calls, tmp_path: Path) -> None:
    before = make().embeddings[range(5)]["encoder_hidden_states"]
    files = [file for file in (tmp_path / "cache").rglob("*.safetensors") if file.stem != "empty"]
    files[0].write_bytes(files[0].read_bytes()[:-10])
    calls.sizes = []
    assert torch.equal(make().embeddings[range(5)]["encoder_hidden_states"], before)
    assert len(calls.sizes) == 1


# What is read, and what is refused.


def test_prompts_are_read_from_text_and_parquet(tmp_path: Path, with_images: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\n  an Übergröße \n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "prompts.txt"), "unused") == ["a cat", "an Übergröße"]
    assert read_prompts(str(with_images), "prompt") == PROMPTS


@pytest.mark.parametrize(
    ("path", "column", "message"),
    [
        ("nowhere.txt", "prompt", "the prompts cannot be read"),
        ("nowhere.parquet", "prompt", "cannot be read as parquet"),
        ("prompts.csv", "prompt", r"expected a .txt file with one prompt per line, or a .parquet file"),
        ("empty.txt", "prompt", "it has no prompts"),
        ("data.parquet", "caption", "has no column 'caption'; its columns are: prompt, image"),
        ("data.parquet", "image", "column 'image' has the type struct.*, expected text"),
    ],
)
def test_what_is_refused(path: str, column: str, message: str, with_images: Path) -> None:
    (with_images.parent / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=message):
        read_prompts(str(with_images.parent / path), column)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_are_none(make: Make, with_images: Path) -> None:
    with pytest.raises(ValueError, match="data.image_column=.*: images need a .parquet file"):
        make(image_column="image")
    with pytest.raises(ValueError, match="column 'prompt' has the type .*, expected encoded images"):
        make(with_images, image_column="prompt")
    for broken, reason in ((png(1)[:40], ""), (huge_png(10_000), "10000 x 10000 pixels are more than 67,108,864")):
        table = pa.table({"prompt": PROMPTS[:3], "image": [png(0), broken, png(2)]})
        pyarrow.parquet.write_table(table, with_images)
        with pytest.raises(ValueError, match=rf"row 1 of .*data.parquet: the image cannot be read: {reason}"):
            make(with_images, image_column="image")
    with pytest.raises(ValueError, match="no pipeline of diffusers at '.*', which has no model_index.json"):
        make(pipeline=str(with_images.parent))
