"""The published schema of what commands print, so strict that it must name every member."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema

__all__ = ["DIAGNOSIS", "LINES", "SCHEMA", "kinds", "mistakes"]

REFERENCE = Path(__file__).parents[1] / "docs/reference"
SCHEMA: dict[str, Any] = json.loads((REFERENCE / "output.schema.json").read_text())
DIAGNOSIS: dict[str, Any] = json.loads((REFERENCE / "diagnosis.schema.json").read_text())
LINES = ("TraceLine", "StuckLine")
_EXTENDED = ("connection", "closing")
"""What others extend: they say when it is complete."""


def _closed(part: Any, *, base: bool = False) -> Any:
    """Return a schema for which a member that it does not name is a mistake."""
    if isinstance(part, list):
        return [_closed(one) for one in part]
    if not isinstance(part, dict):
        return part
    strict = {
        name: [dict(one) for one in value] if name == "allOf" else _closed(value)
        for name, value in part.items()
    }
    names = strict.get("properties")
    if isinstance(names, dict) and not base and ("allOf" in strict or strict.get("type") == "object"):
        strict["unevaluatedProperties"] = False
    if strict.get("$ref") in {f"#/$defs/{name}" for name in _EXTENDED}:
        strict["unevaluatedProperties"] = False
    return strict


def _strict() -> dict[str, Any]:
    schema = copy.deepcopy(SCHEMA)
    schema["$defs"] = {name: _closed(part, base=name in _EXTENDED) for name, part in schema["$defs"].items()}
    return schema


STRICT = _strict()


def kinds() -> list[str]:
    """The kinds of document that there are."""
    return [one["$ref"].rpartition("/")[2] for one in SCHEMA["oneOf"]]


def mistakes(document: Any, kind: str = "") -> list[str]:
    """What is wrong with a document of a kind, by default the one that it says it is of."""
    kind = kind or document["kind"]
    assert kind in STRICT["$defs"], kind
    schema = {"$schema": STRICT["$schema"], "$ref": f"#/$defs/{kind}", "$defs": STRICT["$defs"]}
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document)
    ]
