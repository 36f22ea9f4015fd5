"""Demonstrations about connections that wait in the queue of a listener."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from finwait.lab.proofs.instruments import (
    NET,
    NFT,
    Measured,
    Pair,
    Place,
    Proof,
    equal,
    error_of,
    in_state,
    row_of,
    rows,
    seen,
    until,
)
from finwait.lab.topology import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.lab.topology import Netns

__all__ = ["QUEUES", "reset_at"]


def _accept_queue(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        door, a = place.listener(), place.fresh()
        a.connect(door.getsockname())
        client_port, server_port = a.getsockname()[1], door.getsockname()[1]
        yield seen(
            "a connection that waits for accept()",
            row_of(place.ns, server_port, client_port),
            "ESTABLISHED",
            held=False,
        )
        a.close()
        until(lambda: in_state(row_of(place.ns, server_port, client_port), "CLOSE_WAIT"), "CLOSE_WAIT")
        yield seen(
            "the same after its client closed",
            row_of(place.ns, server_port, client_port),
            "CLOSE_WAIT",
            held=False,
        )
        queue = next(
            (row.rqueue for row in rows(place.ns) if row.state == "LISTEN" and row.sport == server_port), None
        )
        yield equal("the listener's Recv-Q", 1, queue)


def _queue_overflow(lab: Lab) -> Iterator[Measured]:
    for flag, resets in ((0, 0), (1, 3)):
        with Place(lab, f"abort{flag}", tcp_abort_on_overflow=flag) as place:
            beside = place.half_closed()
            door = place.listener(8)
            port = door.getsockname()[1]
            # Handshakes stop before their last packet, the queue shrinks to one, then they may go on.
            rule = f"tcp dport {port} tcp flags & (syn | ack) == ack drop"
            place.ns.nft(
                f"table inet hold {{\n chain in {{\n type filter hook input priority 0\n {rule}\n }}\n}}"
            )
            clients = [place.fresh() for _ in range(4)]
            for client in clients:
                client.connect(("127.0.0.1", port))
            waiting = sum(row.state == "SYN_RECV" and row.sport == port for row in rows(place.ns))
            yield equal(f"half-open at the listener, tcp_abort_on_overflow={flag}", 4, waiting)
            door.listen(0)
            place.ns.nft("delete table inet hold")
            for client in clients:
                client.sendall(b"x")
            until(lambda d=place, p=port: _accepted(d.ns, p) == 1, "one is in the queue")  # type: ignore[misc]
            time.sleep(0.5)
            errors = [error_of(client) for client in clients]
            yield equal(f"clients reset, tcp_abort_on_overflow={flag}", resets, errors.count("ECONNRESET"))
            yield seen("the FIN_WAIT2 beside them", beside.at_a(), "FIN_WAIT2", timer=0, held=True)
            if not flag:
                yield equal(
                    "data that waited for room, once the program accepts", [b"x"] * 4, _taken(door, 4)
                )


def _taken(door: socket.socket, count: int) -> list[bytes]:
    """Return what connections bring that are accepted one after the other, each once it has got into the queue."""
    door.settimeout(20)
    result = []
    for _ in range(count):
        with door.accept()[0] as taken:
            taken.settimeout(20)
            result.append(taken.recv(1))
    return result


def _accepted(ns: Netns, port: int) -> int:
    return sum(row.sport == port and row.state == "ESTABLISHED" for row in rows(ns))


def reset_at(place: Place, pair: Pair, listening: socket.socket) -> None:
    """Send ``a`` a RST with exactly the sequence number that it expects, as read from its last packet."""
    expected = 0
    listening.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:
            packet = listening.recv(65536)
            tcp = packet[(packet[0] & 15) * 4 :]
            if struct.unpack("!HH", tcp[:4]) == (pair.a_port, pair.b_port):
                expected = struct.unpack("!I", tcp[8:12])[0]
    loopback = socket.inet_aton("127.0.0.1")
    segment = struct.pack("!HHIIBBHHH", pair.b_port, pair.a_port, expected, 0, 5 << 4, 4, 0, 0, 0)
    total = (
        sum(struct.unpack("!10H", segment))
        + sum(struct.unpack("!4H", loopback * 2))
        + socket.IPPROTO_TCP
        + 20
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    segment = segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]
    raw = place.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
    with raw:
        raw.sendto(segment, ("127.0.0.1", 0))


QUEUES: Final[tuple[Proof, ...]] = (
    Proof("accept-queue", ("X16",), 0.2, NET, _accept_queue),
    Proof("queue-overflow", ("S11",), 4, NFT, _queue_overflow),
)
