"""A connection to an API server whose every step ends: at a deadline, or at once when nobody wants it any more.

``http.client`` reads from this as from a socket. Its own time-outs are for one read each, so that a server which sends
a byte now and then would hold it for ever; this time is for all reads together.

A name of a host is looked up by the system's resolver, which ends when it likes. In a pod it is an address.
"""

from __future__ import annotations

import http.client
import io
import math
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

from finwait.kube.access import KubeAccess

__all__ = ["Channel", "NotWanted", "requested"]

_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""A watch may be silent for a minute; a server that vanished is noticed after one."""


_Result = TypeVar("_Result")


class NotWanted(Exception):
    """Whoever waited for this has ended."""


class _Reader(io.RawIOBase):
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer; Python 3.11 has no name for it
        return self._channel.receive_into(buffer)


class Channel:
    """A socket without blocking, and how long it may take.

    Args:
        wake: a descriptor that becomes readable, or is hung up, when nobody waits any more.
        deadline: of the monotonic clock; may be moved.
    """

    silence_s: float = math.inf
    """How long it may be silent; may be set."""

    def __init__(self, wake: int, deadline: float) -> None:
        self.deadline = deadline
        self._silent_until = math.inf
        self._wake = wake
        self.waited = False
        """Whether it has waited for something to read since this was last set back."""
        self._socket: socket.socket | None = None

    def dial(self, access: KubeAccess) -> None:
        """Connect, with TLS where the URL says so.

        Raises:
            FileRefused: the CA's file holds none.
            NotWanted: the wake.
            OSError: no address answered, TLS failed, or it took too long.
        """
        context = access.context()
        places = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)
        end, trouble = self.deadline, OSError("no address")
        for number, (family, kind, protocol, _, place) in enumerate(places):
            now = time.monotonic()
            self.deadline = now + (end - now) / (len(places) - number)
            try:
                self._connect(socket.socket(family, kind, protocol), place)
                break
            except OSError as error:
                trouble = error
                self.end()
        else:
            raise trouble
        self.deadline = end
        if context is not None and self._socket is not None:
            self._socket = secured = context.wrap_socket(
                self._socket, server_hostname=access.host, do_handshake_on_connect=False
            )
            self._until_done(secured.do_handshake, select.POLLIN)

    def sendall(self, data: bytes) -> None:
        """Send all of it, as a socket does."""
        sock, rest = self._open(), memoryview(data)
        while rest:
            rest = rest[self._until_done(partial(sock.send, rest), select.POLLOUT) :]

    def receive_into(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        """Receive what there is, waiting for the first byte of it; 0 at the end."""
        sock = self._open()
        if time.monotonic() >= self.deadline:
            raise TimeoutError("no answer in time")
        self._silent_until = time.monotonic() + self.silence_s
        return self._until_done(partial(sock.recv_into, buffer), select.POLLIN)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a file that reads from it, as a socket does."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self), 1 << 16)

    def close(self) -> None:
        """Do nothing: ``http.client`` closes its socket while it goes on to read from the file, see `end`."""

    def end(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionAbortedError("the connection is closed")
        return self._socket

    def _connect(self, sock: socket.socket, place: Any) -> None:  # noqa: ANN401 - an address of any family
        self._socket = sock
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        with suppress(BlockingIOError):
            sock.connect(place)
        self._wait(select.POLLOUT)
        if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))

    def _until_done(self, step: Callable[[], _Result], events: int) -> _Result:
        """Return what a step returns once the socket lets it.

        Args:
            step: does it, or raises that it would have to wait.
            events: for what, without TLS.
        """
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except BlockingIOError:
                self._wait(events)

    def _check(self) -> float:
        """Return how many seconds there are.

        Raises:
            TimeoutError: none.
        """
        seconds = min(self.deadline, self._silent_until) - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no answer in time")
        return seconds

    def _wait(self, events: int) -> None:
        sock, poll = self._open(), select.poll()
        self.waited |= events == select.POLLIN
        poll.register(sock, events)
        poll.register(self._wake, select.POLLIN)
        ready = dict(poll.poll(1000 * self._check()))
        if self._wake in ready:
            raise NotWanted
        if not ready:
            raise TimeoutError("no answer in time")


@contextmanager
def requested(
    access: KubeAccess, target: str, wake: int, head_s: float, whole_s: float
) -> Iterator[tuple[http.client.HTTPResponse, Channel]]:
    """Ask for something, and give the answer to read and what it comes through, which is closed afterwards.

    Args:
        access: of whom.
        target: path and query.
        wake: see `Channel`.
        head_s: seconds until the head of the answer is there.
        whole_s: seconds until all of it was read.

    Raises:
        FileRefused: the token's or the CA's file is none.
        NotWanted: the wake.
        OSError: it could not be asked, or its answer took too long.
        http.client.HTTPException: what answered is no HTTP.
    """
    begun = time.monotonic()
    channel = Channel(wake, begun + head_s)
    try:
        headers = access.headers()
        channel.dial(access)
        connection = http.client.HTTPConnection(access.host, access.port)
        connection.sock = channel
        connection.request("GET", access.prefix + target, headers=headers)
        with connection.getresponse() as response:
            channel.deadline = begun + whole_s
            yield response, channel
    finally:
        channel.end()
