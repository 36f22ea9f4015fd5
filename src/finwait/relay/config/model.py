"""What a relay can be told: one declaration for TOML, JSON Schema, command line, `--explain` and reference.

Each option is a field of one of the structs below, with what it protects from as its description. A duration
is a number of seconds or a string such as ``"5s"``, ``"300ms"``, ``"1h"``; 0 always means "no limit".

What types cannot say is in `finwait.relay.config.check`.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from finwait.errors import FinwaitError
from finwait.relay.machine import Limits

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


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}

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


class SideOptions(_Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class ClientSide(SideOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class ServerSide(SideOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
            description="At once from one source, by source_prefix_v4 and source_prefix_v6 (with accept_proxy: of "
            "the client that the header names); more get RST. 0: no limit. Against one client taking all.",
        ),
    ] = 0
    source_prefix_v4: Annotated[
        int,
        Meta(
            ge=1, le=32, description="For max_per_source, IPv4 addresses that agree in so many bits are one."
        ),
    ] = 32
    source_prefix_v6: Annotated[
        int,
        Meta(
            ge=1,
            le=128,
            description="For max_per_source, IPv6 addresses that agree in so many bits are one: a client usually has "
            "a whole /64 to connect from. Link-local addresses count one by one.",
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
