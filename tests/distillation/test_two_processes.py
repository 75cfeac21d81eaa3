"""Two real processes have equal networks and different images, and the metrics of a single process."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onestep.build.distillation import distill
from onestep.distillation.loop import exit_step
from onestep.engine.log import read_log
from tests.helpers.configs import FEW_STEPS, TINY, configure
from tests.helpers.scripts import run_python

TWO_PROCESSES = """
import sys
from pathlib import Path

import torch
from onestep.config import compose
from safetensors.torch import save_file

from onestep.build.distillation import distill
from onestep.distillation import loop

output, *overrides = sys.argv[1:]
update_generator = loop.update_generator


def update_and_save(parts, iteration, batches, *inputs):
    diagnostics = update_generator(parts, iteration, batches, *inputs)
    rank = parts.run.accelerator.process_index
    networks = {f"{name}.{key}": value.contiguous() for name, network in parts.trained_networks.items()
                for key, value in network.state_dict().items()}
    networks |= {"x_generated": batches[0].x_generated.detach(), "exit_step": torch.tensor(len(batches[0].noises) - 1)}
    save_file(networks, Path(output) / f"{iteration}_{rank}.safetensors")
    return diagnostics


loop.update_generator = update_and_save
config = compose("train", overrides)
print(distill(config))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["f_distill", "dmd"])
def test_two_processes_stay_one_run(method: str, dmd: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    overrides = ("experiment=digits", *TINY, "training.total_images=48", "training.evaluate_every=2", *FEW_STEPS,
                 "evaluation.samples=33", "evaluation.interim_samples=17")  # fmt: skip
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "two.py"))
    finished = run_python(
        *launch, str(tmp_path), *overrides, f"output={tmp_path / 'run'}",
        *(dmd if method == "dmd" else ()),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    exit_steps = []
    for iteration in range(3):
        first, second = (load_file(tmp_path / f"{iteration}_{rank}.safetensors") for rank in range(2))
        assert first["x_generated"].shape == (8, 1, 8, 8)  # half of the batch each
        assert not torch.equal(first.pop("x_generated"), second.pop("x_generated"))
        assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []
        exit_steps.append(int(first["exit_step"]))  # equal in both processes, like everything except their images
    assert exit_steps == [exit_step(0, iteration, steps=3) for iteration in range(3)] and len(set(exit_steps)) > 1
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3]
    assert len(list((tmp_path / "pairs").glob("*/images_*"))) == (3 if method == "dmd" else 0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images_seen"] == 48
    # Each process has the features of half of the samples; the metrics are those of one process with all samples.
    one = distill(configure("train", *overrides, f"output={tmp_path / 'one'}", *(dmd if method == "dmd" else ())))
    interim = [read_log(tmp_path / run / "log.jsonl") for run in ("run", "one")]
    figures = [[line["fid"] for line in lines if "fid" in line] for lines in interim]
    figures = [[*fids, *(of[side][name] for side in ("teacher", "student") for name in ("fid", "recall"))]
               for fids, of in zip(figures, (summary, one), strict=True)]  # fmt: skip
    assert len(figures[0]) == 5 and figures[0] == pytest.approx(figures[1], rel=1e-4)
