"""The listeners of one network namespace, and how full their accept queues are.

A dump of LISTEN goes through the table of listeners alone, which is small: tens of microseconds, whatever else the
machine holds. So this can be asked every minute in hundreds of namespaces, and it is read without columns: of a
listener five numbers are wanted. ``idiag_rqueue`` is the connections that wait to be accepted, ``idiag_wqueue`` the
backlog (net/ipv4/tcp_diag.c: tcp_diag_get_info); a queue takes one more than its backlog (include/net/sock.h:
sk_acceptq_is_full).

Reading only.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from finwait.errors import DecodeError, KernelError
from finwait.kernel.netlink import NETLINK_SOCK_DIAG, netlink_socket
from finwait.uapi import inet_diag, tcp
from finwait.uapi import netlink as nl

__all__ = ["ListenerQueue", "doors", "parse_doors"]

_DOING: Final = "list the listeners"
_HEADER: Final = struct.Struct("=IHH")
_ROW: Final = struct.Struct("=BBBB")
_PORT: Final = struct.Struct(">H")
_WORDS: Final = struct.Struct(">QQ")
_REST: Final = struct.Struct("=IIIII")
"""Cookie, its low half first, expires, rqueue, wqueue."""
_MAPPED: Final = 0xFFFF << 32


class ListenerQueue(NamedTuple):
    """One listener."""

    cookie: int
    address: tuple[int, int]
    """Two words, IPv4 mapped."""
    port: int
    waiting: int
    """Connections that its program has not accepted."""
    backlog: int
    """So many may wait, and one more."""

    @property
    def full(self) -> bool:
        """Whether the kernel takes no further connection."""
        return self.waiting > self.backlog


def doors() -> tuple[ListenerQueue, ...] | None:
    """Return the TCP listeners of the calling thread's namespace; None where they cannot be listed.

    Where the table changes during the dump one may be missing: then nothing is returned either.
    """
    try:
        with netlink_socket(NETLINK_SOCK_DIAG, _DOING) as sock:
            sock.send(inet_diag.dump_both_families(1 << tcp.LISTEN, 0))
            hits: list[ListenerQueue] = []
            while True:
                rows, more = parse_doors(sock.recv(1 << 16))
                hits += rows
                if not more:
                    return tuple(hits)
    except (KernelError, DecodeError, OSError):
        return None


def parse_doors(data: bytes) -> tuple[list[ListenerQueue], bool]:
    """Return the listeners of one datagram, and whether more follow.

    Raises:
        DecodeError: the kernel refused, was interrupted, or sends something else.
    """
    hits: list[ListenerQueue] = []
    at, end = 0, len(data)
    while at + nl.NLMSG_HEADER <= end:
        length, kind, flags = _HEADER.unpack_from(data, at)
        if length < nl.NLMSG_HEADER or at + length > end or flags & nl.NLM_F_DUMP_INTR:
            break
        if kind == nl.NLMSG_DONE:
            return hits, False
        if kind not in (inet_diag.SOCK_DIAG_BY_FAMILY, inet_diag.TCPDIAG_GETSOCK):
            break
        body = at + nl.NLMSG_HEADER
        if length < nl.NLMSG_HEADER + inet_diag.MESSAGE_SIZE:
            break
        hits.append(_door(data, body))
        at += (length + 3) & ~3
    if at == end and end:
        return hits, True
    raise DecodeError("listeners", at, data[at : at + 64], f"{end - at} bytes")


def _door(data: bytes, body: int) -> ListenerQueue:
    family, _, _, _ = _ROW.unpack_from(data, body)
    (port,) = _PORT.unpack_from(data, body + 4)
    high, low = _WORDS.unpack_from(data, body + 8)
    if family == inet_diag.AF_INET:
        high, low = 0, _MAPPED | high >> 32
    cookie, above, _, waiting, backlog = _REST.unpack_from(data, body + 44)
    return ListenerQueue(above << 32 | cookie, (high, low), port, waiting, backlog)
