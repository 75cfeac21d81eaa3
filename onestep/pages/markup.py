"""Pages as trees of elements: text from a run's folder cannot become markup, since a tree is escaped when written."""

import base64
import hashlib
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from PIL import Image

from onestep.files import atomic_file
from onestep.images import DamagedImageError, is_animation, open_image, read_file

#: A child of an element; None is left out.
Child = Element | str | None
_SIDES = (1024, 724, 512, 362, 256)  # of a picture that is made smaller, in pixels
_QUALITY = 80


def element(tag: str, *children: Child, **attributes: str | bool | float | None) -> Element:
    """An element with ``children`` in order.

    Args:
        tag: its name.
        children: elements and texts.
        attributes: by name, with ``_`` for ``-`` and a trailing ``_`` for Python's own words (``class_``). True is an
            attribute without a value; those of None and False are left out.
    """
    node = Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            node.set(name.rstrip("_").replace("_", "-"), "" if value is True else str(value))
    for child in children:
        if isinstance(child, str) and len(node):
            node[-1].tail = (node[-1].tail or "") + child
        elif isinstance(child, str):
            node.text = (node.text or "") + child
        elif child is not None:
            node.append(child)
    return node


def section(title: str, *children: Child) -> Element | None:
    """A section with a heading; None without children."""
    shown = [child for child in children if child is not None]
    return element("section", element("h2", title), *shown) if shown else None


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> Element:
    """A table whose first column is the heads of its rows; it scrolls by itself where it is too wide.

    Args:
        caption: what it shows.
        head: the heads of the columns.
        rows: the cells.
        marked: for each row, whether it is set off.
    """
    marks = marked or [False] * len(rows)
    body = [
        element(
            "tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells),
            class_="marked" if mark else None,
        )
        for (first, *cells), mark in zip(rows, marks, strict=True)
    ]  # fmt: skip
    # An empty head names no column.
    heads = element("tr", *(element("th", name, scope="col") if name else element("td") for name in head))
    whole = element("table", element("caption", caption), element("thead", heads), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def code(text: str, label: str) -> Element:
    """Lines to copy."""
    return element("pre", element("code", text), tabindex="0", role="region", aria_label=label)


def picture(path: Path, description: str, limit: int, **attributes: str | bool | None) -> Element:
    """An image with its pixels, of at most about ``limit`` bytes.

    A larger file becomes a smaller WebP; of an animation the first image then.

    Raises:
        ValueError: with the file, if it is no image.
    """
    try:
        content = read_file(path)
        image = open_image(content)
    except DamagedImageError as error:
        raise ValueError(f"{path} is no picture ({error}): delete it, and the page is made without it") from error
    kind, size = f"image/{str(image.format).lower()}", image.size
    if len(content) > limit:
        kind, content = "image/webp", _smaller(image, limit)
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    width, height = map(str, size)
    return element("img", src=source, alt=description, width=width, height=height, **attributes)


def _smaller(image: Image.Image, limit: int) -> bytes:
    """The first of ever smaller copies within ``limit`` bytes, or the last."""
    if is_animation(image):
        image.seek(0)
    content = b""
    for side in _SIDES:
        copy = image.convert("RGB")
        copy.thumbnail((side, side))
        encoded = io.BytesIO()
        copy.save(encoded, "WEBP", quality=_QUALITY)
        content = encoded.getvalue()
        if len(content) <= limit:
            break
    return content


def write_page(title: str, children: Sequence[Child], output: Path, application: str | None = None) -> None:
    """Write a page with the package's style and script, atomically.

    The page's policy lets no other script run, and nothing be fetched. That of an ``application``, which has a style
    and a script of its own, lets it fetch and run files of its own folder.
    """
    style, script = _read("page.css"), _read("page.js" if application is None else f"{application}.js")
    policy = f"default-src 'none'; img-src data:; script-src {_hash(script)}"
    if application is not None:
        style += _read(f"{application}.css")
        policy += " 'self' blob: 'wasm-unsafe-eval'; connect-src 'self'; worker-src 'self' blob:"
    policy += f"; style-src {_hash(style)}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    body = element(
        "body", element("main", *children), element("script", script, type=None if application is None else "module")
    )
    text = f"<!DOCTYPE html>\n{tostring(element('html', head, body, lang='en'), 'unicode', method='html')}\n"
    with atomic_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # a lone surrogate of a file's name


def _read(name: str) -> str:
    return files("onestep.pages").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
