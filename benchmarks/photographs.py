"""Photographs of three Debian packages as a data set for super-resolution: OUT/train and OUT/held_out, as PNG.

    apt-get install mate-backgrounds plasma-workspace-wallpapers lomiri-wallpapers-16.04
    python benchmarks/photographs.py OUT [--root /usr/share]

The 37 photographs among the packages' pictures are reduced to half their size, as many have little detail in the last
octave, and cut into squares of 128 pixels, OUT/train/NAME/ROW_COLUMN.png. Squares without detail, such as skies, are
left out. Eight photographs are held out, so that no crop of one of these is trained on.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 128
LEAST_DETAIL = 4.0  # root mean square of a square minus its bicubic enlargement from a quarter of its size, of 255
MATE, LOMIRI = "backgrounds/mate/nature/{}.jpg", "backgrounds/{}.jpg"
PLASMA = "wallpapers/{}/contents/images/*x*.*"
TRAIN = {
    MATE: (
        "Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "Storm", "TwoWings", "Wood", "YellowFlower",
    ),
    PLASMA: ("BytheWater", "ColdRipple", "FallenLeaf", "Grey", "Kite", "OneStandsOut", "Volna", "summer_1am"),
    LOMIRI: (
        "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Picture_0B_by_freespace", "Wine_by_Jakkub_Mede",
        "aitzgorri_by_Aitzol_Berasategi", "analogpattern_by_Peter_Nerlich", "free_by_Peter_Nerlich",
        "greentock_by_Peter_Nerlich", "picosdeeuropa_by_Aitzol_Berasategi", "seeding_by_Clements_Engelhardt",
        "sunset_by_Aitzol_Berasategi",
    ),
}  # fmt: skip
HELD_OUT = {
    MATE: ("LadyBird", "RainDrops"),
    PLASMA: ("ColorfulCups", "EveningGlow", "Path"),
    LOMIRI: ("Picture_1A_by_freespace", "friends_by_Aitzol_Berasategi", "life_by_Aitzol_Berasategi"),
}


def largest(root: Path, pattern: str) -> Path:
    """The picture of most pixels among those that ``pattern`` names; a wallpaper comes in several sizes."""
    files = list(root.glob(pattern))
    if not files:
        raise SystemExit(f"error: {root / pattern} is absent: install the three packages, or set --root")
    return max(files, key=lambda file: Image.open(file).width)


def detail(square: Image.Image) -> float:
    """What a reduction by four loses, in grey levels."""
    low = square.resize((SIDE // 4, SIDE // 4), Image.Resampling.BICUBIC).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return float(np.square(np.asarray(square, float) - np.asarray(low, float)).mean() ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/usr/share"))
    options = parser.parse_args()
    for part, chosen in (("train", TRAIN), ("held_out", HELD_OUT)):
        for pattern, names in chosen.items():
            for name in names:
                with Image.open(largest(options.root, pattern.format(name))) as picture:
                    size = picture.width // 2, picture.height // 2
                    half = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
                folder = options.out / part / name
                folder.mkdir(parents=True, exist_ok=True)
                for top in range(0, half.height - SIDE + 1, SIDE):
                    for left in range(0, half.width - SIDE + 1, SIDE):
                        square = half.crop((left, top, left + SIDE, top + SIDE))
                        if detail(square) >= LEAST_DETAIL:
                            square.save(folder / f"{top // SIDE:02}_{left // SIDE:02}.png")


if __name__ == "__main__":
    main()
