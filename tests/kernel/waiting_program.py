"""A program that waits for seven connections in seven ways; run in a process of its own.

It prints its pid and, as JSON, how each connection is waited for → the port of its other end. All are in CLOSE_WAIT.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time


def main() -> None:
    """Make the connections, wait for them, and sleep until the input ends."""
    kept: list[object] = []
    ports: dict[str, int] = {}

    def connection(name: str) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        ports[name] = client.getsockname()[1]
        kept.extend((client, server))
        ends[name] = client, server
        return server

    def thread(target: object, *args: object) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()  # type: ignore[arg-type]

    ends: dict[str, tuple[socket.socket, socket.socket]] = {}
    # Blocked in sending, with nothing to read: the FIN of the other end wakes none of those.
    full = connection("thread")
    thread(full.sendall, bytes(64 << 20))
    stuck = select.epoll()
    stuck.register(connection("stuck loop"), select.EPOLLIN)
    edge = select.epoll()
    edge.register(connection("edge loop"), select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
    paused = select.epoll()
    paused.register(connection("paused"), 0)
    spent = connection("one-shot")
    paused.register(spent, select.EPOLLIN | select.EPOLLONESHOT)
    runtime = select.epoll()
    runtime.register(
        connection("runtime"), select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
    )
    connection("nobody")
    for client, _ in ends.values():
        client.shutdown(socket.SHUT_WR)
    for watch in (edge, paused, runtime):
        deadline = time.monotonic() + 10
        while watch.poll(0.05) and time.monotonic() < deadline:
            pass
        thread(watch.poll)
    print(json.dumps({"pid": os.getpid(), "ports": ports}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
