"""What a relay can be told: one declaration for TOML, JSON Schema, command line, `--explain` and reference.

Each option is a field of one of the structs below, with what it protects from as its description. A duration
is a number of seconds or a string such as ``"5s"``, ``"300ms"``, ``"1h"``; 0 always means "no limit".

Mistakes are reported with the line of the file they stand in. tomllib gives no positions for values, so
`_Lines` finds them again; where it cannot (a key inside an inline table), the line of the table is named.
"""

from __future__ import annotations

# Codecs are imported at their first use, and `user` may not be allowed to read the interpreter's directory.
import encodings.idna
import encodings.unicode_escape  # noqa: F401
import ipaddress
import re
import tomllib
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from finwait import files
from finwait.errors import FileRefused, FinwaitError
from finwait.relay.acl import UNIX, parse_network
from finwait.relay.machine import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "Affinity",
    "BackendConfig",
    "ClientSide",
    "Config",
    "ConfigError",
    "Health",
    "Listen",
    "Outlier",
    "Pool",
    "ServerSide",
    "Service",
    "Timeouts",
    "check",
    "json_schema",
    "load",
    "options",
    "parse",
    "parse_duration",
    "parse_listen",
    "probe_bytes",
    "split_address",
    "tables",
]


class ConfigError(FinwaitError):
    """A configuration that cannot be: where, what, and what would be right."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_DURATION = {"type": ["number", "string"], "pattern": r"^[0-9.]+ *(ms|s|m|min|h|d)?$", "x-unit": "seconds"}


_LONGEST: Final = 1e6
"""Seconds, some eleven days. TCP_USER_TIMEOUT counts milliseconds in 31 bits; nothing here needs more."""
_C_INT: Final = 0x7FFFFFFF
_MOST_BYTES: Final = 1 << 20
"""Of a configuration; the longest that is of use has some ten thousand."""
_MAX_KEEPALIVE: Final = 32767
"""MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, include/net/tcp.h."""
_MAX_PATH: Final = 107
"""Bytes in the name of a Unix socket: sun_path less its final NUL, unix(7)."""


def parse_duration(value: float | str) -> float:
    """Return seconds.

    Raises:
        ValueError: neither a number nor a number with a unit, or longer than a million seconds.
    """
    seconds = -1.0
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) *(ms|s|min|m|h|d)?", value.strip(), re.ASCII)
        if match is not None:
            seconds = float(match[1]) * _UNITS[match[2] or ""]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LONGEST:
        seconds = float(value)
    if not 0 <= seconds <= _LONGEST:
        shown = str(value) if len(str(value)) < 40 else f"{str(value)[:40]}…"
        raise ValueError(
            f'`{shown}` is not a duration of at most 1000000 s; write for example 5, "5s", "300ms" or "1h"'
        )
    return seconds


def _time(description: str, most: float = _LONGEST) -> Meta:
    return Meta(ge=0, le=most, description=description, extra_json_schema=_DURATION, extra={"duration": True})


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of the configuration have in common."""


class Timeouts(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long things may take."""

    connect: Annotated[
        float,
        _time(
            "One try to reach a backend. Against a black hole, where SYNs vanish: the kernel alone would try 130 s."
        ),
    ] = 5.0
    tries: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Tries in all, each at another backend while there is one. Against one dead backend.",
        ),
    ] = 3
    header: Annotated[
        float, _time("Until the PROXY header is complete. Against clients that connect and say nothing.")
    ] = 5.0
    first_byte: Annotated[
        float,
        _time(
            "Until anyone says anything. Against connections opened only to hold a descriptor "
            "(slowloris). Off, because "
            "clients with pools open connections early."
        ),
    ] = 0.0
    idle: Annotated[
        float,
        _time(
            "No byte in either direction while both are open. Against sessions whose user has left "
            "but whose machine lives."
        ),
    ] = 3600.0
    half_close: Annotated[
        float,
        _time(
            "Half-closed, and no byte in the open direction. Against programs that never close, on "
            "machines that live; the "
            "dead are found by keepalive, long before."
        ),
    ] = 300.0
    lifetime: Annotated[
        float,
        _time("The age at which a connection is cut whatever it does. For those who must rebalance; off."),
    ] = 0.0
    drain: Annotated[
        float,
        _time(
            "From SIGTERM until what is left is cut by RST. Against a shutdown that waits for the last connection."
        ),
    ] = 30.0
    drain_half_close: Annotated[
        float, _time("What half_close becomes while draining. Against waiting for what is probably dead.")
    ] = 5.0
    drain_spread: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of the drain time over which the cuts are spread at random. Against "
            "all clients coming back "
            "in the same instant.",
        ),
    ] = 0.0

    def limits(self) -> Limits:
        """Return what the machine needs of it."""
        return Limits(
            header=self.header,
            connect=self.connect,
            tries=self.tries,
            first_byte=self.first_byte,
            idle=self.idle,
            half_close=self.half_close,
            lifetime=self.lifetime,
            drain_half_close=self.drain_half_close,
        )


class _Side(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the sockets of one side."""

    keepalive_idle: Annotated[
        float,
        _time(
            "Silence before the first probe (TCP_KEEPIDLE, whole seconds); 0 sends none. Finds peers "
            "that are gone, and those "
            "that closed fully behind a half-close; keeps conntrack entries alive.",
            _MAX_KEEPALIVE,
        ),
    ] = 15.0
    keepalive_interval: Annotated[float, _time("Between probes (TCP_KEEPINTVL).", _MAX_KEEPALIVE)] = 5.0
    keepalive_count: Annotated[
        int,
        Meta(ge=1, le=127, description="Unanswered probes before the peer is given up (TCP_KEEPCNT)."),
    ] = 3
    user_timeout: Annotated[
        float,
        _time(
            "How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT). Without it a vanished "
            "peer holds a sender for 15 "
            "minutes. A peer that lives and keeps its window shut is not held to it."
        ),
    ] = 30.0
    linger: Annotated[
        float,
        _time(
            "After both sides have finished: how long the kernel may go on delivering to a reader "
            "whose window is shut. "
            "Against losing the tail of an answer to a slow reader."
        ),
    ] = 300.0
    nodelay: Annotated[
        bool,
        Meta(
            description="TCP_NODELAY: bytes go on at once. A relay that waits for more adds up to 40 "
            "ms to a small request."
        ),
    ] = True
    mark: Annotated[
        int, Meta(ge=0, le=0xFFFFFFFF, description="SO_MARK, for routing and nftables; needs CAP_NET_ADMIN.")
    ] = 0
    transparent: Annotated[
        bool,
        Meta(
            description="IP_TRANSPARENT. Client side: take connections to addresses that are not "
            "ours. Server side: connect "
            "from the client's own address. Needs CAP_NET_ADMIN and routes that bring the answers back."
        ),
    ] = False


class ClientSide(_Side, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the sockets towards clients."""

    fast_open: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description="Length of the TCP Fast Open queue; 0 is off. Saves returning clients a round trip.",
        ),
    ] = 0
    backlog: Annotated[
        int,
        Meta(
            ge=1,
            le=_C_INT,
            description="Connections that may wait to be accepted (the kernel caps it at somaxconn).",
        ),
    ] = 4096
    device: Annotated[
        str, Meta(description="SO_BINDTODEVICE: accept only what comes in by this interface.")
    ] = ""


class ServerSide(_Side, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the sockets towards backends."""

    bind: Annotated[
        str, Meta(description="Source address of connections to backends; empty: the kernel chooses.")
    ] = ""
    fast_open: Annotated[
        bool,
        Meta(
            description="TCP_FASTOPEN_CONNECT: the SYN goes out with the client's first bytes. Only "
            "for protocols where the "
            "client speaks first: until then nothing is sent."
        ),
    ] = False


class BackendConfig(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place to send connections to."""

    address: Annotated[
        str,
        Meta(
            description="`10.0.0.5:80`, `[2001:db8::5]:80`, `unix:/run/app.sock`, "
            "`dns:app.example:80` (each address of the "
            "name is a backend, asked for again and again) or `file:/etc/backends` (one address a line, watched)."
        ),
    ]
    weight: Annotated[int, Meta(ge=0, le=256, description="Share of new connections; 0 takes none.")] = 1
    max_connections: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description="Connections to this backend at once; 0: no limit. Against drowning it.",
        ),
    ] = 0


class Affinity(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether a source comes back to the same backend, as `sessionAffinity: ClientIP` of a Kubernetes Service."""

    timeout: Annotated[
        float, _time("How long a source stays with its backend after its last connection; 0 is off.")
    ] = 0.0
    max_sources: Annotated[
        int, Meta(ge=1, le=_C_INT, description="Sources remembered; the oldest is forgotten. Bounds memory.")
    ] = 65536


class Health(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Active checks: connect now and then, whether or not there is traffic."""

    interval: Annotated[
        float, _time("Between checks of one backend; 0 is off. Finds the dead before a client does.")
    ] = 0.0
    timeout: Annotated[float, _time("Of one check.")] = 2.0
    rise: Annotated[
        int,
        Meta(ge=1, le=_C_INT, description="Successes before a backend counts as up again. Against flapping."),
    ] = 2
    fall: Annotated[
        int, Meta(ge=1, le=_C_INT, description="Failures before it counts as down. Against one lost packet.")
    ] = 3
    send: Annotated[str, Meta(description="Bytes to send after connecting, for example an HTTP request.")] = (
        ""
    )
    expect: Annotated[str, Meta(description="What the answer must contain; empty: connecting is enough.")] = (
        ""
    )


class Outlier(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Passive checks: what real connections say about a backend."""

    failures: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description="Failures in a row (connect, or reset before its first byte) that eject a backend; 0 is off.",
        ),
    ] = 3
    eject: Annotated[
        float,
        _time(
            "How long it is left out. Doubles with each ejection, up to 300 s, and halves again with each such "
            "interval that it is in use."
        ),
    ] = 10.0
    max_percent: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="At most this share of the backends is left out. Against ejecting all in a bad minute.",
        ),
    ] = 50


class Pool(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Idle connections to backends, opened before they are needed."""

    max_idle: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description="Connections kept ready for each backend (and worker); 0 is off. Saves a "
            "round trip to distant "
            "backends. Each is used once: after a byte was sent a TCP connection cannot be used "
            "again. Not for servers "
            "that count or time out silent clients.",
        ),
    ] = 0
    idle_timeout: Annotated[float, _time("After this long unused it is closed and opened anew.")] = 60.0


class Service(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Listeners, and the backends behind them."""

    name: Annotated[
        str, Meta(description="For logs, metrics and the command line.", pattern=r"^[A-Za-z0-9_.-]+$")
    ] = "relay"
    listen: Annotated[
        tuple[str, ...],
        Meta(
            description="`0.0.0.0:80`, `[::]:80` (IPv6 only), `*:80` (both families), "
            "`127.0.0.1:8000-8010` (a range), "
            "`unix:/run/relay.sock`, `fd:NAME` (a socket that systemd passes; `fd:` alone takes all of them)."
        ),
    ]
    backend: Annotated[tuple[BackendConfig, ...], Meta(min_length=1, description="Where to.")]
    balance: Annotated[
        Literal["round_robin", "least_connections", "source_hash"],
        Meta(
            description="round_robin: in turn, by weight. least_connections: the one with fewest, by "
            "weight; for long "
            "connections. source_hash: by client address on a consistent ring, so that few move when backends change."
        ),
    ] = "round_robin"
    slow_start: Annotated[
        float,
        _time(
            "A backend that comes back, or joins others, gets its full share only after this long. Against "
            "crushing it cold."
        ),
    ] = 0.0
    accept_proxy: Annotated[
        bool,
        Meta(
            description="Clients begin with a PROXY protocol header (v1 or v2), and who does not is "
            "cut off. Only where "
            "nobody but a trusted proxy can connect: the header is believed."
        ),
    ] = False
    send_proxy: Annotated[
        Literal["", "v1", "v2"],
        Meta(description="Tell the backend who the client is; it must expect the header."),
    ] = ""
    allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Source networks that may connect; empty: all. Others get RST. `unix` stands for the "
            "clients of Unix listeners, which have no address: a list without it turns them away."
        ),
    ] = ()
    deny: Annotated[
        tuple[str, ...], Meta(description="Source networks that may not, or `unix`; goes before allow.")
    ] = ()
    max_connections: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description="At once in this service; more wait in the kernel's queue. 0: only the global limit.",
        ),
    ] = 0
    max_per_source: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description="At once from one address (with accept_proxy: of the client that the header names); more "
            "get RST. 0: no limit. Against one client taking all.",
        ),
    ] = 0
    timeouts: Timeouts = Timeouts()
    client: ClientSide = ClientSide()
    server: ServerSide = ServerSide()
    affinity: Affinity = Affinity()
    health: Health = Health()
    outlier: Outlier = Outlier()
    pool: Pool = Pool()


class Config(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole relay."""

    service: Annotated[tuple[Service, ...], Meta(min_length=1, description="At least one.")]
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="Processes that move bytes, each with sockets of its own (SO_REUSEPORT).",
        ),
    ] = 1
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=_C_INT,
            description="At once in the whole relay, each worker its share; more wait in the kernel's queue. "
            "Bounds memory and descriptors.",
        ),
    ] = 9000
    user: Annotated[
        str,
        Meta(
            description="Become this user (and its groups) once the listeners are bound; no privilege is kept."
        ),
    ] = ""
    admin: Annotated[
        str, Meta(description="Unix socket for `finwait relay ls|show|close|drain`; empty: none. Mode 0600.")
    ] = ""
    metrics: Annotated[str, Meta(description="Address on which Prometheus finds /metrics; empty: none.")] = ""
    access_log: Annotated[
        str, Meta(description="File for one JSON line per ended connection, `-` for stdout; empty: none.")
    ] = ""
    resolve_interval: Annotated[float, _time("Between two questions for each `dns:` backend.")] = 10.0


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────


class Listen(msgspec.Struct, frozen=True):
    """One address to listen on; ``host`` is a path for ``unix`` and a name for ``fd``."""

    kind: Literal["ipv4", "ipv6", "dual", "unix", "fd"]
    host: str
    port: int = 0

    def __str__(self) -> str:
        if self.kind in ("unix", "fd"):
            return f"{self.kind}:{self.host}"
        host = {"ipv6": f"[{self.host}]", "dual": "*"}.get(self.kind, self.host)
        return f"{host}:{self.port}"


def split_address(text: str) -> tuple[str, str]:
    """Split ``host:port``, with brackets around an IPv6 address.

    Raises:
        ValueError: there is no port, or a bare IPv6 address is ambiguous.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port:
        raise ValueError(f"`{text}` has no port; write for example 10.0.0.5:80")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], port
    if ":" in host:
        raise ValueError(f"`{text}`: an IPv6 address stands in brackets, as in [{host}]:{port}")
    return host, port


def _port(text: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and least <= int(text) <= 65535):
        raise ValueError(f"`{text}` is not a port ({least} to 65535)")
    return int(text)


def parse_listen(text: str) -> tuple[Listen, ...]:
    """Return the addresses that one entry of ``listen`` stands for (a range of ports stands for many).

    Raises:
        ValueError: it is no address to listen on.
    """
    if text.startswith("unix:"):
        if not text[5:]:
            raise ValueError("`unix:` needs a path, as in unix:/run/relay.sock")
        _check_path(text[5:])
        return (Listen("unix", text[5:]),)
    if text.startswith("fd:"):
        return (Listen("fd", text[3:]),)
    host, ports = split_address(text)
    first, dash, last = ports.partition("-")
    low = _port(first)
    high = _port(last, low) if dash else low
    if high - low > 1023:
        raise ValueError(f"`{ports}` is {high - low + 1} ports; at most 1024 in one range")
    if host in ("", "*"):
        return tuple(Listen("dual", "::", port) for port in range(low, high + 1))
    try:
        kind: Literal["ipv4", "ipv6"] = "ipv6" if ipaddress.ip_address(host).version == 6 else "ipv4"
    except ValueError:
        raise ValueError(f"`{host}` is not an IP address; a listener needs one, or `*`") from None
    return tuple(Listen(kind, host, port) for port in range(low, high + 1))


def _check_path(path: str) -> None:
    """Raise ValueError when a path cannot be that of a Unix socket."""
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > _MAX_PATH:
        raise ValueError(f"a Unix socket's path has at most {_MAX_PATH} bytes and no NUL")


def check_backend(text: str) -> None:
    """Raise ValueError when ``text`` cannot be the address of a backend."""
    kind, _, rest = text.partition(":")
    if kind in ("unix", "file"):
        if not rest:
            raise ValueError(f"`{text}` needs a path")
        if kind == "unix":
            _check_path(rest)
        elif "\0" in rest:
            raise ValueError("a path has no NUL")
        return
    host, port = split_address(rest if kind == "dns" else text)
    _port(port, 1)
    if kind == "dns":
        _check_name(host)
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"`{host}` is not an IP address; for a name write `dns:{host}:{port}`") from None


def _check_name(name: str) -> None:
    """Raise ValueError when a text cannot be a name of the DNS (RFC 1035, 2.3.4)."""
    try:
        plain = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"`{name}` is no name that the DNS could have") from None
    labels = plain.removesuffix(".").split(".")
    if len(plain) > 253 or not all(0 < len(label) < 64 for label in labels):
        raise ValueError(
            f"`{name}` is no name: each part between dots has 1 to 63 characters, all at most 253"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", plain):
        raise ValueError(
            f"`{name}` is no name: it has a character other than letters, digits, `-`, `_` and `.`"
        )


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_TABLE = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")


class _Lines:
    """Where in a TOML text a path such as ``service[0].timeouts.idle`` was written."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        counts: dict[str, int] = {}
        prefix = ""
        depth, quote = 0, ""
        for number, line in enumerate(text.splitlines(), 1):
            if not depth and not quote:
                table = _TABLE.match(line)
                key = None if table else _KEY.match(line)
                if table:
                    prefix = self._enter(table[2], table[1] == "[[", counts)
                    self.lines.setdefault(prefix, number)
                elif key:
                    path = ".".join(filter(None, (prefix, re.sub(r"[\s\"']", "", key[1]))))
                    self.lines.setdefault(path, number)
            depth, quote = self._nesting(
                line, depth, quote, starts_table=depth == 0 and bool(_TABLE.match(line))
            )

    @staticmethod
    def _enter(name: str, array: bool, counts: dict[str, int]) -> str:
        """Return the path of a table header; an array of tables counts its elements."""
        path = ""
        parts = [part.strip().strip("\"'") for part in name.split(".")]
        for place, part in enumerate(parts):
            path = f"{path}.{part}" if path else part
            if array and place == len(parts) - 1:
                counts[path] = counts.get(path, -1) + 1
            if path in counts:
                path = f"{path}[{counts[path]}]"
        return path

    @staticmethod
    def _nesting(line: str, depth: int, quote: str, *, starts_table: bool) -> tuple[int, str]:
        """Follow brackets and quotes that stay open at the end of a line."""
        at = len(line) if starts_table else 0
        while at < len(line):
            if quote:
                if line.startswith(quote, at):
                    at, quote = at + len(quote), ""
                else:
                    at += 2 if line[at] == "\\" and quote[0] == '"' else 1
                continue
            if line[at] == "#":
                break
            if line.startswith(('"""', "'''"), at):
                quote, at = line[at : at + 3], at + 3
                continue
            if line[at] in "\"'":
                quote = line[at]
            depth += (line[at] in "[{") - (line[at] in "]}")
            at += 1
        return max(depth, 0), quote if len(quote) == 3 else ""

    def of(self, path: str) -> int:
        """Return the line of a path, or of what is nearest above it; 1 when nothing is."""
        while path:
            if path in self.lines:
                return self.lines[path]
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return 1


def _with_seconds(data: Any, kind: Any, path: str) -> Any:  # noqa: ANN401  # whatever TOML held
    """Return ``data`` with each duration as seconds, led by the declared types; wrong shapes pass unchanged.

    Raises:
        _Misplaced: a duration does not parse.
    """
    if typing.get_origin(kind) is Annotated:
        kind, *notes = typing.get_args(kind)
        if any(isinstance(note, Meta) and (note.extra or {}).get("duration") for note in notes):
            try:
                return parse_duration(data)
            except ValueError as error:
                raise _Misplaced(str(error), path) from None
    if typing.get_origin(kind) is tuple and isinstance(data, (list, tuple)):
        element = typing.get_args(kind)[0]
        return [_with_seconds(item, element, f"{path}[{at}]") for at, item in enumerate(data)]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(data, dict):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {
            key: _with_seconds(value, hints[key], f"{path}.{key}" if path else key) if key in hints else value
            for key, value in data.items()
        }
    return data


class _Misplaced(ValueError):  # internal: a mistake and the path to it
    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def parse(
    data: dict[str, Any],
    *,
    name: str = "configuration",
    lines: _Lines | None = None,
    shown: Callable[[str], str] = str,
) -> Config:
    """Return the configuration that parsed TOML (or the command line) describes.

    Args:
        data: the tables.
        name: what it was read from.
        lines: where in the text things are.
        shown: how a path such as ``service[0].timeouts.idle`` is written there.

    Raises:
        ConfigError: with ``name:line:`` where lines are known.
    """
    try:
        config = msgspec.convert(_with_seconds(data, Config, ""), Config, strict=True)
        wrong = next(check(config), None)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        path = where.rstrip("`").lstrip(".").replace("[...]", "[0]")
        unknown = re.fullmatch(r".*unknown field `(.+)`", what, re.DOTALL)
        lacking = re.fullmatch(r".*missing required field `(.+)`", what, re.DOTALL)
        if unknown:
            table, path = path, f"{path}.{unknown[1]}".lstrip(".")
            what, hint = "there is no such key here", _elsewhere(unknown[1], _plain(table))
        elif lacking:
            what = f"`{lacking[1]}` is missing"
            hint = _wanted(f"{_plain(path)}.{lacking[1]}".lstrip("."))
        else:
            what, hint = what[0].lower() + what[1:], _wanted(_plain(path))
        raise _at(name, lines, path, shown, what, hint) from None
    except _Misplaced as error:
        raise _at(name, lines, error.path, shown, str(error), "") from None
    if wrong is not None:
        raise _at(name, lines, wrong[0], shown, wrong[1], "")
    return config


def _at(
    name: str, lines: _Lines | None, path: str, shown: Callable[[str], str], what: str, hint: str
) -> ConfigError:
    place = f"{name}:{lines.of(path)}" if lines is not None else name
    where = f" (`{shown(path)}`)" if path else ""
    return ConfigError(f"{place}: {what}{where}", hint=hint or _EXPLAIN)


_EXPLAIN: Final = "`finwait relay run --explain` lists each option"


def _plain(path: str) -> str:
    """Return a path without the numbers of its elements."""
    return re.sub(r"\[\d*\]", "", path)


def _wanted(path: str) -> str:
    """Return what the value of an option must be."""
    for known, kind, _, _ in options():
        if known != path:
            continue
        choices = getattr(kind, "__args__", None)
        if kind == "duration":
            return 'it is a duration, for example 5, "5s", "300ms" or "1h"'
        if choices:
            return "it is one of " + ", ".join(f'"{choice}"' for choice in choices)
        if kind is tuple:
            return 'it is a list of text, for example ["*:8080"]' if path.endswith("listen") else _NETWORKS
        return {
            bool: "it is true or false",
            int: "it is a whole number",
            float: "it is a number",
            str: 'it is text, in quotes: "…"',
        }[kind]
    return {
        "service": "it is a table that begins with [[service]]",
        "service.backend": 'it is a list of tables, for example backend = [{ address = "10.0.0.5:80" }]',
    }.get(path, f"it is a table that begins with [{path}]" if path in dict(tables()) else _EXPLAIN)


_NETWORKS: Final = 'it is a list of text, for example ["10.0.0.0/8"]'


def _elsewhere(unknown: str, here: str) -> str:
    """Return where a key that does not belong here might belong, or what it might have meant."""
    import difflib

    homes: dict[str, list[str]] = {}
    for path, *_ in options():
        table, _, key = path.rpartition(".")
        homes.setdefault(key, []).append(table)
    for path, _ in tables():
        table, _, key = path.rpartition(".")
        if key:
            homes.setdefault(key, []).append(table)
    same_table = difflib.get_close_matches(unknown, [key for key in homes if here in homes[key]], 1, 0.7)
    near = [unknown] if unknown in homes else same_table or difflib.get_close_matches(unknown, homes, 1, 0.5)
    if not near:
        return _EXPLAIN
    key = near[0]
    if here in homes[key]:
        return f"did you mean `{key}`?"
    told = " or ".join(f"`{_header(table)}`" if table else "the top level" for table in homes[key])
    return f"`{key}` belongs to {told}"


def _header(table: str) -> str:
    return f"[[{table}]]" if table in ("service", "service.backend") else f"[{table}]"


def load(path: Path) -> Config:
    """Read a TOML file.

    Raises:
        ConfigError: it cannot be read, is no TOML, or says something that cannot be; with file and line.
    """
    try:
        text = files.read(str(path), _MOST_BYTES).decode("utf-8").replace("\r\n", "\n")
    except FileRefused as error:
        raise ConfigError(
            f"could not read `{path}`: {error.reason}", hint="`--config` names a TOML file"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"could not read `{path}`: the kernel said {error.strerror}", hint="`--config` names a TOML file"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 at byte {error.start}", hint="TOML is UTF-8") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).rpartition(" (at ")
        found = re.search(r"line (\d+)", where)
        line = int(found[1]) if found else max(1, len(text.splitlines()))
        raise ConfigError(f"{path}:{line}: {what or error}", hint="this is not TOML yet") from None
    except (ValueError, RecursionError) as error:
        # tomllib lets through what int() and the stack say about numbers of 5,000 digits and tables 1,000 deep.
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(
            f"{path}:{_longest_line(text)}: {what}", hint="no configuration needs that"
        ) from None
    return parse(data, name=str(path), lines=_Lines(text))


def _longest_line(text: str) -> int:
    """Return the number of the longest line, where what is too long or too deep must be."""
    lines = text.splitlines() or [""]
    return max(range(len(lines)), key=lambda at: len(lines[at])) + 1


def check(config: Config) -> Iterator[tuple[str, str]]:
    """Yield what types cannot say: (path, what is wrong with it)."""
    names: set[str] = set()
    taken: dict[Listen, str] = {}
    for at, service in enumerate(config.service):
        path = f"service[{at}]"
        if service.name in names:
            yield f"{path}.name", f"there are two services `{service.name}`"
        names.add(service.name)
        if not service.listen:
            yield f"{path}.listen", "a service needs an address to listen on"
        for place, text in enumerate(service.listen):
            try:
                parsed = parse_listen(text)
            except ValueError as error:
                yield f"{path}.listen[{place}]", str(error)
                continue
            for listen in parsed:
                if listen in taken and listen.port:
                    yield f"{path}.listen[{place}]", f"{listen} is taken by service `{taken[listen]}` already"
                taken[listen] = service.name
        for place, backend in enumerate(service.backend):
            try:
                check_backend(backend.address)
            except ValueError as error:
                yield f"{path}.backend[{place}].address", str(error)
        for key in ("allow", "deny"):
            for place, network in enumerate(getattr(service, key)):
                try:
                    if network != UNIX:
                        parse_network(network)
                except ValueError as error:
                    yield f"{path}.{key}[{place}]", f"{error}; write for example 10.0.0.0/8"
        if any(text.startswith("unix:") for text in service.listen):
            if service.allow and UNIX not in service.allow:
                yield f"{path}.allow", "nobody could connect to the Unix listener: `unix` is not in the list"
            elif UNIX in service.deny:
                yield f"{path}.deny", "nobody could connect to the Unix listener: `unix` is in the list"
        if service.health.send:
            try:
                probe_bytes(service.health.send)
            except ValueError:
                yield (
                    f"{path}.health.send",
                    r"an escape is none of \r \n \t \xHH, or a character is no byte",
                )
        if service.send_proxy and service.health.send.startswith("PROXY "):
            yield (
                f"{path}.health.send",
                "send_proxy puts a header before it already; leave the line PROXY … out",
            )
        if (
            "\0" in service.client.device
            or len(service.client.device.encode("utf-8", "surrogateescape")) > 15
        ):
            yield f"{path}.client.device", "the name of an interface has at most 15 bytes and no NUL"
        if service.server.bind:
            try:
                ipaddress.ip_address(service.server.bind)
            except ValueError:
                yield f"{path}.server.bind", f"`{service.server.bind}` is not an IP address"
        for side, values in (("client", service.client), ("server", service.server)):
            if config.user and (values.mark or (values.transparent and side == "server")):
                problem = (
                    "mark and transparent need CAP_NET_ADMIN for each connection, which `user` gives up; "
                    "let systemd set the user with AmbientCapabilities=CAP_NET_ADMIN instead"
                )
                yield f"{path}.{side}", problem
            if 0 < values.keepalive_idle < 1 or 0 < values.keepalive_interval < 1:
                yield f"{path}.{side}.keepalive_idle", "the kernel counts keepalive in whole seconds, from 1"
        if service.server.fast_open and service.pool.max_idle:
            yield f"{path}.pool", "a pool opens connections early, fast_open late: choose one"
        if service.send_proxy and service.pool.max_idle:
            problem = (
                "with send_proxy the server waits for the header of a client that is not there yet: "
                "most count that as an error; choose one"
            )
            yield f"{path}.pool", problem
    if config.metrics:
        try:
            host, port = split_address(config.metrics)
            _port(port)
            if host not in ("", "*"):
                ipaddress.ip_address(host)
        except ValueError as error:
            yield "metrics", f"{error}; write for example 127.0.0.1:9464 or *:9464"
    if config.admin:
        try:
            _check_path(config.admin)
        except ValueError as error:
            yield "admin", str(error)
    for field in ("access_log", "user"):
        if "\0" in getattr(config, field):
            yield field, "a name has no NUL"


def probe_bytes(text: str) -> bytes:
    r"""Return the bytes that a health check sends; ``\r``, ``\n``, ``\x00`` are escapes, for the command line.

    Raises:
        ValueError: an escape that is none, or a character that is no byte.
    """
    return text.encode().decode("unicode_escape").encode("latin-1")


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────


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
