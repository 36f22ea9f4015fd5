"""Reads HAProxy and nginx configurations for the times that bear on half-closed connections."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.remedy.audit.finding import Judge

__all__ = ["haproxy_ms", "ingress_nginx", "nginx_s", "scan_haproxy", "scan_nginx"]

_HA_SECTION = re.compile(
    r"^(global|defaults|frontend|backend|listen|peers|resolvers|userlist|mailers|cache|ring"
    r"|program|http-errors|fcgi-app|log-forward|traces|crt-store)\b\s*(.*)"
)
_HA_TIME = re.compile(r"(\d{1,15})(us|ms|s|m|h|d)?\Z")
_HA_UNITS = {"us": 0.001, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6, "d": 8.64e7}
_LONG_FIN_MS = 300_000
_FIN = ("client-fin", "server-fin")
_BEARING = ("client", "server", "tunnel", *_FIN)


def haproxy_ms(text: str) -> float | None:
    """Return the milliseconds of an HAProxy time (``30s``, ``1h``, ``5000``), or None if it is none."""
    match = _HA_TIME.match(text)
    return int(match[1]) * _HA_UNITS[match[2] or "ms"] if match else None


class _Section(Struct):
    kind: str
    name: str
    line: int
    mode: str = ""
    times: dict[str, float] = field(default_factory=dict)


def scan_haproxy(judge: Judge, rows: list[tuple[int, str]]) -> None:
    """Look through an HAProxy configuration: times without end, half-closes without bounds."""
    defaults = _Section("defaults", "", 0)
    named: dict[str, _Section] = {}
    section: _Section | None = None
    sections: list[_Section] = []
    for number, raw in rows:
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        start = _HA_SECTION.match(line)
        if start:
            words = start[2].split()
            name = words[0] if words and words[0] != "from" else ""
            parent = defaults
            if "from" in words[:-1]:
                parent = named.get(words[words.index("from") + 1], defaults)
            section = _Section(start[1], name, number)
            if start[1] == "defaults":
                section.mode, section.times = "", {}
                if "from" in words[:-1]:
                    section.mode, section.times = parent.mode, dict(parent.times)
                defaults = section
                if name:
                    named[name] = section
            elif start[1] in ("frontend", "backend", "listen"):
                section.mode, section.times = parent.mode, dict(parent.times)
                sections.append(section)
            continue
        if section is not None:
            _haproxy_line(judge, section, number, line)
    for section in sections:
        _unbounded(judge, section)


def _haproxy_line(judge: Judge, section: _Section, number: int, line: str) -> None:
    words = line.split()
    if words[0] == "mode" and len(words) > 1:
        section.mode = words[1]
    if words[0] != "timeout" or len(words) < 2 or words[1] not in _BEARING:
        return
    if len(words) < 3:
        judge.problem(number, f"`timeout {words[1]}` without a time")
        return
    ms = haproxy_ms(words[2])
    if ms is None:
        if not words[2].startswith(("$", '"', "'", "{", "<", "%")):
            judge.problem(number, f"not an HAProxy time: {words[2][:40]!r}")
        return
    section.times[words[1]] = ms
    if ms == 0:
        judge.advice(number, "haproxy-infinite", line)
    elif words[1] in _FIN:
        judge.advice(number, "haproxy-long-fin" if ms > _LONG_FIN_MS else "haproxy-fin-timeout", line)


def _unbounded(judge: Judge, section: _Section) -> None:
    if section.mode != "tcp" and "tunnel" not in section.times:
        return
    required = {"frontend": _FIN[:1], "backend": _FIN[1:], "listen": _FIN}[section.kind]
    missing = [f"`timeout {name}`" for name in required if name not in section.times]
    if missing:
        named = f"{section.kind} {section.name[:40]}".strip()
        detail = f"`{named}` has no {' and no '.join(missing)}. "
        judge.advice(section.line, "haproxy-no-fin-timeout", named, detail=detail)


_NGINX_TIME = re.compile(r"(?:\d+(?:ms|[smhdwMy]))*(?:\d+)?\Z")
_NGINX_PART = re.compile(r"(\d+)(ms|[smhdwMy])?")
_NGINX_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "M": 2592000, "y": 31536000}
_NGINX_DEFAULT_S = 600
_NGINX_TOKEN = re.compile(
    r"""(?P<nl>\n)|(?P<sp>[^\S\n]+)|(?P<co>\#[^\n]*)|(?P<q>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
    r"""|(?P<p>[{};])|(?P<w>(?:\$\{[^}\n]*\}|\\.|[^\s{};"'])(?:\$\{[^}\n]*\}|\\.|[^\s{};])*)"""
    r"""|(?P<x>.)""",
    re.DOTALL,
)


def nginx_s(text: str) -> float | None:
    """Return the seconds of an nginx time (``10m``, ``1h30m``, ``30``), or None if it is none."""
    if not text or len(text) > 40 or not _NGINX_TIME.match(text):
        return None
    return sum(int(n) * _NGINX_UNITS[unit or "s"] for n, unit in _NGINX_PART.findall(text))


def _directives(judge: Judge, text: str, first_line: int) -> Iterator[tuple[int, tuple[str, ...], list[str]]]:
    """Yield (line, enclosing blocks, words) for each simple directive."""
    line = start = first_line
    blocks: list[str] = []
    words: list[str] = []
    for token in _NGINX_TOKEN.finditer(text):
        kind, value = token.lastgroup, token[0]
        if kind == "p":
            if value == ";":
                if words:
                    yield start, tuple(blocks), words
            elif value == "{":
                blocks.append(words[0] if words else "")
                if len(blocks) > 64:
                    judge.problem(line, "blocks nested deeper than 64")
                    return
            elif not blocks:
                judge.problem(line, "a `}` without its `{`")
                return
            else:
                blocks.pop()
            words = []
        elif kind in ("w", "q", "x"):
            if not words:
                start = line
            words.append(value.strip("'\"") if kind == "q" else value)
        line += value.count("\n")
    if blocks:
        judge.problem(line, f"the block `{blocks[-1][:40]}` is not closed")


def scan_nginx(judge: Judge, text: str, first_line: int = 1) -> None:
    """Look through an nginx configuration for what bounds, or does not bound, half-closed connections.

    Args:
        judge: takes the findings.
        text: the configuration, or a piece of one.
        first_line: the number of its first line in the file that it is part of.
    """
    for line, blocks, words in _directives(judge, text, first_line):
        name, value = words[0], words[1] if len(words) > 1 else ""
        shown = " ".join(words)[:120]
        if name == "proxy_half_close" and value == "on":
            judge.advice(line, "nginx-half-close", shown)
        elif name == "proxy_timeout" and "http" not in blocks:
            seconds = nginx_s(value)
            if seconds is not None and seconds > _NGINX_DEFAULT_S:
                judge.advice(line, "nginx-proxy-timeout", shown)
        elif name == "lingering_close" and value == "off":
            judge.advice(line, "nginx-lingering-off", shown)
        elif name == "reset_timedout_connection" and value == "on":
            judge.advice(line, "nginx-reset-timedout", shown)


def ingress_nginx(judge: Judge, line: int, key: str, value: str) -> None:
    """Judge a key of ingress-nginx's ConfigMap that becomes a time-out of nginx.

    Source: ingress-nginx, docs/user-guide/nginx-configuration/configmap.md.
    """
    if key == "proxy-stream-timeout":
        seconds = nginx_s(value)
        if seconds is not None and seconds > _NGINX_DEFAULT_S:
            judge.advice(line, "nginx-proxy-timeout", f"{key}: {value}")
