"""Demonstrations about connection tracking: entries are not sockets, and what becomes of one without the other."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finwait.lab.actor import meet
from finwait.lab.proofs.instruments import (
    CT,
    NET,
    NFT,
    Measured,
    Place,
    ProcRow,
    Proof,
    by_scenario,
    equal,
    error_of,
    gone,
    in_state,
    row_of,
    seen,
    shown,
    until,
)
from finwait.lab.topology import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.lab.actor import ProgramSocket
    from finwait.lab.topology import Netns, Translated

__all__ = ["TRACKING"]


def _reject_with_reset(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        rule = f"tcp dport {pair.b_port} reject with tcp reset"
        place.ns.nft(
            f"table inet refuse {{\n chain arriving {{\n type filter hook input priority 0\n {rule}\n }}\n}}"
        )
        pair.a.sendall(b"x")
        until(lambda: pair.at_a() is None, "the sender was reset")
        yield equal("the end whose packet met the rule", "ECONNRESET", error_of(pair.a))
        yield seen("the other end", pair.at_b(), "ESTABLISHED", held=True)


def _conntrack_locked(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        for name in ("nf_conntrack_max", "nf_conntrack_buckets"):
            mode = place.ns.call(lambda n=name: Path("/proc/sys/net/netfilter", n).stat().st_mode & 0o777)  # type: ignore[misc]
            yield equal(f"mode of {name} in a namespace", "0o444", oct(mode))


def _end(conn: ProgramSocket) -> ProcRow | None:
    return row_of(conn.actor.netns, conn.sport, conn.dport)


def _entry(gateway: Netns, conn: ProgramSocket) -> list[str]:
    """The words of a flow's entry in the gateway's conntrack; empty when it has none."""
    return gateway.run("conntrack", "-L", "-p", "tcp", "--sport", str(conn.sport)).split()


def _probe(conn: ProgramSocket, *, idle: int = 1) -> None:
    for name, value in ((socket.TCP_KEEPIDLE, idle), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 5)):
        conn.actor.setsockopt([conn], socket.IPPROTO_TCP, name, value)
    conn.actor.setsockopt([conn], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _half_close_through(nat: Translated, count: int) -> tuple[list[ProgramSocket], list[ProgramSocket]]:
    """Connections of which the backend has sent its FIN and the client has read it."""
    near, far = meet(nat.client, nat.address, nat.backend, nat.door, count)
    nat.backend.shutdown(far, "WR")
    nat.client.read_to_end(near)
    until(lambda: all(in_state(_end(conn), "FIN_WAIT2") for conn in far), "FIN_WAIT2 at the backend")
    return near, far


def _close_wait_time(nat: Translated, seconds: int) -> None:
    nat.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close_wait", seconds)


def _flows_are_not_sockets(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    _close_wait_time(nat, 60)
    (near,), (far,) = _half_close_through(nat, 1)
    _close_wait_time(nat, 3)
    words = _entry(nat.gateway, near)
    yield Measured(
        "the flow's state in conntrack", "CLOSE_WAIT", " ".join(words[3:4]), words[3:4] == ["CLOSE_WAIT"]
    )
    yield seen("the backend's end meanwhile", _end(far), "FIN_WAIT2")
    yield seen("the client's end meanwhile", _end(near), "CLOSE_WAIT")
    time.sleep(4)
    words = _entry(nat.gateway, near)
    remaining_s = int(words[2]) if len(words) > 2 and words[2].isdigit() else 0
    yield Measured(
        "the entry 4 s after lowering its timeout from 60 to 3",
        "40 s or more left",
        f"{remaining_s} s",
        remaining_s >= 40,
    )


def _probes_and_expired_entries(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    _close_wait_time(nat, 2)
    near, far = meet(nat.client, nat.address, nat.backend, nat.door, 4)
    kept, lost, from_server, from_client = zip(near, far, strict=True)
    _probe(kept[0])
    nat.backend.shutdown(far, "WR")
    nat.client.read_to_end(near)
    until(lambda: not any(_entry(nat.gateway, conn) for conn in near[1:]), "three entries have expired")
    time.sleep(2)
    yield Measured(
        "the entry of the one probed every second",
        "there",
        "there" if _entry(nat.gateway, kept[0]) else "gone",
        bool(_entry(nat.gateway, kept[0])),
    )
    nat.client.close([kept[0], lost[0]])
    until(lambda: not in_state(_end(kept[1]), "FIN_WAIT2"), "its FIN arrives")
    yield _gone_or("its backend's end after the client's close()", _end(kept[1]), "TIME_WAIT")
    until(lambda: (row := _end(lost[0])) is not None and row.retrans > 0, "the other's FIN is repeated")
    yield seen("unprobed: the client's end after close()", _end(lost[0]), "LAST_ACK", timer=1, held=False)
    yield seen("unprobed: the backend's end", _end(lost[1]), "FIN_WAIT2", timer=0, held=True)
    _probe(from_server[1])
    until(lambda: _end(from_server[1]) is None, "the backend's probe is answered by a reset")
    yield gone("probed from the backend after expiry: its end", _end(from_server[1]))
    yield seen("and the client's end", _end(from_server[0]), "CLOSE_WAIT")
    _probe(from_client[0])
    until(lambda: bool(_entry(nat.gateway, from_client[0])), "the client's probe makes an entry")
    nat.client.close([from_client[0]])
    until(lambda: not in_state(_end(from_client[1]), "FIN_WAIT2"), "its FIN arrives")
    yield _gone_or(
        "probed from the client after expiry, then closed: the backend's end",
        _end(from_client[1]),
        "TIME_WAIT",
    )


def _gone_or(subject: str, row: ProcRow | None, state: str) -> Measured:
    return Measured(subject, f"gone or {state}", shown(row), row is None or row.state == state)


def _window_rules_do_not_help(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    for name, liberal, drop in (("be_liberal=1", 1, False), ("an INVALID drop rule", 0, True)):
        nat.gateway.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", liberal)
        if drop:
            nat.gateway.nft(
                "table inet strict {\n chain passing {\n type filter hook forward priority 0\n ct"
                " state invalid drop\n }\n}"
            )
        _close_wait_time(nat, 1)
        (near,), (far,) = _half_close_through(nat, 1)
        nat.await_no_entries()
        nat.client.close([near])
        until(lambda n=near: (row := _end(n)) is not None and row.retrans > 1, "the FIN is repeated")  # type: ignore[misc]
        yield seen(f"{name}: the client's end", _end(near), "LAST_ACK", timer=1)
        yield seen(f"{name}: the backend's end", _end(far), "FIN_WAIT2", timer=0, held=True)


def _deleted_entries(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    near, far = meet(nat.client, nat.address, nat.backend, nat.door, 2)
    for conn in near:
        nat.gateway.run("conntrack", "-D", "-p", "tcp", "--sport", str(conn.sport))
    nat.client.send([near[0]], "ping")
    yield equal("bytes that arrive after conntrack -D", 4, nat.backend.recv([far[0]], 4))
    yield Measured(
        "the entry after data",
        "there again",
        "there" if _entry(nat.gateway, near[0]) else "gone",
        bool(_entry(nat.gateway, near[0])),
    )
    nat.client.close([near[1]])
    until(lambda: (row := _end(near[1])) is not None and row.retrans > 0, "the FIN is repeated")
    yield seen("closing first after conntrack -D: the client's end", _end(near[1]), "FIN_WAIT1", timer=1)
    yield seen("the backend's end", _end(far[1]), "ESTABLISHED", timer=0, held=True)


def _server_speaks_first(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    (near,), (far,) = meet(nat.client, nat.address, nat.backend, nat.door)
    nat.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", 1)
    nat.client.send([near], "ping")
    nat.backend.recv([far], 4)
    nat.await_no_entries()
    nat.backend.send([far], "pong")
    until(lambda: _end(far) is None, "the backend is reset")
    yield gone("the backend's end after it spoke", _end(far))
    yield seen("the client's end", _end(near), "ESTABLISHED", timer=0, held=True)


TRACKING: Final[tuple[Proof, ...]] = (
    Proof("reject-with-reset", ("X39",), 0.3, NFT, _reject_with_reset),
    Proof("conntrack-locked", ("S36",), 0.1, NET, _conntrack_locked),
    Proof("flows-are-not-sockets", ("S29", "S32"), 5, CT, _flows_are_not_sockets),
    Proof("probes-and-expired-entries", ("X31", "X32", "X33"), 9, CT, _probes_and_expired_entries),
    Proof("window-rules-do-not-help", ("X29", "X30"), 5, CT, _window_rules_do_not_help),
    Proof("deleted-entries", ("X34",), 1, CT, _deleted_entries),
    Proof("server-speaks-first", ("X35",), 2, CT, _server_speaks_first),
    Proof("nat-entry-gone", ("S31", "X28"), 8, CT, by_scenario("nat-entry-gone")),
    Proof("nat-zombie", ("X38",), 5, ("netns", "tool:nft"), by_scenario("nat-zombie")),
)
