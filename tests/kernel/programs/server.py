"""A Python server that leaves its connection in the way that argv[2] names; argv[1] is the port on 127.0.0.1."""

from __future__ import annotations

import asyncio
import select
import selectors
import socket
import sys
import threading
import time

FOR_EVER = threading.Event()


def of_threads(connection: socket.socket, how: str) -> None:
    """Leave it in blocking code."""
    if how == "forgotten":
        FOR_EVER.wait()
    elif how == "hung-handler":
        time.sleep(1e6)
    elif how == "half":
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    elif how == "half-limited":
        connection.settimeout(3600)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    elif how == "sending":
        connection.sendall(bytes(256 << 20))
    elif how == "select":
        connection.shutdown(socket.SHUT_WR)
        select.select([connection], [], [])
    elif how == "selectors":
        connection.shutdown(socket.SHUT_WR)
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.select()


class Protocol(asyncio.Protocol):
    """Leaves it in an event loop."""

    def __init__(self, how: str) -> None:
        self.how = how

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self.how == "aio-paused":
            transport.pause_reading()
        elif self.how == "aio-half":
            transport.write_eof()

    def data_received(self, _data: bytes) -> None:
        if self.how == "aio-blocked":
            time.sleep(1e6)

    def eof_received(self) -> bool:
        return True


async def of_asyncio(port: int, how: str) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Protocol(how), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serve one connection."""
    port, how = int(sys.argv[1]), sys.argv[2]
    if how.startswith("aio-"):
        asyncio.run(of_asyncio(port, how))
    with socket.create_server(("127.0.0.1", port)) as listener:
        connection, _ = listener.accept()
        thread = threading.Thread(target=of_threads, args=(connection, how))
        thread.start()
        thread.join()


if __name__ == "__main__":
    main()
