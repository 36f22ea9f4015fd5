"""A relay that half-closes: ``python relay.py 127.0.0.1:8080 127.0.0.1:80``."""

import asyncio
import socket
import struct
import sys

from finwait.relay import relay


async def main(listen: str, to: str) -> None:
    """Serve for ever."""
    host, _, port = listen.rpartition(":")
    to_host, _, to_port = to.rpartition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            backend = await asyncio.wait_for(asyncio.open_connection(to_host, int(to_port)), 5)
        except OSError:
            # Refused is RST: a FIN would be an empty answer.
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        await relay((reader, writer), backend, half_close=300)

    async with await asyncio.start_server(serve, host, int(port)) as server:
        await server.serve_forever()


asyncio.run(main(*sys.argv[1:3]))
