"""What SOCK_DESTROY does to a socket that no program holds, tried on throwaways in a namespace of our own.

``tcp_abort`` of older kernels looks at SOCK_DEAD first: of an orphan it frees the send queue and nothing else. The
FIN is gone then, the timer finds nothing to send and is not set again, and an orphan that would have ended within
two minutes stays for ever. Newer kernels end it, and distributions have taken the change into older ones, so no
version number tells. Minisockets (TIME_WAIT, FIN_WAIT2) those kernels refuse with EOPNOTSUPP.

So it is tried: a connection over the loopback device of a fresh network namespace whose FIN cannot leave, and
another that ended in order. A throwaway that stays is ended by a RST of its peer, which is ours too, since an orphan
keeps its namespace. Without the right to make a namespace (CAP_SYS_ADMIN) a child tries it in a user namespace; where
that is forbidden too, nothing is known, and the caller must not guess.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import lru_cache
from typing import Protocol

from msgspec import Struct
from msgspec.structs import asdict

from finwait.errors import FinwaitError, KernelError
from finwait.kernel import rights
from finwait.kernel.destroy import ask_to_destroy
from finwait.kernel.netlink import NETLINK_SOCK_DIAG, netlink_socket
from finwait.uapi import inet_diag, tcp
from finwait.uapi import netlink as nl

__all__ = ["Throwaways", "Trial", "judge", "tried"]

_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_SO_COOKIE = 57
_LIBC = ctypes.CDLL(None, use_errno=True)
_DEADLINE_S = 2.0


class Trial(Struct, frozen=True):
    """What came of it; None where it is not known."""

    ends_orphans: bool | None = None
    """Whether an orphan is gone after SOCK_DESTROY; if not, it has lost its FIN and its timer."""
    ends_minisockets: bool | None = None
    why_unknown: str = ""
    """Why nothing could be tried, with what would let us."""


class Throwaways(Protocol):
    """Where it is tried: the running kernel, or a test's idea of another one."""

    def orphan(self) -> inet_diag.SocketId:
        """Make an orphan in FIN_WAIT1 whose FIN cannot leave."""

    def minisocket(self) -> inet_diag.SocketId:
        """Make a minisocket in TIME_WAIT."""

    def destroy(self, socket_id: inet_diag.SocketId) -> int:
        """Ask the kernel to destroy it; return the errno, 0 for done."""

    def is_there(self, socket_id: inet_diag.SocketId) -> bool:
        """Return whether the kernel knows it still."""

    def end(self) -> None:
        """End what is left of them."""


def judge(place: Throwaways) -> Trial:
    """Destroy one throwaway of each kind and look whether it is gone."""
    try:
        ends = []
        for socket_id in (place.orphan(), place.minisocket()):
            code = place.destroy(socket_id)
            if code in (errno.EPERM, errno.EACCES):
                raise KernelError(code, "destroy a test socket of our own")
            ends.append(not place.is_there(socket_id))
    finally:
        place.end()
    return Trial(ends[0], ends[1])


class _Loopback:
    """The loopback device of the calling thread's network namespace, which must be ours alone."""

    def __init__(self) -> None:
        _loopback(up=True)
        self._diag = netlink_socket(NETLINK_SOCK_DIAG, "open a sock_diag socket")
        self._open: list[socket.socket] = []
        self._orphan: inet_diag.SocketId | None = None

    def _pair(self) -> tuple[socket.socket, socket.socket, inet_diag.SocketId]:
        with socket.create_server(("127.0.0.1", 0)) as door:
            near = socket.create_connection(door.getsockname(), timeout=_DEADLINE_S)
            self._open.append(near)
            far = door.accept()[0]
        self._open.append(far)
        address = socket.inet_aton("127.0.0.1")
        cookie = struct.unpack("=Q", near.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]
        socket_id = inet_diag.SocketId(
            near.getsockname()[1], far.getsockname()[1], address, address, 0, cookie
        )
        return near, far, socket_id

    def orphan(self) -> inet_diag.SocketId:
        near, far, socket_id = self._pair()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _loopback(up=False)  # from here on no segment leaves
        near.close()
        self._orphan = socket_id
        self._wait_for(socket_id, tcp.FIN_WAIT1)
        return socket_id

    def minisocket(self) -> inet_diag.SocketId:
        _loopback(up=True)
        near, far, socket_id = self._pair()
        near.shutdown(socket.SHUT_WR)
        far.recv(1)
        far.close()
        near.recv(1)
        near.close()
        self._wait_for(socket_id, tcp.TIME_WAIT)
        return socket_id

    def _wait_for(self, socket_id: inet_diag.SocketId, state: int) -> None:
        until = time.monotonic() + _DEADLINE_S
        while self._state(socket_id) != state:
            if time.monotonic() > until:
                raise KernelError(errno.ETIMEDOUT, f"bring a test socket into {tcp.state_name(state)}")
            time.sleep(0.005)

    def _state(self, socket_id: inet_diag.SocketId) -> int:
        """Return its state, 0 when the kernel knows it no more."""
        self._diag.send(
            inet_diag.socket_request(
                inet_diag.SOCK_DIAG_BY_FAMILY, inet_diag.AF_INET, inet_diag.IPPROTO_TCP, socket_id
            )
        )
        data = self._diag.recv(1 << 16)
        kind = struct.unpack_from("=H", data, 4)[0]
        return 0 if kind == nl.NLMSG_ERROR else data[nl.NLMSG_HEADER + 1]

    def destroy(self, socket_id: inet_diag.SocketId) -> int:
        return ask_to_destroy(self._diag, inet_diag.IPPROTO_TCP, socket_id)

    def is_there(self, socket_id: inet_diag.SocketId) -> bool:
        return self._state(socket_id) != 0

    def end(self) -> None:
        try:
            _loopback(up=True)
            for sock in self._open:
                sock.close()  # the peer of the orphan sends it a RST
            until = time.monotonic() + _DEADLINE_S
            while self._orphan is not None and self.is_there(self._orphan) and time.monotonic() < until:
                time.sleep(0.005)
        finally:
            self._diag.close()


def _loopback(*, up: bool) -> None:
    """Set or clear IFF_UP on ``lo`` (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack("16sh14x", answer)[1]
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


def _unshare(flags: int) -> None:
    if _LIBC.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@lru_cache(maxsize=1)
def tried() -> Trial:
    """Return what SOCK_DESTROY does to orphans and minisockets on this kernel. It is tried once in a process."""
    try:
        return _in_thread()
    except PermissionError:
        return _in_child()
    except (OSError, FinwaitError) as error:
        return Trial(why_unknown=str(error))


def _in_thread() -> Trial:
    """Try it in a thread that moves into a fresh namespace and ends there.

    Raises:
        PermissionError: without CAP_SYS_ADMIN.
    """
    results: list[Trial] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            _unshare(_CLONE_NEWNET)
            results.append(judge(_Loopback()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, whatever it is
            errors.append(error)

    thread = threading.Thread(target=body, name="finwait-trial", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


_CHILD = f"""
import ctypes, sys
if ctypes.CDLL(None, use_errno=True).unshare({_CLONE_NEWUSER | _CLONE_NEWNET:#x}) != 0:
    sys.exit("unshare: errno %d" % ctypes.get_errno())
from finwait.kernel.destroy_trial import report
report()
"""


def _in_child() -> Trial:
    """Try it in a child, which alone may enter a user namespace: before it imports anything it has one thread."""
    try:
        # -I: no code from the current directory or the environment.
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD], capture_output=True, timeout=30, check=True
        )
        return Trial(**json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        needs = f"{rights.missing('CAP_SYS_ADMIN')}, or permission to create user namespaces"
        return Trial(why_unknown=f"could not create a network namespace to test it in (needs {needs})")


def report() -> None:
    """Print what comes of it in the network namespace of the calling thread, which must be ours alone."""
    sys.stdout.write(json.dumps(asdict(judge(_Loopback()))))
