"""What a worker knows of a connection: the machine, its two legs, and where it is counted.

These are values that others work on: `finwait.relay.driver` feeds the machine and does what it says,
`finwait.relay.pump` moves the bytes of a leg, `finwait.relay.dialer` makes the leg to the server.
There are two legs and one `Conn` for each connection, so each has slots and nothing that could be looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finwait.relay import sockets
from finwait.relay.machine import RelayMachine

if TYPE_CHECKING:
    from finwait.relay.balance import Backend
    from finwait.relay.pipes import Pipe
    from finwait.relay.route import Route

__all__ = ["Conn", "Leg"]


class Leg:
    """One socket of a connection, and the direction that begins in it.

    Attributes:
        fd: the descriptor; -1 once it is closed.
        other: the connection's other leg, where bytes read here go.
        buf: bytes read here that the other leg did not take yet.
        pipe: lent while bytes are spliced, with ``in_pipe`` bytes in it.
        waiting: whether ``buf`` or the pipe holds anything; the other's EPOLLOUT continues then.
        bulk: so many bytes come that they are spliced.
        rdhup: the FIN has arrived: read on until 0.
        urgent: an urgent mark is in the stream: read, do not splice.
        eof: 0 was read.
        told: the machine knows of the FIN.
        muted: it is not watched for IN nor OUT, for its bytes wait already and none wait for it.
        queued: it waits for its next turn though no event will come.
        armed: it is in the epoll set.
        relaxed: its user timeout is lifted, for its window is shut.
        total: bytes read here.
    """

    __slots__ = (
        "armed",
        "buf",
        "bulk",
        "conn",
        "eof",
        "fd",
        "in_pipe",
        "is_client",
        "muted",
        "other",
        "pipe",
        "queued",
        "rdhup",
        "relaxed",
        "told",
        "total",
        "urgent",
        "waiting",
    )

    def __init__(self, fd: int, conn: Conn, is_client: bool) -> None:
        self.fd = fd
        self.conn = conn
        self.is_client = is_client
        self.other: Leg = self
        self.buf = b""
        self.pipe: Pipe | None = None
        self.in_pipe = 0
        self.waiting = False
        self.bulk = False
        self.rdhup = False
        self.urgent = False
        self.muted = False
        self.queued = False
        self.told = False
        self.eof = False
        self.armed = False
        self.relaxed = False
        self.total = 0


class Conn(RelayMachine):
    """A connection: the machine, and what the edge must know beside it.

    Attributes:
        route: where it is counted until it ends, whatever a reload makes of the listener.
        peer: the address of the other end of the client's socket.
        is_tcp: whether the client came by TCP; else by a Unix socket.
        source: the client's address, as a PROXY header said; None without one.
        destination: where the client connected to, as a PROXY header said.
        counted: the network that it counts for in `Route.sources`; empty: for none.
        tried: backends that failed for it.
        checked: how far its bytes had come when nothing waited for slow readers.
        slot: its place in the wheel.
        young: it has not been looked after yet, which happens within its first second.
    """

    __slots__ = (
        "backend",
        "checked",
        "client",
        "connected_at",
        "counted",
        "destination",
        "is_tcp",
        "number",
        "peer",
        "route",
        "server",
        "slot",
        "source",
        "tried",
        "young",
    )

    client: Leg
    server: Leg | None

    def __init__(self, route: Route, peer: Any, number: int, now: float, *, is_tcp: bool) -> None:  # noqa: ANN401
        RelayMachine.__init__(self, route.limits, now, header=route.service.accept_proxy)
        self.route = route
        self.peer = peer
        self.is_tcp = is_tcp
        self.source: tuple[str, int] | None = None
        self.destination: tuple[str, int] | None = None
        self.number = number
        self.server = None
        self.backend: Backend | None = None
        self.tried: tuple[Backend, ...] = ()
        self.connected_at = 0.0
        self.counted = ""
        self.checked = 0.0
        self.slot = 0
        self.young = True

    def client_host(self) -> str:
        """Return the client's address as text; empty for a Unix socket."""
        if self.source is not None:
            return self.source[0]
        return str(self.peer[0]).removeprefix("::ffff:") if self.is_tcp else ""

    def ends(self) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
        """Return the client's address and the one that it connected to; None for Unix sockets."""
        if self.source is not None and self.destination is not None:
            return self.source, self.destination
        if not self.is_tcp:
            return None, None
        local, _ = sockets.names(self.client.fd)
        source = self.peer[:2]
        return source, (local[0], local[1]) if isinstance(local, tuple) else None
