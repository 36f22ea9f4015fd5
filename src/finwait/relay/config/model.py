"""What a relay can be told: one declaration for TOML, JSON Schema, command line, `--explain` and reference.

Each option is a field of one of the structs below, with what it protects from as its description. A duration
is a number of seconds or a string such as ``"5s"``, ``"300ms"``, ``"1h"``; 0 always means "no limit".

What types cannot say is in `finwait.relay.config.check`.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from finwait.errors import FinwaitError
from finwait.relay.machine import RelayLimits
from finwait.table import units

__all__ = [
    "Affinity",
    "BackendConfig",
    "ClientSide",
    "Config",
    "ConfigError",
    "Health",
    "Outlier",
    "Pool",
    "ServerSide",
    "Service",
    "SideOptions",
    "Timeouts",
    "parse_duration",
]


class ConfigError(FinwaitError):
    """A configuration that cannot be: where, what, and what would be right."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


_DURATION = {"type": ["number", "string"], "pattern": r"^[0-9.]+ *(ms|s|m|min|h|d)?$", "x-unit": "seconds"}

_LONGEST: Final = 1e6
"""Seconds, some eleven days. TCP_USER_TIMEOUT counts milliseconds in 31 bits; nothing here needs more."""

_C_INT: Final = 0x7FFFFFFF

_MAX_KEEPALIVE: Final = 32767
"""MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, include/net/tcp.h."""


def parse_duration(value: float | str) -> float:
    """Return seconds.

    Raises:
        ValueError: neither a number nor a number with a unit, or longer than a million seconds.
    """
    seconds = -1.0
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            seconds = units.parse_duration(value) / 1000
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LONGEST:
        seconds = float(value)
    if not 0 <= seconds <= _LONGEST:
        shown = str(value) if len(str(value)) < 40 else f"{str(value)[:40]}…"
        raise ValueError(
            f'`{shown}` is not a duration of at most 1000000 s; write for example 5, "5s", "300ms" or "1h"'
        )
    return seconds


def _time(description: str, most: float = _LONGEST) -> Meta:
    return Meta(ge=0, le=most, description=description, extra_json_schema=_DURATION, extra=_READ_DURATION)


_READ_DURATION: Final = {
    "read": parse_duration,
    "unit": "duration",
    "expects": 'it must be a duration, for example 5, "5s", "300ms" or "1h"',
}
_NETWORKS: Final = {"expects": 'it must be a list of text, for example ["10.0.0.0/8"]'}


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of the configuration have in common."""


class Timeouts(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long things may take."""

    connect: Annotated[
        float,
        _time(
            "Time for one attempt to connect to a backend. Protects against a black hole where SYNs "
            "vanish; the kernel alone would try for 130 s."
        ),
    ] = 5.0
    tries: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description=(
                "Attempts to connect in all, each to another backend while there is one. Protects "
                "against one dead backend."
            ),
        ),
    ] = 3
    header: Annotated[
        float,
        _time(
            "Time until the PROXY header is complete. Protects against clients that connect and send nothing."
        ),
    ] = 5.0
    first_byte: Annotated[
        float,
        _time(
            "Time until either side sends its first byte. Protects against connections opened only to hold "
            "a descriptor (slowloris). Off by default, because clients with pools open connections early."
        ),
    ] = 0.0
    idle: Annotated[
        float,
        _time(
            "Time without a byte in either direction while both are open. Protects against sessions whose "
            "user has left but whose machine is alive."
        ),
    ] = 3600.0
    half_close: Annotated[
        float,
        _time(
            "Time that a half-closed connection may go without a byte in the open direction. Protects "
            "against programs that never close on machines that are alive; keepalive finds dead machines "
            "long before."
        ),
    ] = 300.0
    lifetime: Annotated[
        float,
        _time(
            "Cut a connection at this age, whatever it does. For setups that must rebalance. Off by default."
        ),
    ] = 0.0
    drain: Annotated[
        float,
        _time(
            "Time from SIGTERM until a RST cuts the connections that are left. Protects against a shutdown "
            "that waits for the last connection."
        ),
    ] = 30.0
    drain_half_close: Annotated[
        float,
        _time(
            "The value of half_close while draining. Protects against waiting for connections "
            "that are probably dead."
        ),
    ] = 5.0
    drain_spread: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of the drain time over which the cuts are spread at random. Protects "
            "against all clients coming back in the same instant.",
        ),
    ] = 0.0

    def limits(self) -> RelayLimits:
        """Return what the machine needs of it."""
        return RelayLimits(
            header=self.header,
            connect=self.connect,
            tries=self.tries,
            first_byte=self.first_byte,
            idle=self.idle,
            half_close=self.half_close,
            lifetime=self.lifetime,
            drain_half_close=self.drain_half_close,
        )


class SideOptions(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the sockets of one side."""

    keepalive_idle: Annotated[
        float,
        _time(
            "Silence before the first probe (TCP_KEEPIDLE, whole seconds); 0 sends no probes. Finds peers "
            "that are gone, and peers that closed fully behind a half-close. Keeps conntrack entries alive.",
            _MAX_KEEPALIVE,
        ),
    ] = 15.0
    keepalive_interval: Annotated[float, _time("Time between probes (TCP_KEEPINTVL).", _MAX_KEEPALIVE)] = 5.0
    keepalive_count: Annotated[
        int,
        Meta(ge=1, le=127, description="Unanswered probes before the connection is dropped (TCP_KEEPCNT)."),
    ] = 3
    user_timeout: Annotated[
        float,
        _time(
            "How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT). Without it, a vanished peer "
            "holds a sender for 15 minutes. It does not apply to a peer that is alive and keeps its window "
            "shut."
        ),
    ] = 30.0
    linger: Annotated[
        float,
        _time(
            "How long, after both sides have finished, the kernel may keep delivering to a reader whose "
            "window is shut. Protects a slow reader from losing the end of an answer."
        ),
    ] = 300.0
    nodelay: Annotated[
        bool,
        Meta(
            description="TCP_NODELAY: send bytes at once. A relay that waits for more adds up to 40 ms to "
            "a small request."
        ),
    ] = True
    mark: Annotated[
        int, Meta(ge=0, le=0xFFFFFFFF, description="SO_MARK, for routing and nftables; needs CAP_NET_ADMIN.")
    ] = 0
    transparent: Annotated[
        bool,
        Meta(
            description="IP_TRANSPARENT. Client side: accept connections to addresses that are not this "
            "machine's. Server side: connect from the client's own address. Needs "
            "CAP_NET_ADMIN and routes that bring the answers back."
        ),
    ] = False


class ClientSide(SideOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the sockets towards clients."""

    fast_open: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description=(
                "Length of the TCP Fast Open queue; 0 turns it off. Saves returning clients a round trip."
            ),
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
        str, Meta(description="SO_BINDTODEVICE: accept only what arrives on this interface.")
    ] = ""


class ServerSide(SideOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the sockets towards backends."""

    bind: Annotated[
        str,
        Meta(description="Source address of connections to backends. If it is empty, the kernel chooses."),
    ] = ""
    fast_open: Annotated[
        bool,
        Meta(
            description="TCP_FASTOPEN_CONNECT: the SYN carries the client's first bytes. Only for "
            "protocols in which the client sends first, because nothing is sent until then."
        ),
    ] = False


class BackendConfig(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place to send connections to."""

    address: Annotated[
        str,
        Meta(
            description="`10.0.0.5:80`, `[2001:db8::5]:80`, `unix:/run/app.sock`, `dns:app.example:80` "
            "(each address of the name is a backend; the name is resolved again and again) or "
            "`file:/etc/backends` (one address per line; the file is watched)."
        ),
    ]
    weight: Annotated[int, Meta(ge=0, le=256, description="Share of new connections; 0 gets none.")] = 1
    max_connections: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description=(
                "Connections to this backend at once; 0 means no limit. Protects the backend from overload."
            ),
        ),
    ] = 0


class Affinity(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether a source comes back to the same backend, as `sessionAffinity: ClientIP` of a Kubernetes Service."""

    timeout: Annotated[
        float, _time("How long a source stays with its backend after its last connection; 0 turns this off.")
    ] = 0.0
    max_sources: Annotated[
        int,
        Meta(
            ge=1,
            le=_C_INT,
            description="Sources to remember; beyond that, the oldest is forgotten. Bounds memory.",
        ),
    ] = 65536


class Health(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Active checks: connect now and then, whether or not there is traffic."""

    interval: Annotated[
        float,
        _time(
            "Time between two checks of one backend; 0 turns checks off. Finds a dead backend "
            "before a client does."
        ),
    ] = 0.0
    timeout: Annotated[float, _time("How long one check may take.")] = 2.0
    rise: Annotated[
        int,
        Meta(
            ge=1,
            le=_C_INT,
            description=(
                "Successful checks in a row before a backend counts as up again. Protects against flapping."
            ),
        ),
    ] = 2
    fall: Annotated[
        int,
        Meta(
            ge=1,
            le=_C_INT,
            description=(
                "Failed checks in a row before a backend counts as down. Protects against one lost packet."
            ),
        ),
    ] = 3
    send: Annotated[str, Meta(description="Bytes to send after connecting, for example an HTTP request.")] = (
        ""
    )
    expect: Annotated[
        str, Meta(description="What the answer must contain. If it is empty, connecting is enough.")
    ] = ""


class Outlier(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Passive checks: what real connections say about a backend."""

    failures: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description=(
                "Failures in a row that eject a backend (a failed connect, or a reset before its "
                "first byte); 0 turns this off."
            ),
        ),
    ] = 3
    eject: Annotated[
        float,
        _time(
            "How long an ejected backend is left out. The time doubles with each ejection, up to 300 s, "
            "and halves again with each such interval that the backend is in use."
        ),
    ] = 10.0
    max_percent: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description=(
                "At most this share of the backends is left out. Protects against ejecting all of "
                "them in a bad minute."
            ),
        ),
    ] = 50


class Pool(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Idle connections to backends, opened before they are needed."""

    max_idle: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description="Connections kept ready for each backend, in each worker; 0 turns this off. Saves "
            "a round trip to distant backends. Each is used once, because a TCP connection "
            "cannot be used again after a byte was sent. Not for servers that count silent "
            "clients or time them out.",
        ),
    ] = 0
    idle_timeout: Annotated[float, _time("An unused connection is closed and replaced after this long.")] = (
        60.0
    )


class Service(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Listeners, and the backends behind them."""

    name: Annotated[
        str,
        Meta(
            description="Name in logs, in metrics and on the command line.",
            pattern=r"^[A-Za-z0-9_.-]+$",
            extra={"expects": "it must be letters, digits, `_`, `.` and `-`"},
        ),
    ] = "relay"
    listen: Annotated[
        tuple[str, ...],
        Meta(
            description="`0.0.0.0:80`, `[::]:80` (IPv6 only), `*:80` (both families), "
            "`127.0.0.1:8000-8010` (a range), `unix:/run/relay.sock`, `fd:NAME` (a socket that "
            "systemd passes; `fd:` alone uses all of them).",
            extra={"expects": 'it must be a list of text, for example ["*:8080"]'},
        ),
    ]
    backend: Annotated[
        tuple[BackendConfig, ...],
        Meta(
            min_length=1,
            description="Where to send connections.",
            extra={
                "expects": 'it must be a list of tables, for example backend = [{ address = "10.0.0.5:80" }]'
            },
        ),
    ]
    balance: Annotated[
        Literal["round_robin", "least_connections", "source_hash"],
        Meta(
            description="round_robin: in turn, by weight. least_connections: the backend with the fewest, "
            "by weight; for long connections. source_hash: by client address on a consistent "
            "ring, so that few clients move when backends change."
        ),
    ] = "round_robin"
    slow_start: Annotated[
        float,
        _time(
            "A backend that comes back or joins others gets its full share only after this long. Protects "
            "it from full load while it is cold."
        ),
    ] = 0.0
    accept_proxy: Annotated[
        bool,
        Meta(
            description="Clients begin with a PROXY protocol header (v1 or v2); a client that does not is "
            "cut off. Only where nobody but a trusted proxy can connect, because the header is "
            "believed."
        ),
    ] = False
    send_proxy: Annotated[
        Literal["", "v1", "v2"],
        Meta(
            description=(
                "Send the backend a PROXY protocol header that says who the client is. The "
                "backend must expect it."
            )
        ),
    ] = ""
    allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Source networks that may connect. If it is empty, all may. Others get a RST. "
            "`unix` stands for the clients of Unix listeners, which have no address; a list "
            "without `unix` turns them away.",
            extra=_NETWORKS,
        ),
    ] = ()
    deny: Annotated[
        tuple[str, ...],
        Meta(
            description="Source networks that may not connect, or `unix`. Overrides allow.", extra=_NETWORKS
        ),
    ] = ()
    max_connections: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description=(
                "Connections at once in this service; more wait in the kernel's queue. 0 means "
                "that only the global limit applies."
            ),
        ),
    ] = 0
    max_per_source: Annotated[
        int,
        Meta(
            ge=0,
            le=_C_INT,
            description="Connections at once from one source, by source_prefix_v4 and source_prefix_v6 "
            "(with accept_proxy, from the client that the header names); more get a RST. 0 "
            "means no limit. Protects against one client taking all.",
        ),
    ] = 0
    source_prefix_v4: Annotated[
        int,
        Meta(
            ge=1,
            le=32,
            description=(
                "For max_per_source, IPv4 addresses that agree in their first N bits are one source."
            ),
        ),
    ] = 32
    source_prefix_v6: Annotated[
        int,
        Meta(
            ge=1,
            le=128,
            description="For max_per_source, IPv6 addresses that agree in their first N bits are one "
            "source; a client usually has a whole /64 to connect from. Link-local addresses "
            "count one by one.",
        ),
    ] = 64
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
            description="Processes that move bytes, each with its own sockets (SO_REUSEPORT).",
        ),
    ] = 1
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=_C_INT,
            description="Connections at once in the whole relay; each worker gets its share. More wait in "
            "the kernel's queue. Bounds memory and descriptors.",
        ),
    ] = 9000
    user: Annotated[
        str,
        Meta(
            description=(
                "Switch to this user (and its groups) once the listeners are bound. No privilege is kept."
            )
        ),
    ] = ""
    admin: Annotated[
        str,
        Meta(
            description=(
                "Unix socket for `finwait relay ls|show|close|drain|stats`, with mode 0600. "
                "If it is empty, there is none."
            )
        ),
    ] = ""
    metrics: Annotated[
        str, Meta(description="Address where Prometheus finds /metrics. If it is empty, there is none.")
    ] = ""
    access_log: Annotated[
        str,
        Meta(
            description=(
                "File that gets one JSON line per ended connection; `-` is stdout. If it is "
                "empty, there is none."
            )
        ),
    ] = ""
    resolve_interval: Annotated[float, _time("Time between two lookups of each `dns:` backend.")] = 10.0
