"""The kernel's own word that a TCP socket is gone: SKNLGRP_INET_TCP_DESTROY, without BPF.

When a full socket is freed, the kernel sends its addresses, cookie and ``tcp_info`` to whoever listens
(net/core/sock_diag.c). It does so when an orphan shrinks to a minisocket, and for a destroyed or reset
socket only when its last descriptor is closed; never for the end of a minisocket.

One socket in our own namespace listens for all: a netlink socket in another namespace would keep that
namespace, its devices and a deleted pod's addresses alive for as long as we listen. The price is that only
namespaces to which ours has an id (``ip netns list-id``; what veth pairs get) are heard
(``NETLINK_LISTEN_ALL_NSID``, needs CAP_NET_BROADCAST). `DestroyEvents.heard` says which.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

import numpy as np

from finwait.errors import DecodeError, KernelError
from finwait.kernel import netns
from finwait.kernel.netlink import NETLINK_ROUTE, NETLINK_SOCK_DIAG, netlink_socket, request
from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag
from finwait.uapi import netlink as nl

__all__ = ["DestroyEvents"]

_SOL_NETLINK: Final = 270
_NETLINK_LISTEN_ALL_NSID: Final = 8
_INET_TCP_DESTROY: Final = 1  # SKNLGRP_INET_TCP_DESTROY
_INET6_TCP_DESTROY: Final = 3  # SKNLGRP_INET6_TCP_DESTROY
_RTM_GETNSID: Final = 90
_NETNSA_NSID: Final = 1
_NETNSA_FD: Final = 3
_AT_ONCE: Final = 50_000  # messages a call: a storm must not keep the reader from its ring buffer


class DestroyEvents:
    """Listens from its opening on; a context manager."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._netns: dict[int, int] = {}
        self._own = 0
        self.overruns = 0
        """How often the kernel found our queue full; each time an unknown number of messages was lost."""
        self.all_namespaces = False
        """Whether we may hear other namespaces than our own."""

    def __enter__(self) -> Self:
        """Start listening.

        Raises:
            NotSupported: the kernel has no sock_diag or no such group.
            KernelError: it has, and said no.
        """
        doing = "listen for destroyed sockets"
        sock = netlink_socket(NETLINK_SOCK_DIAG, doing)
        try:
            # By bind: a membership asked for on a socket that is not bound yet is accepted and never served.
            sock.bind((0, 1 << (_INET_TCP_DESTROY - 1) | 1 << (_INET6_TCP_DESTROY - 1)))
        except OSError as error:
            sock.close()
            raise KernelError(error.errno or errno.EIO, doing) from None
        try:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
            self.all_namespaces = True
        except OSError:  # CAP_NET_BROADCAST: then we hear our own namespace
            self.all_namespaces = False
        sock.setblocking(False)
        self._sock = sock
        self._own = netns.own_netns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    @property
    def heard(self) -> frozenset[int]:
        """Inodes of the namespaces whose messages reach us."""
        return frozenset((self._own, *self._netns.values()))

    def learn(self, namespaces: Iterable[netns.NetNamespace]) -> None:
        """Find out by which ids our namespace knows others, so that their messages can be told apart."""
        if not self.all_namespaces:
            return
        with netlink_socket(NETLINK_ROUTE, "ask for ids of network namespaces") as route:
            for space in namespaces:
                number = _nsid(route, space)
                if number is not None and number >= 0:
                    self._netns[number] = space.inode

    def drain(self) -> SocketTable:
        """Return the sockets destroyed since the last call; never blocks.

        Columns that a destroy message has no say in (``inode``, ``cgroup_id``) are missing or 0.

        Raises:
            DecodeError: a message is not what the kernel sends.
        """
        assert self._sock is not None
        parts: list[bytes] = []
        spaces: list[int] = []
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(4096, 64)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(error.errno or errno.EIO, "listen for destroyed sockets") from None
                self.overruns += 1
                continue
            inode = self._own
            for level, kind, value in ancillary:
                if (level, kind) == (_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID) and len(value) == 4:
                    inode = self._netns.get(struct.unpack("=i", value)[0], 0)
            if inode:
                parts.append(data.ljust((len(data) + 7) & ~7, b"\0"))
                spaces.append(inode)
        return _rows(parts, spaces)


def _rows(parts: list[bytes], spaces: list[int]) -> SocketTable:
    if not parts:
        return SocketTable.empty()
    ends = np.cumsum([len(p) for p in parts])
    starts = ends - np.array([len(p) for p in parts])
    buffer = np.frombuffer(b"".join(parts), np.uint8)
    messages = nl.walk(buffer, starts, ends)
    rows = inet_diag.find_rows(buffer, messages.where(messages.type == inet_diag.SOCK_DIAG_BY_FAMILY))
    if not len(rows):
        return SocketTable.empty()
    owner = np.array(spaces, np.uint32)[rows.chain]
    return SocketTable.from_rows(rows, owner, np.full(len(rows), inet_diag.IPPROTO_TCP, np.uint16))


def _nsid(route: socket.socket, space: netns.NetNamespace) -> int | None:
    """Return the id that our namespace has for another; -1 for none, None where we cannot ask."""
    for path in space.paths:
        try:
            fd = netns.open_path(path)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_ino != space.inode:
                continue
            payload = b"\0\0\0\0" + nl.attribute(_NETNSA_FD, struct.pack("=I", fd))
            answer = request(
                route, nl.message(_RTM_GETNSID, nl.NLM_F_REQUEST, payload), "ask for a namespace's id"
            )
            for kind, at, length in nl.attributes(answer, 20, len(answer), "RTM_GETNSID"):
                if kind == _NETNSA_NSID and length == 4:
                    return int(struct.unpack_from("=i", answer, at)[0])
        except (KernelError, DecodeError):
            continue
        finally:
            os.close(fd)
    return None
