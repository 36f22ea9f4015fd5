"""``finwait.toml``: what ``finwait agent`` takes on its command line, in a file. Pure.

Each option of the command line is a key of the table ``[agent]``, with ``_`` for ``-``. What the command line says
wins, then the file, then the default; `AgentSettings` knows which it was. The reader, the JSON Schema and the reference
page are made of the declaration below. Other tables are left for what may come; unknown keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from finwait.agent.option_texts import KILL_SWITCH, RECORD_RATE, SOCKET, TEXTS, AgentValue
from finwait.errors import UsageError
from finwait.table.units import parse_duration_ms
from finwait.toml.declared import DeclaredKey, declared_keys
from finwait.toml.declared import json_schema as declared_schema
from finwait.toml.document import TomlDocument, TomlMistake
from finwait.uapi.nsfs import parse_netns_name

__all__ = [
    "FILE_MOST",
    "AgentConfigError",
    "AgentSettings",
    "differing",
    "interval_ms_of",
    "json_schema",
    "kept",
    "keys",
    "kubernetes_of",
    "node_of",
    "option_of",
    "read_config",
    "restart_keys",
    "settings_of",
    "share_of",
    "space_of",
]

FILE_MOST: Final = 64 << 10
"""Bytes of a configuration file."""

_RESTART: Final = (
    "state_dir", "socket", "listen", "serve_socket", "share", "interval", "policy", "once", "record_states",
    "record_rate", "packets",
    "kubernetes", "kube_token_file", "kube_ca_file", "node_name", "kube_events",
)  # fmt: skip
"""Keys that hold from the start of the agent to its end."""
_PATHS: Final = (
    "state_dir",
    "socket",
    "token_file",
    "tls_cert",
    "tls_key",
    "serve_socket",
    "textfile",
    "policy",
    "kill_switch",
    "kube_token_file",
    "kube_ca_file",
)
_PATTERNS: Final = {"share": "^[0-9.]+ ?%?$", "interval": "^[0-9.]+ *(ms|s|m)?$"}


def _doc(name: str) -> Meta:
    text = TEXTS[name]
    pattern = {"pattern": _PATTERNS[name]} if name in _PATTERNS else None
    return Meta(description=f"{text[0].upper()}{text[1:]}.", extra_json_schema=pattern)


class AgentTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent does: as the options of `finwait agent`."""

    state_dir: Annotated[str, _doc("state_dir")] = ""
    socket: Annotated[str, _doc("socket")] = SOCKET
    listen: Annotated[str, _doc("listen")] = ""
    token_file: Annotated[str, _doc("token_file")] = ""
    tls_cert: Annotated[str, _doc("tls_cert")] = ""
    tls_key: Annotated[str, _doc("tls_key")] = ""
    serve_socket: Annotated[str, _doc("serve_socket")] = ""
    share: Annotated[str, _doc("share")] = "1%"
    interval: Annotated[str, _doc("interval")] = "15s"
    textfile: Annotated[str, _doc("textfile")] = ""
    policy: Annotated[str, _doc("policy")] = ""
    no_act: Annotated[bool, _doc("no_act")] = False
    kill_switch: Annotated[str, _doc("kill_switch")] = KILL_SWITCH
    once: Annotated[bool, _doc("once")] = False
    record_states: Annotated[bool, _doc("record_states")] = True
    record_rate: Annotated[int, _doc("record_rate"), Meta(ge=1, le=10_000_000)] = RECORD_RATE
    packets: Annotated[tuple[str, ...], _doc("packets")] = ()
    kubernetes: Annotated[str, _doc("kubernetes")] = "auto"
    kube_token_file: Annotated[str, _doc("kube_token_file")] = ""
    kube_ca_file: Annotated[str, _doc("kube_ca_file")] = ""
    node_name: Annotated[str, _doc("node_name")] = ""
    kube_events: Annotated[bool, _doc("kube_events")] = False


class ConfigTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration of finwait's services."""

    agent: Annotated[AgentTable, Meta(description="What `finwait agent` does.")] = AgentTable()


class AgentConfigError(UsageError):
    """A configuration is wrong; the message names file, line and key."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What is in force: each key of the file, as text or as a switch.

    Attributes:
        sources: where each value comes from, for people: ``command line``, ``FILE:LINE`` or ``default``.
    """

    state_dir: str
    socket: str
    listen: str
    token_file: str
    tls_cert: str
    tls_key: str
    serve_socket: str
    share: str
    interval: str
    textfile: str
    policy: str
    no_act: bool
    kill_switch: str
    once: bool
    record_states: bool
    record_rate: int
    packets: tuple[str, ...]
    kubernetes: str
    kube_token_file: str
    kube_ca_file: str
    node_name: str
    kube_events: bool
    sources: Mapping[str, str] = field(compare=False)

    def items(self) -> Iterator[tuple[str, AgentValue]]:
        """Yield each key and its value."""
        for item in fields(self):
            if item.name != "sources":
                yield item.name, getattr(self, item.name)


def share_of(text: str) -> float:
    """Read ``1%``, ``0.5%`` or ``1``, all of them per cent, as a part of one.

    Raises:
        ValueError: it is none, or out of bounds.
    """
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%?", text.strip(), re.ASCII)
    share = float(match[1]) / 100 if match else 0.0
    if not 0.0001 <= share <= 1:
        raise ValueError(f"`{text[:60]}` is not a share: write 0.01% to 100%")
    return share


def interval_ms_of(text: str) -> float:
    """Read a duration from a second to five minutes, in milliseconds.

    Raises:
        ValueError: it is none, or out of bounds.
    """
    ms = parse_duration_ms(text)
    if not 1000 <= ms <= 300_000:
        raise ValueError(f"`{text[:60]}` is too short or too long: write 1s to 5m")
    return ms


def space_of(text: str) -> str:
    """Return what names a network namespace for `packets`: ``self``, or what `parse_netns_name` takes.

    Raises:
        ValueError: it cannot name one.
    """
    if text != "self":
        parse_netns_name(text)
    return text


def kubernetes_of(text: str) -> str:
    """Return ``auto``, ``off``, or the URL of an API server.

    Raises:
        ValueError: it is none of these.
    """
    if text in ("auto", "off"):
        return text
    parts = urlsplit(text)  # `finwait.kube.access` judges the rest, in the process that asks there
    if parts.scheme not in ("https", "http") or not parts.hostname or not text.isprintable():
        raise ValueError(f"`{text[:100]}` is not `auto`, `off` or a URL, as in https://10.0.0.1:6443")
    return text


def node_of(text: str) -> str:
    """Return the name of a node.

    Raises:
        ValueError: no node can have it.
    """
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", text, re.ASCII):
        raise ValueError(f"`{text[:100]}` is not the name of a node")
    return text


def option_of(path: str) -> str:
    """Return the option of the command line that says the same as a key."""
    return "--" + path.removeprefix("agent.").replace("_", "-")


def read_config(data: bytes, name: str) -> TomlDocument:
    """Return a configuration file whose keys and types are right.

    Raises:
        AgentConfigError: it is no TOML, or says something that cannot be; with the line.
    """
    try:
        document = TomlDocument(data, name)
        table = document.typed(ConfigTable).agent
        reads: tuple[tuple[str, Callable[[str], object]], ...] = (
            ("share", share_of), ("interval", interval_ms_of), ("kubernetes", kubernetes_of), ("node_name", node_of),
        )  # fmt: skip
        for key, read in reads:
            try:
                if getattr(table, key) or key != "node_name":
                    read(getattr(table, key))
            except ValueError as error:
                raise document.mistake(f"agent.{key}", str(error)) from None
        for text in table.packets:
            try:
                space_of(text)
            except ValueError as error:
                raise document.mistake("agent.packets", str(error)) from None
        for key in _PATHS:
            text = getattr(table, key)
            if not text and key == "kill_switch" and key in document.tables.get("agent", {}):
                raise document.mistake(
                    f"agent.{key}", "there is always a kill switch", "leave the key out for the default"
                )
            if text and not text.startswith("/"):
                problem = f"`{text[:100]}` is not an absolute path"
                raise document.mistake(f"agent.{key}", problem, "a path in the file begins with /")
            if "\0" in text:
                raise document.mistake(f"agent.{key}", "a path cannot contain a NUL byte")
    except TomlMistake as mistake:
        hint = mistake.hint or "docs/reference/agent.md lists each key"
        raise AgentConfigError(str(mistake), hint=hint) from None
    return document


def settings_of(
    document: TomlDocument | None, typed: Mapping[str, AgentValue], check: Mapping[str, Any]
) -> AgentSettings:
    """Return what holds, and where it comes from.

    Args:
        document: the file; None where there is none.
        typed: what the command line says, by key.
        check: key → function that says what is wrong with a text by a ValueError, for what only an edge can judge.

    Raises:
        AgentConfigError: the file says something that cannot be.
    """
    written: Mapping[str, Any] = document.tables.get("agent", {}) if document is not None else {}
    values: dict[str, AgentValue] = msgspec.structs.asdict(AgentTable())
    sources = dict.fromkeys(values, "default")
    for key, value in written.items():
        values[key] = tuple(value) if isinstance(value, list) else value
        assert document is not None
        sources[key] = f"{document.name}:{document.line_of(f'agent.{key}')}"
        try:
            if value and key in check:
                check[key](value)
        except ValueError as error:
            mistake = document.mistake(f"agent.{key}", str(error))
            raise AgentConfigError(str(mistake), hint="docs/reference/agent.md lists each key") from None
    for key, value in typed.items():
        values[key] = value
        sources[key] = "command line"
    settings: Any = AgentSettings
    made: AgentSettings = settings(**values, sources=sources)
    _check_tls(made)
    return made


def _check_tls(settings: AgentSettings) -> None:
    """Refuse half of what TLS needs.

    Raises:
        AgentConfigError: something is missing.
    """
    if bool(settings.tls_cert) != bool(settings.tls_key):
        missing = "--tls-key" if settings.tls_cert else "--tls-cert"
        raise AgentConfigError(f"TLS needs `--tls-cert` and `--tls-key`; `{missing}` is missing")
    if settings.tls_cert and (not settings.listen or settings.listen.startswith("unix:")):
        raise AgentConfigError(
            "TLS is for what is served at an address",
            hint="give `--listen ADDRESS:PORT`, or leave out `--tls-cert` and `--tls-key`",
        )


def differing(before: AgentSettings, after: AgentSettings) -> list[str]:
    """Return the keys that hold until a restart, and differ."""
    keys_differing = [key for key in _RESTART if getattr(before, key) != getattr(after, key)]
    return keys_differing + (["tls_cert"] if bool(before.tls_cert) != bool(after.tls_cert) else [])


def kept(before: AgentSettings, after: AgentSettings) -> AgentSettings:
    """Return the later settings, but with those of the former that hold until a restart."""
    held: Mapping[str, Any] = {key: getattr(before, key) for key in _RESTART}
    if bool(before.tls_cert) != bool(
        after.tls_cert
    ):  # whether there is TLS; another certificate is none of this
        held = {**held, "tls_cert": before.tls_cert, "tls_key": before.tls_key}
    return replace(after, **held)


# ── what the declaration tells ───────────────────────────────────────────────────────────────────────────


def keys() -> Iterator[DeclaredKey]:
    """Yield each key of the file."""
    for key in declared_keys(ConfigTable):
        if key.table is None:
            yield key


def restart_keys() -> tuple[str, ...]:
    """Return the keys that hold from the start of the agent to its end."""
    return _RESTART


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file."""
    return declared_schema(ConfigTable, "finwait.toml")
