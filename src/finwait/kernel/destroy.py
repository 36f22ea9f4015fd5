"""SOCK_DESTROY: ending connections by cookie, many to a datagram.

The cookie goes into every request and the kernel compares it (``sock_diag_check_cookie``), so a connection that
took over tuple, pid or inode meanwhile is never hit: it is ENOENT, which is `TargetGone` and no error. Requests
go through the connection's own namespace. Many are packed into one datagram; each is answered on its own.

Whether the kernel can do it at all is found out without hurting anything: a request for a connection that
cannot exist is answered EOPNOTSUPP, EPERM or ENOENT.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finwait.errors import Gap, KernelError, NotSupported, PermissionNeeded
from finwait.kernel import netns as ns_edge
from finwait.kernel.netlink import NETLINK_SOCK_DIAG, netlink_socket
from finwait.uapi import inet_diag
from finwait.uapi import netlink as nl

__all__ = ["GONE", "Target", "check", "destroy", "read_back"]

GONE = -1
"""Result of a connection that had left before."""
_PER_DATAGRAM = 200
_NOBODY = inet_diag.SocketId(1, 1, bytes(4), bytes(4), 0, 1)


@dataclass(frozen=True, slots=True)
class Target:
    """One connection to end."""

    netns: int
    family: int
    protocol: int
    identity: inet_diag.SocketId


def check(sock: socket.socket) -> None:
    """Find out whether connections can be destroyed from here.

    Raises:
        NotSupported: the kernel is built without CONFIG_INET_DIAG_DESTROY.
        PermissionNeeded: we lack CAP_NET_ADMIN over the namespace.
    """
    request = inet_diag.socket_request(
        inet_diag.SOCK_DESTROY, inet_diag.AF_INET, inet_diag.IPPROTO_TCP, _NOBODY
    )
    sock.send(request)
    code = _codes(sock.recv(1 << 16)).get(1, errno.EIO)
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionNeeded(code, "destroy a connection", "CAP_NET_ADMIN")
    if code in (errno.EOPNOTSUPP, errno.EINVAL):
        raise NotSupported(code, "destroy a connection", "CONFIG_INET_DIAG_DESTROY")


def _codes(data: bytes) -> dict[int, int]:
    """Return sequence number → errno of the acknowledgements in a datagram."""
    result: dict[int, int] = {}
    at = 0
    while at + nl.NLMSG_HEADER + 4 <= len(data):
        length, kind, _, seq, _ = struct.unpack_from("=IHHII", data, at)
        if length < nl.NLMSG_HEADER:
            break
        if kind == nl.NLMSG_ERROR:
            result[seq] = -struct.unpack_from("=i", data, at + nl.NLMSG_HEADER)[0]
        at += nl.align4(length)
    return result


def destroy(
    namespaces: Sequence[ns_edge.NetNamespace],
    targets: Sequence[Target],
    *,
    rate: float = 0.0,
    before: Callable[[int], None] | None = None,
) -> tuple[dict[int, int], list[Gap]]:
    """End connections, each in its own namespace.

    Args:
        namespaces: where the targets are; see `finwait.kernel.netns.discover`.
        targets: whom; results are by index into it.
        rate: at most so many a second; 0 for no limit.
        before: called with the index of the first target of each datagram, before it is sent.

    Returns:
        Index → 0 when it was destroyed, `GONE` when it had left, else the errno; and what could not be entered.

    Raises:
        NotSupported: the kernel cannot do it; nothing was done.
        PermissionNeeded: we may not; nothing was done there.
    """
    by_ns: dict[int, list[int]] = {}
    for k, target in enumerate(targets):
        by_ns.setdefault(target.netns, []).append(k)
    results: dict[int, int] = {}

    def inside(ns: ns_edge.NetNamespace) -> None:
        with netlink_socket(NETLINK_SOCK_DIAG, "open a sock_diag socket") as sock:
            check(sock)
            _batches(sock, by_ns[ns.inode], targets, rate, before, results)

    _, gaps = ns_edge.visit([n for n in namespaces if n.inode in by_ns], inside)
    return results, gaps


def _batches(
    sock: socket.socket,
    mine: Sequence[int],
    targets: Sequence[Target],
    rate: float,
    before: Callable[[int], None] | None,
    results: dict[int, int],
) -> None:
    size = _PER_DATAGRAM if rate <= 0 else max(1, min(_PER_DATAGRAM, int(rate / 10)))
    begun = time.monotonic()
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        if before is not None:
            before(part[0])
        if rate > 0:
            time.sleep(max(0.0, begun + start / rate - time.monotonic()))
        sock.send(
            b"".join(
                inet_diag.socket_request(
                    inet_diag.SOCK_DESTROY,
                    targets[k].family,
                    targets[k].protocol,
                    targets[k].identity,
                    seq=k + 2,
                )
                for k in part
            )
        )
        waiting = {k + 2 for k in part}
        while waiting:
            try:
                codes = _codes(sock.recv(1 << 18))
            except BlockingIOError:
                raise KernelError(errno.ETIMEDOUT, "destroy connections") from None
            for seq, code in codes.items():
                if seq in waiting:
                    waiting.discard(seq)
                    results[seq - 2] = GONE if code == errno.ENOENT else code


def read_back(
    namespaces: Sequence[ns_edge.NetNamespace], targets: Sequence[Target]
) -> tuple[dict[int, bytes | None], list[Gap]]:
    """Read connections again, each by its cookie.

    Returns:
        Index → the netlink message of its row, or None when it is gone; and what could not be entered.
    """
    by_ns: dict[int, list[int]] = {}
    for k, target in enumerate(targets):
        by_ns.setdefault(target.netns, []).append(k)
    found: dict[int, bytes | None] = {}

    def inside(ns: ns_edge.NetNamespace) -> None:
        with netlink_socket(NETLINK_SOCK_DIAG, "open a sock_diag socket") as sock:
            for k in by_ns[ns.inode]:
                t = targets[k]
                sock.send(
                    inet_diag.socket_request(
                        inet_diag.SOCK_DIAG_BY_FAMILY, t.family, t.protocol, t.identity, seq=k + 2
                    )
                )
                data = sock.recv(1 << 16)
                kind = struct.unpack_from("=H", data, 4)[0]
                found[k] = None if kind == nl.NLMSG_ERROR else data

    _, gaps = ns_edge.visit([n for n in namespaces if n.inode in by_ns], inside)
    return found, gaps
