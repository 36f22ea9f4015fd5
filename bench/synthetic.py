"""A million rows: a real kernel's messages, multiplied, and served as one look at a machine.

A row of each kind (timewait, orphan, held) is taken from a real dump, so that lengths and attributes are
the kernel's, and copied with tuple, cookie and inode of its own. Everything after the receiving (walk,
layouts, columns, joins, rules, report) then does what it would do with a machine that has so many.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finwait.kernel import procfs
from finwait.kernel.observe import LookPlan
from finwait.uapi import inet_diag, netlink, tcp
from finwait.uapi.observation import (
    Descriptors,
    Dump,
    LoneSocket,
    Namespace,
    Observation,
    ProcessFiles,
    ProcessWaits,
    Releasing,
    SocketOptions,
)

__all__ = ["Crowd", "messages"]

NETNS = 4_026_599_999
DATAGRAM = 32_000
AGE_MS = 60_000


def messages() -> dict[str, bytes]:
    """Return a message of each kind, from sockets of this process: ``timewait``, ``orphan``, ``held``."""
    found: dict[str, bytes] = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []
        ports = {}
        for kind in ("timewait", "orphan", "held"):
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
            ports[kind] = client.getsockname()[1]
            if kind == "held":
                client.shutdown(socket.SHUT_WR)
                kept.append(client)
            else:
                client.close()
            if kind == "timewait":
                server.close()
            else:
                kept.append(server)
        wanted = {"timewait": tcp.TIME_WAIT, "orphan": tcp.FIN_WAIT2, "held": tcp.FIN_WAIT2}
        for _ in range(1000):  # a FIN's acknowledgement may be delayed
            found = {}
            data = dump()
            for kind, port in ports.items():
                for message in data:
                    family, state = message[16], message[17]
                    sport = struct.unpack_from("!H", message, 20)[0]
                    if (family, state, sport) == (2, wanted[kind], port):
                        found[kind] = message
            if len(found) == 3:
                break
        for one in kept:
            one.close()
    return found


def dump() -> list[bytes]:
    """Return the messages of a dump of our own namespace."""
    from finwait.kernel.netlink import NETLINK_SOCK_DIAG, Arena, netlink_socket
    from finwait.kernel.netlink import dump as receive

    arena = Arena(1 << 28)
    with netlink_socket(NETLINK_SOCK_DIAG, "dump") as sock:
        request = inet_diag.dump_both_families(tcp.ALL_STATES, inet_diag.EXT_ALL)
        answer = receive(sock, request, arena, "dump")
    buffer = arena.array()
    walked = netlink.walk(buffer, np.array(answer.starts, np.int64), np.array(answer.ends, np.int64))
    return [
        buffer[at : at + length].tobytes()
        for at, length, kind in zip(
            walked.offset.tolist(), walked.length.tolist(), walked.type.tolist(), strict=True
        )
        if kind in (inet_diag.SOCK_DIAG_BY_FAMILY, inet_diag.TCPDIAG_GETSOCK)
    ]


@dataclass
class Crowd:
    """A machine with ``count`` rows in one namespace: 60 % timewait, 20 % orphans, 20 % held by 50 processes."""

    count: int
    live: bool = False
    again: bool = False
    observed: Observation | None = None

    def begin(self) -> Crowd:
        """Return what a look uses: this."""
        return self

    def observe(self, plan: LookPlan) -> Observation:  # noqa: ARG002
        """Look: the datagrams are laid out once."""
        if self.observed is not None:
            return self.observed
        shapes = messages()
        kinds = np.arange(self.count) % 5
        names = np.array(["timewait", "orphan", "held"])[np.select([kinds < 3, kinds == 3], [0, 1], 2)]
        buffer, starts, ends = _datagrams(shapes, names)
        held = np.flatnonzero(names == "held")
        descriptors = Descriptors(
            pid=(1000 + held % 50).astype(np.uint32),
            fd=(held // 50 % 20_000).astype(np.uint32),
            inode=(held + 1).astype(np.uint64),
        )
        files = {"sys/ipv4/tcp_fin_timeout": b"60\n", "sys/ipv4/ip_local_port_range": b"32768 60999\n"}
        namespace = Namespace(NETNS, ("crowd",), (), 0, (Dump("tcp", starts, ends),), files)
        return Observation(procfs.facts(), buffer, (namespace,), descriptors)

    def descriptors_again(self, known: Descriptors | None = None) -> Descriptors:  # noqa: ARG002
        """Nothing changes."""
        return Descriptors.none(searched=True)

    def processes(self, which: Iterable[int]) -> dict[int, ProcessFiles]:
        """Return processes with a name and nothing else."""
        return {
            pid: ProcessFiles(b"%d (server) S 1 " % pid + b"0 " * 48 + b"\n", None, None, None, None, NETNS)
            for pid in which
        }

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:  # noqa: ARG002
        """Return no paths."""
        return {}

    def close_on_exec(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:  # noqa: ARG002
        """Return nothing known."""
        return {}

    def one_table(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:  # noqa: ARG002
        """Return nothing known."""
        return {}

    def waits(
        self,
        wanted: Mapping[int, Collection[int]],  # noqa: ARG002
        found: Descriptors,  # noqa: ARG002
        inodes: Collection[int],  # noqa: ARG002
    ) -> dict[int, ProcessWaits]:
        """Return nothing known."""
        return {}

    def releasing(self, spaces: Collection[int]) -> tuple[Releasing, ...]:  # noqa: ARG002
        """Return nothing known."""
        return ()

    def turns(self, pids: Iterable[int]) -> dict[int, int]:  # noqa: ARG002
        """Return nothing known."""
        return {}

    def socket_options(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, SocketOptions]:  # noqa: ARG002
        """Return nothing known."""
        return {}

    def lone_sockets(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]:  # noqa: ARG002
        """Return nothing known."""
        return {}

    def remember(self, spaces: Iterable[tuple[int, int, int]]) -> None:
        """There is nothing else."""

    def devices(self, spaces: Iterable[int]) -> dict[tuple[int, int], str]:  # noqa: ARG002
        """Return no names."""
        return {}

    def socket_protocols(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, str]:  # noqa: ARG002
        """Return nothing known."""
        return {}


def _datagrams(
    shapes: dict[str, bytes], names: NDArray[np.str_]
) -> tuple[NDArray[np.uint8], tuple[int, ...], tuple[int, ...]]:
    """Lay rows of mixed kinds out in datagrams, as a kernel does."""
    order = [names[k : k + 1][0] for k in range(5)]
    cycle = sum(len(shapes[name]) for name in order)
    period = DATAGRAM // cycle  # cycles of five rows to a datagram
    cycles = (len(names) + 4) // 5
    block = np.frombuffer(b"".join(shapes[name] for name in order), np.uint8)
    data = np.tile(block, cycles).reshape(cycles, cycle)
    at = 0
    for k, name in enumerate(order):
        number = np.arange(cycles, dtype=np.uint64) * 5 + np.uint64(k)
        port = (1024 + number % 60_000).astype(">u2")
        address = ((10 << 24) + number // 60_000).astype(">u4")  # as many clients as there are ports for
        peer = ((172 << 24 | 16 << 16) + number % 251).astype(">u4")
        _put(data, at + 20, port)
        _put(data, at + 22, np.full(cycles, 443, ">u2"))
        _put(data, at + 24, address)
        _put(data, at + 40, peer)
        _put(data, at + 60, number + np.uint64(1))  # cookie
        if name == "held":
            _put(data, at + 84, (number + np.uint64(1)).astype(np.uint32))
        at += len(shapes[name])
    buffer = data.reshape(-1)
    step = period * cycle
    starts = tuple(range(0, len(buffer), step))
    return buffer, starts, tuple(min(start + step, len(buffer)) for start in starts)


def _put(data: NDArray[np.uint8], at: int, values: NDArray[np.generic]) -> None:
    data[:, at : at + values.itemsize] = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
