"""A descriptor of another process, for a moment: ``pidfd_open`` and ``pidfd_getfd``.

What is done through the copy is done to the socket itself: options take effect at once, shutdown() sends the
FIN. The identity is checked on the copy, by inode and by ``SO_COOKIE``, so a descriptor number that was reused
since the look is never acted upon. While the copy is open the socket has one more holder; it is closed at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from finwait.errors import KernelError, NotSupported, PermissionNeeded, SubflowOnly, TargetGone
from finwait.kernel import rights, tasks
from finwait.uapi.inet_diag import IPPROTO_MPTCP
from finwait.uapi.observation import LoneSocket
from finwait.uapi.tcp import OPTION_RANGES

__all__ = [
    "KEEPALIVE_OPTIONS",
    "OPTION_RANGES",
    "Copies",
    "borrowed",
    "get_options",
    "lone_sockets",
    "namespace_of",
    "nearest",
    "out_of_range",
    "reset",
    "segments_in",
    "set_options",
    "yama_scope",
]

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD = 434, 438  # the same number on every architecture (unified table)
_PIDFD_THREAD = os.O_EXCL
"""pidfd_open(2) of a thread: Linux 6.9; EINVAL before."""
_SO_COOKIE = 57
_SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h
_BYTES_ACKED, _BYTES_RECEIVED = 120, 128  # of struct tcp_info, Linux 4.1
_SEGMENTS = slice(136, 144)  # tcpi_segs_out and tcpi_segs_in of struct tcp_info, Linux 4.2
_SOL_MPTCP, _MPTCP_INFO = 284, 1
_MPTCP_RCV_NXT = slice(32, 40)  # of struct mptcp_info: what follows the peer's key, 0 where none is known
_MPTCP_BYTES = slice(48, 80)  # bytes_retrans, bytes_sent, bytes_received, bytes_acked, Linux 6.5
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_NOBODY_MAY = 3

KEEPALIVE_OPTIONS = {
    "keepidle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "keepintvl": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "keepcnt": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "user_timeout_ms": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
}
"""Options by name; SO_KEEPALIVE last, so that it is armed with the times already set."""


def _syscall(number: int, *args: int) -> int:
    result = int(_libc.syscall(number, *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _copy_of(tid: int, fd: int, flags: int = 0) -> int:
    handle = _syscall(_SYS_PIDFD_OPEN, tid, flags)
    try:
        return _syscall(_SYS_PIDFD_GETFD, handle, fd, 0)
    finally:
        os.close(handle)


class _ThreadOnly(OSError):
    """A descriptor in the table of a thread, by which this kernel (before 6.9) gives no copy."""


def _copy(pid: int, fd: int, inode: int, tables: tasks.Tables) -> int:
    """Return a copy of a process's descriptor, which the caller closes.

    It is that of the process unless only a thread of its own table, or one that outlived the main thread, has it. That
    it is the socket that is meant is for the caller to see: the number may be another descriptor's by now.
    """
    path = tables.path(pid, fd, inode)
    tid = int(path.split("/")[4]) if path is not None and "/task/" in path else pid
    if tid == pid:
        return _copy_of(pid, fd)
    try:
        return _copy_of(tid, fd, _PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _ThreadOnly(errno.EINVAL, os.strerror(errno.EINVAL)) from None


def namespace_of(pid: int, fd: int, netns: int) -> int:
    """Return an open descriptor of a network namespace that a process's socket belongs to.

    Raises:
        OSError: there is no such socket any more, or we may not.
    """
    last: OSError = OSError(errno.EBADF, os.strerror(errno.EBADF))
    for tid in tasks.Tables()[pid]:
        try:
            copy = _copy_of(tid, fd, 0 if tid == pid else _PIDFD_THREAD)
        except OSError as error:
            last = error
            continue
        try:
            space = int(fcntl.ioctl(copy, _SIOCGSKNS))
        except OSError as error:
            last = error
            continue
        finally:
            os.close(copy)
        if os.fstat(space).st_ino == netns:
            return space
        os.close(space)
    raise last


def lone_sockets(triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]:
    """Ask TCP sockets that no dump contains what they are, by copies of their descriptors.

    Args:
        triples: ``(pid, fd, inode)``. The answer is by inode: state 0 for those that we cannot ask, nothing for those
            that are gone by now.
    """
    result: dict[int, LoneSocket] = {}
    with Copies() as copies:
        for pid, fd, inode in triples:
            if inode in result and result[inode].state:
                continue
            try:
                copy = copies.of(pid, fd, inode)
            except OSError as error:
                if error.errno not in (errno.ESRCH, errno.EBADF):
                    result[inode] = LoneSocket(0, 0, False, error.errno or errno.EIO)
                continue
            if (answer := _lone(copy)) is not None:
                result[inode] = answer
    return result


def _port(sock: socket.socket) -> int:
    """Return the local port of a socket, which it keeps when its connection is gone; 0 where it has none."""
    try:
        name = sock.getsockname()
    except OSError:
        return 0
    return int(name[1]) if sock.family in (socket.AF_INET, socket.AF_INET6) else 0


def _unread(fd: int) -> int:
    """Return how many bytes can still be read from a socket; of a listener, which has none, 0."""
    try:
        (waiting,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    except OSError:
        return 0
    return max(0, int(waiting))


def _was_mptcp(sock: socket.socket) -> bool:
    """Return whether it is an MPTCP socket that ever had a peer; of one without a subflow, TCP_INFO tells nothing."""
    try:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != IPPROTO_MPTCP:
            return False
        info = sock.getsockopt(_SOL_MPTCP, _MPTCP_INFO, 256)
    except OSError:  # before Linux 5.16 it has no such option
        return False
    return any(info[_MPTCP_RCV_NXT]) or any(info[_MPTCP_BYTES])


def _lone(copy: int) -> LoneSocket | None:
    """Ask a TCP socket what it is, and close the descriptor; None where it is none."""
    with socket.socket(fileno=copy) as sock:
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            return None
        try:
            ns = fcntl.ioctl(copy, _SIOCGSKNS)
            netns = os.fstat(ns).st_ino
            os.close(ns)
        except OSError:  # without CAP_NET_ADMIN over that namespace
            netns = 0
        return LoneSocket(
            netns, info[0], any(info[_SEGMENTS]) or _was_mptcp(sock), sport=_port(sock), unread=_unread(copy)
        )


class Copies:
    """Copies of many descriptors of a few processes, to read from: a process is opened once for those in a row.

    Use it as a context manager: it holds a descriptor of the last process.
    """

    def __init__(self) -> None:
        self._tables = tasks.Tables()
        self._pid = 0
        self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()

    def _forget(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._pid, self._handle = 0, -1

    def of(self, pid: int, fd: int, inode: int) -> int:
        """Return a copy of a socket's descriptor, which the caller closes.

        Raises:
            OSError: there is no such descriptor any more (ESRCH, EBADF), or we may not.
        """
        if pid != self._pid:
            self._forget()
            self._handle = _syscall(_SYS_PIDFD_OPEN, pid, 0)
            self._pid = pid
        try:
            copy = _syscall(_SYS_PIDFD_GETFD, self._handle, fd, 0)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EBADF):
                raise
        else:
            if os.fstat(copy).st_ino == inode:
                return copy
            os.close(copy)
        # Not in the main thread's table (any more): perhaps in that of another thread.
        copy = _copy(pid, fd, inode, self._tables)
        if os.fstat(copy).st_ino != inode:
            os.close(copy)
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return copy


@contextlib.contextmanager
def borrowed(pid: int, fd: int, *, inode: int, cookie: int) -> Iterator[socket.socket]:
    """Give a copy of a process's socket descriptor, and close it again.

    Raises:
        TargetGone: the process, the descriptor or the connection is another one by now.
        PermissionNeeded: we may not (ptrace access, a security policy).
        NotSupported: the kernel has no ``pidfd_getfd`` (before 5.6).
        SubflowOnly: the row is a subflow of MPTCP, and the descriptor (with another cookie) the whole connection's.
    """
    try:
        copy = _copy(pid, fd, inode, tasks.Tables())
    except OSError as error:
        raise _explain(error, pid, fd, cookie) from None
    if os.fstat(copy).st_ino != inode:
        os.close(copy)
        raise TargetGone(cookie, f"descriptor {fd} of pid {pid} now refers to something else")
    with socket.socket(fileno=copy) as sock:
        seen = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]
        if seen != cookie and sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == IPPROTO_MPTCP:
            raise SubflowOnly(pid, fd)
        if seen != cookie:
            raise TargetGone(cookie, f"descriptor {fd} of pid {pid} now refers to another connection")
        yield sock


def _explain(error: OSError, pid: int, fd: int, cookie: int) -> Exception:
    code = error.errno or errno.EIO
    doing = f"borrow descriptor {fd} of pid {pid}"
    if code in (errno.ESRCH, errno.EBADF):
        return TargetGone(cookie, f"pid {pid} or its descriptor {fd} is gone")
    if code in (errno.EPERM, errno.EACCES):
        refused = PermissionNeeded(code, doing, _right_to_borrow())
        if yama_scope() != _NOBODY_MAY and os.geteuid() != 0:  # else sudo would not help either
            refused.hint = f"needs {refused.capability}; try with sudo"
        return refused
    if code == errno.ENOSYS:
        return NotSupported(code, doing, "pidfd_getfd (Linux 5.6)")
    if isinstance(error, _ThreadOnly):
        return NotSupported(code, f"{doing}, which belongs to one of its threads", "PIDFD_THREAD (Linux 6.9)")
    return KernelError(code, doing)


def yama_scope() -> int | None:
    """Return yama's ``ptrace_scope``; None where the kernel has no yama (or hides it)."""
    try:
        return int(YAMA.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _right_to_borrow() -> str:
    """Say what would have let us: pidfd_getfd asks for the right to attach (ptrace_may_access)."""
    scope = yama_scope()
    if scope == _NOBODY_MAY:
        return "`kernel.yama.ptrace_scope` below 3, which takes a reboot; nobody may attach to a process now"
    needs = rights.missing("CAP_SYS_PTRACE")
    if not needs.isidentifier():  # a capability that we hold is not what was missing
        return needs
    if scope:
        return f"CAP_SYS_PTRACE (`kernel.yama.ptrace_scope` is {scope}, so the same user is not enough)"
    return "the same user as the process, or CAP_SYS_PTRACE; a policy (LSM, seccomp) may still forbid it"


def get_options(sock: socket.socket) -> dict[str, int]:
    """Return the keepalive options and the user timeout of a socket, by name.

    Raises:
        KernelError: it lacks one of them: MPTCP has no TCP_USER_TIMEOUT.
    """
    options = {}
    for name, (level, number) in KEEPALIVE_OPTIONS.items():
        try:
            options[name] = sock.getsockopt(level, number)
        except OSError as error:
            mptcp = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == IPPROTO_MPTCP
            suffix = " of an MPTCP connection" if mptcp else ""
            raise KernelError(error.errno or errno.EIO, f"read the option {name}{suffix}") from None
    return options


def segments_in(sock: socket.socket) -> int | None:
    """Return how many segments a TCP socket has received, also when it has ended; None where there is no count."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    return int.from_bytes(info[140:144], sys.byteorder) if len(info) >= 144 else None


def progress(sock: socket.socket) -> tuple[int, int, int] | None:
    """Return the state of a TCP socket, the bytes that it received and those of its own that were acknowledged.

    None where the kernel does not count them.

    Raises:
        KernelError: the kernel does not say.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, "read the state of a borrowed socket") from None
    if len(info) < _BYTES_RECEIVED + 8:
        return None
    acked, received = (
        int.from_bytes(info[place : place + 8], sys.byteorder) for place in (_BYTES_ACKED, _BYTES_RECEIVED)
    )
    return info[0], received, acked


def out_of_range(values: Mapping[str, int]) -> dict[str, int]:
    """Return those values that setsockopt(2) does not take.

    getsockopt(2) gives more than that: of a socket without times of its own it gives the sysctls, which have no such
    limit (``net.ipv4.tcp_keepalive_time=86400``).
    """
    return {n: v for n, v in values.items() if not OPTION_RANGES[n][0] <= v <= OPTION_RANGES[n][1]}


def nearest(values: Mapping[str, int]) -> dict[str, int]:
    """Return values that setsockopt(2) takes, each the nearest to what is wanted."""
    return {n: min(max(v, OPTION_RANGES[n][0]), OPTION_RANGES[n][1]) for n, v in values.items()}


def set_options(sock: socket.socket, values: Mapping[str, int]) -> None:
    """Set options by name, each of them, also when one fails.

    Switching keepalive off first and on last arms its timer anew: a timer that is armed keeps the time it
    was armed with.

    Raises:
        KernelError: the kernel took some of them not; the others are set.
    """
    failed: dict[str, int] = {}
    if "keepalive" in values:
        _set_option(sock, "keepalive", 0, failed)
    for name in KEEPALIVE_OPTIONS:
        if name in values:
            _set_option(sock, name, values[name], failed)
    if failed:
        pairs = ", ".join(f"{name}={values[name]}" for name in failed)
        raise KernelError(next(iter(failed.values())), f"set {pairs}")


def _set_option(sock: socket.socket, name: str, value: int, failed: dict[str, int]) -> None:
    level, number = KEEPALIVE_OPTIONS[name]
    if not -(2**31) <= value < 2**31:  # no C int: Python would call it a TypeError
        failed[name] = errno.ERANGE
        return
    try:
        sock.setsockopt(level, number, value)
    except OSError as error:
        failed[name] = error.errno or errno.EIO


def reset(sock: socket.socket) -> None:
    """End a connection with a RST without SOCK_DESTROY: ``connect()`` to AF_UNSPEC disconnects it.

    Needs no CAP_NET_ADMIN, only the descriptor. The socket becomes an unconnected one, as after socket(2): its
    program could even connect it again. MPTCP sends its fast close, which ends every subflow at both ends.

    Raises:
        KernelError: the kernel refused; EBUSY while a program waits in connect() on it.
    """
    address = struct.pack("=H", socket.AF_UNSPEC).ljust(16, b"\0")
    buffer = ctypes.create_string_buffer(address, 16)
    if _libc.connect(sock.fileno(), buffer, 16) != 0:
        code = ctypes.get_errno()
        raise KernelError(code, "disconnect a borrowed socket")
