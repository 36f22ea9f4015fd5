"""One worker process, and the Unix socket over which it is told and asked things.

The other end is `finwait.relay.process`, whose docstring says what goes over the line. Orders are queued and never
block the supervisor; a worker that does not answer within its time is left out of the answer.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from typing import Any

import msgspec

from finwait.relay.child import Child

__all__ = ["ControlLine"]


class ControlLine:
    """One worker process, and the socket to it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.known: set[str] = set()
        """Keys of the listeners that it has."""
        self.started = time.monotonic()
        near, far = socket.socketpair()
        with far:
            self.process = Child(far)
        near.setblocking(False)
        self.sock = near
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._received = bytearray()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._writing = False
        self._loop.add_reader(near.fileno(), self._read)

    def tell(self, order: dict[str, Any], fds: list[int] | None = None) -> None:
        """Send an order; descriptors are duplicated, the caller keeps its own."""
        copies = [os.dup(fd) for fd in fds or []]
        self._queue.append((msgspec.json.encode(order) + b"\n", copies))
        self._write()

    async def ask(self, order: dict[str, Any], seconds: float = 10.0) -> Any:  # noqa: ANN401  # whatever JSON held
        """Send an order and wait for its answer; None when the worker is gone or does not answer."""
        self._count += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[self._count] = future
        self.tell({**order, "n": self._count})
        try:
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(self._count, None)

    def _write(self) -> None:
        try:
            while self._queue:
                data, fds = self._queue[0]
                sent = socket.send_fds(self.sock, [data], fds) if fds else self.sock.send(data)
                for fd in fds:
                    os.close(fd)
                if sent < len(data):
                    self._queue[0] = (data[sent:], [])
                else:
                    self._queue.popleft()
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self.sock.fileno(), self._write)
            return
        except OSError:
            self._drop_queue()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self.sock.fileno())

    def _drop_queue(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()

    def _read(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._received += data
        while (end := self._received.find(b"\n")) >= 0:
            answer = msgspec.json.decode(bytes(self._received[:end]))
            del self._received[: end + 1]
            future = self._waiting.get(answer["re"])
            if future is not None and not future.done():
                future.set_result(answer["ok"])

    def close(self) -> None:
        """Let go of the line; the worker drains when it notices. Safe to call twice."""
        if self.sock.fileno() < 0:
            return
        self._loop.remove_reader(self.sock.fileno())
        if self._writing:
            self._loop.remove_writer(self.sock.fileno())
        self.sock.close()
        self._drop_queue()
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)
