"""Short trainings in float64 and what they give: ``python -m tests.helpers.recordings`` records it.

In float64 every machine computes the same to far more digits than are compared, so that one recording serves all.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onestep.build.distillation import distill
from onestep.build.pretraining import pretrain
from onestep.engine.log import read_log
from onestep.models import generator
from onestep.models.diffusers.pipeline import DTYPES
from tests.helpers.configs import NO_DIAGNOSIS, TINY, TWO_ITERATIONS, as_given, configure
from tests.helpers.diffusers_models import UNET_BLOCKS, randomize
from tests.helpers.harness import run_together
from tests.helpers.paths import REFERENCE

RECORDINGS = REFERENCE / "recordings.json"

SMALL = (*TINY, *TWO_ITERATIONS, "metrics=[]", "training.total_images=24", "training.batch_size=8",
         "training.checkpoint_every=3")  # fmt: skip
OF_TRAINING = (
    "clip.generator=null",
    "clip.critics=null",
    "optimizer.generator.lr=2e-3",
    "optimizer.fake_score.lr=2e-3",
    "optimizer.discriminator.lr=4e-3",
)
PRESETS = ("f_distill", "uni_instruct", "sds", "diff_instruct", "vsd", "dmd", "dmd2", "sim", "sid", "sida", "sid_lsg")
PAIRS = ("pairs.count=16", "pairs.batch_size=8", "pairs.cache={folder}/pairs")
LORA = ("experiment=digits", "teacher=diffusers", "teacher.path={folder}/pipeline",
        "sampler=euler", "generator.sigma_init=10.0",
        "lora=attention", "lora.rank=2", "lora.students=[generator,fake_score]")  # fmt: skip
CASES: dict[str, tuple[str, ...]] = {
    **{preset: (f"objective={preset}", *(PAIRS if preset == "dmd" else ())) for preset in PRESETS},
    "f_distill_forward_kl": ("objective=f_distill", "divergence=forward_kl",),
    "f_distill_shared_encoder": ("objective=f_distill", "discriminator=shared_encoder",),
    "f_distill_accumulation": ("objective=f_distill", "training.accumulation=2",),
    "f_distill_two_processes": ("objective=f_distill",),
    "f_distill_few_steps": ("objective=f_distill", "generator.later_sigmas=[0.5,0.2]",),
    "f_distill_lora": LORA,
    "uni_instruct_published_gradient": ("objective=uni_instruct", "objective.exact_ratio_gradient=false"),
    "uni_instruct_accumulation": ("objective=uni_instruct", "training.accumulation=2", "discriminator=shared_encoder"),
    "dmd_accumulation": ("objective=dmd", "training.accumulation=2", *PAIRS),
    "dmd2_few_steps": ("objective=dmd2", "generator.later_sigmas=[0.5]", "training.accumulation=2"),
    "sida_separate": ("objective=sida", "schedule=separate"),
    "sida_two_processes": ("objective=sida", "training.accumulation=2"),
    "pretraining": ("training.evaluate_every=100",),
}  # fmt: skip


@contextmanager
def double_precision() -> Iterator[None]:
    """Context in which all networks compute in float64, also loaded ones and those cast to float32."""
    load_denoiser = generator.load_denoiser
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(nn.Module, "float", nn.Module.double)
        patch.setattr("onestep.models.loading.load_denoiser", lambda folder: load_denoiser(folder).double())
        patch.setitem(DTYPES, "float32", torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def save_pipeline(folder: Path) -> None:
    """A tiny class-conditional UNet2DModel of the digits' shape with random weights."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = diffusers.UNet2DModel(8, 1, 1, num_class_embeds=10, **UNET_BLOCKS, **blocks)
    diffusers.DDPMPipeline(randomize(unet), diffusers.DDPMScheduler()).save_pretrained(folder)


def train(name: str, folder: Path) -> None:
    """Run a case into ``folder/run``."""
    overrides = [override.format(folder=folder) for override in CASES[name]]
    if name.endswith("lora") and not (folder / "pipeline").exists():
        save_pipeline(folder / "pipeline")
    with double_precision():
        of_distillation = (*OF_TRAINING, *NO_DIAGNOSIS)
        primary, own = ("pretrain", ("clip.network=null",)) if name == "pretraining" else ("train", of_distillation)
        config = as_given(configure(primary, *SMALL, *own, *overrides, f"output={folder / 'run'}"), overrides)
        (pretrain if name == "pretraining" else distill)(config)


def measure(run: Path) -> dict[str, Any]:
    """The log's lines, and norms and random projections of the last checkpoint's networks."""
    lines = [
        {key: value for key, value in line.items() if isinstance(value, float)} for line in read_log(run / "log.jsonl")
    ]
    networks = {}
    for file in sorted((run / "checkpoints").iterdir())[-1].glob("*.safetensors"):
        if "optimizer" in file.name:
            continue
        weights = torch.cat([value.double().flatten() for _, value in sorted(load_file(file).items())])
        random = torch.randn(4, len(weights), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        networks[file.stem] = [weights.norm().item(), *(random @ weights).tolist()]
    return {"log": [line for line in lines if line], "networks": networks}


def main(names: list[str]) -> None:
    """Record the cases; those of two processes separately."""
    found: dict[str, Any] = json.loads(RECORDINGS.read_text()) if RECORDINGS.exists() else {}
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            run_case(name, Path(folder))
            found[name] = measure(Path(folder) / "run")
    RECORDINGS.write_text(json.dumps(found, indent=1) + "\n")


def run_case(name: str, folder: Path) -> None:
    """Run a case, in two processes if its name has the suffix for it."""
    if name.endswith("two_processes"):
        run_together(2, train, name, folder)
    else:
        train(name, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
