"""The documentation agrees with the code: quoted lines, presets, commands and settings."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from onestep.build.use import check_use, check_use_in_distillation, check_use_in_sampling
from onestep.commands import CONFIGURED
from onestep.commands.upscale import as_settings
from onestep.config import CONF, add_recipe, check_config, instantiate
from onestep.data.dataset import NoData
from tests.helpers.configs import configure
from tests.helpers.paths import REPOSITORY

OBJECTIVES = REPOSITORY / "docs" / "objectives.md"
PAGES = [*sorted(REPOSITORY.glob("docs/*.md")), REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
#: The primary file of each command that takes overrides.
PRIMARIES = {name: primary for name, (primary, _) in CONFIGURED.items()} | {"profile": "train"}
#: A value that stands for the user's own, such as FOLDER or <run>/teacher. A path that ends in ... is one like others.
PLACEHOLDER = re.compile(r"<[^>]*>|\b[A-Z][A-Z_0-9]+\b")

#: Groups whose choices a page lists.
DESCRIBED = {
    "objective": "objectives.md",
    "data": "data.md",
    "degradation": "data.md",
    "metrics": "metrics.md",
    "features": "metrics.md",
}
#: Groups that a configuration has at another place too.
PLACED = ("sigma@fake_sigma", "data@data.images", "data@held_out", "data@data.high", "data@data.low",
          "data@data.evaluation", "features@terms.lpips.network", "features@terms.perceptual.network",
          "features@metrics.lpips_vgg.network", "terms@terms.consistency.distances")  # fmt: skip


def test_quoted_lines_are_the_code() -> None:
    code = {line.strip() for file in (REPOSITORY / "onestep").rglob("*.py") for line in file.read_text().splitlines()}
    quoted = re.findall(r"```python\n(.*?)```", OBJECTIVES.read_text(), flags=re.S)
    lines = [line.strip() for block in quoted for line in block.splitlines() if line.strip()]
    assert len(lines) == 7
    assert [line for line in lines if line not in code] == []


def test_every_python_block_compiles() -> None:
    blocks = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)]
    assert len(blocks) >= 10
    for block in blocks:
        compile("def block():\n" + indent(block, "    "), block[:80], "exec")  # quoted bodies of functions return


@pytest.mark.parametrize("group, page", DESCRIBED.items())
def test_every_choice_is_described(group: str, page: str) -> None:
    """In the first column of a table."""
    text = (REPOSITORY / "docs" / page).read_text()
    described = {
        name for cell in re.findall(r"^\| ([^|]*) \|", text, flags=re.M) for name in re.findall("`(.*?)`", cell)
    }
    assert {file.stem for file in (CONF / group).glob("*.yaml")} - described - {"none"} == set()


def spans_of(text: str) -> list[str]:
    """The code spans of a page, without its blocks."""
    found = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [" ".join(span.split()) for span in found]


def lines_of(file: Path) -> Iterator[str]:
    """The lines of shell blocks and the code spans of a page; the comments and the help of a configuration."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        text = re.sub(r"^ *#? *", "", text, flags=re.M)
        text = re.sub(r"(?<=\S) {3,}.*", "", text)  # what the help says of a command
        blocks = [text]
    else:
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    for block in blocks:
        yield from re.sub(r"\\\n *", " ", block).splitlines()
    yield from spans_of(text)


def commands_of(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands in ``file``: the primary file, and all words behind the command."""
    for line in map(str.strip, lines_of(file)):
        script = re.match(
            r"(?:.* && |python |accelerate launch .*?|torchrun .*?)(?:python )?(train|sample)\.py\b(.*)", line
        )
        command = re.match(rf"onestep ({'|'.join(sorted(PRIMARIES, reverse=True))})\b(.*)", line)
        found = script or command
        if found:
            words = shlex.split(found[2], comments=True)
            yield PRIMARIES[found[1]], as_settings(words) if found[1] == "upscale" else words


COMMANDS = sorted(
    {
        (primary, *words)
        for file in (*PAGES, *CONF.glob("*.yaml"), *CONF.glob("experiment/**/*.yaml"))
        for primary, words in commands_of(file)
    }
)


def overrides_of(words: Sequence[str]) -> list[list[str]]:
    """The overrides among ``words``, once for each value of a sweep.

    Left out are options, ``...`` alone, shell variables, and a choice that is a placeholder.
    """
    given = [word for word in words if "=" in word and not word.startswith(("-", "$"))]
    given = [PLACEHOLDER.sub("placeholder", word) for word in given]
    given = [word for word in given if not (word.endswith("=placeholder") and (CONF / word.partition("=")[0]).is_dir())]
    if "-m" not in words:
        return [given]
    parsed = OverridesParser.create().parse_overrides(given)
    values = [list(one.sweep_string_iterator()) if one.is_sweep_override() else None for one in parsed]
    longest = max((len(value) for value in values if value is not None), default=1)
    return [
        [
            word if value is None else f"{one.get_key_element()}={value[index % len(value)]}"
            for one, word, value in zip(parsed, given, values, strict=True)
        ]
        for index in range(longest)
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_composes(command: tuple[str, ...]) -> None:
    primary, *words = command
    options = {"--against", "--count", "--iterations", "--network", "--batch-size", "--against-revision", "--memory"}
    if not options & {*words}:
        get_args_parser().parse_args(add_recipe(primary, words))  # as Hydra does: it exits for an unfit order
    output = "save_to=nowhere" if primary == "sample" else "output=nowhere"
    for overrides in overrides_of(words):
        config = configure(primary, *overrides, output)
        if "..." not in words:  # which stands for settings that the reader adds
            check_config(config)
            if primary == "sample":
                check_use_in_sampling(config)
            elif primary == "pretrain":
                check_use(config)
            elif primary == "train":
                check_use(config)
                data = NoData((1, 1, 1), 1)
                check_use_in_distillation(config, instantiate(config.objective), data)


def paths_of(node: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from paths_of(value, f"{prefix}{name}.")


def known_settings() -> set[str]:
    """The groups, and every setting of every file of conf/ by its full name."""
    known = {str(folder.relative_to(CONF)) for folder in CONF.rglob("*") if folder.is_dir()} | set(PLACED)
    for file in CONF.rglob("*.yaml"):
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        group = file.relative_to(CONF).parts[0]
        is_global = group.endswith(".yaml") or "@package _global_" in file.read_text()
        places = [group, *(place.partition("@")[2] for place in PLACED if place.startswith(f"{group}@"))]
        for prefix in [""] if is_global else [f"{place}." for place in places]:
            known |= set(paths_of(content, prefix))
    return known


def settings_of(page: Path, known: set[str]) -> list[str]:
    """The settings in code spans, as KEY=VALUE or as a key with a dot."""
    sections = {name.partition(".")[0] for name in known}
    words = [word for line in spans_of(page.read_text()) for word in line.split()]
    assigned = [word.lstrip("+").partition("=")[0] for word in words if re.match(r"\+?[a-z_@./]+=", word)]
    dotted = [word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word)]
    return [*assigned, *(word for word in dotted if word.partition(".")[0] in sections)]


def test_every_setting_exists() -> None:
    known = known_settings()
    found = {page.name: settings_of(page, known) for page in PAGES}
    assert len({name for names in found.values() for name in names}) > 60
    for page, names in found.items():
        assert [name for name in names if name not in known and not name.startswith("hydra.")] == [], page


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 60
    assert {primary for primary, *_ in COMMANDS} == set(PRIMARIES.values())
    sweep = ("-m", "experiment=mixture", "objective=f_distill", "divergence=reverse_kl,forward_kl")
    assert [one[-1] for one in overrides_of(sweep)] == ["divergence=reverse_kl", "divergence=forward_kl"]
    words = ("objective=NAME", "...", "run=outputs/...", "teacher.path=<run>/teacher", "$plain", "--count")
    assert overrides_of(words) == [["run=outputs/...", "teacher.path=placeholder/teacher"]]
