"""The declarations of a configuration, told: each option, each table, the JSON Schema."""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from finwait.relay.config.model import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["json_schema", "options", "tables"]


def options(kind: type[msgspec.Struct] = Config, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield each option: path, type, default (`msgspec.NODEFAULT` where it must be given), description."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        notes: tuple[Any, ...] = ()
        if typing.get_origin(hint) is Annotated:
            hint, *rest = typing.get_args(hint)
            notes = tuple(rest)
        text = " ".join(note.description for note in notes if isinstance(note, Meta) and note.description)
        path = f"{prefix}{field.name}"
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from options(inner, f"{path}.")
            continue
        if isinstance(hint, types.GenericAlias) and typing.get_origin(hint) is tuple:
            hint = tuple
        if any(isinstance(note, Meta) and (note.extra or {}).get("duration") for note in notes):
            hint = "duration"
        yield path, hint, field.default, text


def tables(kind: type[msgspec.Struct] = Config, path: str = "") -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield each table of the configuration: its path, empty for the top level, and its declaration."""
    yield path, kind
    for name, hint in typing.get_type_hints(kind).items():
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from tables(inner, f"{path}.{name}" if path else name)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the TOML file."""
    schema: dict[str, Any] = msgspec.json.schema(Config)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "finwait relay"
    for part in schema["$defs"].values():
        for field in part.get("properties", {}).values():
            if field.get("x-unit") == "seconds":
                field["type"] = ["number", "string"]
    return schema
