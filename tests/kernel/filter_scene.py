"""Run inside a network namespace of its own: make sockets of many kinds, then ask for them by filters.

Reads a JSON list of filters, of which those that `ss` takes as well are marked, and prints what the kernel
keeps by each filter's bytecode, what the mask selects of all rows, what it selects of those that the kernel
kept, and what `ss` shows. Sockets are named by their cookies.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from finwait.errors import KernelError
from finwait.kernel import cgroup
from finwait.kernel.netlink import NETLINK_SOCK_DIAG, Arena, dump, netlink_socket
from finwait.table.filter import Filter, parse
from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag as d
from finwait.uapi import netlink as nl
from finwait.uapi import tcp

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
SO_MARK = 36
EXPECTED = {"ESTABLISHED": 10, "FIN_WAIT2": 3, "CLOSE_WAIT": 3, "LISTEN": 3, "TIME_WAIT": 2, "SYN_SENT": 1}


def enter() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (CLONE_NEWNET, CLONE_NEWNET | CLONE_NEWUSER):
        uid, gid = os.getuid(), os.getgid()
        if libc.unshare(flags) == 0:
            if flags & CLONE_NEWUSER:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
                Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            return
    print(os.strerror(ctypes.get_errno()), file=sys.stderr)
    sys.exit(77)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def listener(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
    sock.bind((host, port))
    sock.listen()
    return sock


class Place:
    """A cgroup of our own for a few of the sockets; where we may not make one, the one we are in."""

    def __init__(self) -> None:
        self.root = cgroup.mount_point() or ""
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        self.home = self.root + next((line[3:] for line in lines if line.startswith("0::")), "").rstrip("/")
        self.path = f"{self.home}/finwait-filter-{os.getpid()}"
        self.made = False
        try:
            os.mkdir(self.path)
            self.made = True
        except OSError:
            self.path = self.home

    def enter(self) -> None:
        if self.made:
            Path(self.path, "cgroup.procs").write_text("0")

    def leave(self) -> None:
        if self.made:
            Path(self.home, "cgroup.procs").write_text("0")

    def remove(self) -> None:
        if self.made:
            self.leave()
            os.rmdir(self.path)


def connected(
    server: socket.socket,
    host: str,
    port: int,
    *,
    mark: int = 0,
    device: str = "",
    bind: tuple[str, int] | None = None,
) -> tuple[socket.socket, socket.socket]:
    client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if mark:
        client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
    if device:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if bind:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(bind)
    client.settimeout(10)
    client.connect((host, port))
    accepted, _ = server.accept()
    return client, accepted


def in_time_wait(four: socket.socket, six: socket.socket) -> None:
    for server, host, port, mark in ((four, "10.1.2.3", 5001, 0x31), (six, "::1", 5003, 0)):
        client, accepted = connected(server, host, port, mark=mark)
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        accepted.close()
        client.close()


def make(place: Place) -> list[socket.socket]:
    """Return the sockets, the listeners of IPv4, of both families and of IPv6 first."""
    ip("link", "set", "lo", "up")
    for address in ("10.1.2.3/8", "10.1.3.3/8", "2001:db8::1/64"):
        ip("addr", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
    four = listener(socket.AF_INET, "0.0.0.0", 5001)
    dual = listener(socket.AF_INET6, "::", 5002)
    six = listener(socket.AF_INET6, "::1", 5003)
    kept = [four, dual, six]

    def connect(
        server: socket.socket, host: str, port: int, **how: Any
    ) -> tuple[socket.socket, socket.socket]:
        kept.extend(both := connected(server, host, port, **how))
        return both

    connect(four, "127.0.0.1", 5001, mark=0x11)
    connect(four, "10.1.2.3", 5001, device="lo")
    connect(four, "10.1.3.3", 5001, bind=("10.1.2.3", 6001))
    place.enter()
    connect(dual, "10.1.2.3", 5002)
    place.leave()
    connect(dual, "2001:db8::1", 5002, mark=0x21)
    for server, host, port in ((four, "127.0.0.1", 5001), (dual, "127.0.0.1", 5002), (six, "::1", 5003)):
        client, _ = connect(server, host, port)
        client.shutdown(socket.SHUT_WR)
    in_time_wait(four, six)
    nowhere = socket.socket()
    nowhere.setsockopt(socket.SOL_SOCKET, SO_MARK, 0x41)
    nowhere.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_SYNCNT, 30
    )  # longer than any machine takes for all this
    ip("link", "add", "hole", "type", "veth", "peer", "name", "hole2")
    ip("link", "set", "hole", "up")
    ip("link", "set", "hole2", "up")
    ip("addr", "add", "192.0.2.1/24", "dev", "hole")
    ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "hole")
    nowhere.setblocking(False)
    nowhere.connect_ex(("192.0.2.2", 80))
    return [*kept, nowhere]


def ask(states: int, code: bytes, *, one_walk: bool) -> SocketTable:
    with netlink_socket(NETLINK_SOCK_DIAG, "list sockets") as sock:
        arena = Arena(1 << 26)
        requests = (
            [d.dump_both_families(states, d.EXT_ALL, bytecode=code)]
            if one_walk
            else [d.dump_request(f, d.IPPROTO_TCP, states, d.EXT_ALL, bytecode=code) for f in (2, 10)]
        )
        starts: list[int] = []
        ends: list[int] = []
        for request in requests:
            answer = dump(sock, request, arena, "list sockets")
            starts += answer.starts
            ends += answer.ends
        buffer = arena.array()
        found = nl.walk(buffer, np.array(starts), np.array(ends))
        wanted = (found.type == d.SOCK_DIAG_BY_FAMILY) | (found.type == d.TCPDIAG_GETSOCK)
        rows = d.find_rows(buffer.copy(), found.where(wanted))
        n = len(rows)
        return SocketTable.from_rows(rows, np.full(n, 1, np.uint32), np.full(n, 6, np.uint16))


def settle() -> SocketTable:
    deadline = time.monotonic() + 30
    while True:
        table = ask(tcp.ALL_STATES, b"", one_walk=False)
        names = [tcp.STATES[s] for s in table.state.tolist()]
        seen = {name: names.count(name) for name in set(names)}
        if seen == EXPECTED and not (table.rqueue[table.state == tcp.CLOSE_WAIT] != 1).any():
            return table
        if time.monotonic() > deadline:
            print(f"expected {EXPECTED}, found {seen}", file=sys.stderr)
            sys.exit(1)
        time.sleep(0.02)


def cgroup_id(path: str) -> int | None:
    root = cgroup.mount_point()
    try:
        return None if root is None else os.stat(root + path).st_ino
    except OSError:
        return None


def ifindex(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def context_of(table: SocketTable) -> dict[str, list[object]]:
    devices = {0: "", **dict(socket.if_nameindex())}
    ids = {int(i) for i in table.cgroup_id[table.present("cgroup_id")]}
    paths = cgroup.paths(ids)
    auto = set(ask(tcp.ALL_STATES, parse("autobound").bytecode(), one_walk=False).cookie.tolist())
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ephemeral = (table.sport >= low) & (table.sport <= high)
    mini = np.isin(table.state, [tcp.TIME_WAIT, tcp.SYN_RECV])
    return {
        "dev": [devices.get(i) for i in table.ifindex.tolist()],
        "cgroup": [
            "" if m else paths.get(c) for m, c in zip(mini.tolist(), table.cgroup_id.tolist(), strict=True)
        ],
        "autobound": [
            e and c in auto for e, c in zip(ephemeral.tolist(), table.cookie.tolist(), strict=True)
        ],
    }


def cookies(table: SocketTable) -> list[int]:
    found = table.cookie.tolist()
    assert len(set(found)) == len(found)
    return sorted(found)


def ss(text: str) -> list[int]:
    done = subprocess.run(["ss", "-Htnae", *text.split()], capture_output=True, text=True, timeout=30)
    if done.returncode or done.stderr:
        raise SystemExit(f"ss {text}: {done.stderr}")
    found = re.findall(r"\bsk:([0-9a-f]+)", done.stdout)
    assert len(found) == len(done.stdout.splitlines())
    return sorted(int(one, 16) for one in found)


def refused(code: bytes) -> int:
    try:
        ask(tcp.ALL_STATES, code, one_walk=False)
    except KernelError as error:
        return error.errno
    return 0


def main() -> None:
    filters = json.load(sys.stdin)
    enter()
    if cgroup.mount_point() is None:
        print("no cgroup2 is mounted", file=sys.stderr)
        sys.exit(77)
    place = Place()
    try:
        kept = make(place)
        examine(filters, kept, place)
    finally:
        place.remove()


def examine(filters: list[tuple[str, bool]], kept: list[socket.socket], place: Place) -> None:
    four, _, six = kept[:3]
    table = settle()
    out = []
    for text, also_ss in filters:
        while True:
            one = examined(text.replace("CGROUP", place.path), also_ss, table)
            if cookies(ask(tcp.ALL_STATES, b"", one_walk=False)) == cookies(table):
                break
            in_time_wait(four, six)  # it lasts a minute, and all filters take longer on an emulated machine
            table = settle()
        out.append(one)
    broken = struct.pack("=BBH", 2, 8, 6) + bytes(4)
    json.dump({"filters": out, "broken": refused(broken)}, sys.stdout)
    for sock in kept:
        sock.close()


def examined(text: str, also_ss: bool, table: SocketTable) -> dict[str, Any]:
    parsed: Filter = parse(text)
    code = parsed.bytecode(ifindex=ifindex, cgroup_id=cgroup_id, net_admin=True)
    kernel = ask(parsed.states, code, one_walk=False) if parsed.states else SocketTable.empty()
    again = ask(parsed.states, code, one_walk=True) if parsed.states else SocketTable.empty()
    return {
        "filter": text,
        "code": len(code),
        "rows": len(table),
        "kernel": cookies(kernel),
        "one walk": cookies(again),
        "mask": cookies(table.select(parsed.mask(table, context_of(table)))),
        "mask of kernel": cookies(kernel.select(parsed.mask(kernel, context_of(kernel)))),
        "ss": ss(text) if also_ss else None,
        "unmarked": cookies(table.select(~table.present("mark"))),
    }


if __name__ == "__main__":
    main()
