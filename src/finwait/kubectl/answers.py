"""What counts as an answer of an agent: a document of the kind that was asked for, with all parts that are read of it.

Anything else is no answer. An agent of another version, or one that is broken, could print an empty object, and "no
findings" would read as "nothing is stuck". Members that are not read here may be there or not. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from finwait.report.shape import API_VERSION

__all__ = ["KINDS", "check"]

KINDS: Final = {"diagnose": "Diagnosis", "list": "ConnectionList"}
"""A command that agents are asked → the kind of what it prints as JSON."""


_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Gap(msgspec.Struct):
    where: str
    doing: str
    needs: str


class _Move(msgspec.Struct):
    whose: str
    act: str


class _Span(msgspec.Struct):
    at_least: _Seconds | None


class _Names(msgspec.Struct):
    workload: str | None = None
    pod: str | None = None
    service: str | None = None


class _Owner(msgspec.Struct):
    pid: _Count
    comm: str | None


class _End(msgspec.Struct):
    state: str
    src: str
    sport: _Port
    dst: str
    dport: _Port
    owners: list[_Owner] | None
    age_s: _Span | None
    kubernetes: _Names | None = None


class _Finding(msgspec.Struct):
    rule: str
    primary: bool
    severity: Literal["problem", "notice", "healthy"]
    count: _Count
    move: _Move | None
    sockets: list[_End]


class _Document(msgspec.Struct, rename="camel"):
    api_version: Literal[API_VERSION]  # type: ignore[valid-type]
    kind: str
    gaps: list[_Gap]


class _Diagnosis(_Document, rename="camel"):
    findings: list[_Finding]
    unjudged: list[_Finding]


class _ConnectionList(_Document, rename="camel"):
    items: list[_End]


_TYPES: Final[dict[str, type[_Document]]] = {"Diagnosis": _Diagnosis, "ConnectionList": _ConnectionList}


def check(kind: str, document: dict[str, Any]) -> None:
    """Refuse what is no answer.

    Args:
        kind: that was asked for.
        document: what was printed.

    Raises:
        ValueError: it is of another kind, or lacks something that is read.
    """
    answer = msgspec.convert(document, _TYPES[kind])
    if answer.kind != kind:
        raise ValueError(f"a {answer.kind[:60]} in place of a {kind}")
