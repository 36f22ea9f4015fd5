"""What a view is made of beside its columns: thresholds, namespaces, and descriptors without a row."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

__all__ = ["HiddenDescriptor", "NamespaceView", "Options"]


class Options(Struct, frozen=True):
    """What counts as long, and as many."""

    idle_ms: int = 600_000
    """An ESTABLISHED connection silent for so long is worth a probe."""
    flood: int = 10_000
    """So many TIME_WAIT in a namespace are worth a word."""
    hidden: int = 5
    """So many descriptors of dead sockets in the processes of one service are a leak."""
    retransmits: int = 2
    """So many unanswered retransmissions mean that nobody answers."""


class NamespaceView(Struct, frozen=True):
    """One namespace: names, settings and counters."""

    inode: int
    names: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """``ipv4/tcp_fin_timeout`` → ``60``."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Of netstat, snmp, sockstat and conntrack: ``TcpExt.TCPTimeWaitOverflow``, ``conntrack.invalid``."""
    before: Mapping[str, int] = field(default_factory=dict)
    """The same counters at the first of two looks; empty where there was one."""
    addresses: frozenset[tuple[int, int]] = frozenset()
    dumped: bool = True
    """Whether its sockets could be dumped in all states."""
    island: int | None = None
    """The same of namespaces that interfaces connect, also over others; None where that was not looked at."""

    def sysctl(self, name: str) -> int | None:
        """Return a numeric sysctl, or None when it could not be read."""
        text = self.sysctls.get(name)
        try:
            return int(text.split()[0]) if text is not None else None
        except (ValueError, IndexError):
            return None

    def grown(self, name: str) -> int | None:
        """Return by how much a counter grew between two looks; None where that is not known."""
        if name not in self.counters or name not in self.before:
            return None
        return self.counters[name] - self.before[name]

    @property
    def label(self) -> str:
        """The name that people know it by, or its inode."""
        return self.names[0] if self.names else f"netns {self.inode}"


class HiddenDescriptor(Struct, frozen=True):
    """A descriptor of a TCP socket that no dump contains, for it is in TCP_CLOSE and has been in use."""

    pid: int
    fd: int
    inode: int
    netns: int = 0
    """The socket's; 0 where it is not known."""
    sport: int = 0
    """Its local port, which it keeps; 0 where it is not known."""
    unread: int = 0
    """Bytes that can still be read from it."""
