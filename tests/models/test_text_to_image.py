"""A text-to-image teacher from a folder to a distilled generator, and out again as a pipeline of plain diffusers."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from onestep.build.distillation import distill
from onestep.build.sampling import sample
from onestep.config import instantiate
from onestep.engine.log import read_log
from onestep.evaluation.writing import SampleWriter
from onestep.export.export import export
from onestep.models.diffusers.schedule import VariancePreservingSchedule
from onestep.models.diffusers.text_encoder import TextEncoder
from onestep.models.generator import Generator
from tests.helpers.configs import Configure, configure, tiny_config
from tests.helpers.killed_run import assert_same_checkpoint, distill_until_iteration_5
from tests.helpers.tiny_pipelines import SCHEDULERS

PROMPTS = ["a cat", "the sea", "red"]
SEEDS = [3, 4]
WEIGHTS = "diffusion_pytorch_model.safetensors"
ONE_STEP = {"sd": [14.6146], "sdxl": [14.6146], "sd3": [1e9], "flux": [1e9]}
# Timesteps that are not the scheduler's own; t a quarter apart, for flow matching.
SD_TABLE = VariancePreservingSchedule(SCHEDULERS["sd"]()).sigmas
FOUR_STEPS = {"sd": [SD_TABLE[t].item() for t in (899, 700, 400, 10)], "sd3": [1e9, 3.0, 1.0, 1 / 3]}


@pytest.fixture(scope="session")
def text_config(pipelines: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """The configuration of six small iterations with the pipeline of a kind, prompts and guidance, into a folder."""
    root = tmp_path_factory.mktemp("text")
    (root / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n")

    def build(kind: str, output: Path, *overrides: str, sigmas: list[float] | None = None) -> DictConfig:
        first, *later = sigmas or ONE_STEP[kind]
        return tiny_config(
            output, "experiment=text_to_image", f"teacher.path={pipelines(kind)}", f"data.path={root / 'prompts.txt'}",
            f"teacher.pipeline.cache={root / 'cache'}",
            "teacher.guidance=3.0", "teacher.size=8", f"generator.sigma_init={first}",
            f"generator.later_sigmas={later}", "training.total_images=24", "training.batch_size=4",
            "evaluation.samples=4", "evaluation.grid=4", "divergence=reverse_kl", "discriminator=none",
            "generator.gan_weight=0", "optimizer.generator.lr=1e-2", *overrides,
        )  # fmt: skip

    return build


def draw(run: Path) -> np.ndarray:
    """What sample.py draws of SEEDS [N, H, W, C], as floats in [0, 1]."""
    drawn: list[torch.Tensor] = []
    seeds, place = (f"seed={SEEDS[0]}", f"count={len(SEEDS)}"), run.parent / "drawn"
    options = (f"run={run}", *seeds, f"save_to={place}", "format=npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleWriter, "finish", lambda _, images, seeds: drawn.append(images))
        sample(configure("sample", *options))
    return (drawn[0] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def card_code(folder: Path) -> str:
    return ModelCard.load(folder / "README.md").text.split("```python\n")[1].split("```")[0]


#: Kind, steps, and whether the student is a LoRA.
CASES = [("sd", 1, True), ("sdxl", 1, False), ("sd3", 1, True), ("flux", 1, True), ("sd", 4, False), ("sd3", 4, False)]
LORA = ("lora=attention", "lora.rank=4", "lora.alpha=8")
Case = tuple[str, int, bool]


def draw_as_stranger(code: str, folder: Path) -> np.ndarray:
    """What the code of a model card in ``folder`` draws for SEEDS, each with its prompt, without this package."""
    code = code.replace("\n).images", '\n    output_type="np",\n).images')
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module in [name for name in sys.modules if name.partition(".")[0] == "onestep"]:
            patch.setitem(sys.modules, module, None)  # an import fails
        for seed in SEEDS:
            names: dict[str, Any] = {}
            prompt = PROMPTS[seed % len(PROMPTS)]
            exec(code.replace("a photo of a cat", prompt).replace("manual_seed(0)", f"manual_seed({seed})"), names)
            drawn.append(names["images"][0])
    return np.stack(drawn)


def lora_code(code: str, teacher: Path) -> str:
    """The card's code with its pipeline made as the comment behind it says: of the teacher and the change alone."""
    code, comment = code.split("# The same generator from")
    making = "\n".join(line.removeprefix("# ") for line in comment.splitlines()[1:]).replace(
        "<the teacher>", str(teacher)
    )
    before, pipeline, after = code.partition("pipeline = DiffusionPipeline")
    assert pipeline
    return f"{before}{making}\n{after.split(chr(10), 1)[1]}"


@pytest.fixture(scope="session")
def straight_runs(text_config: Configure, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished distillations of six iterations of tiny teachers by LoRA; not to be written to."""
    runs = {kind: tmp_path_factory.mktemp("straight") / kind for kind in ("sd", "sd3", "flux")}
    for kind, folder in runs.items():
        distill(text_config(kind, folder, *LORA))
    return runs


def stand_in(config: DictConfig) -> None:
    """What a finished run leaves for sample.py and the export, with the teacher, changed at random, as its student."""
    run = Path(config.output)
    run.mkdir()
    OmegaConf.save(config, run / "config.yaml", resolve=True)
    denoiser = copy.deepcopy(instantiate(config.teacher)).set_guidance(1.0)
    random = torch.Generator().manual_seed(1)
    for parameter in denoiser.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=random)
    settings = config.generator
    steps = settings.sigma_init, list(settings.later_sigmas)
    Generator(denoiser, *steps, renoise=settings.renoise).save_pretrained(run / "generator")
    side = {"network_evaluations": 1, "samples": 4, "samples_per_second": 1.0}
    summary = {"teacher": side, "student": side, "images_seen": 0, "seconds": 0, "results": {}}
    (run / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="session")
def exported(
    text_config: Configure,
    pipelines: Callable[[str], Path],
    straight_runs: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Case, tuple[Path, np.ndarray]]:
    """For each case the exported folder, and what sample.py draws; plain diffusers' drawings lie beside the folder."""
    root = tmp_path_factory.mktemp("exported")
    results = {}
    for case in CASES:
        kind, steps, lora = case
        run, folder = root / f"{kind}_{steps}_run", root / f"{kind}_{steps}"
        sigmas = FOUR_STEPS[kind] if steps == 4 else None
        if lora:
            run = straight_runs[kind]
        else:
            stand_in(text_config(kind, run, sigmas=sigmas))
        export(run, folder)
        results[case] = (folder, draw(run))
        code = card_code(folder)
        np.save(root / f"{kind}_{steps}.npy", draw_as_stranger(code, root))
        if lora:
            np.save(root / f"{kind}_{steps}_lora.npy", draw_as_stranger(lora_code(code, pipelines(kind)), root))
    return results


@pytest.mark.parametrize("case", CASES)
def test_plain_diffusers_draws_what_sample_draws(
    case: Case, exported: dict[Case, tuple[Path, np.ndarray]], pipelines: Callable[[str], Path]
) -> None:
    folder, ours = exported[case]
    theirs = np.load(f"{folder}.npy")
    assert ours.shape == theirs.shape == (len(SEEDS), 16, 16, 3)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-4)
    assert all(np.abs(theirs[i] - theirs[j]).max() > 0.05 for i in range(len(SEEDS)) for j in range(i))
    network = "unet" if case[0].startswith("sd") and case[0] != "sd3" else "transformer"
    before, after = (load_file(place / network / WEIGHTS) for place in (pipelines(case[0]), folder))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert (folder / "pytorch_lora_weights.safetensors").exists() == case[2]
    if case[2]:
        np.testing.assert_allclose(np.load(f"{folder}_lora.npy"), ours, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_plain_diffusers_takes_deterministic_steps(kind: str, text_config: Configure, tmp_path: Path) -> None:
    stand_in(text_config(kind, tmp_path / "run", "generator.renoise=deterministic", sigmas=FOUR_STEPS[kind]))
    export(tmp_path / "run", tmp_path / "exported")
    ours, theirs = draw(tmp_path / "run"), draw_as_stranger(card_code(tmp_path / "exported"), tmp_path)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-4)


def test_the_folder_is_a_pipeline_with_a_card(exported: dict[Case, tuple[Path, np.ndarray]]) -> None:
    for (kind, *_), (folder, _) in exported.items():
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".txt", ".png"}
        card = ModelCard.load(folder / "README.md")
        assert (card.data.pipeline_tag, card.data.library_name) == ("text-to-image", "diffusers")
        (teacher,) = (line for line in card.text.splitlines() if line.startswith("| teacher |"))
        assert teacher.startswith(f"| teacher | {kind}, guidance 3,")


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_a_run_is_resumed_as_the_same_run(
    kind: str, straight_runs: dict[str, Path], text_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*LORA, "training.checkpoint_every=3")
    distill_until_iteration_5(monkeypatch, text_config(kind, tmp_path, *overrides))
    monkeypatch.setattr(TextEncoder, "__call__", refuse)  # the embeddings are in the cache
    distill(text_config(kind, tmp_path, *overrides, "resume=auto"))
    assert_same_checkpoint(
        *(folder / "checkpoints" / "iteration_00000006" for folder in (straight_runs[kind], tmp_path))
    )
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line]
    assert len(losses) == 6 and len(set(losses)) == 6


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("this must not be called")
