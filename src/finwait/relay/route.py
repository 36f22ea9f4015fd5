"""A service as a worker runs it: its settings, its backends, and what is counted of it."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from finwait.relay.acl import Acl, source_network
from finwait.relay.balance import Balancer
from finwait.relay.machine import ENDED_BY_FIN, Reason
from finwait.relay.wheel import GRAIN

if TYPE_CHECKING:
    from finwait.relay.config.model import Service
    from finwait.relay.connection import Conn

__all__ = ["CONNECT_BUCKETS", "SUSPICIOUS", "Route"]

CONNECT_BUCKETS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0)
"""Bounds of the histogram of times to connect, in seconds."""
SUSPICIOUS: Final = 32
"""Connections of a service from which on it is worth looking whether they run in a circle."""


class Route:
    """A service as a worker runs it.

    Attributes:
        count: connections that it has now.
        watch: seconds between two looks at a connection's readers, at most.
        young: seconds after which a new connection is looked after for the first time.
        balances_by_source: the backend depends on who the client is.
        needs_source: it depends on who the client is whether it may come in.
        suspicious: at so many connections it is looked whether they run in a circle.
    """

    def __init__(self, service: Service, share: int) -> None:
        self.count = 0
        self.accepted = 0
        self.rejected: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.bytes_client = 0
        self.bytes_server = 0
        self.latency = [0] * (len(CONNECT_BUCKETS) + 1)
        self.latency_sum = 0.0
        self.sources: dict[str, int] = {}
        self.suspicious = SUSPICIOUS
        self.balancer = Balancer(service)
        self.set(service, share)

    def set(self, service: Service, share: int) -> None:
        """Take new settings; connections that live keep those they began with."""
        self.service = service
        self.balancer.service = service
        self.limits = service.timeouts.limits()
        self.acl = Acl(service.allow, service.deny)
        self.max_connections = -(-service.max_connections // share)
        self.max_per_source = -(-service.max_per_source // share)
        self.prefixes = (service.source_prefix_v4, service.source_prefix_v6)
        self.balances_by_source = service.balance == "source_hash" or service.affinity.timeout > 0
        self.needs_source = bool(service.allow or service.deny or service.max_per_source)
        t = service.timeouts
        known = [x for x in (t.connect, t.half_close, t.idle, t.first_byte, t.lifetime, t.header) if x]
        self.young = max(GRAIN, min([1.0, *known]))
        tightest = min([x.user_timeout for x in (service.client, service.server) if x.user_timeout] or [30.0])
        self.watch = max(GRAIN, min(12.0, tightest / 2.5))

    def is_crowded(self, source: str) -> bool:
        """Return whether a source has as many connections as it may."""
        if not self.max_per_source:
            return False
        return self.sources.get(source_network(source, *self.prefixes), 0) >= self.max_per_source

    def reject(self, why: str) -> None:
        """Count a connection that was turned away."""
        self.rejected[why] = self.rejected.get(why, 0) + 1

    def count_source(self, conn: Conn, source: str) -> None:
        """Count a connection for its source until it ends."""
        conn.counted = counted = source_network(source, *self.prefixes)
        self.sources[counted] = self.sources.get(counted, 0) + 1

    def count_connect(self, took: float) -> None:
        """Count a try to connect that succeeded after so many seconds."""
        self.latency[bisect_left(CONNECT_BUCKETS, took)] += 1
        self.latency_sum += took

    def count_end(self, conn: Conn, now: float) -> None:
        """Count a connection that ended, and what that says of its backend."""
        reason, server, backend = conn.reason, conn.server, conn.backend
        assert reason is not None
        why = reason.value
        self.count -= 1
        self.ended[why] = self.ended.get(why, 0) + 1
        self.bytes_client += conn.client.total
        if server is not None:
            self.bytes_server += server.total
        if conn.counted:
            remaining = self.sources[conn.counted] - 1
            if remaining:
                self.sources[conn.counted] = remaining
            else:
                del self.sources[conn.counted]
        if backend is not None:
            backend.active -= 1
            if reason in ENDED_BY_FIN or (server is not None and server.total):
                backend.failures = 0
            elif reason is Reason.SERVER_RESET:
                self.balancer.failed(backend, now)
