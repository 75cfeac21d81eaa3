"""The comparison of runs: table and plot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from onestep.reports.compare import generate_all, read_runs, save_panels, to_table


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two finished runs and an unfinished one."""
    for index, name in enumerate(("experiment-mixture+objective-sid", "experiment-mixture+objective-sds")):
        run = tmp_path / name
        generator = Generator(EDMDenoiser((2, 1, 1), architecture="MLP", options={"width": 8, "depth": 1}), 1.0)
        generator.save_pretrained(run / "generator")
        side = {"modes": 25.0, "kl": 0.0421, "network_evaluations": 35, "samples": 10, "samples_per_second": 3.0}
        student = side | {"modes": 24.0 - index, "kl": 1.5, "network_evaluations": 1}
        of_metric = {"value": 1.0, "features": "none", "reference": "mixture"}
        records = [
            of_metric | {"metric": "modes", "name": "modes", "title": "modes covered", "higher_is_better": True},
            of_metric | {"metric": "kl", "name": "kl", "title": "KL divergence", "higher_is_better": False},
        ]
        summary = {"teacher": side, "student": student, "images_seen": 1000 + index, "seconds": 59.6}
        summary["results"] = {"student": records}
        (run / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "experiment-mixture+objective-vsd").mkdir()
    return tmp_path


def test_the_table(sweep: Path) -> None:
    assert to_table(read_runs(sweep)) == (
        "|  | modes covered ↑ | KL divergence ↓ | evaluations | images seen | seconds |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| teacher | 25 | 0.0421 | 35 |  |  |\n"
        "| objective=sds | 23 | 1.5 | 1 | 1,001 | 60 |\n"
        "| objective=sid | 24 | 1.5 | 1 | 1,000 | 60 |\n"
    )


def test_the_picture_has_a_panel_for_each_run(sweep: Path) -> None:
    save_panels(generate_all(read_runs(sweep), 50), sweep / "panels.png", columns=2)
    pixels = torch.from_numpy(np.array(Image.open(sweep / "panels.png").convert("L")))
    assert pixels.shape == (340, 600)
    for half in (pixels[:, :300], pixels[:, 300:]):
        assert (half < 128).float().mean() > 0.002  # frames, ticks and dots


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        read_runs(tmp_path)
