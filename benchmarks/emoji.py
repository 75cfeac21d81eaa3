"""Emoji with English prompts as a text-to-image data set: OUT, a .parquet file with the columns prompt and image.

    apt-get install fonts-noto-color-emoji unicode-cldr-core
    python -m benchmarks.emoji OUT.parquet [--font FILE] [--cldr FOLDER]

An image is a glyph of the font on white, 32 by 32 pixels, PNG. Its prompts are the short name and the keywords of
CLDR's English annotations, a row each, so that a keyword such as "cat" has several images. Skin tones and flags are
left out: the former are nearly equal images, and the names of the latter say nothing of how they look. The rows are in
random order, so that the first ones are a sample of all.
"""

import argparse
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from onestep.files import atomic_file

SIDE = 32
FONT_SIZE = 109  # the only one of the font's bitmaps
SKIN_TONES = range(0x1F3FB, 0x1F400)
FLAGS = (range(0x1F1E6, 0x1F200), range(0xE0020, 0xE0080))  # letters of countries, and of their parts
EMOJI_STYLE = "\ufe0f"


def read_names(folder: Path) -> dict[str, list[str]]:
    """The English short name and the other keywords of each text that CLDR annotates, in the order of its files."""
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for part in ("annotations", "annotationsDerived"):
        for entry in ElementTree.parse(folder / part / "en.xml").iter("annotation"):
            text, content = entry.attrib["cp"], (entry.text or "").strip()
            if entry.get("type") == "tts":
                names[text] = content
            else:
                keywords[text] = [keyword.strip() for keyword in content.split("|")]
    return {text: list(dict.fromkeys([name, *keywords.get(text, [])])) for text, name in names.items()}


def is_left_out(text: str) -> bool:
    """True for skin tones, flags, and text of one byte a character, such as brackets."""
    codes = [ord(letter) for letter in text]
    return max(codes) < 0x80 or any(code in group for code in codes for group in (SKIN_TONES, *FLAGS))


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The glyph of ``text`` on white, RGB; None if the font has no single coloured glyph for it."""
    if font.getlength(text) != font.getlength("\U0001f600"):  # of one glyph
        return None
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    side = max(right - left, bottom - top)
    canvas = Image.new("RGB", (side, side), "white")
    place = ((side - right + left) // 2 - left, (side - bottom + top) // 2 - top)
    ImageDraw.Draw(canvas).text(place, text, font=font, embedded_color=True)
    small = canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return None if np.ptp(np.asarray(small)) == 0 else small


def rendered(font: Path, cldr: Path) -> Iterator[tuple[list[str], Image.Image]]:
    """The prompts and the image of each emoji; of equal images, the first."""
    face = ImageFont.truetype(str(font), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    seen: set[bytes] = set()
    for text, prompts in read_names(cldr).items():
        if is_left_out(text):
            continue
        image = render(text, face) or render(text + EMOJI_STYLE, face)
        if image is not None and image.tobytes() not in seen:
            seen.add(image.tobytes())
            yield prompts, image


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--font", type=Path, default=Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
    parser.add_argument("--cldr", type=Path, default=Path("/usr/share/unicode/cldr/common"))
    options = parser.parse_args()
    for place in (options.font, options.cldr / "annotations" / "en.xml"):
        if not place.is_file():
            raise SystemExit(f"error: {place} is absent: install the two packages, or set --font and --cldr")
    emoji = [(prompts, encode(image)) for prompts, image in rendered(options.font, options.cldr)]
    rows = [(prompt, image) for prompts, image in emoji for prompt in prompts]
    order = np.random.RandomState(0).permutation(len(rows))
    table = pa.table({name: [rows[row][column] for row in order] for column, name in enumerate(("prompt", "image"))})
    with atomic_file(options.out) as file:
        pq.write_table(table, file, dictionary_pagesize_limit=2**25)  # equal images are stored once
    print(f"{len(emoji):,} emoji, {len(rows):,} prompts: {options.out}")


if __name__ == "__main__":
    main()
