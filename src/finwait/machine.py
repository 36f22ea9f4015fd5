"""What answers a look: the running kernel (`finwait.kernel.observe.RunningMachine`), or a recording, from a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from finwait.kernel.observe import LookPlan
from finwait.uapi.observation import (
    Descriptors,
    LoneSocket,
    Observation,
    ProcessFiles,
    ProcessWaits,
    Releasing,
    SocketOptions,
)

__all__ = ["Machine"]


class Machine(Protocol):
    """What answers a look: the running kernel or a recording."""

    @property
    def live(self) -> bool:
        """Whether it is the machine that we run on."""

    @property
    def again(self) -> bool:
        """Whether a second look can show something new; False where a recording has no further look."""

    def begin(self) -> Machine:
        """Return what a look uses: a recording, whatever was asked of it before, from its first look on."""

    def observe(self, plan: LookPlan) -> Observation:
        """Look once (a recording: give its next look)."""

    def descriptors_again(self, known: Descriptors | None = None) -> Descriptors:
        """List socket descriptors once more, but for those that are known to refer to the same socket as before."""

    def processes(self, pids: Iterable[int]) -> dict[int, ProcessFiles]:
        """Read the files that describe processes."""

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the paths of cgroups by id."""

    def close_on_exec(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
        """Return which descriptors an executed program would not inherit."""

    def one_table(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
        """Return which pairs of processes share one descriptor table, as far as that is known."""

    def waits(
        self, fds_of: Mapping[int, Collection[int]], descriptors: Descriptors, inodes: Collection[int]
    ) -> dict[int, ProcessWaits]:
        """Return who in processes waits for sockets (pid → descriptors), as far as that is known; by pid."""

    def releasing(self, spaces: Collection[int]) -> tuple[Releasing, ...]:
        """Return threads of some namespaces that are closing a socket of which no descriptor is left."""

    def turns(self, pids: Iterable[int]) -> Mapping[int, int]:
        """Return how many times the threads of processes were given a processor, as far as that is known."""

    def socket_options(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, SocketOptions]:
        """Return the options of sockets by inode, of ``(pid, fd, inode)``, as far as they are known."""

    def lone_sockets(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]:
        """Return what TCP sockets that no dump contains say of themselves, by inode."""

    def remember(self, spaces: Iterable[tuple[int, int, int]]) -> None:
        """Look into further namespaces from now on: ``(netns, pid, fd)`` of sockets that lead there."""

    def devices(self, spaces: Iterable[int]) -> Mapping[tuple[int, int], str]:
        """Return the names of the interfaces of namespaces, by (netns, ifindex); none of a recording."""

    def socket_protocols(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, str]:
        """Return the protocol names of sockets by inode."""
