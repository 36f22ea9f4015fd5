"""Markup as values: an element escapes what is put into it, so that nothing which was read can become markup.

A child is a text or another `Element`; only the latter is written as it is, and only functions of this module make one.
What runs, loads or styles cannot be made at all: no ``script``, no ``on…`` or ``style`` attribute, no link that leaves
the page.

The one surprise: text goes through `finwait.table.units.printable` first. A process may have control characters in
its name, or such that turn the direction of writing, and a browser obeys the latter as a terminal obeys the former.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Final

from msgspec import Struct

from finwait.table.units import printable

__all__ = ["Child", "Element", "el", "page_of", "prose", "style_sheet"]


class Element(Struct, frozen=True):
    """Markup that may be written as it is."""

    markup: str


Child = str | Element | Iterable["Child"] | None
"""What may stand in an element; None is nothing."""

_EMPTY: Final = frozenset({"meta", "br", "line", "path", "rect", "circle"})
"""Elements without content, and shapes of a picture."""
_SHAPES: Final = frozenset({"line", "path", "rect", "circle"})
_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_REFUSED: Final = frozenset(
    {"script", "style", "iframe", "object", "embed", "link", "img", "image", "form", "base"}
)


def el(name: str, *children: Child, **attributes: str | float | None) -> Element:
    """Return an element.

    Args:
        name: of the element.
        children: what is in it; texts are escaped.
        attributes: values are escaped, those that are None left out. An underscore in a name stands for a hyphen, one
            at its end for nothing.

    Raises:
        ValueError: such an element or attribute could load or run something.
    """
    if not _NAME.fullmatch(name) or name.lower() in _REFUSED:
        raise ValueError(f"no element `{name}` is made here")
    parts = [f"<{name}"]
    for word, value in attributes.items():
        if value is not None:
            parts.append(f' {_attribute(word, str(value))}="{_text(str(value))}"')
    if name in _EMPTY:
        return Element("".join(parts) + ("/>" if name in _SHAPES else ">"))
    return Element(f"{''.join(parts)}>{''.join(_markup(children))}</{name}>")


def _attribute(word: str, value: str) -> str:
    attribute = word.rstrip("_").replace("_", "-")
    low = attribute.lower()
    if not _NAME.fullmatch(attribute) or low.startswith("on") or low in ("style", "src", "srcset", "srcdoc"):
        raise ValueError(f"no attribute `{attribute}` is made here")
    if low == "href" and not re.fullmatch(r"#[a-z0-9-]+", value):
        raise ValueError("a link leads to a place in the page")
    return attribute


def _text(text: str) -> str:
    return escape(printable(text))


def _markup(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            yield child.markup
        elif isinstance(child, str):
            yield _text(child)
        else:
            yield from _markup(child)


def prose(text: str) -> list[Child]:
    """Return a sentence of ours, what stands in backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one without a partner: of a name
        return [text]
    return [el("code", part) if k % 2 else part for k, part in enumerate(parts) if part]


def style_sheet(css: str) -> Element:
    """Return a style sheet; a text of this package's, never of what was read.

    Raises:
        ValueError: it could end the element, or load something.
    """
    if "<" in css or "url(" in css or "@import" in css:
        raise ValueError("a style sheet neither ends its element nor loads anything")
    return Element(f"<style>{css}</style>")


def page_of(head: Iterable[Element], body: Element) -> str:
    """Return a whole page."""
    inner = "\n".join(part.markup for part in head)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{inner}\n</head>\n{body.markup}\n</html>\n'
