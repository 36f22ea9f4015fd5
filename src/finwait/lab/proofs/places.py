"""Demonstrations about where one looks from: namespaces, names of states, MPTCP."""

from __future__ import annotations

import ctypes
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finwait.lab.proofs.instruments import (
    NET,
    SS,
    Measured,
    Place,
    Proof,
    by_scenario,
    equal,
    life,
    rows,
    until,
)
from finwait.lab.topology import Lab, LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.lab.topology import Netns

__all__ = ["PLACES"]


def _fresh_namespace(lab: Lab) -> Iterator[Measured]:
    with Place(lab, tcp_fin_timeout=7, tcp_keepalive_time=77, tcp_retries2=5) as place:

        def inside() -> str:
            if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            names = ("tcp_fin_timeout", "tcp_keepalive_time", "tcp_retries2")
            return " ".join(Path("/proc/sys/net/ipv4", name).read_text().strip() for name in names)

        yield equal("fin_timeout, keepalive_time, retries2 of a namespace made from 7, 77, 5", "60 7200 15",
                     place.ns.call(inside))  # fmt: skip
        machine = place.ns.call(lambda: Path("/proc/sys/net/ipv4/tcp_max_orphans").exists())
        yield equal("tcp_max_orphans exists in a namespace", False, machine)


def _spelling_of_states(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        place.half_closed()
        proc = place.ns.call(lambda: Path("/proc/thread-self/net/tcp").read_text(encoding="ascii"))
        rows = [line.split()[3] for line in proc.splitlines()[1:]]
        yield equal("lines of /proc/net/tcp with fin_wait2", 0, proc.lower().count("fin_wait2"))
        yield equal("lines with state 05", 1, rows.count("05"))
        output = place.ns.run("ss", "-tan")
        yield equal("lines of ss with FIN_WAIT2", 0, output.count("FIN_WAIT2"))
        yield equal("lines of ss with FIN-WAIT-2", 1, output.count("FIN-WAIT-2"))


def _mptcp_without_subflow(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        place.ns.sysctl("net.mptcp.enabled", 1)
        if not place.ns.call(lambda: Path("/proc/sys/net/mptcp/close_timeout").exists()):
            raise LabError(
                "this kernel has no net.mptcp.close_timeout", hint="it is in Linux 6.18, and not in 6.1"
            )
        place.ns.sysctl("net.mptcp.close_timeout", 2)

        def fresh() -> socket.socket:
            sock = place.ns.call(
                lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
            )
            sock.settimeout(10)
            place.open.append(sock)
            return sock

        door, a = fresh(), fresh()
        door.bind(("127.0.0.1", 0))
        door.listen(8)
        a.connect(door.getsockname())
        b, _ = door.accept()
        place.open.append(b)
        for sender, other in ((a, b), (b, a)):  # data both ways completes the handshake of MPTCP
            sender.sendall(b"hello")
            other.recv(5)
        port = a.getsockname()[1]
        place.ns.run("ss", "-K", "-t", "-n", "state", "established", f"sport = :{port}")
        until(
            lambda: not any(port in (row.sport, row.dport) for row in rows(place.ns)), "the subflow is gone"
        )
        yield equal("its MPTCP rows after the last subflow", "ESTAB ESTAB", _mptcp_states(place.ns, port))
        took = until(lambda: _mptcp_states(place.ns, port) == "UNCONN UNCONN", "the kernel closes it")
        yield life("until the kernel closes it with close_timeout=2", took, 0.5, 8)
        c = fresh()
        c.connect(door.getsockname())
        d, _ = door.accept()
        place.open.append(d)
        c.sendall(b"hello")
        d.recv(5)
        orphan = c.getsockname()[1]
        c.close()
        until(
            lambda: _mptcp_states(place.ns, orphan).split() == ["CLOSE-WAIT", "FIN-WAIT-2"], "the peer knows"
        )
        line = next(
            line for line in place.ns.run("ss", "-HManoO").splitlines()
            if "FIN-WAIT-2" in line and f":{orphan} " in line
        )  # fmt: skip
        timer = re.search(r"keepalive,(?:(\d+)min)?(\d+)?", line)
        seconds = 60 * int(timer[1] or 0) + int(timer[2] or 0) if timer else -1
        yield life("timer of an orphan with close_timeout=2", seconds, 50, 60)
        link = os.readlink(f"/proc/self/fd/{a.fileno()}")
        yield Measured("its descriptor after that", "open", link, link.startswith("socket:"))


def _mptcp_states(ns: Netns, port: int) -> str:
    rows = (line.split() for line in ns.run("ss", "-H", "-M", "-n", "-a", "-O").splitlines())
    return " ".join(sorted(row[0] for row in rows if any(end.endswith(f":{port}") for end in row[3:5])))


PLACES: Final[tuple[Proof, ...]] = (
    Proof("fresh-namespace", ("S08", "S41", "X43"), 0.1, NET, _fresh_namespace),
    Proof("spelling-of-states", ("S04", "S16"), 0.2, SS, _spelling_of_states),
    Proof("mptcp-without-subflow", ("X57",), 3, ("netns", "mptcp", "tool:ss"), _mptcp_without_subflow),
    Proof("mptcp-half-close", ("X49",), 1, ("netns", "mptcp"), by_scenario("mptcp-half-close")),
)
