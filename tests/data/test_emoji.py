"""The emoji as a data set of images and prompts: the bundled file, and the command that made it."""

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import emoji
from onestep.data.prompts import ParquetImages, read_prompts
from onestep.folders import asset_path

BUNDLED = asset_path("emoji/emoji.parquet")
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CLDR = Path("/usr/share/unicode/cldr/common")


def read(path: str) -> list[tuple[str, bytes]]:
    stored = ParquetImages(path, "image")
    return list(zip(read_prompts(path, "prompt"), (stored[row] for row in range(len(stored))), strict=True))


def test_the_bundled_emoji() -> None:
    rows = read(BUNDLED)
    assert len(rows) == 6136 and len({image for _, image in rows}) == 1591
    assert not [prompt for prompt, _ in rows if "skin tone" in prompt or "flag:" in prompt]
    images = dict(rows)
    heart = np.asarray(Image.open(io.BytesIO(images["red heart"])).convert("RGB"), int)
    assert heart.shape == (32, 32, 3) and heart[0, 0].tolist() == [255, 255, 255]  # on white
    red, green, blue = heart[16, 16]
    assert red > 200 and max(green, blue) < 100
    assert Counter(prompt for prompt, _ in rows)["face"] > 100  # many images of one keyword


def test_texts_that_are_left_out() -> None:
    assert all(map(emoji.is_left_out, ("\U0001f44b\U0001f3fd", "\U0001f1eb\U0001f1f7", "{")))
    assert not any(map(emoji.is_left_out, ("\U0001f44b", "\u2764", "\U0001f469\u200d\U0001f680")))


def test_names_of_cldr(tmp_path: Path) -> None:
    """The short name first, and no keyword twice."""
    for part, entries in {
        "annotations": '<annotation cp="x">b | a | c</annotation><annotation cp="x" type="tts">a</annotation>',
        "annotationsDerived": '<annotation cp="y" type="tts">d</annotation>',
    }.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "en.xml").write_text(f"<ldml><annotations>{entries}</annotations></ldml>")
    assert emoji.read_names(tmp_path) == {"x": ["a", "b", "c"], "y": ["d"]}


def test_absent_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["emoji", str(tmp_path / "out.parquet"), "--font", str(tmp_path / "none.ttf")])
    with pytest.raises(SystemExit, match="none.ttf is absent: install the two packages, or set --font and --cldr"):
        emoji.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not (FONT.is_file() and CLDR.is_dir()), reason="needs fonts-noto-color-emoji and unicode-cldr-core")
def test_the_font_draws_the_bundled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions of the font and of CLDR may differ in some."""
    monkeypatch.setattr(sys, "argv", ["emoji", str(tmp_path / "out.parquet")])
    emoji.main()
    drawn, bundled = set(read(str(tmp_path / "out.parquet"))), set(read(BUNDLED))
    assert len(drawn & bundled) > 0.8 * len(bundled)
