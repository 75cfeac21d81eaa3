"""Hooks of MkDocs: the repository's own pages, the API's pages, and links from and to files outside ``docs``."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import onestep

REPOSITORY = Path(__file__).resolve().parents[1]
#: Pages of the site that are files of the repository's root.
ROOT = {
    "README.md": "start.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
#: Modules whose classes a user subclasses or passes by name.
PARTS = (
    "denoiser", "noise", "samplers", "objectives.base", "objectives.divergences", "objectives.weighting",
    "objectives.terms", "objectives.losses", "models.discriminator", "data.dataset", "metrics.result",
    "seeding",
)  # fmt: skip
_LINK = re.compile(r"\]\((?!https?:|#|<)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs``, and the sources that pages link to."""
    pages = {place: (REPOSITORY / name).read_text(encoding="utf-8") for name, place in ROOT.items()}
    functions_first = sorted(onestep._MODULES.items(), key=lambda item: item[0].swapcase())
    pages["api.md"] = _reference("The interface", [f"onestep.{path}.{name}" for name, path in functions_first])
    pages["api_parts.md"] = _reference("Parts", [f"onestep.{name}" for name in PARTS])
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    linked = {
        target
        for file in files.documentation_pages()
        for link in _LINK.findall(file.content_string)
        if (target := _place(link, file.src_uri)).startswith("sources/")
    }
    for target in sorted(linked):
        path = REPOSITORY / target.removeprefix("sources/")
        if path.is_file():  # else MkDocs names the link
            files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at the places that files have in the site."""
    return _LINK.sub(lambda match: f"]({_place(match[1], page.file.src_uri)}", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles of Sphinx in docstrings, such as ``:class:``."""
    return re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)", "", html)


def _place(link: str, page: str) -> str:
    """The place in the site of the file that ``link`` on ``page`` names; all pages are at the site's root."""
    of_repository = page in (*ROOT.values(), "api.md", "api_parts.md")
    parts: list[str] = [] if of_repository else ["docs"]
    for part in PurePosixPath(link).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    path = "/".join(parts)
    return ROOT.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"sources/{path}")


def _reference(title: str, names: list[str]) -> str:
    return f"# {title}\n\n" + "\n".join(f"::: {name}\n" for name in names)
