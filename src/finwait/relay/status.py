"""What is told of a worker: one connection for the admin socket and the access log, all counts for metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from finwait.relay import sockets
from finwait.table.units import endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from finwait.relay.connection import Conn
    from finwait.relay.pool import IdlePool
    from finwait.relay.route import Route

__all__ = ["describe", "services", "show"]


def describe(conn: Conn, index: int, now: float, wall: float) -> dict[str, Any]:
    """Return what is known of a connection.

    Args:
        conn: one that lives, or ends at this moment.
        index: of its worker.
        now: seconds of the worker's clock.
        wall: what to add to them for the time of day.
    """
    client, server, backend = conn.client, conn.server, conn.backend
    client_local = sockets.names(client.fd)[0] if client.fd >= 0 else ""
    server_local = sockets.names(server.fd)[0] if server is not None and server.fd >= 0 else ""
    half = conn.half_closed_since()
    description: dict[str, Any] = {
        "id": f"{index}-{conn.number}",
        "service": conn.route.service.name,
        "state": conn.state.name,
        "client": {"peer": show(conn.peer), "local": show(client_local)},
        "server": {"local": show(server_local), "peer": backend.name if backend is not None else ""},
        "accepted": _rfc3339(conn.born + wall),
        "age_s": round(now - conn.born, 3),
        "tries": conn.tries,
        "bytes_from_client": client.total,
        "bytes_from_server": server.total if server is not None else 0,
    }
    if conn.source is not None:
        description["client"]["source"] = show(conn.source)
    if conn.connected_at:
        description["connect_s"] = round(conn.connected_at - conn.born, 6)
    last = max(conn.last_client, conn.last_server)
    if last:
        description["silent_s"] = round(now - last, 3)
    if conn.reason is not None:
        description["reason"] = str(conn.reason)
    else:
        deadline = conn.next_deadline()
        description["deadline_s"] = round(deadline - now, 3) if deadline != float("inf") else None
        description["waiting_to_server"] = client.waiting
        description["waiting_to_client"] = server is not None and server.waiting
    if half is not None:
        description["half_closed_s"] = round(now - half, 3)
    return description


def services(
    routes: Mapping[str, Route], conns: Iterable[Conn], pool: IdlePool, now: float
) -> dict[str, dict[str, Any]]:
    """Return the counts of each service, those of connections that live included."""
    longest: dict[str, float] = {}
    halves: dict[str, int] = {}
    live: dict[str, list[int]] = {name: [0, 0] for name in routes}
    for conn in conns:
        half = conn.half_closed_since()
        if half is not None:
            name = conn.route.service.name
            halves[name] = halves.get(name, 0) + 1
            longest[name] = max(longest.get(name, 0.0), now - half)
        counts = live.setdefault(conn.route.service.name, [0, 0])
        counts[0] += conn.client.total
        counts[1] += conn.server.total if conn.server is not None else 0
    return {
        name: {
            "now": route.count,
            "accepted": route.accepted,
            "admits_unix": route.acl.admits_unix,
            "rejected": route.rejected,
            "ended": route.ended,
            "half_closed": halves.get(name, 0),
            "half_closed_longest_s": longest.get(name, 0.0),
            "bytes_from_client": route.bytes_client + live[name][0],
            "bytes_from_server": route.bytes_server + live[name][1],
            "connect_buckets": route.latency,
            "connect_sum_s": route.latency_sum,
            "backends": _backends(route, pool, now),
        }
        for name, route in routes.items()
    }


def _backends(route: Route, pool: IdlePool, now: float) -> list[dict[str, Any]]:
    return [
        {
            "name": backend.name,
            "active": backend.active,
            "up": backend.up,
            "ejected": backend.ejected(now),
            "connected": backend.connected,
            "failed": backend.failed,
            "idle": pool.count(backend),
        }
        for backend in route.balancer.backends
    ]


def show(address: object) -> str:
    """Return a socket address as people write it."""
    if isinstance(address, tuple) and len(address) >= 2:
        return endpoint(str(address[0]), address[1])
    if isinstance(address, bytes):
        return "unix:@" + address[1:].decode("utf-8", "backslashreplace")
    return f"unix:{address}" if address else ""


def _rfc3339(seconds: float) -> str:
    whole = int(seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1000):03d}Z"
