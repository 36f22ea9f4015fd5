"""Calls on bare socket descriptors, for which Python wants a socket object.

An object for each descriptor costs memory (a relay holds two for each connection) and a ``getsockname()``
to make, so the calls that the data path needs now and then go to libc with the number. The constants are those
of include/uapi/linux/tcp.h and asm-generic/socket.h that the socket module has no names for.

Errors arrive as `OSError`, as from the socket module; on a dead socket most of them do not matter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from typing import Any, Final, NamedTuple

from msgspec import Struct

__all__ = [
    "NO_ROOM",
    "OURS",
    "VANISHED",
    "ReaderState",
    "TcpInfo",
    "abort_on_close",
    "error_of",
    "is_tcp",
    "is_usable",
    "names",
    "original_destination",
    "queued",
    "set_int",
    "set_name",
    "shut_write",
    "tcp_info",
    "tend_reader",
]

TCP_FASTOPEN_CONNECT: Final = 30
TCP_USER_TIMEOUT: Final = 18
IP_TRANSPARENT: Final = 19
IPV6_TRANSPARENT: Final = 75
IP_BIND_ADDRESS_NO_PORT: Final = 24
SO_MARK: Final = 36
_SO_ORIGINAL_DST: Final = 80
"""include/uapi/linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number."""
_SIOCOUTQ: Final = 0x5411

VANISHED: Final = frozenset(
    {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENONET}
)
"""Errors of a socket whose peer answers no more; others are resets."""
NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
OURS: Final = NO_ROOM | {errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM}
"""Errors of connecting that say something about this machine, not about the backend."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)


def _checked(result: int, doing: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} ({doing})")


def shut_write(fd: int) -> None:
    """``shutdown(fd, SHUT_WR)``: send FIN after what is queued.

    Raises:
        OSError: ENOTCONN when the connection was reset meanwhile.
    """
    _checked(_LIBC.shutdown(fd, socket.SHUT_WR), "shutdown")


def abort_on_close(fd: int) -> None:
    """Make the coming ``close()`` send RST (SO_LINGER with zero seconds); no error on a dead socket."""
    _LIBC.setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO, 8)


def set_int(fd: int, level: int, name: int, value: int) -> None:
    """``setsockopt`` with an int.

    Raises:
        OSError: the kernel refused.
    """
    number = ctypes.c_int(value)
    _checked(_LIBC.setsockopt(fd, level, name, ctypes.byref(number), 4), f"setsockopt {name}")


def error_of(fd: int) -> int:
    """Return SO_ERROR, which reading clears; 0 when there is none."""
    value, size = ctypes.c_int(0), ctypes.c_uint(4)
    _LIBC.getsockopt(fd, socket.SOL_SOCKET, socket.SO_ERROR, ctypes.byref(value), ctypes.byref(size))
    return value.value


def queued(fd: int) -> int:
    """Return how many bytes were sent and are not acknowledged yet (SIOCOUTQ)."""
    value = ctypes.c_int(0)
    _checked(_LIBC.ioctl(fd, ctypes.c_ulong(_SIOCOUTQ), ctypes.byref(value)), "SIOCOUTQ")
    return value.value


def names(fd: int) -> tuple[object, object]:
    """Return a socket's own and its peer's address; "" for one that it does not have any more.

    It needs no descriptor, so it works when there are none left.
    """
    return _name(_LIBC.getsockname, fd), _name(_LIBC.getpeername, fd)


def _name(ask: Any, fd: int) -> object:  # noqa: ANN401  # a function of libc
    data, size = ctypes.create_string_buffer(128), ctypes.c_uint(128)
    if ask(fd, data, ctypes.byref(size)) < 0:
        return ""
    return _address(data.raw[: min(size.value, 128)])


def original_destination(fd: int) -> object:
    """Return where the peer of an accepted socket connected to, as connection tracking knows it before a translation.

    An empty string where nothing was translated or nothing is tracked (SO_ORIGINAL_DST).
    """
    for level in (socket.IPPROTO_IP, socket.IPPROTO_IPV6):
        data, size = ctypes.create_string_buffer(128), ctypes.c_uint(128)
        if _LIBC.getsockopt(fd, level, _SO_ORIGINAL_DST, data, ctypes.byref(size)) == 0:
            return _address(data.raw[: min(size.value, 128)])
    return ""


def _address(raw: bytes) -> object:
    family = int.from_bytes(raw[:2], sys.byteorder)
    # struct sockaddr_in, sockaddr_in6, sockaddr_un; ports are in network order.
    if family == socket.AF_INET:
        return socket.inet_ntop(family, raw[4:8]), int.from_bytes(raw[2:4], "big")
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, raw[8:24]), int.from_bytes(raw[2:4], "big")
    path = raw[2:]
    return path if path[:1] == b"\0" else os.fsdecode(path.partition(b"\0")[0])


def is_usable(fd: int) -> bool:
    """Return whether a connected socket has neither an end of file nor an error waiting."""
    byte = ctypes.create_string_buffer(1)
    length: int = _LIBC.recv(fd, byte, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return length > 0 or (length < 0 and ctypes.get_errno() == errno.EAGAIN)


class TcpInfo(Struct, frozen=True):
    """The fields of ``struct tcp_info`` that tell a slow peer from a dead one."""

    state: int
    probes: int
    """Zero-window or keepalive probes sent since the last answer."""
    unacked: int
    """Segments on the way."""
    last_ack_recv_ms: int
    """Since anything was acknowledged, in milliseconds."""
    notsent: int
    """Bytes that wait because the window or the path does not take them."""
    window: int | None
    """The peer's window in bytes (tcpi_snd_wnd, since Linux 5.4); None where the kernel does not say."""


# Offsets in struct tcp_info, include/uapi/linux/tcp.h.
_UNACKED, _LAST_ACK_RECV, _NOTSENT, _SND_WND = 24, 56, 144, 228


def tcp_info(fd: int) -> TcpInfo | None:
    """Return what the kernel knows of a TCP socket; None for anything else."""
    data, size = ctypes.create_string_buffer(256), ctypes.c_uint(256)
    if _LIBC.getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, data, ctypes.byref(size)) < 0:
        return None
    raw, length = data.raw, size.value
    if length < _NOTSENT + 4:
        return None

    def word(offset: int) -> int:
        return int.from_bytes(raw[offset : offset + 4], "little" if _LITTLE else "big")

    window = word(_SND_WND) if length >= _SND_WND + 4 else None
    return TcpInfo(raw[0], raw[3], word(_UNACKED), word(_LAST_ACK_RECV), word(_NOTSENT), window)


_LITTLE = struct.pack("=H", 1) == b"\1\0"


class ReaderState(NamedTuple):
    """What `tend_reader` found."""

    relaxed: bool
    """TCP_USER_TIMEOUT is lifted now."""
    gone: bool
    """The window is shut, and it has said nothing for the timeout and to three probes."""
    unsent: bool
    """Bytes for it wait in the kernel, so it has to be looked after."""


def tend_reader(fd: int, user_timeout: float, relaxed: bool) -> ReaderState:
    """Tell a reader whose window is shut from one that is gone, in place of TCP_USER_TIMEOUT.

    That option also ends a connection whose peer lives and reads nothing, so it is lifted while the window is shut
    and set again after. To be called more often than every ``user_timeout``.

    Args:
        fd: any socket; one that is not TCP is never relaxed, and never gone.
        user_timeout: what TCP_USER_TIMEOUT was set to, in seconds.
        relaxed: what the last call found; False before.

    Returns:
        What was found. The kernel sends the probes that a reader fails to answer at growing intervals.
    """
    info = tcp_info(fd)
    if info is None:
        return ReaderState(relaxed, False, False)
    shut = info.notsent > 0 and not info.unacked
    if shut is not relaxed:
        try:
            set_int(fd, socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 0 if shut else int(user_timeout * 1000))
        except OSError:  # a socket that was reset meanwhile; its event is on the way
            return ReaderState(shut, False, False)
    gone = shut and info.probes >= 3 and info.last_ack_recv_ms >= user_timeout * 1000
    return ReaderState(shut, gone, info.notsent > 0)


def is_tcp(family: int) -> bool:
    """Return whether sockets of this family are TCP and take its options."""
    return family in (socket.AF_INET, socket.AF_INET6)


def set_name(name: str) -> None:
    """Show this name for the process in ``ps`` and ``ss -p`` (PR_SET_NAME, 15 bytes)."""
    _LIBC.prctl(15, name.encode()[:15], 0, 0, 0)
