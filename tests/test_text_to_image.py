"""A text-to-image teacher from a folder to a distilled generator, and out again as a pipeline of plain diffusers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from omegaconf import DictConfig

from onestep.export import export
from onestep.networks.diffusers_schedule import VariancePreservingSchedule
from onestep.networks.pipeline_parts import TextEncoder
from onestep.training.distillation import distill
from onestep.training.log import read_log
from onestep.training.sampling import sample
from tests.test_train_and_sample import assert_same_checkpoint, distill_until_cycle_5
from tests.tiny_pipelines import SCHEDULERS

PROMPTS = ["a cat", "the sea", "red"]
SEEDS = [3, 4, 5, 6]
ONE_STEP = {"sd": [14.6146], "sdxl": [14.6146], "sd3": [1e9], "flux": [1e9]}
# Timesteps that are not the scheduler's own; t a quarter apart, for flow matching.
SD_TABLE = VariancePreservingSchedule(SCHEDULERS["sd"]()).sigmas
FOUR_STEPS = {
    "sd": [SD_TABLE[t].item() for t in (899, 700, 400, 10)],
    "sd3": [1e9, 3.0, 1.0, 1 / 3],
}
#: Runs the code of a model card as a stranger does, once for each prompt and seed.
STRANGER = """
import json, sys
import numpy as np

for code, prompts, output in json.loads(sys.argv[1]):
    drawn = []
    for seed, prompt in prompts:
        names = {}
        exec(code.replace("a photo of a cat", prompt).replace("manual_seed(0)", f"manual_seed({seed})"), names)
        drawn.append(names["images"][0])
    np.save(output, np.stack(drawn))
assert not [name for name in sys.modules if name.startswith("onestep")]
"""


@pytest.fixture(scope="session")
def text_config(
    pipelines: Callable[[str], Path],
    train_config: Callable[..., DictConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., DictConfig]:
    """The configuration of six small cycles with the pipeline of a kind, prompts and guidance, into a folder."""
    root = tmp_path_factory.mktemp("text")
    (root / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n")

    def build(kind: str, output: Path, *overrides: str, sigmas: list[float] | None = None) -> DictConfig:
        first, *later = sigmas or ONE_STEP[kind]
        return train_config(
            output, "experiment=text_to_image", f"teacher.path={pipelines(kind)}", f"data.path={root / 'prompts.txt'}",
            f"data.cache={root / 'cache'}", "teacher.guidance=3.0", "teacher.size=8", f"training.sigma_init={first}",
            f"training.later_sigmas={later}", "training.images=24", "training.batch_size=4",
            "evaluation.samples=4", "evaluation.grid=4", *overrides,
        )  # fmt: skip

    return build


def draw(run: Path, compose_config: Callable[..., DictConfig]) -> np.ndarray:
    """What sample.py draws of SEEDS [N, H, W, C], as floats in [0, 1]."""
    drawn: list[torch.Tensor] = []
    options = (f"run={run}", f"seed={SEEDS[0]}", f"count={len(SEEDS)}", "device=cpu", "save_to=nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onestep.training.sampling._write", lambda images, *_: drawn.append(images))
        sample(compose_config("sample", *options))
    return (drawn[0] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def card_code(folder: Path) -> str:
    return ModelCard.load(folder / "README.md").text.split("```python\n")[1].split("```")[0]


CASES = [(kind, 1) for kind in ONE_STEP] + [(kind, 4) for kind in FOUR_STEPS]


@pytest.fixture(scope="session")
def exported(
    text_config: Callable[..., DictConfig],
    compose_config: Callable[..., DictConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, int], tuple[Path, np.ndarray, np.ndarray]]:
    """For each case the exported folder, what sample.py draws, and what plain diffusers draws of the same seeds."""
    root = tmp_path_factory.mktemp("exported")
    told, ours = [], {}
    for kind, steps in CASES:
        run, folder = root / f"{kind}_{steps}_run", root / f"{kind}_{steps}"
        sigmas = FOUR_STEPS[kind] if steps == 4 else None
        distill(text_config(kind, run, "training.images=8", "optimizer.generator.lr=1e-2", sigmas=sigmas))
        export(run, folder)
        ours[kind, steps] = draw(run, compose_config)
        code = card_code(folder).replace(").images", '    output_type="np",\n).images')
        told.append([code, [(seed, PROMPTS[seed % len(PROMPTS)]) for seed in SEEDS], f"{folder}.npy"])
    stranger = [sys.executable, "-c", STRANGER, json.dumps(told)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(stranger, cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return {
        (kind, steps): (root / f"{kind}_{steps}", ours[kind, steps], np.load(root / f"{kind}_{steps}.npy"))
        for kind, steps in CASES
    }


@pytest.mark.parametrize(("kind", "steps"), CASES)
def test_plain_diffusers_draws_what_sample_draws(
    kind: str, steps: int, exported: dict[tuple[str, int], tuple[Path, np.ndarray, np.ndarray]]
) -> None:
    folder, ours, theirs = exported[kind, steps]
    assert ours.shape == theirs.shape == (len(SEEDS), 16, 16, 3)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-4)
    assert all(np.abs(theirs[i] - theirs[j]).max() > 0.05 for i in range(4) for j in range(i))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".txt"}
    card = ModelCard.load(folder / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-to-image", "diffusers")


def test_a_run_is_resumed_as_the_same_run(
    text_config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    distill(text_config("sd", straight))
    distill_until_cycle_5(monkeypatch, text_config("sd", resumed, "training.checkpoint_every=3"))
    monkeypatch.setattr(TextEncoder, "__call__", refuse)  # the embeddings are in the cache
    distill(text_config("sd", resumed, "training.checkpoint_every=3", "resume=auto"))
    assert_same_checkpoint(*(folder / "checkpoints" / "cycle_00000006" for folder in (straight, resumed)))
    losses = [line["loss"] for line in read_log(resumed / "log.jsonl") if "loss" in line]
    assert len(losses) == 6 and len(set(losses)) == 6


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("this must not be called")
