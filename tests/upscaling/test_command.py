"""``onestep upscale``: its words, its refusals, and photographs from the command line to the files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.build.upscaling import _reads_whole, upscale
from onestep.commands import main
from onestep.commands.upscale import as_settings
from onestep.config import compose
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from tests.helpers.configs import configure, refused
from tests.helpers.upscaling import ODD_FILES, encoded, picture, write_odd_files

OPTIONS = {
    "model_channels": 8,
    "channel_mult": [1, 1, 1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "channels_per_head": 8,
}


def save(folder: Path, channels: int = 3, label_dim: int = 0, **settings: Any) -> Path:
    """The folder of a student of x2 that adds a few grey levels to the bicubic picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EDMDenoiser((channels, 16, 16), label_dim, architecture="EDM2UNet", options=OPTIONS, **settings)
    network.model.get_parameter("out_gain").data.fill_(0.1)
    generator = Generator(network, 1.0, start="image" if "image_condition" in settings else "noise")
    generator.upscale_factor = 2
    generator.save_pretrained(folder / "student")
    return folder / "student"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("student"), image_condition="residual")


@pytest.fixture
def student(saved: Path, tmp_path: Path) -> Path:
    """The folder of a student, in a folder of the test's own."""
    return Path(shutil.copytree(saved, tmp_path / "student"))


@pytest.mark.parametrize(
    "words, settings",
    [
        (["a.jpg", "b, c.png", "-o", "out"], ['output="out"', 'images=["a.jpg","b, c.png"]']),
        (["seed=1", "folder", "-c", "job", "-cd", "x", "-o", "o=[1]"],
         ["seed=1", "-c", "job", "-cd", "x", 'output="o=[1]"', 'images=["folder"]']),
        (['say "a".png', "end\\", "~/ä b.png"], ['images=["say \\"a\\".png","end\\\\","~/ä b.png"]']),
        (["+x=1", "hydra.run.dir=x"], ["+x=1", "hydra.run.dir=x"]),
    ],
)  # fmt: skip
def test_words_become_settings(words: list[str], settings: list[str]) -> None:
    assert as_settings(words) == settings
    if "output" in settings[0]:
        assert list(compose("upscale", [settings[-1]]).images) == [words[0], *words[1 : words.index("-o")]]


def test_a_file_whose_name_looks_like_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").touch()
    assert as_settings(["seed=1", "seed=2"]) == ["seed=2", 'images=["seed=1"]']
    for words, message in ((["-o"], "-o: expected a folder"), (["${oc.env:HOME}.png"], "give its folder instead")):
        with pytest.raises(ValueError, match=message):
            as_settings(words)


def configured(student: Path, *overrides: str) -> Any:
    photograph = student.parent / "photo.jpg"
    photograph.write_bytes(encoded(picture(width=40, height=30), "JPEG"))
    given = {override.partition("=")[0] for override in overrides}
    paths = {"images": f"[{photograph}]", "checkpoint": student, "output": student.parent / "out"}
    return configure("upscale", *(f"{key}={path}" for key, path in paths.items() if key not in given), *overrides)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["images=null"], "expected IMAGES: onestep upscale IMAGES... -o OUT"),
        (["output=null"], "expected -o OUT: "),
        (["checkpoint=null"], "expected checkpoint=...: "),
        (["images=[nowhere.png]"], "nowhere.png: no such file"),
        (["factor=0"], "factor=0: expected a number above 0 and at most 64"),
        (["tile=18"], "tile=18: this network halves its input down to 1/4: expected a multiple of 4"),
        (["overlap=12"], "overlap=12: expected at most half of the tile, 8"),
        (["context=6"], "context=6: this network halves its input down to 1/4: expected a multiple of 4"),
        (["color=green"], "color=green: expected one of none, adain, wavelet"),
        (["label=3"], "classes=[3]: this network has 0 classes"),
        (["weights=ema"], "weights=ema: they are those of a run, and checkpoint="),
        (["checkpoint=nowhere"], "nowhere holds no one-step generator"),
        (["checkpoint=fashion"], "checkpoint=fashion: its generator.json has no upscale_factor; expected a student of"),
    ],
)  # fmt: skip
def test_mistakes(overrides: list[str], message: str, student: Path) -> None:
    assert message in refused(configured(student, *overrides), upscale)
    assert not (student.parent / "out").exists()


def test_the_bundled_student(tmp_path: Path) -> None:
    """Its result has finer detail than the photograph enlarged, and reduced it is the photograph."""
    rows = np.linspace(0, 1, 24)
    waves = 128 + 60 * np.sin(9 * rows[:, None] + 4 * rows) * np.cos(25 * rows)
    photograph = Image.fromarray(np.repeat(waves[..., None], 3, 2).round().astype(np.uint8))
    photograph.save(tmp_path / "photo.png")
    assert upscale(configure("upscale", f"images=[{tmp_path / 'photo.png'}]", f"output={tmp_path / 'large.png'}"))
    result = Image.open(tmp_path / "large.png")
    assert result.size == (96, 96)
    reduced = np.asarray(result.resize((24, 24), Image.Resampling.BICUBIC), float)
    assert np.abs(reduced - np.asarray(photograph, float)).mean() < 3
    enlarged = np.asarray(photograph.resize((96, 96), Image.Resampling.BICUBIC), float)
    detail, smooth = (np.abs(np.diff(x, 2, axis=0)).mean() for x in (np.asarray(result, float), enlarged))
    assert detail > 1.3 * smooth


def test_students_of_other_kinds(tmp_path: Path) -> None:
    folder = save(tmp_path / "a")
    assert "its network takes no condition, expected image" in refused(configured(folder), upscale)
    folder = save(tmp_path / "b", label_dim=4, image_condition="input")
    assert refused(configured(folder), upscale).startswith("label=null: this student has 4 classes")
    assert upscale(configured(folder, "label=2"))["written"] == 1
    folder = save(tmp_path / "c", channels=4, image_condition="input")
    assert "its samples are latents" in refused(configured(folder), upscale)


def test_a_folder_of_odd_files(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    process_as_it_was: None,
) -> None:  # fmt: skip
    """It ends with each written or named, and the exit code says that some are not; a second start keeps the others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["onestep"])
    write_odd_files(tmp_path / "in")
    (tmp_path / "in" / "notes.txt").touch()
    refused_files = [name for name, (_, expected) in ODD_FILES.items() if isinstance(expected, str)]
    number = len(ODD_FILES) - len(refused_files)
    words = ["upscale", "in", f"checkpoint={student}", "-o", "out", "device=cpu", "color=wavelet"]
    for written, kept in ((number, 0), (0, number)):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which Hydra's start sets
        with pytest.raises(SystemExit) as caught:
            main(words)
        message = str(caught.value.code)
        assert message.startswith(
            f"error: {len(refused_files)} of {len(ODD_FILES)} photographs could not be upscaled: "
        )
        assert "\n" not in message and all(f"in/{name}: " in message for name in refused_files)
        printed = capsys.readouterr().out
        assert f"'written': {written},\n    'kept': {kept},\n" in printed
        assert "1 files without the suffix of a photograph: notes.txt" in printed
    assert len(list((tmp_path / "out").iterdir())) == number
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "student"}  # no log, no folder of Hydra
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as caught:
        main([*words, "seed=1"])
    assert "exists, of other settings or another photograph" in str(caught.value.code)


def test_the_picture_depends_on_the_seed_alone(student: Path, tmp_path: Path) -> None:
    """A network without statistics of a whole tile sees little beyond the overlap."""
    found = []
    for number, overrides in enumerate((["tile=64"], ["tile=96", "batch_size=1"], ["seed=1"])):
        output = tmp_path / f"{number}.png"
        upscale(configured(student, f"output={output}", "overlap=32", *overrides, *(["tile=64"] * (number == 2))))
        with Image.open(output) as image:
            assert image.size == (80, 60)
            found.append(np.asarray(image).astype(int))
    difference = np.abs(found[0] - found[1])
    assert difference.max() <= 2 and (difference > 1).mean() < 1e-3
    assert np.abs(found[0] - found[2]).mean() > 1


@pytest.mark.parametrize(
    ("architecture", "options", "expected"),
    [
        ("SongUNet", {"attn_resolutions": []}, True),  # group normalisation
        ("EDM2UNet", {"attn_resolutions": [4]}, True),
        ("EDM2UNet", {"attn_resolutions": [], "model_channels": 16}, False),  # fewer channels than a head has
    ],
)
def test_networks_that_read_whole_pictures(architecture: Any, options: dict[str, Any], expected: bool) -> None:
    small = {"model_channels": 64, "channel_mult": [1, 1], "num_blocks": 1}
    assert _reads_whole(EDMDenoiser((1, 8, 8), architecture=architecture, options=small | options)) == expected
