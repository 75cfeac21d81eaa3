"""The recipes of text-to-image run with a tiny network in place of the big one, and refuse what cannot be."""

import io
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file

from onestep.build.distillation import build_settings, distill
from onestep.build.sampling import sample
from onestep.engine.log import read_log
from onestep.models.diffusers.export import match_scheduler
from onestep.models.diffusers.schedule import VariancePreservingSchedule, tabulated_timesteps
from onestep.models.generator import Generator
from tests.helpers.configs import Configure, configure, tiny_config
from tests.helpers.diffusers_models import build_denoiser
from tests.helpers.killed_run import assert_same_checkpoint, distill_until_iteration_5
from tests.helpers.tiny_pipelines import SCHEDULERS

RECIPES = {  # the tiny pipeline, and the generator's steps
    "sd15_f_distill": ("sd", 1),
    "sd15_dmd2": ("sd", 1),
    "sdxl_f_distill": ("sdxl", 4),
    "sdxl_dmd2": ("sdxl", 4),
    "sd3_f_distill": ("sd3", 4),
    "sd3_dmd2": ("sd3", 4),
    "sd15_tdm": ("sd", 4),
    "sd3_tdm": ("sd3", 4),
}
FROM_PROMPTS = ("sd15_tdm", "sd3_tdm")  # without a discriminator
ON_ONE_CARD = {
    "sd15_sid_lsg": ("sd", 1),
    "sdxl_dmd2_lora": ("sdxl", 4),
    "sd35_dmd_lora": ("sd3", 4),
    "flux_dmd_lora": ("flux", 4),
}
Pipelines = Callable[[str], Path]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file of three prompts with images."""
    file, rows = tmp_path_factory.mktemp("images") / "data.parquet", []
    for seed in range(3):
        encoded = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(encoded, "PNG")
        rows.append(encoded.getvalue())
    pyarrow.parquet.write_table(pa.table({"prompt": ["a cat", "the sea", "red"], "image": rows}), file)
    return file


@pytest.fixture
def recipe(pipelines: Pipelines, images: Path, tmp_path: Path) -> Callable:
    def build(experiment: str, kind: str, *overrides: str) -> DictConfig:
        return tiny_config(
            tmp_path / "run", f"experiment={experiment}", f"teacher.path={pipelines(kind)}", "teacher.size=8",
            f"data.path={images}", f"teacher.pipeline.cache={images.parent / 'cache'}", "training.total_images=4",
            "training.batch_size=2", "evaluation.samples=2", "evaluation.grid=2", "training.evaluate_every=9",
            "training.checkpoint_every=9", *overrides,
        )  # fmt: skip

    return build


@pytest.mark.parametrize("experiment", RECIPES)
def test_a_recipe_takes_two_steps(experiment: str, recipe: Configure, tmp_path: Path) -> None:
    kind, steps = RECIPES[experiment]
    summary = distill(recipe(experiment, kind))
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert len(lines) == 2
    losses = {name for name in lines[1] if name.endswith("_loss")}
    assert all(line["generator_gradient"] > 0 for line in lines)
    if experiment in FROM_PROMPTS:
        assert losses == {"fake_score_loss"}
    else:
        assert losses == {"fake_score_loss", "discriminator_loss", "adversarial_loss"}
        assert lines[0]["adversarial_loss"] == pytest.approx(np.log(2), rel=0.01)  # a fresh discriminator knows nothing
    assert summary["student"]["network_evaluations"] == steps
    generator = Generator.from_pretrained(tmp_path / "run" / "generator")
    match_scheduler(generator)  # diffusers can draw with it
    assert generator.denoiser.guidance == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("experiment", FROM_PROMPTS)
def test_tdm_is_resumed_exported_and_drawn(experiment: str, recipe: Configure, tmp_path: Path) -> None:
    """Its LoRA students, the fake score's vectors of the steps, and its deterministic steps."""
    kind, _ = RECIPES[experiment]
    options = ("training.total_images=12", "training.checkpoint_every=3")
    straight, resumed = (recipe(experiment, kind, *options, f"output={tmp_path / name}") for name in ("whole", "parts"))
    distill(straight)
    with pytest.MonkeyPatch.context() as patch:
        distill_until_iteration_5(patch, resumed)
    distill(recipe(experiment, kind, *options, f"output={tmp_path / 'parts'}", "resume=auto"))
    last = "checkpoints/iteration_00000006"
    assert_same_checkpoint(tmp_path / "whole" / last, tmp_path / "parts" / last)
    vectors = load_file(tmp_path / "whole" / last / "fake_score.safetensors")["step_embedding.weight"]
    assert vectors.shape[0] == 4 and vectors.any()
    generator = Generator.from_pretrained(tmp_path / "whole" / "generator")
    assert (generator.renoise, generator.network_evaluations) == ("deterministic", 4)
    scheduler, _ = match_scheduler(generator)
    assert not scheduler.config.get("stochastic_sampling") and type(scheduler) is not diffusers.LCMScheduler


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ON_ONE_CARD)
def test_a_recipe_of_one_card_takes_two_steps(experiment: str, recipe: Configure, tmp_path: Path) -> None:
    kind, steps = ON_ONE_CARD[experiment]
    summary = distill(recipe(experiment, kind, "training.accumulation=1", "gradient_checkpointing=false"))
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert len(lines) == 2 and all(line["generator_gradient"] > 0 for line in lines)
    adversarial = {"adversarial_loss", "discriminator_loss"} if experiment == "sdxl_dmd2_lora" else set()
    assert {name for name in lines[1] if name.endswith("_loss")} == {"fake_score_loss", *adversarial}
    assert summary["student"]["network_evaluations"] == steps
    match_scheduler(Generator.from_pretrained(tmp_path / "run" / "generator"))


# How the levels of a generator are those of a scheduler.


def test_levels_of_the_table_are_whole_timesteps() -> None:
    schedule = VariancePreservingSchedule(SCHEDULERS["sd"]())
    chosen = [999, 749, 499, 249, 1]
    assert tabulated_timesteps(schedule, [schedule.sigmas[t].item() for t in chosen]) == chosen
    with pytest.raises(ValueError, match=r"sigma=14.0: .* nearest are 13.9\d+ \(timestep 991\) and 14.0\d+ \(timestep"):
        tabulated_timesteps(schedule, [14.0])
    with pytest.raises(ValueError, match="sigma=0.029"):  # timestep 0
        tabulated_timesteps(schedule, [schedule.sigmas[0].item()])


@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_first_level_is_the_schedulers_last(zero_snr: bool) -> None:
    """14.6146 of Stable Diffusion, 4096 without terminal signal (arXiv 2305.08891)."""
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"} if zero_snr else {}
    teacher = build_denoiser("sd", diffusers.DDIMScheduler.from_config(SCHEDULERS["sd"]().config, **options))
    settings, _ = build_settings(configure("train", "experiment=text_to_image", "teacher.path=x"), teacher)
    assert settings.sigma_init == pytest.approx(4096 if zero_snr else 14.6146, rel=1e-5)
    assert tabulated_timesteps(teacher.schedule, [settings.sigma_init]) == [999]


@pytest.mark.parametrize(
    ("timesteps", "arguments"),
    [
        ([999], {}),
        ([399], {}),  # the table ends there
        ([999, 749, 499, 249], {}),
        ([899, 674, 449, 224], {}),
        ([999, 700], {"timesteps": [999, 700]}),
    ],
)
def test_the_scheduler_takes_these_steps(timesteps: list[int], arguments: dict[str, list[int]]) -> None:
    denoiser = build_denoiser("sd", SCHEDULERS["sd"]())
    first, *later = (VariancePreservingSchedule(SCHEDULERS["sd"]()).sigmas[t].item() for t in timesteps)
    scheduler, given = match_scheduler(Generator(denoiser, first, later))
    assert given == arguments
    scheduler.set_timesteps(**given) if given else scheduler.set_timesteps(len(timesteps))
    assert scheduler.timesteps.tolist() == timesteps
    teacher = SCHEDULERS["sd"]()
    assert (scheduler.alphas_cumprod == teacher.alphas_cumprod[: len(scheduler.alphas_cumprod)]).all()
    skip, out = scheduler.get_scalings_for_boundary_condition_discrete(timesteps[-1])
    assert skip < 1e-8 and out == pytest.approx(1, abs=1e-8)


# What is refused, before anything is trained or drawn.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.image_column=null",), "this data has none: use data=... with images .* data.image_column="),
        (("generator.sigma_init=14.0",), "sigma=14.*noise levels of integer timesteps only"),
        (("objective=dmd", "data.image_column=null"), "support classes and images, not prompts: .*objective=dmd2"),
        (("teacher.pipeline.size=6",), r"does not fit the data: resolution \(8, 8\) against \(6, 6\)"),
        (("teacher.pipeline.path=nowhere/at-all",), "no pipeline of diffusers at 'nowhere/at-all'"),
    ],
)
def test_what_is_refused(
    overrides: tuple[str, ...], message: str, recipe: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        distill(recipe("text_to_image", "sd", "data.image_column=image", *overrides))


def test_prompts_for_a_network_that_takes_none(finished_run: Path, tmp_path: Path) -> None:
    options = (f"run={finished_run}", "count=1", f"save_to={tmp_path}", "prompts=[a cat]")
    with pytest.raises(ValueError, match="prompts=.*this network takes no prompts"):
        sample(configure("sample", *options))
