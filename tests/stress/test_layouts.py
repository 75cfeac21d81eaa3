"""The same losses and weights however processes split a batch and shard the networks: real ones, talking by gloo."""

from functools import partial
from pathlib import Path

import pytest

from onestep.engine.log import read_log
from tests.helpers.configs import CPU
from tests.helpers.harness import largest_difference, run_together, start_workers
from tests.stress import worker
from tests.stress.conftest import Differs

TOLERANCE = {"float64": 1e-5, "float32": 1e-3}
ITERATIONS = 20  # of a full comparison
SETTINGS = (
    CPU, "experiment=digits", "precision=no", "process_timeout=300", f"training.total_images={16 * ITERATIONS}",
    "training.batch_size=16",
    "training.warmup_images=0", "training.log_every=1", f"training.checkpoint_every={ITERATIONS}",
)  # fmt: skip
LAYOUTS = {
    "two processes": (2, ()),
    "two with micro-batches": (2, ("training.accumulation=4",)),
    "two with sharded networks": (2, ("shard=true",)),
    "two with sharded networks and micro-batches": (
        2,
        ("shard=true", "training.accumulation=2", "gradient_checkpointing=true"),
    ),
}
# Below the gradients' norms and largest entries.
CLIPPED = (
    "clip.critics._target_=onestep.engine.clipping.Entries", "clip.critics.largest=0.01", "clip.generator.largest=0.1",
)  # fmt: skip
EDM2 = (
    "{_target_:onestep.models.edm.denoiser.EDMDenoiser,image_shape:[1,8,8],label_dim:10,architecture:EDM2UNet,options:"
    "{model_channels:8,channel_mult:[1,2],num_blocks:1,attn_resolutions:[4],channels_per_head:8}}"
)
METHODS = {
    "f_distill": (),
    # Its weights are normalised by each process's own rows, and its gains are not sharded.
    "edm2": (f"generator.network={EDM2}", f"fake_score.network={EDM2}", "optimizer.generator.lr=1e-2"),
    "frozen": ("generator.frozen=[*.conv*.weight]",),
    "uni_instruct": ("objective=uni_instruct", "discriminator=shared_encoder", "generator.later_sigmas=[0.5,0.2]"),
}


def train(folder: Path, dtype: str, processes: int, *overrides: str) -> Path:
    for process in start_workers(processes, dtype, *SETTINGS, f"output={folder}", *overrides):
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    return folder


def assert_same(one: Path, other: Path, dtype: str, iterations: int = ITERATIONS) -> float:
    difference = largest_difference(one, other)
    assert difference <= TOLERANCE[dtype]
    left, right = (read_log(run / "log.jsonl") for run in (one, other))
    assert (
        [line["iteration"] for line in left] == [line["iteration"] for line in right] == list(range(1, iterations + 1))
    )
    for ours, theirs in zip(left, right, strict=True):
        assert ours.keys() == theirs.keys() and len(ours) > 10
        assert ours == pytest.approx(theirs, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    return difference


def test_the_hardest_layout_is_the_same_run(tmp_path: Path) -> None:
    """Which has all of the others' parts; for a few iterations. The one process is the test's own."""
    few, one, other = (*SETTINGS, "training.total_images=32", *CLIPPED), tmp_path / "one", tmp_path / "other"
    processes, overrides = LAYOUTS["two with sharded networks and micro-batches"]
    alone = partial(worker.train, "float64", *few, f"output={one}")
    run_together(processes, worker.train, "float64", *few, f"output={other}", *overrides, meanwhile=alone)
    assert processes == 2
    assert_same(one, other, "float64", iterations=2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", METHODS)
def test_every_layout_is_the_same_run(method: str, dtype: str, differs: Differs, tmp_path: Path) -> None:
    one = train(tmp_path / "one", dtype, 1, *METHODS[method])
    for name, (processes, overrides) in LAYOUTS.items():
        other = train(tmp_path / name, dtype, processes, *overrides, *METHODS[method])
        differs(f"{method}, {dtype}, {name}", assert_same(one, other, dtype))


@pytest.mark.slow
def test_other_processes_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    """From one process to two with sharded networks, and back."""
    constant_rate = "training.final_lr=1"  # whatever the length of the run
    one = train(tmp_path / "one", "float64", 1, constant_rate)
    for processes, iterations, overrides in ((1, 6, ()), (2, 13, ("shard=true",)), (1, ITERATIONS, ())):
        part = (f"training.total_images={16 * iterations}", "resume=auto", constant_rate, *overrides)
        train(tmp_path / "other", "float64", processes, *part)
    assert_same(one, tmp_path / "other", "float64")
