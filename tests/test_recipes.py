"""The recipes of conf/experiment are the tables of settings in docs/recipes.md, both ways."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from onestep.config import CONF, check_config
from tests.helpers.configs import configure
from tests.helpers.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
FOLDERS = ("sid", "sida", "sid2a", "uni_instruct", "dmd2", "f_distill")
RECIPES = sorted(f"{folder}/{file.stem}" for folder in FOLDERS for file in CONF.glob(f"experiment/{folder}/*.yaml"))


def tables(first_cell: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The cells of the header, and of the rows, of each table of the page whose first cell is ``first_cell``."""
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.M):
        header, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        if header[0] == first_cell:
            yield header, rows


def spans(cell: str) -> list[str]:
    return re.findall("`(.*?)`", cell)


def documented(recipe: str) -> dict[str, Any]:
    """The settings of ``recipe`` in the tables, by key."""
    found: dict[str, Any] = {}
    for (_, *columns), rows in tables("setting"):
        for keys, *cells in rows:
            for column, cell in zip(columns, cells, strict=True):
                if cell and any(fnmatch(recipe, pattern) for pattern in spans(column)):
                    for key in spans(keys):
                        assert key not in found, f"{key} of {recipe} is in two tables"
                        found[key] = yaml.safe_load(cell.strip("`"))
    return found


def set_by(experiment: str) -> Iterator[str]:
    """The keys and groups that the file of ``experiment`` and those that it includes set, but for its benchmark's."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml"))
    for entry in content.pop("defaults"):
        if isinstance(entry, dict):  # override /GROUP: CHOICE
            yield from (key.removeprefix("override /") for key in entry)
        elif entry != "_self_" and not entry.startswith("/experiment/benchmark/"):
            yield from set_by(entry.removeprefix("/experiment/"))
    yield from leaves(content, "")


def leaves(node: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def differs(config: DictConfig, key: str, expected: Any) -> bool:
    """Whether the value of ``key``, or the choice of a group, is another one; a class has no module in the tables."""
    plain: Any = OmegaConf.to_container(config.choices if key in config.choices else config, resolve=True)
    for name in [key] if key in config.choices else key.split("."):
        if not isinstance(plain, dict) or name not in plain:
            return True
        plain = plain[name]
    return bool((plain.rpartition(".")[2] if key.endswith("_target_") else plain) != expected)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves_to_its_rows_of_the_tables(recipe: str) -> None:
    config, rows = configure("train", f"experiment={recipe}", "output=nowhere"), documented(recipe)
    check_config(config)
    assert [key for key, value in rows.items() if differs(config, key, value)] == []
    # Nothing is set that no table has: by its key, or a part or the whole of it.
    assert [
        key
        for key in set_by(recipe)
        if not any(f"{key}.".startswith(f"{row}.") or f"{row}.".startswith(f"{key}.") for row in rows)
    ] == []


def test_the_page_is_about_the_recipes() -> None:
    for first_cell in ("recipe", "cost of"):
        assert sorted(name for _, rows in tables(first_cell) for row in rows for name in spans(row[0])) == RECIPES
    patterns = [pattern for (_, *columns), _ in tables("setting") for cell in columns for pattern in spans(cell)]
    assert [pattern for pattern in patterns if not any(fnmatch(recipe, pattern) for recipe in RECIPES)] == []


def test_the_cost_of_a_recipe_is_that_of_its_images() -> None:
    for _, rows in tables("cost of"):
        for names, images, passes, forward, _, rate, hours in rows:
            for recipe in spans(names):
                assert float(images) * 1e6 == documented(recipe)["training.total_images"]
            flop = float(images) * 1e6 * float(passes) * float(forward) * 1e9
            assert float(hours.replace(",", "")) == pytest.approx(flop / (float(rate) * 1e12) / 3600, rel=0.02)


def test_every_header_says_what_is_published_and_what_has_been_run() -> None:
    for recipe in RECIPES:
        header = (CONF / "experiment" / f"{recipe}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
        for expected in (r"FID .*\d\.\d\d", r"Not yet run here\.", "Files: ", r"github\.com/|arXiv"):
            assert re.search(expected, header), (recipe, expected)
