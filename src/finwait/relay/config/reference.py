"""The declarations of a configuration, told: each option, each table, the JSON Schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finwait.relay.config.model import Config
from finwait.toml.declared import declared_keys
from finwait.toml.declared import json_schema as declared_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    import msgspec

__all__ = ["json_schema", "options", "tables"]


def options() -> Iterator[tuple[str, Any, Any, str]]:
    """Yield each option: path, type, default (`msgspec.NODEFAULT` where it must be given), description."""
    for key in declared_keys(Config):
        if key.table is None:
            kind = key.unit or (tuple if key.many else key.type)
            yield key.path, kind, key.default, key.description


def tables() -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield each table of the configuration: its path, empty for the top level, and its declaration."""
    yield "", Config
    for key in declared_keys(Config):
        if key.table is not None:
            yield key.path, key.table


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the TOML file."""
    schema = declared_schema(Config, "finwait relay")
    for part in schema["$defs"].values():
        for field in part.get("properties", {}).values():
            if field.get("x-unit") == "seconds":
                field["type"] = ["number", "string"]
    return schema
