"""Run inside a new network namespace: sockets in many states, as sock_diag and as /proc/net/tcp tell them.

Prints one JSON object: the raw dumps before and after the files were read, taken when nothing but timers
changed in between, and what `ss` prints.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import numpy as np

from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag as d
from finwait.uapi import netlink as nl
from tests.kernel.conntrack_scene import ask, new_namespace, run

RULES = """
table inet scene {
  set silent { type inet_service; }
  chain second { type filter hook input priority 0; tcp dport @silent drop; tcp sport @silent drop; }
}
"""
STEADY = ("family", "state", "timer", "retrans", "sport", "dport", "rqueue", "wqueue", "uid", "inode")


def dump() -> list[bytes]:
    return [part for family in (2, 10) for part in ask(d.dump_request(family, 6, 0xFFF, d.EXT_ALL), 4)]


def table(parts: list[bytes]) -> SocketTable:
    ends = np.cumsum([len(part) for part in parts])
    starts = ends - [len(part) for part in parts]
    buffer = np.frombuffer(b"".join(parts), np.uint8)
    messages = nl.walk(buffer, starts, ends)
    rows = d.find_rows(buffer, messages.where(messages.type == d.SOCK_DIAG_BY_FAMILY))
    return SocketTable.from_rows(rows, np.zeros(len(rows), np.uint32), np.full(len(rows), 6, np.uint16))


def make_sockets() -> list[socket.socket]:
    kept: list[socket.socket] = []
    for family, host, target in (
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ):
        server = socket.socket(family)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        server.bind((host, 0))
        server.listen(50)
        kept.append(server)
        where = (target, server.getsockname()[1])

        def pair(
            where: tuple[str, int] = where, server: socket.socket = server
        ) -> tuple[socket.socket, socket.socket]:
            client = socket.create_connection(where, timeout=10)
            accepted, _ = server.accept()
            return client, accepted

        kept += pair()  # ESTABLISHED
        held, closing = pair()  # FIN_WAIT2 with an owner, CLOSE_WAIT
        held.shutdown(socket.SHUT_WR)
        kept += [held, closing]
        orphan, unread = pair()  # FIN_WAIT2 without, CLOSE_WAIT with data and FIN unread
        orphan.send(b"GET /")
        orphan.close()
        kept.append(unread)
        first, second = pair()  # TIME_WAIT
        first.close()
        while second.recv(1):
            pass
        second.close()
        probed, other = pair()  # a keepalive timer
        probed.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        kept += [probed, other]
        lonely, far = pair()  # FIN_WAIT1: its FIN is dropped
        run("nft", "add", "element", "inet", "scene", "silent", f"{{ {lonely.getsockname()[1]} }}")
        lonely.close()
        kept.append(far)
        run("nft", "add", "element", "inet", "scene", "silent", "{ 7 }")
        waiting = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET)  # SYN_SENT
        waiting.setblocking(False)
        waiting.connect_ex((target, 7))
        kept.append(waiting)
        kept.append(socket.create_connection(where, timeout=10))  # never accepted
    return kept


def main() -> int:
    if not new_namespace():
        return 77
    run("nft", "-f", "-", data=RULES)
    kept = make_sockets()
    deadline = time.monotonic() + 60
    while True:
        before = dump()
        v4, v6 = (Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6"))
        printed = run("ss", "-Htan")
        after = dump()
        one, two = table(before), table(after)
        settled = not np.isin(one.state, [3]).any() and (one.state == 5).sum() == 6
        if settled and len(one) == len(two) and all((one[n] == two[n]).all() for n in STEADY):
            break
        if time.monotonic() > deadline:
            print("the sockets never kept still", file=sys.stderr)
            return 1
    json.dump(
        {"before": before, "after": after, "tcp": v4, "tcp6": v6, "ss": printed},
        sys.stdout,
        default=bytes.hex,
    )
    for sock in kept:
        sock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
