"""Declarations of a configuration, told: each key with its type, default and description, and the JSON Schema.

A declaration is a msgspec struct, its fields annotated with `msgspec.Meta`. Beside what msgspec knows, the ``extra`` of
a Meta may have:

    read       a function: value of the file → value of the declared type; a ValueError says what is wrong
    unit       what a person calls the type, in place of that of the declaration: ``duration``
    expects    what the value must be, as a clause that begins with "it must be"

Pure.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

__all__ = ["DeclaredKey", "declared_keys", "header", "json_schema", "reader_of", "table_of"]


class DeclaredKey(Struct, frozen=True):
    """A key that may be written: a value, a table, or a list of tables."""

    path: str
    """Without numbers of elements: ``service.timeouts.idle``."""
    type: Any
    """The declared type, without its annotations."""
    default: Any
    """`msgspec.NODEFAULT` where it must be given."""
    description: str
    table: type[msgspec.Struct] | None
    """The declaration of the table; None for a value."""
    unit: str
    expects: str
    bounds: str = ""
    """Between what a number must be, as words; empty where it may be any."""

    @property
    def many(self) -> bool:
        """Whether it is a list: of tables or of values."""
        return typing.get_origin(self.type) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that it may be; empty where it may be others."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is Literal else ()

    @property
    def words(self) -> str:
        """What the type is called in a table of keys."""
        if self.table is not None:
            return "tables" if self.many else "table"
        if self.unit:
            return self.unit
        if self.many:
            return "list of text"
        if self.choices or self._has(str):
            return "text"
        if self._has(bool):
            return "true or false"
        return "number" if self._has(float) else "whole number"

    @property
    def expectation(self) -> str:
        """What the value must be, as a clause."""
        if self.expects:
            return self.expects
        if self.table is not None:
            return f"it must be a table that begins with {header(self)}"
        if self.choices:
            return "it must be one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        if self.many:
            least = f", {self.bounds}" if self.bounds else ""
            return f'it must be a list of text{least}: ["…", "…"]'
        if self._has(str):
            return 'it must be text in quotes: "…"'
        if self._has(bool):
            return "it must be true or false"
        bounds = f", {self.bounds}" if self.bounds else ""
        return f"it must be a number{bounds}" if self._has(float) else f"it must be a whole number{bounds}"

    def _has(self, kind: type) -> bool:
        return self.type is kind or kind in typing.get_args(self.type)


def header(key: DeclaredKey) -> str:
    """Return how the table of a key begins in a file."""
    return f"[[{key.path}]]" if key.many else f"[{key.path}]"


def _notes(hint: Any) -> tuple[Any, list[Meta]]:  # noqa: ANN401 - a type
    """Return a type without its annotations, and those."""
    if typing.get_origin(hint) is not Annotated:
        return hint, []
    kind, *notes = typing.get_args(hint)
    return kind, [note for note in notes if isinstance(note, Meta)]


def _extra(notes: list[Meta], name: str) -> Any:  # noqa: ANN401 - whatever a declaration says
    return next((note.extra[name] for note in notes if note.extra and name in note.extra), None)


_BOUNDS = (
    ("ge", "at least {}"), ("gt", "more than {}"), ("le", "at most {}"), ("lt", "less than {}"),
    ("min_length", "{} or more"), ("max_length", "{} at most"),
)  # fmt: skip


def _bounds(notes: list[Meta]) -> str:
    """Return what limits a number, or how many a list has, in words."""
    pairs = [(words, getattr(note, name)) for note in notes for name, words in _BOUNDS]
    return " and ".join(words.format(limit) for words, limit in pairs if limit is not None)


def table_of(hint: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - a type
    """Return the declaration that a type stands for, alone or in a list; None where it is a value."""
    kind = _notes(hint)[0]
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    kind = _notes(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def reader_of(hint: Any) -> Callable[[Any], Any] | None:  # noqa: ANN401 - a type
    """Return what turns a value of the file into one of the declared type; None where it is that already."""
    read: Callable[[Any], Any] | None = _extra(_notes(hint)[1], "read")
    return read


def declared_keys(kind: type[msgspec.Struct], prefix: str = "") -> Iterator[DeclaredKey]:
    """Yield each key of a declaration: a table before its own keys."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        plain, notes = _notes(hints[field.name])
        if typing.get_origin(plain) in (
            types.UnionType,
            typing.Union,
        ):  # `None` is how a struct says "not given"; a file cannot
            several = [part for part in typing.get_args(plain) if part is not types.NoneType]
            inner, more = _notes(several[0])
            plain, notes = (inner, [*more, *notes]) if len(several) == 1 else (plain, notes)
        table = table_of(plain)
        key = DeclaredKey(
            path=f"{prefix}{field.encode_name}",
            type=plain,
            default=field.default,
            description=" ".join(note.description for note in notes if note.description),
            table=table,
            unit=_extra(notes, "unit") or "",
            expects=_extra(notes, "expects") or "",
            bounds=_bounds(notes),
        )
        yield key
        if table is not None:
            yield from declared_keys(table, f"{key.path}.")


def json_schema(kind: type[msgspec.Struct], title: str) -> dict[str, Any]:
    """Return the JSON Schema of a declaration (2020-12)."""
    schema: dict[str, Any] = msgspec.json.schema(kind)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = title
    return schema
