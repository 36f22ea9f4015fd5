"""The options of another program's sockets: read through a copy of the descriptor, which is closed again at once.

No dump has them. The kernel reports keepalive only while its timer is the armed one, and linger, time-outs and
TCP_USER_TIMEOUT not at all. ``pidfd_getfd`` gives a descriptor of the same socket, and ``getsockopt`` tells.

While the copy is open, the socket has one more holder. If its program closes it in that moment, our close is the last
one: the FIN leaves some microseconds later, and where SO_LINGER has a time, it is we who wait that long.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from finwait.kernel import pidfd
from finwait.uapi.observation import SocketOptions

__all__ = ["MOST", "read"]

MOST: Final = 2_000
"""Sockets that are asked at most in one look: 21 calls each."""
_TCP: Final = socket.IPPROTO_TCP
_SOL: Final = socket.SOL_SOCKET
_LINGER2, _DEFER_ACCEPT, _CONGESTION, _USER_TIMEOUT, _RTO_MAX_MS = (
    8,
    9,
    13,
    18,
    44,
)  # include/uapi/linux/tcp.h
_GONE: Final = frozenset({errno.ESRCH, errno.EBADF, errno.ENOENT})


def read(triples: Iterable[tuple[int, int, int]]) -> dict[int, SocketOptions]:
    """Return the options of TCP sockets by inode; of one that we may not ask, why.

    Args:
        triples: ``(pid, fd, inode)``; one descriptor of a socket is enough. Those beyond `MOST` are left out, and so
            are sockets that are gone by now.
    """
    result: dict[int, SocketOptions] = {}
    with pidfd.Copies() as copies:
        for pid, fd, inode in triples:
            if inode in result and not result[inode].errno:
                continue
            if len(result) >= MOST and inode not in result:
                continue
            try:
                copy = copies.of(pid, fd, inode)
            except OSError as error:
                if error.errno not in _GONE:
                    result[inode] = SocketOptions(errno=error.errno or errno.EIO)
                continue
            # Told what it is: Python asks the kernel three times otherwise, and the family does not matter here.
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=copy) as sock:
                result[inode] = _options(sock)
    return result


def _options(sock: socket.socket) -> SocketOptions:
    linger = _bytes(sock, _SOL, socket.SO_LINGER, 8)
    on, seconds = struct.unpack("=ii", linger) if linger is not None and len(linger) == 8 else (0, 0)
    congestion = _bytes(sock, _TCP, _CONGESTION, 16)
    return SocketOptions(
        keepalive=_flag(sock, _SOL, socket.SO_KEEPALIVE),
        keepidle_s=_number(sock, _TCP, socket.TCP_KEEPIDLE),
        keepintvl_s=_number(sock, _TCP, socket.TCP_KEEPINTVL),
        keepcnt=_number(sock, _TCP, socket.TCP_KEEPCNT),
        user_timeout_ms=_number(sock, _TCP, _USER_TIMEOUT),
        linger_s=None if linger is None else seconds if on else -1,
        linger2_s=_number(sock, _TCP, _LINGER2),
        nodelay=_flag(sock, _TCP, socket.TCP_NODELAY),
        defer_accept_s=_number(sock, _TCP, _DEFER_ACCEPT),
        rcvtimeo_ms=_milliseconds(sock, socket.SO_RCVTIMEO),
        sndtimeo_ms=_milliseconds(sock, socket.SO_SNDTIMEO),
        reuseaddr=_flag(sock, _SOL, socket.SO_REUSEADDR),
        reuseport=_flag(sock, _SOL, socket.SO_REUSEPORT),
        mark=_number(sock, _SOL, 36),  # SO_MARK
        syncnt=_number(sock, _TCP, socket.TCP_SYNCNT),
        rto_max_ms=_number(sock, _TCP, _RTO_MAX_MS),
        congestion="" if congestion is None else congestion.split(b"\0")[0].decode("ascii", "replace"),
    )


def _number(sock: socket.socket, level: int, option: int) -> int | None:
    """Return an option; None where this kind of socket (MPTCP) or this kernel has none."""
    try:
        return sock.getsockopt(level, option)
    except OSError:
        return None


def _flag(sock: socket.socket, level: int, option: int) -> bool | None:
    value = _number(sock, level, option)
    return None if value is None else bool(value)


def _bytes(sock: socket.socket, level: int, option: int, size: int) -> bytes | None:
    try:
        return sock.getsockopt(level, option, size)
    except OSError:
        return None


def _milliseconds(sock: socket.socket, option: int) -> int | None:
    """Return a struct timeval in ms; 0 for no limit."""
    data = _bytes(sock, _SOL, option, 16)
    if data is None or len(data) != 16:
        return None
    seconds, micros = struct.unpack("=qq", data)
    return int(seconds * 1000 + micros // 1000)
