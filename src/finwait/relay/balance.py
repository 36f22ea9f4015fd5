"""Which backend takes the next connection.

Theory of operation: a `Balancer` knows the backends of one service in one worker. It leaves out those that active
checks call down, those that real connections found failing (*ejected*), those that are full, and those
that this client tried already; of the rest it chooses by weight, by load, or by the client's address.

Two rules that are easy to get wrong: when *all* backends are down or ejected, none is (a try costs a refused
connect, a refusal costs the client its answer); and what was tried already is left out only while
something else is left.

Clocks are arguments, as in `finwait.relay.machine`; nothing here does I/O. Each worker balances on its own:
with N workers, round robin is N interleaved ones.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from finwait.relay.config.model import Service

__all__ = ["Address", "Backend", "Balancer"]

Address = tuple[Any, ...] | str
"""A socket address: (host, port, …), or a path."""

_MOST_POINTS: Final = 1 << 18
_POINTS: Final = 128
"""Places on the ring for one unit of weight: shares differ by some 10 % then."""
_SLOW_START_FLOOR: Final = 0.05
_EJECT_MOST: Final = 300.0
"""Seconds that doubling does not go beyond."""
_EJECT_DOUBLINGS: Final = 64


class Backend:
    """One address that connections go to.

    Attributes:
        name: as configured or resolved, for people.
        family: of the socket.
        address: for ``connect()``.
        active: connections it has now, those that are being opened included.
        up: what the active checks say; True without them.
    """

    __slots__ = (
        "active",
        "address",
        "calm_since",
        "connect_seconds",
        "connected",
        "current",
        "eject_until",
        "ejections",
        "failed",
        "failures",
        "family",
        "leads_back_until",
        "max_connections",
        "name",
        "up",
        "up_since",
        "weight",
    )

    def __init__(
        self, name: str, family: int, address: Address, weight: int = 1, max_connections: int = 0
    ) -> None:
        self.name = name
        self.family = family
        self.address = address
        self.weight = weight
        self.max_connections = max_connections
        self.active = 0
        self.up = True
        self.up_since = float("-inf")
        self.failures = 0
        self.ejections = 0
        self.eject_until = float("-inf")
        self.calm_since = float("-inf")
        """Since when it is in use: not ejected, and what failed was followed by a success."""
        self.leads_back_until = float("-inf")
        """Until when it takes nothing: connections to it came back as clients of the same service."""
        self.current = 0.0
        self.connected = 0
        self.failed = 0
        self.connect_seconds = 0.0

    def full(self) -> bool:
        """Return whether it has as many connections as it may."""
        return 0 < self.max_connections <= self.active

    def takes(self, now: float) -> bool:
        """Return whether it may have one more connection, be it up or not."""
        full = 0 < self.max_connections <= self.active
        return bool(self.weight) and not full and now >= self.leads_back_until

    def ejected(self, now: float) -> bool:
        """Return whether passive checks leave it out."""
        return now < self.eject_until


class Balancer:
    """Chooses among the backends of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.backends: list[Backend] = []
        self._ring: list[tuple[int, Backend]] = []
        self._sources: OrderedDict[str, tuple[Backend, float]] = OrderedDict()

    def update(self, backends: Iterable[Backend], now: float = float("-inf")) -> list[Backend]:
        """Take the backends there are now; those known by name keep their history.

        A backend that joins others begins its slow start ``now``; the first ones have nobody to lean on.

        Returns:
            Those that are gone. Their connections live on.
        """
        known = {backend.name: backend for backend in self.backends}
        joins = bool(known)
        now_there: list[Backend] = []
        for new in backends:
            old = known.pop(new.name, None)
            if old is None:
                new.up_since = now if joins else new.up_since
                now_there.append(new)
                continue
            old.weight, old.max_connections = new.weight, new.max_connections
            now_there.append(old)
        self.backends = now_there
        self._ring = [] if self.service.balance != "source_hash" else self._points(now_there)
        gone = list(known.values())
        for source in [source for source, (backend, _) in self._sources.items() if backend in gone]:
            del self._sources[source]
        return gone

    @staticmethod
    def _points(backends: Sequence[Backend]) -> list[tuple[int, Backend]]:
        """Return the ring; with very many backends each has fewer places on it."""
        for_each = max(1, min(_POINTS, _MOST_POINTS // max(1, sum(b.weight for b in backends))))
        return sorted(
            (
                (_hash(f"{backend.name}#{point}"), backend)
                for backend in backends
                for point in range(for_each * backend.weight)
            ),
            key=lambda place: place[0],
        )

    def pick(self, source: str, tried: Container[Backend], now: float) -> Backend | None:
        """Return the backend for a client's next try, or None when all are full (or there is none)."""
        if len(self.backends) == 1:
            only = self.backends[0]
            return only if only.takes(now) else None
        takers = [b for b in self.backends if b.takes(now)]
        choice = [b for b in takers if b.up and not b.ejected(now) and b not in tried]
        if not choice:
            choice = [b for b in takers if b not in tried] or takers
        if not choice:
            return None
        stay = self._remembered(source, choice, now)
        backend = stay or self._choose(source, choice, now)
        if self.service.affinity.timeout:
            self._sources[source] = (backend, now)
            self._sources.move_to_end(source)
            while len(self._sources) > self.service.affinity.max_sources:
                self._sources.popitem(last=False)
        return backend

    def has_untried(self, tried: Container[Backend]) -> bool:
        """Return whether a backend is left that was not tried."""
        return any(b.weight and not b.full() and b not in tried for b in self.backends)

    def _remembered(self, source: str, choice: Sequence[Backend], now: float) -> Backend | None:
        timeout = self.service.affinity.timeout
        entry = self._sources.get(source) if timeout else None
        if entry is None:
            return None
        backend, seen = entry
        return backend if now - seen <= timeout and backend in choice else None

    def _choose(self, source: str, choice: Sequence[Backend], now: float) -> Backend:
        if self.service.balance == "source_hash":
            at = bisect.bisect_left(self._ring, _hash(source), key=lambda place: place[0])
            usable = set(choice)
            for step in range(len(self._ring)):
                backend = self._ring[(at + step) % len(self._ring)][1]
                if backend in usable:
                    return backend
        if self.service.balance == "least_connections":
            load = [b.active / self._share(b, now) for b in choice]
            least = min(load)
            choice = [b for b, of_it in zip(choice, load, strict=True) if of_it <= least]  # these in turn
        # Smooth weighted round robin: each earns its weight, the richest pays for all.
        total = 0.0
        best = choice[0]
        for backend in choice:
            share = self._share(backend, now)
            backend.current += share
            total += share
            if backend.current > best.current:
                best = backend
        best.current -= total
        return best

    def _share(self, backend: Backend, now: float) -> float:
        """Return the weight, less while the backend is warming up."""
        slow = self.service.slow_start
        if not slow or now - backend.up_since >= slow:
            return float(backend.weight)
        return backend.weight * max(_SLOW_START_FLOOR, (now - backend.up_since) / slow)

    def succeeded(self, backend: Backend) -> None:
        """Note that a connection to a backend opened (and did not fail at once)."""
        backend.failures = 0

    def failed(self, backend: Backend, now: float) -> bool:
        """Note a failure; return whether the backend is ejected by it."""
        outlier = self.service.outlier
        self._forget(backend, now)
        backend.failures += 1
        backend.failed += 1
        if not outlier.failures or backend.failures < outlier.failures or backend.ejected(now):
            return False
        out = sum(b.ejected(now) for b in self.backends)
        if (out + 1) * 100 > outlier.max_percent * len(self.backends):
            return False
        out_for = outlier.eject * 2.0 ** min(backend.ejections, _EJECT_DOUBLINGS)
        backend.eject_until = now + min(out_for, max(outlier.eject, _EJECT_MOST))
        backend.up_since = backend.calm_since = backend.eject_until
        backend.ejections += 1
        backend.failures = 0
        return True

    def _forget(self, backend: Backend, now: float) -> None:
        """Take back one doubling for each ``eject`` seconds in which it was in use.

        A failure that follows a success does not begin them anew: under load there is one now and then, and a backend
        that serves nearly everybody must not be judged by what it did last week.
        """
        if backend.failures or not backend.ejections:
            backend.calm_since = max(backend.calm_since, now)
        elif every := self.service.outlier.eject:
            calm = int(max(0.0, (now - backend.calm_since) / every))
            backend.ejections = max(0, backend.ejections - calm)
            backend.calm_since += calm * every

    def mark(self, name: str, up: bool, now: float) -> None:
        """Take what an active check says about the backend of that name."""
        for backend in self.backends:
            if backend.name == name and backend.up != up:
                backend.up = up
                backend.up_since = now
                if up:
                    backend.eject_until = float("-inf")
                    backend.ejections = 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
