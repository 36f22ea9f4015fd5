"""What the agent asks again and again: counters of every namespace, and the rows in closing states of some.

A whole look (`finwait.kernel.observe`) finds namespaces anew, reads settings, addresses and conntrack. Counters are six
numbers of three small files, and rows of six states are one dump: both can be had every few seconds. Where to look is
the caller's: namespaces are found once (`finwait.kernel.netns.discover`) and used for a while; one that is gone by then
is told as gone.

What counters cost, in each of 216 namespaces beside load on 2 processors: entering it 17 µs, ``sockstat`` and
``sockstat6`` 15 µs each, ``snmp`` 30 µs, a dump of the listeners 107 µs; taking the files apart as a whole cost 67 µs,
and taking the few numbers out of them 5. So ``snmp`` is read only where a socket is that is no listener, and listeners
are counted where the caller wants it once it sees the counters.

A descriptor of ``/proc/net/sockstat`` that is kept open could be read again for 3 µs, without entering the namespace.
But it keeps the namespace alive (fs/proc/proc_net.c: single_open_net takes a reference to it that counts), as does a
socket, and a descriptor of the namespace itself even with O_PATH: its interfaces would not come back, and its addresses
stay in use, until we let go. So nothing is kept open between two looks.

Reading only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import numpy as np
from msgspec import Struct

from finwait.errors import Gap, KernelError, NotSupported
from finwait.kernel import listening, netns, procfs, rights
from finwait.kernel.listening import ListenerQueue
from finwait.kernel.netlink import NETLINK_SOCK_DIAG, Arena, dump, netlink_socket
from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag, tcp
from finwait.uapi import netlink as nl

__all__ = ["ClosingWalk", "Counters", "CountersFirst", "counters", "parse_snmp_tcp", "parse_tcp", "walk"]

_NET: Final = "/proc/thread-self/net/"
_FILE_MOST: Final = 1 << 14
"""Each of the files is less than 4 kB, and the kernel gives it at once (fs/seq_file.c: single_open)."""
_INFO: Final = inet_diag.extension_mask(inet_diag.INFO)
"""struct tcp_info: the clocks that ages come from."""


class Counters(Struct, frozen=True):
    """Counters of one network namespace."""

    in_use: int
    """TCP sockets that are hashed, of both families."""
    established: int
    """``Tcp.CurrEstab``: ESTABLISHED and CLOSE_WAIT."""
    timewait: int
    """TIME_WAIT, and FIN_WAIT2 of orphans."""
    orphans: int
    """Of the whole machine."""
    pages: int
    """Memory of TCP of the whole machine."""
    listeners: int = -1
    """−1 where they were not counted."""
    settings: Mapping[str, int] | None = None
    """Where it was asked for: ``conntrack_count``, ``conntrack_max``, ``max_tw_buckets``; and of the machine, which the
    kernel shows in its first namespace only: ``max_orphans``, ``max_pages``."""
    doors: tuple[ListenerQueue, ...] = ()
    """The listeners, where they were counted."""
    segments: int = -1
    """How many TCP segments came and went since the namespace began; −1 where there is no socket."""


CountersFirst = Callable[[int, Counters], bool]
"""Says whether to count the listeners of a namespace, by its inode and its other counters."""

_LIMITS: Final = {
    "conntrack_count": "/proc/sys/net/netfilter/nf_conntrack_count",
    "conntrack_max": "/proc/sys/net/netfilter/nf_conntrack_max",
    "max_tw_buckets": "/proc/sys/net/ipv4/tcp_max_tw_buckets",
    "max_orphans": "/proc/sys/net/ipv4/tcp_max_orphans",
    "max_pages": "/proc/sys/net/ipv4/tcp_mem",
}
"""Files; of several numbers the last one is the limit."""


def counters(
    namespaces: Iterable[netns.NetNamespace],
    listeners: bool | Collection[int] | CountersFirst,
    *,
    limits: bool = False,
) -> tuple[dict[int, Counters], list[Gap]]:
    """Return the counters of namespaces; those that are gone, or cannot be read, are left out.

    Args:
        namespaces: where.
        listeners: also count listeners, in all, in these, or where a function says so; their table is small and has no
            part in a walk.
        limits: also read the settings of limits.
    """

    def to_count(inode: int, entry: Counters) -> bool:
        if callable(listeners):
            return listeners(inode, entry)
        return listeners if isinstance(listeners, bool) else inode in listeners

    def look(ns: netns.NetNamespace) -> Counters | None:
        return _counters(ns.inode, to_count, limits=limits)

    hits, gaps = netns.visit(namespaces, look)
    return {inode: entry for inode, entry in hits.items() if entry is not None}, gaps


def _counters(inode: int, to_count: CountersFirst, *, limits: bool) -> Counters | None:
    try:
        v4 = _file("sockstat")
        v6 = _file("sockstat6")
        four, six = parse_tcp(v4, b"TCP:"), parse_tcp(v6, b"TCP6:") if v6 else {}
        in_use = four.get(b"inuse", 0) + six.get(b"inuse", 0)
        # Of no socket none is established.
        established, segments = parse_snmp_tcp(_file("snmp")) if in_use else (0, -1)
    except (OSError, ValueError):
        return None
    settings = None
    if limits:
        read = {name: (procfs.read(path, 96) or b"").split() for name, path in _LIMITS.items()}
        settings = {name: int(words[-1]) for name, words in read.items() if words and words[-1].isdigit()}
    numbers = (in_use, established, four.get(b"tw", 0), four.get(b"orphan", 0), four.get(b"mem", 0))
    entry = Counters(*numbers, -1, settings, (), segments)
    if not to_count(inode, entry):
        return entry
    doors = listening.doors() if in_use else ()
    return entry if doors is None else Counters(*numbers, len(doors), settings, doors, segments)


def _file(name: str) -> bytes:
    """Return a file of the calling thread's namespace; one that is not there is empty.

    Raises:
        OSError: it cannot be read.
    """
    try:
        fd = os.open(_NET + name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a kernel without IPv6
        return b""
    try:
        return os.read(fd, _FILE_MOST)
    finally:
        os.close(fd)


def parse_tcp(data: bytes, label: bytes) -> dict[bytes, int]:
    """Return the numbers of one line of ``/proc/net/sockstat`` or ``sockstat6``, by name.

    Args:
        data: the file.
        label: what the line begins with.

    Raises:
        ValueError: it has no such line, or something else than names and numbers is in it.
    """
    at = 0 if data.startswith(label) else data.find(b"\n" + label) + 1
    if not data.startswith(label, at):
        raise ValueError(f"no line {label!r}")
    words = data[at + len(label) : data.find(b"\n", at)].split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


_columns: dict[bytes, tuple[int, int, int]] = {}
"""Header line of Tcp in ``snmp`` → where CurrEstab, InSegs and OutSegs are. A kernel has one header."""


def parse_snmp_tcp(data: bytes) -> tuple[int, int]:
    """Return ``Tcp.CurrEstab`` of ``/proc/net/snmp``, and InSegs and OutSegs together.

    To take the whole of the file apart takes twenty times as long.

    Raises:
        ValueError: they are not there.
    """
    at = data.find(b"\nTcp:") + 1
    end = data.find(b"\n", at)
    if not at or end < 0 or not data.startswith(b"Tcp:", end + 1):
        raise ValueError("not two lines of Tcp")
    header = data[at:end]
    columns = _columns.get(header)
    if columns is None:
        names = header.split()
        columns = names.index(b"CurrEstab"), names.index(b"InSegs"), names.index(b"OutSegs")
        _columns.clear()
        _columns[header] = columns
    words = data[end + 1 : data.find(b"\n", end + 1)].split()
    if len(words) <= max(columns):
        raise ValueError("not as many numbers as names of Tcp")
    current, received, sent = columns
    return int(words[current]), int(words[received]) + int(words[sent])


class ClosingWalk(Struct, frozen=True):
    """The rows of one namespace."""

    sockets: SocketTable
    """In closing states."""
    cost_s: float
    """Processor time of the thread that dumped."""
    whole: bool
    """Whether every row is there: the table did not change during the dump."""
    doors: tuple[ListenerQueue, ...] = ()
    """The listeners."""


def walk(
    namespaces: Iterable[netns.NetNamespace], columns: Collection[str] | None = None
) -> tuple[dict[int, ClosingWalk], list[Gap]]:
    """Return the TCP sockets and minisockets in closing states, by namespace; those that are gone are left out.

    Args:
        namespaces: where.
        columns: further columns that are wanted.

    Raises:
        DecodeError: an answer is not what the kernel sends.
        NotSupported: this kernel cannot list TCP sockets.
    """
    # The listeners come with it: they are few, and have a table of their own.
    request = inet_diag.dump_both_families(tcp.CLOSING_STATES | 1 << tcp.LISTEN, _INFO)
    names = (*_USED, *(columns or ()))

    def look(ns: netns.NetNamespace) -> ClosingWalk | Gap:
        begun = time.thread_time()
        try:
            with netlink_socket(NETLINK_SOCK_DIAG, "dump the TCP sockets") as sock:
                arena = Arena()
                answer = dump(sock, request, arena, "dump the TCP sockets")
                sockets, doors = _table(arena, answer.starts, answer.ends, ns.inode, names)
        except NotSupported:
            raise
        except KernelError as error:
            needs = rights.missing(getattr(error, "capability", "")) or error.hint or str(error)
            return Gap.of_namespace(ns.inode, error.doing, needs)
        return ClosingWalk(sockets, time.thread_time() - begun, not answer.interrupted, doors)

    hits, gaps = netns.visit(namespaces, look)
    walks = {inode: entry for inode, entry in hits.items() if isinstance(entry, ClosingWalk)}
    return walks, [*gaps, *(entry for entry in hits.values() if isinstance(entry, Gap))]


def _rows(arena: Arena, starts: Iterable[int], ends: Iterable[int]) -> inet_diag.Rows:
    buffer = arena.array()
    messages = nl.walk(buffer, np.array(tuple(starts), np.int64), np.array(tuple(ends), np.int64))
    kinds = (messages.type == inet_diag.SOCK_DIAG_BY_FAMILY) | (messages.type == inet_diag.TCPDIAG_GETSOCK)
    return inet_diag.find_rows(buffer, messages.where(kinds))


def _table(
    arena: Arena, starts: Iterable[int], ends: Iterable[int], inode: int, names: Collection[str]
) -> tuple[SocketTable, tuple[ListenerQueue, ...]]:
    rows = _rows(arena, starts, ends)
    n = len(rows)
    if not n:
        return _NOTHING, ()
    table = SocketTable.from_rows(
        rows, np.full(n, inode, np.uint32), np.full(n, inet_diag.IPPROTO_TCP, np.uint16)
    )
    listens = table.state == tcp.LISTEN
    doors = _doors(table.select(listens))
    table = table.select(~listens) if len(doors) else table
    return (table.holding(names) if len(table) else _NOTHING), doors


def _doors(table: SocketTable) -> tuple[ListenerQueue, ...]:
    columns = (table.column(name).tolist() for name in ("cookie", "src", "sport", "rqueue", "wqueue"))
    return tuple(
        ListenerQueue(cookie, (high, low), port, waiting, backlog)
        for cookie, (high, low), port, waiting, backlog in zip(*columns, strict=True)
    )


_NOTHING: Final = SocketTable.empty()
_USED: Final = (
    "netns", "protocol", "family", "state", "timer", "retrans", "src", "dst", "sport", "dport", "ifindex",
    "cookie", "expires_ms", "rqueue", "wqueue", "inode", "last_ack_recv_ms", "last_data_sent_ms",
    "last_data_recv_ms", "rto_us", "backoff",
)  # fmt: skip
"""Columns that ages are made of, and what names a connection."""
