"""A recording as a machine: it answers what the running kernel answered."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from finwait.recording.format import read
from finwait.uapi.observation import (
    Descriptors,
    LoneSocket,
    LookPlan,
    Observation,
    ProcessFiles,
    ProcessWaits,
    Releasing,
    SocketOptions,
)

__all__ = ["Replay", "open_recording"]


class Replay:
    """The looks of a recording, one after the other; the last is given again when there are no more."""

    live: Final = False

    def __init__(self, looks: Sequence[Observation], *, redacted: bool = False) -> None:
        if not looks:
            raise ValueError("a recording has at least one look")
        self.redacted: Final = redacted
        """Whether its names and addresses are pseudonyms, which no other recording shares."""
        self._looks = tuple(looks)
        self._next = 0

    def __len__(self) -> int:
        return len(self._looks)

    @property
    def looks(self) -> tuple[Observation, ...]:
        """All looks, in the order in which they were taken."""
        return self._looks

    @property
    def again(self) -> bool:
        """Whether there is a look that was not given yet."""
        return self._next < len(self._looks)

    @property
    def _now(self) -> Observation:
        return self._looks[max(self._next - 1, 0)]

    def begin(self) -> Replay:
        """Return the same recording, to be looked at from its first look on."""
        return Replay(self._looks, redacted=self.redacted)

    def observe(self, plan: LookPlan) -> Observation:
        """Give the next look, restricted to the namespaces of the plan.

        All states are there whatever the plan asks for: a FILTER has the last word on rows anyway.
        """
        look = self._looks[min(self._next, len(self._looks) - 1)]
        self._next = min(self._next + 1, len(self._looks))
        if plan.only is not None:
            look = replace(look, namespaces=tuple(ns for ns in look.namespaces if ns.inode in plan.only))
        if not plan.descriptors:
            look = replace(look, descriptors=Descriptors.none())
        return look

    def descriptors_again(self, known: Descriptors | None = None) -> Descriptors:  # noqa: ARG002 - nothing is read
        """Give the descriptors of the look again: they were listed twice when it was recorded."""
        return self._now.descriptors

    def processes(self, pids: Iterable[int]) -> dict[int, ProcessFiles]:
        """Give the files of processes that were recorded."""
        known = self._now.processes
        return {pid: known[pid] for pid in pids if pid in known}

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:
        """Give the paths of cgroups that were recorded."""
        known = self._now.cgroups
        return {number: known[number] for number in ids if number in known}

    def close_on_exec(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
        """Give the close-on-exec flags that were recorded."""
        known = self._now.close_on_exec
        return {pair: known[pair] for pair in pairs if pair in known}

    def one_table(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
        """Give which processes share one descriptor table, as far as that was recorded."""
        known = self._now.one_table
        return {pair: known[pair] for pair in pairs if pair in known}

    def waits(
        self,
        fds_of: Mapping[int, Collection[int]],
        descriptors: Descriptors,  # noqa: ARG002 - what was listed when it was recorded
        inodes: Collection[int],  # noqa: ARG002
    ) -> dict[int, ProcessWaits]:
        """Give who waited in processes, as far as that was recorded."""
        known = self._now.waits
        return {pid: known[pid] for pid in fds_of if pid in known}

    def releasing(self, spaces: Collection[int]) -> tuple[Releasing, ...]:
        """Give the threads that were closing a socket, as far as that was recorded."""
        return self._now.releasing if spaces else ()

    def turns(self, pids: Iterable[int]) -> dict[int, int]:  # noqa: ARG002
        """Give nothing: recordings do not have it."""
        return {}

    def socket_options(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, SocketOptions]:
        """Give the options of sockets that were recorded, by inode."""
        known = self._now.socket_options
        return {inode: known[inode] for _, _, inode in triples if inode in known}

    def lone_sockets(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]:
        """Give what sockets that no dump contains said of themselves, by inode.

        A recording that was made before they were asked knows of none: they could not be asked.
        """
        known = self._now.lone_sockets
        return {inode: known.get(inode, LoneSocket(0, 0, False)) for _, _, inode in triples}

    def remember(self, spaces: Iterable[tuple[int, int, int]]) -> None:
        """Nothing can be inspected any more."""

    def devices(self, spaces: Iterable[int]) -> dict[tuple[int, int], str]:  # noqa: ARG002
        """Give the names of interfaces: none are recorded."""
        return {}

    def socket_protocols(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, str]:
        """Give the protocol names that were recorded, by inode."""
        known = self._now.socket_protocols
        return {inode: known[inode] for _, _, inode in triples if inode in known}


def open_recording(path: str) -> Replay:
    """Open a recording as a machine.

    Raises:
        RecordingError: it cannot be read, or is not what it claims to be.
    """
    manifest, looks = read(path)
    return Replay(looks, redacted=manifest.redacted)
