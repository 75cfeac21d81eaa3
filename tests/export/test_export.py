"""A finished run leaves as a diffusers pipeline folder that draws what sample.py draws, with a card that says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import SafetensorError

from onestep.build.sampling import sample
from onestep.commands import main
from onestep.export.export import export
from onestep.export.pipeline import OneStepPipeline
from onestep.models.generator import Generator, Renoise
from onestep.models.loading import load_generator
from onestep.seeding import seeded_inputs, seeded_noise
from tests.helpers.configs import configure
from tests.helpers.edm_models import tiny_denoiser


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(finished_run, tmp_path_factory.mktemp("export") / "digits")


def test_the_folder_holds_safetensors_a_card_and_a_picture(exported: Path, finished_run: Path) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "side_by_side.png",
        "model_index.json",
        "denoiser/config.json",
        "denoiser/diffusion_pytorch_model.safetensors",
    }
    assert (exported / "side_by_side.png").read_bytes() == (finished_run / "side_by_side.png").read_bytes()


@pytest.mark.parametrize("classes", [None, [3, 7]])
def test_a_seed_gives_what_sample_draws(
    classes: list[int] | None, exported: Path, finished_run: Path, tmp_path: Path
) -> None:
    choice = "classes=null" if classes is None else f"classes={classes}"
    config = configure("sample", f"run={finished_run}", "count=5", "seed=3", choice, f"save_to={tmp_path}")
    sample(config)
    drawn = [np.asarray(Image.open(tmp_path / f"{seed:06d}.png")) for seed in range(3, 8)]
    pipeline = OneStepPipeline.from_pretrained(exported)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(range(3, 8), classes, batch_size=2).images
    assert all(np.array_equal(image, theirs) for image, theirs in zip(images, drawn, strict=True))
    assert np.std(drawn) > 10 and images[0].mode == "L"


def test_the_other_output_types(exported: Path) -> None:
    pipeline = OneStepPipeline.from_pretrained(exported)
    pipeline.set_progress_bar_config(disable=True)
    latents, condition = seeded_inputs([0, 1], (1, 8, 8), 10)
    with torch.no_grad():
        expected = pipeline.generator(latents, condition)
    torch.testing.assert_close(pipeline([0, 1], output_type="pt").images, expected, rtol=0, atol=1e-6)
    array = pipeline([0, 1], output_type="np").images
    assert array.shape == (2, 8, 8, 1)
    np.testing.assert_allclose(array[..., 0], (expected[:, 0] / 2 + 0.5).clamp(0, 1), atol=1e-7)
    with pytest.raises(ValueError, match="output_type='jpg': choose one of pil, np, pt"):
        pipeline([0], output_type="jpg")
    with pytest.raises(ValueError, match="this network has 10 classes"):
        pipeline([0], classes=[10])


@pytest.mark.parametrize("renoise", ["stochastic", "deterministic"])
def test_a_few_step_generator_keeps_its_steps_and_classes(renoise: Renoise, tmp_path: Path) -> None:
    generator = Generator(tiny_denoiser(seed=2), 2.5, [1.0, 0.5], classes=[0, 2], renoise=renoise)
    OneStepPipeline.from_generator(generator).save_pretrained(tmp_path)
    pipeline = OneStepPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    latents, condition = seeded_inputs([5], (1, 8, 8), 3, classes=[2])  # its own classes, in turn
    with torch.no_grad():
        expected = generator(latents, condition, seeded_noise([5], (1, 8, 8), 3))
    torch.testing.assert_close(pipeline([5], output_type="pt").images, expected, rtol=0, atol=1e-6)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (index["sigma_init"], index["later_sigmas"], index["renoise"]) == (2.5, [1.0, 0.5], renoise)
    assert load_generator(tmp_path).renoise == renoise


def test_the_card_says_what_was_measured(exported: Path, finished_run: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    summary = json.loads((finished_run / "summary.json").read_text())
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "unconditional-image-generation")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: summary["student"][name] for name in ("fid", "recall")}
    lines = card.text.splitlines()
    assert "# digits: one-step generator by FDistill" in lines
    assert "![Samples of the teacher and of this generator](side_by_side.png)" in lines
    table = lines[lines.index("## Results") + 2 :]
    assert table[0] == "|  | teacher | student | features | reference |"
    for key, title in (("fid", "FID ↓"), ("recall", "recall ↑")):
        values = " | ".join(f"{summary[side][key]:.4g}" for side in ("teacher", "student"))
        assert f"| {title} | {values} | digits classifier | Digits, 1,797 images |" in table
    assert "| network evaluations | 3 | 1 |  |  |" in table and "| samples | 32 | 32 |  |  |" in table
    assert "| teacher | digits, guidance 1, guidance rescale 0 |" in lines
    assert "| teacher's sampler | HeunSampler, steps 2, sigma min 0.002, sigma max 80, rho 7 |" in lines
    assert "| objective | FDistill, normalize weight true |" in lines and "| divergence | JensenShannon |" in lines
    assert "| discriminator | PooledHead, features from teacher, hidden 64, projection false |" in lines
    assert "| adversarial weight | 2 |" in lines and "| weights | the average ema over the training |" in lines
    assert "| images seen in training | 96 |" in lines
    assert str(finished_run) not in card.content


def test_every_value_of_the_summary_reaches_the_card(finished_run: Path, tmp_path: Path) -> None:
    """As of a run with other metrics, of which one has another name for its number of samples; without a picture."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "side_by_side.png").unlink()
    summary = json.loads((run / "summary.json").read_text())
    template = summary["results"]["student"][0]
    keys = ("fid", "fid50k", "is", "kid", "precision", "recall", "density", "coverage", "fd_dinov2", "clip_score")
    values = {key: 1.5 + index for index, key in enumerate(keys)}
    costs = {"network_evaluations": 1, "samples": 32, "samples_per_second": 7.25}
    summary["student"], summary["teacher"] = values | costs, {"network_evaluations": 3}
    summary["results"] = {"student": [
        template | {"metric": key, "name": f"{key}_named", "value": value, "title": f"title of {key}",
                    "features": "a | b"}
        for key, value in values.items()
    ]}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    card = ModelCard.load(export(run, tmp_path / "raw", "raw") / "README.md")
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        f"{key}_named": value for key, value in values.items()
    }
    assert [result.metric_name for result in card.data.eval_results] == [f"title of {key}" for key in keys]
    lines = card.text.splitlines()
    assert "|  | student | features | reference |" in lines  # the teacher was not evaluated
    for key, value in values.items():
        assert rf"| title of {key} ↓ | {value:.4g} | a \| b | Digits, 1,797 images |" in lines
    assert "| samples per second | 7.25 |  |  |" in lines and "side_by_side.png" not in card.content
    assert any(line.startswith("| weights | the last iterate") for line in lines)


def test_an_export_says_nothing_of_the_autoencoder_that_images_do_without(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    export(finished_run, tmp_path / "digits")
    assert "vae" not in "".join([*capfd.readouterr(), caplog.text])


def test_the_cards_code_runs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported.parent)
    names: dict[str, Any] = {}
    exec(ModelCard.load(exported / "README.md").text.split("```python\n")[1].split("```")[0], names)
    assert [image.size for image in names["images"]] == [(8, 8)] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "new"), "nowhere: no such file or folder: expected the folder of a finished run, a"),
        (("RUN", "RUN"), "already exists: give a new folder"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, str], message: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(["export", *(str(finished_run) if argument == "RUN" else argument for argument in arguments)])
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("onestep.export.export.write_card", killed)
        export(finished_run, tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
    assert export(finished_run, tmp_path / "digits").joinpath("README.md").is_file()


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(39, "Directory not empty")])
def test_a_place_that_cannot_be_written(
    error: Exception, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("onestep.export.export.write_card", fail)
    with pytest.raises(ValueError, match=f"digits could not be written, and nothing of it is left: .*{error.args[-1]}"):
        export(finished_run, tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file/digits could not be written"):
        export(finished_run, tmp_path / "file" / "digits")


def test_nothing_but_safetensors_is_read(exported: Path, tmp_path: Path) -> None:
    pipeline = OneStepPipeline.from_pretrained(exported)
    with pytest.raises(ValueError, match="safe_serialization=False, variant=None: this pipeline writes safetensors"):
        pipeline.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.iterdir()) == []
    pipeline.save_pretrained(tmp_path)
    weights = tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="diffusion_pytorch_model.bin, which can run code and is not opened"):
        OneStepPipeline.from_pretrained(tmp_path)
