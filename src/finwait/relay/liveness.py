"""How a peer that is gone is found, and told from one that is slow.

Keepalive finds those that are silent, the ones behind a half-close included; TCP_USER_TIMEOUT those that do not
acknowledge. A client's socket inherits both from its listener; a server's gets them once its connection has lasted a
second, for a short one need not pay for them.

The surprise: TCP_USER_TIMEOUT also ends a connection whose peer lives and keeps its window shut. A slow reader is not
a dead one, so the timeout is lifted while the window is shut and the probes are answered (`sockets.tend_reader`).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from finwait.relay import sockets

if TYPE_CHECKING:
    from finwait.relay.config.model import SideOptions
    from finwait.relay.connection import Conn, Leg

__all__ = ["gone_reader", "keep_alive", "let_readers_linger", "liveness_options"]

_LONG_ENOUGH: Final = 1024
"""Fewer bytes than this fit the first window of any reader, so none of them can be left unsent at close."""


def liveness_options(side: SideOptions) -> list[tuple[int, int, int]]:
    """Return the socket options that find a dead peer, as (level, name, value)."""
    result = []
    if side.keepalive_idle:
        result += [
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, round(side.keepalive_idle)),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(side.keepalive_interval))),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, side.keepalive_count),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        ]
    if side.user_timeout:
        result.append((socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, int(side.user_timeout * 1000)))
    return result


def keep_alive(conn: Conn) -> None:
    """Set keepalive and the user timeout on the server's socket."""
    server, backend = conn.server, conn.backend
    if server is None or backend is None or not sockets.is_tcp(backend.family):
        return
    for level, name, value in liveness_options(conn.route.service.server):
        try:
            sockets.set_int(server.fd, level, name, value)
        except OSError:  # a socket that was reset meanwhile; its event is on the way
            return


def gone_reader(conn: Conn, last: float) -> Leg | None:
    """Look after slow readers; return the leg whose reader is gone, if one is.

    Args:
        conn: one that has a server.
        last: tells whether bytes have moved since the last look.
    """
    client, server, service = conn.client, conn.server, conn.route.service
    assert server is not None
    unsent = False
    for leg, user_timeout in ((client, service.client.user_timeout), (server, service.server.user_timeout)):
        if not user_timeout:
            continue
        leg.relaxed, gone, waits = sockets.tend_reader(leg.fd, user_timeout, leg.relaxed)
        if gone:
            return leg
        unsent |= waits
    # A reader may take what the kernel holds, and stop, without a byte that passes here.
    conn.checked = -1.0 if unsent else last
    return None


def let_readers_linger(conn: Conn) -> None:
    """Give slow readers time for what is still unsent when we close."""
    client, server, service = conn.client, conn.server, conn.route.service
    assert server is not None
    if server.total >= _LONG_ENOUGH:
        _let_linger(client, service.client.linger)
    if client.total >= _LONG_ENOUGH:
        _let_linger(server, service.server.linger)


def _let_linger(leg: Leg, seconds: float) -> None:
    info = sockets.tcp_info(leg.fd)
    if info is not None and info.notsent:
        try:
            sockets.set_int(leg.fd, socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, int(seconds * 1000))
        except OSError:
            return
