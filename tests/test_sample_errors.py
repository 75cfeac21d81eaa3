"""What a user of sample.py gets wrong is refused with the value and the way to mend it, and nothing is run."""

import re
from pathlib import Path

import pytest
from omegaconf import DictConfig

from onestep.build.sampling import sample
from onestep.models.generator import load_denoiser
from tests.helpers.configs import Configure, configure, refused


@pytest.fixture
def sample_config(tmp_path: Path) -> Configure:
    """The configuration of a small sampling into ``tmp_path``."""

    def build(*overrides: str) -> DictConfig:
        return configure("sample", "count=4", f"save_to={tmp_path / 'samples'}", *overrides)

    return build


@pytest.mark.parametrize(
    "override, expected",
    [
        ("precision=fp8", "precision=fp8: expected one of auto, no, bf16"),
        ("model=pupil", "model=pupil: expected one of student, teacher"),
        ("weights=latest", r"weights=latest: .* has ema, raw$"),
        ("format=jpeg", "format=jpeg: expected one of png, grid, npz"),
        ("count=0", "count=0: expected an integer of at least 1"),
        ("batch_size=0", "batch_size=0: expected an integer of at least 1"),
        ("classes=[3,10]", r"classes=\[3, 10\]: this network has 10 classes, numbered from 0"),
        ("classes=[-1]", r"classes=\[-1\]: expected a list of at least 1, each an integer of at least 0"),
        ("classes=[]", r"classes=\[\]: expected a list of at least 1, each an integer"),
        ("classes=3", "classes=3: expected a list of at least 1, each an integer"),
        ("seed=-2", "seed=-2: expected an integer of at least 0 and at most 4294967295"),
        ("seed=4294967293", "seed=4294967293 count=4 seed_ranges=1: got the seeds from 4294967293 to 4294967296, exp"),
        ("seed=18446744073709551616", "expected an integer of at least 0 and at most 4294967295"),
        ("seed_ranges=1073741825", "expected an integer of at least 1 and at most 10000"),
        ("checkpoint=elsewhere", "expected either run=.* or checkpoint="),
    ],
)
def test_sample_refuses(override: str, expected: str, sample_config: Configure, finished_run: Path) -> None:
    config = sample_config(f"run={finished_run}", override)
    assert re.search(expected, refused(config, sample))
    assert not Path(config.save_to).exists()


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([], "expected either run=.* or checkpoint="),
        (["run=no/such/run"], "run=no/such/run: it has no config.yaml"),
        (["checkpoint=no/such/generator"], "no/such/generator holds no one-step generator: expected generator.json"),
        (["model=teacher", "teacher=digits"], "model=teacher: expected run=..., or teacher=... and sampler=..."),
    ],
)
def test_sample_without_what_it_draws_from(overrides: list[str], expected: str, sample_config: Configure) -> None:
    with pytest.raises(ValueError, match=expected):
        sample(sample_config(*overrides))


def test_sample_scores_nothing_without_a_reference(sample_config: Configure, finished_run: Path) -> None:
    config = sample_config(f"checkpoint={finished_run / 'generator'}", "metrics=[fid]")
    with pytest.raises(ValueError, match=r"metrics=\['fid'\] .* give data=\.\.\. with images and features="):
        sample(config)


def test_a_run_that_has_not_finished_has_no_generator(sample_config: Configure, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("teacher: null\n")
    with pytest.raises(ValueError, match=r"generator holds no one-step generator: expected generator\.json"):
        sample(sample_config(f"run={tmp_path}"))


def test_weights_that_do_not_fit_their_config(finished_run: Path, tmp_path: Path) -> None:
    load_denoiser(finished_run / "generator").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_blocks": 1', '"num_blocks": 2'))
    with pytest.raises(ValueError, match=r"do not fit config\.json.* expected \("):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("present", ["000000.png", "samples.npz", "grid.png", "generator.json", "0/1.png"])
@pytest.mark.parametrize("format", ["png", "grid", "npz"])
def test_samples_are_not_put_beside_others(present: str, format: str, sample_config: Configure) -> None:
    config = sample_config("checkpoint=fashion", f"format={format}")
    place = Path(config.save_to, present)
    place.parent.mkdir(parents=True)
    place.write_text("as it was")
    with pytest.raises(ValueError, match=r"save_to=.*: it holds 1 other files, such as .*: give a new folder"):
        sample(config)
    assert [path for path in Path(config.save_to).rglob("*") if path.is_file()] == [place]
    assert place.read_text() == "as it was"


def test_samples_in_a_place_that_is_no_folder(sample_config: Configure, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, message in (
        (tmp_path / "file", "file is a file"),
        (tmp_path / "file" / "below", "file is a file"),
        ("/proc/onestep", "save_to=/proc/onestep: "),
    ):
        with pytest.raises(ValueError, match=message):
            sample(sample_config("checkpoint=fashion", f"save_to={place}"))
