"""Asking for single connections by their addresses and ports, in many namespaces.

A dump walks every socket of a namespace: half a second where there are 200,000. A question about one
connection is one hash lookup and 15 µs, and finds minisockets as well. So a few questions are asked one by
one, and only many are answered by a dump.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

import numpy as np

from finwait.errors import Gap, KernelError
from finwait.kernel import netns
from finwait.kernel.netlink import NETLINK_SOCK_DIAG, netlink_socket
from finwait.table.sockets import SocketTable
from finwait.uapi import inet_diag, tcp
from finwait.uapi import netlink as nl

__all__ = ["Question", "ask"]

Question = tuple[tuple[int, int], tuple[int, int], int, int]
"""Local and remote address (two words each, IPv4 mapped), local and remote port."""


def ask(
    questions: Sequence[Question], namespaces: Sequence[netns.NetNamespace]
) -> tuple[SocketTable, list[Gap]]:
    """Return the sockets and minisockets that the questions name, of every namespace that has one.

    A question that only a listener answers has no answer. Namespaces that cannot be entered are gaps.

    Raises:
        DecodeError: an answer is not what the kernel sends.
    """
    requests = [_request(question) for question in questions]
    parts: list[bytes] = []
    spaces: list[int] = []

    def look(space: netns.NetNamespace) -> Gap | None:
        try:
            with netlink_socket(NETLINK_SOCK_DIAG, "ask for single sockets") as sock:
                for request in requests:
                    answer = _answer(sock, request)
                    if answer is not None:
                        parts.append(answer)
                        spaces.append(space.inode)
        except KernelError as error:
            return Gap(f"netns {space.inode}", error.doing, getattr(error, "capability", "") or str(error))
        return None

    results, gaps = netns.visit(namespaces, look)
    gaps += [gap for gap in results.values() if gap is not None]
    return _table(parts, spaces), gaps


def _request(question: Question) -> bytes:
    (src_high, src_low), (dst_high, dst_low), sport, dport = question
    mapped = src_high == 0 and src_low >> 32 == 0xFFFF
    if mapped:
        src, dst = (struct.pack("!I", low & 0xFFFFFFFF) for low in (src_low, dst_low))
    else:
        src, dst = struct.pack("!QQ", src_high, src_low), struct.pack("!QQ", dst_high, dst_low)
    return inet_diag.socket_request(
        inet_diag.SOCK_DIAG_BY_FAMILY,
        inet_diag.AF_INET if mapped else inet_diag.AF_INET6,
        inet_diag.IPPROTO_TCP,
        inet_diag.SocketId(sport, dport, src, dst),
        extensions=0,
    )


def _answer(sock: socket.socket, request: bytes) -> bytes | None:
    try:
        sock.send(request)
        data = sock.recv(1 << 15)
    except OSError as error:
        raise KernelError(error.errno or 0, "ask for single sockets") from None
    if len(data) < nl.NLMSG_HEADER + inet_diag.MESSAGE_SIZE:
        return None  # NLMSG_ERROR: ENOENT, there is no such socket here
    kind = struct.unpack_from("=H", data, 4)[0]
    # Behind the header: family, state. The lookup falls back to a listener of the port.
    if kind != inet_diag.SOCK_DIAG_BY_FAMILY or data[nl.NLMSG_HEADER + 1] == tcp.LISTEN:
        return None
    return data


def _table(parts: list[bytes], spaces: list[int]) -> SocketTable:
    if not parts:
        return SocketTable.empty()
    padded = [part.ljust((len(part) + 7) & ~7, b"\0") for part in parts]
    ends = np.cumsum([len(part) for part in padded])
    starts = ends - np.array([len(part) for part in padded])
    buffer = np.frombuffer(b"".join(padded), np.uint8)
    messages = nl.walk(buffer, starts, starts + np.array([len(part) for part in parts]))
    rows = inet_diag.find_rows(buffer, messages.where(messages.type == inet_diag.SOCK_DIAG_BY_FAMILY))
    if not len(rows):
        return SocketTable.empty()
    owner = np.array(spaces, np.uint32)[rows.chain]
    return SocketTable.from_rows(rows, owner, np.full(len(rows), inet_diag.IPPROTO_TCP, np.uint16))
