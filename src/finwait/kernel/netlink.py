"""Netlink sockets: a dump received into one arena, datagram by datagram.

A dump of 216,000 sockets is 4,000 datagrams of about 32 kB, whatever the buffer. They are received one after
the other into anonymous memory that is reserved far larger than any dump (``MAP_NORESERVE``) and touched only
as far as it is filled: no copy, no guess of the size, and all namespaces end up in one buffer that is decoded
in one go.

A netlink socket stays in the namespace where it was opened, so the caller opens it there
(`finwait.kernel.netns.visit`).
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import KernelError, NotSupported, PermissionNeeded
from finwait.kernel import procfs, rights
from finwait.uapi import netlink as nl

__all__ = [
    "NETLINK_NETFILTER",
    "NETLINK_ROUTE",
    "NETLINK_SOCK_DIAG",
    "Answer",
    "Arena",
    "dump",
    "netlink_socket",
    "no_sock_diag",
    "request",
]

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

_ROOM = 1 << 20  # free space offered to each datagram; the largest that any kernel sends is far smaller
_RCVBUF = 8 << 20
_SO_RCVBUFFORCE = 33
_MODULES_DISABLED = "/proc/sys/kernel/modules_disabled"
_MAP_NORESERVE = 0x4000  # the mmap module of Python 3.11 does not name it


class Arena:
    """Memory that datagrams are laid into, each at a multiple of eight bytes."""

    __slots__ = ("_map", "_size", "used")

    def __init__(self, size: int = 16 << 30) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        while True:
            try:
                self._map = mmap.mmap(-1, size, flags=flags)
                break
            except OSError:  # an address-space limit, or strict overcommit
                if size <= 1 << 24:
                    raise
                size >>= 1
        self._size = size
        self.used = 0

    def room(self) -> memoryview:
        """Return where the next datagram may go.

        Raises:
            MemoryError: what the machine lets us reserve is full.
        """
        if self._size - self.used < _ROOM:
            raise MemoryError(f"the sockets of this machine do not fit into {self._size >> 20} MiB")
        return memoryview(self._map)[self.used : self.used + _ROOM]

    def keep(self, length: int) -> int:
        """Keep ``length`` bytes that were written into `room`; return where they start."""
        start = self.used
        self.used += (length + 7) & ~7
        return start

    def append(self, data: bytes | memoryview) -> int:
        """Copy bytes in (a recording's, or another arena's); return where they start."""
        if self._size - self.used < len(data) + _ROOM:
            raise MemoryError(f"{len(data) >> 20} MiB more do not fit into {self._size >> 20} MiB")
        self._map[self.used : self.used + len(data)] = data
        return self.keep(len(data))

    def view(self) -> memoryview:
        """Return all that was kept, for `append` of another arena."""
        return memoryview(self._map)[: self.used]

    def array(self) -> NDArray[np.uint8]:
        """Return all that was kept, without copying."""
        return np.frombuffer(self._map, np.uint8, count=self.used)


class Answer(Struct, frozen=True):
    """The datagrams that answered one dump: where they are in the arena, and whether it was disturbed."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    interrupted: bool
    """NLM_F_DUMP_INTR: the kernel's tables changed under the dump; rows may be missing or doubled."""


def netlink_socket(protocol: int, doing: str) -> socket.socket:
    """Open a netlink socket in the namespace of the calling thread.

    Raises:
        NotSupported: the kernel does not have this netlink family.
        KernelError: it has, and said no.
    """
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise _explain(error.errno or 0, doing, f"netlink family {protocol}") from None
    for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, _RCVBUF)
            break
        except OSError:  # the first needs CAP_NET_ADMIN, the second is capped by rmem_max: both are optional
            continue
    # A blocking socket with a kernel time limit: Python's own timeout would poll() before every datagram.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 30, 0))
    return sock


def dump(sock: socket.socket, request_bytes: bytes, arena: Arena, doing: str, *, retries: int = 3) -> Answer:
    """Send one dump request and lay all that answers it into the arena.

    A dump that meets ENOBUFS or was interrupted (``NLM_F_DUMP_INTR``) is asked again, a bounded number of
    times; the last answer is returned with ``interrupted`` set rather than thrown away.

    Raises:
        KernelError: the kernel refused the dump (also in the middle of it).
    """
    for attempt in range(retries + 1):
        before = arena.used
        try:
            answer = _dump_once(sock, request_bytes, arena, doing)
        except KernelError as error:
            arena.used = before
            if error.errno == errno.ENOBUFS and attempt < retries:
                _drain(sock)
                continue
            raise
        if answer.interrupted and attempt < retries:
            arena.used = before
            continue
        return answer
    raise AssertionError("the last attempt returns or raises")


def _drain(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 16, socket.MSG_DONTWAIT | socket.MSG_TRUNC):
            pass
    except OSError:
        return


def _dump_once(sock: socket.socket, request_bytes: bytes, arena: Arena, doing: str) -> Answer:
    starts: list[int] = []
    ends: list[int] = []
    interrupted = False
    try:
        sock.send(request_bytes)
        receive = sock.recv_into
        while True:
            room = arena.room()
            length = receive(room, _ROOM, socket.MSG_TRUNC)
            if length > _ROOM:
                raise KernelError(errno.EMSGSIZE, doing, hint="a netlink datagram was larger than 1 MiB")
            if length < nl.NLMSG_HEADER:
                raise KernelError(errno.EBADMSG, doing)
            kind, flags = struct.unpack_from("=HH", room, 4)
            interrupted = interrupted or bool(flags & nl.NLM_F_DUMP_INTR)
            if kind == nl.NLMSG_ERROR:
                code = -struct.unpack_from("=i", room, nl.NLMSG_HEADER)[0]
                raise _explain(code, doing, "this kind of dump")
            start = arena.keep(length)
            starts.append(start)
            ends.append(start + length)
            # DONE stands alone or as the last message (20 bytes) of a datagram.
            done = length - 20
            if kind == nl.NLMSG_DONE:
                at = 0
            elif done >= 0 and struct.unpack_from("=IH", room, done) == (20, nl.NLMSG_DONE):
                at = done
            else:
                continue
            flags, code = (
                struct.unpack_from("=H", room, at + 6)[0],
                -struct.unpack_from("=i", room, at + 16)[0],
            )
            interrupted = interrupted or bool(flags & nl.NLM_F_DUMP_INTR)
            if code > 0:
                raise _explain(code, doing, "this kind of dump")
            return Answer(tuple(starts), tuple(ends), interrupted)
    except BlockingIOError:
        raise KernelError(errno.ETIMEDOUT, doing) from None
    except OSError as error:
        raise _explain(error.errno or errno.EIO, doing, "this kind of dump") from None


def request(sock: socket.socket, message: bytes, doing: str) -> bytes:
    """Send one request that has one answer; return the answering datagram.

    An acknowledgement is returned as it is (``NLMSG_ERROR`` with code 0).

    Raises:
        KernelError: the kernel answered with an error.
    """
    try:
        sock.send(message)
        data = sock.recv(1 << 16)
    except BlockingIOError:
        raise KernelError(errno.ETIMEDOUT, doing) from None
    except OSError as error:
        raise _explain(error.errno or errno.EIO, doing, "this request") from None
    if len(data) >= 20 and struct.unpack_from("=H", data, 4)[0] == nl.NLMSG_ERROR:
        code = -struct.unpack_from("=i", data, nl.NLMSG_HEADER)[0]
        if code:
            raise _explain(code, doing, "this request")
    return data


def _explain(code: int, doing: str, facility: str) -> KernelError:
    if code in (errno.EPERM, errno.EACCES):
        return PermissionNeeded(code, doing, rights.missing("CAP_NET_ADMIN"))
    if code in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT, errno.EINVAL):
        return NotSupported(code, doing, facility, answer=os.strerror(code))
    return KernelError(code, doing)


def no_sock_diag(error: NotSupported) -> NotSupported:
    """Return an error as that of a kernel that cannot list TCP sockets, with what would let it."""
    refused = NotSupported(error.errno, error.asked, "tcp_diag")
    if procfs.read(_MODULES_DISABLED, 16) == b"1\n":
        refused.hint = (
            "the module tcp_diag is not loaded, and no module can be loaded any more "
            "(`kernel.modules_disabled` is 1); load it at the next boot: "
            "`echo tcp_diag > /etc/modules-load.d/tcp_diag.conf`"
        )
    else:
        refused.hint = (
            "`modprobe tcp_diag` loads the module that lists sockets; a kernel built without "
            "CONFIG_INET_DIAG cannot list them"
        )
    return refused
