"""SOCK_DESTROY: ending connections by cookie, many to a datagram.

The cookie goes into every request and the kernel compares it (``sock_diag_check_cookie``), so a connection that
took over tuple, pid or inode meanwhile is never hit: it is ENOENT, which is `TargetGone` and no error. Requests
go through the connection's own namespace. Many are packed into one datagram: the kernel works them off in order,
answers each that fails, and of those that succeed only the last, which asks for it.

Whether the kernel can do it, and lets us, is found out without hurting anything: a listener of our own, made for
the purpose on a loopback port that nobody knows, is destroyed. A request for a connection that cannot exist would
not do, since the kernel looks for the socket first (ENOENT) and at our capability only then (EPERM).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence

from msgspec import Struct

from finwait.errors import Gap, KernelError, NotSupported, PermissionNeeded
from finwait.kernel import interruption, rights
from finwait.kernel import netns as ns_edge
from finwait.kernel.netlink import NETLINK_SOCK_DIAG, netlink_socket
from finwait.uapi import inet_diag
from finwait.uapi import netlink as nl

__all__ = ["GONE", "Target", "ask_to_destroy", "check", "destroy", "lacking", "read_back"]

GONE = -1
"""Result of a connection that had left before."""
_PER_DATAGRAM = 500
"""Requests of 72 bytes in one send(); the kernel takes as many as the socket's send buffer holds."""
_PER_READ = 100
"""Answers of up to a few kB each, all in the receive buffer before the first is fetched."""
_SO_COOKIE, _IP_FREEBIND = 57, 15
_NOBODY = inet_diag.SocketId(1, 1, bytes(4), bytes(4), 0, 1)


class Target(Struct, frozen=True):
    """One connection to end."""

    netns: int
    family: int
    protocol: int
    identity: inet_diag.SocketId


def check(sock: socket.socket, protocol: int = inet_diag.IPPROTO_TCP) -> None:
    """Find out whether connections can be destroyed from here.

    Args:
        sock: a sock_diag socket of the namespace, which the calling thread is in.
        protocol: TCP, or MPTCP, whose handler has no ``destroy`` up to (at least) Linux 6.18.

    Raises:
        NotSupported: the kernel is built without CONFIG_INET_DIAG_DESTROY, or cannot do it for this protocol.
        PermissionNeeded: we lack CAP_NET_ADMIN over the namespace.
    """
    if protocol == inet_diag.IPPROTO_TCP:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
            own.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # the loopback device may be down
            own.bind(("127.0.0.1", 0))
            own.listen(0)
            cookie = struct.unpack("=Q", own.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]
            address = socket.inet_aton("127.0.0.1")
            socket_id = inet_diag.SocketId(own.getsockname()[1], 0, address, bytes(4), 0, cookie)
            code = ask_to_destroy(sock, protocol, socket_id)
    else:
        code = ask_to_destroy(sock, protocol, _NOBODY)
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionNeeded(code, "destroy a connection", rights.missing("CAP_NET_ADMIN"))
    if code in (errno.EOPNOTSUPP, errno.EINVAL):
        mptcp = protocol == inet_diag.IPPROTO_MPTCP
        raise NotSupported(
            code, "destroy a connection", "SOCK_DESTROY for MPTCP" if mptcp else "CONFIG_INET_DIAG_DESTROY"
        )


def ask_to_destroy(sock: socket.socket, protocol: int, socket_id: inet_diag.SocketId) -> int:
    """Destroy one IPv4 socket of our own; return the errno, 0 for done."""
    sock.send(inet_diag.socket_request(inet_diag.SOCK_DESTROY, inet_diag.AF_INET, protocol, socket_id))
    return _codes(sock.recv(1 << 16)).get(1, errno.EIO)


def lacking(
    namespaces: Sequence[ns_edge.NetNamespace], requested: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], KernelError]:
    """Return where connections cannot be destroyed, and why; nothing is touched.

    Args:
        namespaces: see `finwait.kernel.netns.discover`.
        requested: (inode of the namespace, protocol) pairs to ask about.
    """
    by_ns: dict[int, set[int]] = {}
    for inode, protocol in requested:
        by_ns.setdefault(inode, set()).add(protocol)
    errors: dict[tuple[int, int], KernelError] = {}

    def inside(ns: ns_edge.NetNamespace) -> None:
        with netlink_socket(NETLINK_SOCK_DIAG, "open a sock_diag socket") as sock:
            for protocol in by_ns[ns.inode]:
                try:
                    check(sock, protocol)
                except (NotSupported, PermissionNeeded) as error:
                    errors[ns.inode, protocol] = error

    relevant = [n for n in namespaces if n.inode in by_ns]
    seen, _ = ns_edge.visit(relevant, inside)
    closed = {n.inode for n in relevant} - seen.keys()
    for inode, protocols in by_ns.items():
        if inode not in seen:
            needs = rights.missing("CAP_SYS_ADMIN") if inode in closed else "a namespace that is still there"
            for protocol in protocols:
                errors[inode, protocol] = PermissionNeeded(
                    errno.EPERM, "enter the connection's namespace", needs, netns=inode
                )
    return errors


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
    results: dict[int, int] | None = None,
) -> tuple[dict[int, int], list[Gap]]:
    """End connections, each in its own namespace. Interrupted, it sends nothing more; ``results`` has what was done.

    Args:
        namespaces: where the targets are; see `finwait.kernel.netns.discover`.
        targets: whom; results are by index into it.
        results: filled as answers come, for a caller that may be interrupted.

    Returns:
        Index → 0 when it was destroyed, `GONE` when it had left, else the errno; and what could not be entered.

    Raises:
        NotSupported: the kernel cannot do it; nothing was done.
        PermissionNeeded: we may not; nothing was done there.
    """
    by_ns: dict[int, list[int]] = {}
    for k, target in enumerate(targets):
        by_ns.setdefault(target.netns, []).append(k)
    results = {} if results is None else results
    stop = interruption.stop()

    def inside(ns: ns_edge.NetNamespace) -> None:
        with netlink_socket(NETLINK_SOCK_DIAG, "open a sock_diag socket") as sock:
            for protocol in {targets[k].protocol for k in by_ns[ns.inode]}:
                check(sock, protocol)
            _batches(sock, by_ns[ns.inode], targets, results, stop)

    _, gaps = ns_edge.visit([n for n in namespaces if n.inode in by_ns], inside, stop=stop)
    return results, gaps


def _batches(
    sock: socket.socket,
    indices: Sequence[int],
    targets: Sequence[Target],
    results: dict[int, int],
    stop: interruption.Stop,
) -> None:
    for start in range(0, len(indices), _PER_DATAGRAM):
        part = indices[start : start + _PER_DATAGRAM]
        if stop.is_set():
            return
        # What fails is always answered; of what succeeds only the last, whose answer ends the batch.
        requests = [
            inet_diag.socket_request(
                inet_diag.SOCK_DESTROY,
                targets[k].family,
                targets[k].protocol,
                targets[k].identity,
                seq=k + 2,
                acknowledge=k == part[-1],
            )
            for k in part
        ]
        sock.send(b"".join(requests))
        failed: dict[int, int] = {}
        last = part[-1] + 2
        while last not in failed:
            try:
                failed.update(_codes(sock.recv(1 << 18)))
            except BlockingIOError:
                raise KernelError(errno.ETIMEDOUT, "destroy connections") from None
        for k in part:
            code = failed.get(k + 2, 0)
            results[k] = GONE if code == errno.ENOENT else code


def read_back(
    namespaces: Sequence[ns_edge.NetNamespace], targets: Sequence[Target], extensions: int
) -> tuple[list[tuple[int, bytes]], frozenset[int]]:
    """Read single connections again, each by its tuple and cookie; what is gone is not answered.

    MPTCP connections cannot be read so: the kernel takes the cookie of such a request for a token.

    Args:
        namespaces: where the targets are.
        targets: whom.
        extensions: attributes wanted, see `finwait.uapi.inet_diag.extension_mask`.

    Returns:
        (index into ``targets``, netlink message of its row) of each that is there; the namespaces that were entered.
    """
    by_ns: dict[int, list[int]] = {}
    for k, target in enumerate(targets):
        by_ns.setdefault(target.netns, []).append(k)
    answers: list[tuple[int, bytes]] = []

    def inside(ns: ns_edge.NetNamespace) -> None:
        indices = by_ns[ns.inode]
        with netlink_socket(NETLINK_SOCK_DIAG, "open a sock_diag socket") as sock:
            for start in range(0, len(indices), _PER_READ):
                part = indices[start : start + _PER_READ]
                requests = [
                    inet_diag.socket_request(
                        inet_diag.SOCK_DIAG_BY_FAMILY,
                        targets[k].family,
                        targets[k].protocol,
                        targets[k].identity,
                        seq=k + 2,
                        extensions=extensions,
                    )
                    for k in part
                ]
                sock.send(b"".join(requests))
                for _ in part:  # each is answered on its own, by its row or by an error
                    try:
                        data = sock.recv(1 << 16)
                    except BlockingIOError:
                        raise KernelError(errno.ETIMEDOUT, "read connections again") from None
                    _, kind, _, seq, _ = struct.unpack_from("=IHHII", data)
                    if kind != nl.NLMSG_ERROR:
                        answers.append((seq - 2, data))

    entered, _ = ns_edge.visit([n for n in namespaces if n.inode in by_ns], inside)
    return answers, frozenset(entered)
