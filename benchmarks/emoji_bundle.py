"""The bundled files of the emoji, with weights in half precision: onestep/assets/emoji and assets/generators/emoji.

    python -m benchmarks.emoji_bundle EMOJI.parquet ENCODERS TEACHER [GENERATOR]

ENCODERS is the folder of benchmarks.emoji_encoders, TEACHER the folder `teacher` of a pretraining, and GENERATOR the
folder `generator` of a training. The licences of the images and of the prompts beside them are kept.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from onestep.assets import ASSETS


def copy_half(source: Path, target: Path) -> None:
    """Copy a folder with weights in half precision, except for the autoencoder's, which is exact."""
    for file in sorted(source.rglob("*.*")):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors" and file.parent.name != "vae":
            save_file({name: value.half() for name, value in load_file(file).items()}, place, {"format": "pt"})
        else:
            shutil.copyfile(file, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("encoders", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("generator", type=Path, nargs="?")
    options = parser.parse_args()
    copy_half(options.teacher, ASSETS / "emoji")
    copy_half(options.encoders / "agreement", ASSETS / "emoji" / "agreement")
    shutil.copyfile(options.data, ASSETS / "emoji" / "emoji.parquet")
    if options.generator is not None:
        copy_half(options.generator, ASSETS / "generators" / "emoji")


if __name__ == "__main__":
    main()
