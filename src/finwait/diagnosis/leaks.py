"""Which code opened, and which half-closed, the connections that are still there.

Theory of operation. A traced ``accept()`` or ``connect()`` names a descriptor of a process, and a descriptor is used
again and again. So the last call on each is remembered, by the order of the records: whatever fills a descriptor anew
(``socket()``, ``accept()``, ``dup()``) takes the place of what was remembered of it. Of ``connect()`` the one counts
that began the connection (the change of state to SYN_SENT happens within it): not one that failed before, nor one that
asks later how it went. Some milliseconds after the call, what the descriptor refers to is read (the inode), and until
everything that was recorded before that moment is known the answer is not relied upon.

A connection that is there at the end is matched only with a call on the very descriptor that holds it *and* for the
very socket; anything else (duplicated, inherited, passed, opened before) has no match, and is counted by its reason.

What could still deceive: a descriptor that is closed, and whose number a message of another process (SCM_RIGHTS) or
io_uring fills with another TCP socket, within the few milliseconds before the call is checked.

Grouping is by the code: the same path to the same call in programs of the same name is one group, as a leak detector
would have it.
"""

from __future__ import annotations

import enum
import re
import zlib
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from finwait.uapi.perf_event import Sample
from finwait.uapi.stacks import StackFrame, is_python_library

__all__ = [
    "CallName",
    "CallStack",
    "Calls",
    "Holding",
    "LeakGroup",
    "Matching",
    "Still",
    "TracedCall",
    "Unmatched",
    "UnwoundBy",
    "grouped",
    "match",
    "own_frames",
]

CallName = Literal["accept", "connect", "sendto", "sendmsg", "shutdown"]
"""``sendto()`` and ``sendmsg()`` open a connection with MSG_FASTOPEN."""
_RECENT: Final = 2000
"""Descriptors whose last calls keep their stacks as they came; of older ones they are compressed."""


class TracedCall(Struct, frozen=True):
    """A system call on a descriptor of a process."""

    name: CallName
    pid: int
    fd: int
    sample: Sample
    """Of the thread that made it."""
    inode: int = 0
    """Of the socket that the descriptor referred to a moment later; 0 where that is not known."""
    replaced: bool = False
    """Whether the process runs another program since: what its addresses meant is not known any more."""
    packed: bool = False
    """Whether the stack of the sample is compressed."""

    @property
    def stack(self) -> bytes:
        """The copied user stack."""
        return zlib.decompress(self.sample.stack) if self.packed else self.sample.stack


class Unmatched(enum.Enum):
    """Why the code that opened a connection is not known; of several reasons the last one counts."""

    NO_HOLDER = "no process is known to hold it"
    NO_CALL = (
        "no accept() or connect() was seen on its descriptor; it may have been duplicated, inherited or passed, or "
        "io_uring or a 32-bit program opened it"
    )
    OTHER_SOCKET = "the last accept() or connect() on its descriptor was for another socket"
    NOT_CHECKED = "which socket the call was for could not be checked in time"
    FORGOTTEN = "no call on its descriptor is remembered, and there were more descriptors than are remembered"
    PAUSED = "no call for it was seen, and sampling paused for a part of the time"
    RECORDS_LOST = "no call for it was seen for certain, and records were lost"


class _Key(Struct):
    """What is remembered of one descriptor."""

    opening: TracedCall | None = None
    half_close: TracedCall | None = None
    doubt: Unmatched | None = None
    """Why a later call may be missing."""
    changed_ns: int = 0
    """When the descriptor was filled last."""


class Calls:
    """The last calls on each descriptor, as many as fit.

    Args:
        most: descriptors that are remembered; of more the one whose last call is oldest is forgotten.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: dict[tuple[int, int], _Key] = {}
        self._fds: dict[int, dict[int, None]] = {}
        self._unconfirmed: dict[tuple[int, int], int | None] = {}
        self._recent: deque[tuple[int, int]] = deque()
        self._blind_ns = -1
        self._blind: Unmatched | None = None
        self.forgotten = 0
        """Descriptors that were forgotten."""
        self.counted: Counter[CallName] = Counter()
        """Calls that were seen, by name."""

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, call: TracedCall) -> None:
        """Remember a call: one that opened a connection takes the place of what was remembered.

        One whose record comes later than that of a later call changes nothing.

        Args:
            call: with the socket that its descriptor refers to, or 0: `unchecked` then has it, and `checked` says it.
        """
        self.counted[call.name] += 1
        place = call.pid, call.fd
        time_ns = call.sample.time_ns
        key = self._keys.pop(place, None) or _Key()
        self._keys[place] = key
        self._fds.setdefault(call.pid, {})[call.fd] = None
        self._bound()
        if time_ns < key.changed_ns:
            return
        if call.name == "shutdown":
            # The first one half-closes; those behind it change nothing.
            unseen = key.opening is not None and self._blind_ns >= key.opening.sample.time_ns
            if key.half_close is None and not unseen:
                key.half_close = call
            return
        key.opening, key.half_close, key.doubt, key.changed_ns = call, None, None, time_ns
        self._unconfirmed[place] = time_ns if call.inode else None
        self._pack(place)

    def _pack(self, place: tuple[int, int]) -> None:
        """Compress the stacks of calls that are not recent any more: most descriptors are used again before that."""
        self._recent.append(place)
        if len(self._recent) <= _RECENT:
            return
        key = self._keys.get(self._recent.popleft())
        if key is not None:
            key.opening, key.half_close = _packed(key.opening), _packed(key.half_close)

    def _bound(self) -> None:
        if len(self._keys) > self._most:
            self._forget(next(iter(self._keys)))
            self.forgotten += 1

    def _forget(self, place: tuple[int, int]) -> None:
        del self._keys[place]
        self._unconfirmed.pop(place, None)
        fds = self._fds[place[0]]
        del fds[place[1]]
        if not fds:
            del self._fds[place[0]]

    def unchecked(self) -> list[TracedCall]:
        """Return the calls of which nobody has read yet which socket they were about."""
        waiting = [place for place, checked in self._unconfirmed.items() if checked is None]
        return [call for place in waiting if (call := self._keys[place].opening) is not None]

    def checked(self, call: TracedCall, inode: int, time_ns: int) -> None:
        """Note which socket the descriptor of a call referred to, read at some time before ``time_ns``."""
        place = call.pid, call.fd
        key = self._keys.get(place)
        if key is not None and key.opening is call:
            key.opening = replace(call, inode=inode)
            self._unconfirmed[place] = time_ns

    def confirm(self, horizon_ns: int) -> None:
        """Rely on what was checked before then: everything that was recorded until then is known."""
        done = [place for place, at in self._unconfirmed.items() if at is not None and at <= horizon_ns]
        for place in done:
            del self._unconfirmed[place]

    def blind(self, reason: Unmatched, time_ns: int) -> None:
        """Note that calls until then may be missing: what is not confirmed is in doubt."""
        self._blind_ns = max(self._blind_ns, time_ns)
        self._blind = max(reason, self._blind or reason, key=list(Unmatched).index)
        for place in self._unconfirmed:
            self._keys[place].doubt = reason
        self._unconfirmed.clear()

    def doubted(self, pid: int, fd: int, time_ns: int, reason: Unmatched) -> None:
        """Note that a call of that time may not be the one that counts."""
        key = self._keys.get((pid, fd))
        if key is not None and key.opening is not None and key.opening.sample.time_ns == time_ns:
            key.doubt = reason

    def failed(self, pid: int, fd: int, time_ns: int) -> None:
        """Note that the connection that a call of that time began came to nothing."""
        key = self._keys.get((pid, fd))
        if key is not None and key.opening is not None and key.opening.sample.time_ns == time_ns:
            key.opening = key.half_close = key.doubt = None
            self._unconfirmed.pop((pid, fd), None)

    def filled(self, pid: int, fd: int, time_ns: int) -> None:
        """Note that a descriptor refers to something else from then on, by socket(), dup() or the like."""
        key = self._keys.get((pid, fd))
        if key is not None and time_ns >= key.changed_ns:
            key.opening = key.half_close = key.doubt = None
            key.changed_ns = time_ns
            self._unconfirmed.pop((pid, fd), None)

    def filled_from(self, pid: int, lowest: int, time_ns: int) -> None:
        """Note that a descriptor from a number on refers to something else from then on, and nobody says which."""
        for place, at in list(self._unconfirmed.items()):
            opening = self._keys[place].opening
            if place[0] != pid or place[1] < lowest or opening is None:
                continue
            if opening.sample.time_ns <= time_ns and (at is None or time_ns <= at):
                self._keys[place].opening = replace(opening, inode=0)
                del self._unconfirmed[place]

    def executed(self, pid: int, time_ns: int) -> None:
        """Note that a process runs another program since then."""
        for fd in self._fds.get(pid, ()):
            key = self._keys[pid, fd]
            key.opening = _replaced(key.opening, time_ns)
            key.half_close = _replaced(key.half_close, time_ns)

    def born(self, pid: int, time_ns: int) -> None:
        """Note that a process began: what is remembered from before was another's of that number."""
        for fd in list(self._fds.get(pid, ())):
            if self._keys[pid, fd].changed_ns < time_ns:
                self._forget((pid, fd))

    def descriptors(self) -> list[tuple[int, int, int]]:
        """Return ``(pid, fd, inode)`` of every opening of which the socket is known."""
        return [
            (pid, fd, key.opening.inode)
            for (pid, fd), key in self._keys.items()
            if key.opening is not None and key.opening.inode and key.doubt is None
        ]

    def of(self, pid: int, fd: int, inode: int) -> tuple[TracedCall, TracedCall | None] | Unmatched:
        """Return the call that opened a socket through a descriptor, and the one that half-closed it."""
        key = self._keys.get((pid, fd))
        opening = None if key is None else key.opening
        if key is None or opening is None:
            unseen = Unmatched.FORGOTTEN if self.forgotten and key is None else Unmatched.NO_CALL
            return self._blind or unseen
        if key.doubt is not None:
            return key.doubt
        if not opening.inode:
            return Unmatched.NOT_CHECKED
        if opening.inode != inode:
            return self._blind or Unmatched.OTHER_SOCKET
        return opening, key.half_close


def _packed(call: TracedCall | None) -> TracedCall | None:
    if call is None or call.packed or not call.sample.stack:
        return call
    sample = replace(call.sample, stack=zlib.compress(call.sample.stack, 1))
    return replace(call, sample=sample, packed=True)


def _replaced(call: TracedCall | None, time_ns: int) -> TracedCall | None:
    return replace(call, replaced=True) if call is not None and call.sample.time_ns <= time_ns else call


class Holding(Struct, frozen=True):
    """A connection that is there at the end, with a struct socket."""

    row: int
    """In the table of sockets; −1 of a descriptor whose connection is gone."""
    state: int
    inode: int
    holders: tuple[tuple[int, int], ...]
    """(pid, fd)."""
    before: bool
    """Whether it was there when the trace began."""


class Still(Struct, frozen=True):
    """A connection that is still there, and the calls on it."""

    connection: Holding
    opening: TracedCall
    half_close: TracedCall | None


class Matching(Struct, frozen=True):
    """What became of the connections that are there at the end."""

    still: tuple[Still, ...]
    unmatched: Mapping[Unmatched, int]
    before: int
    """Connections that are not matched because they were there before the trace began."""


def match(connections: Iterable[Holding], calls: Calls) -> Matching:
    """Match connections with the calls that opened them."""
    still = []
    unmatched: Counter[Unmatched] = Counter()
    before = 0
    for connection in connections:
        answers = [calls.of(pid, fd, connection.inode) for pid, fd in connection.holders]
        pair = next((answer for answer in answers if not isinstance(answer, Unmatched)), None)
        if pair is not None:
            still.append(Still(connection, *pair))
        elif connection.before:
            before += 1
        else:
            reasons = {answer for answer in answers if isinstance(answer, Unmatched)}
            # The reason that says most comes last in its enumeration.
            unmatched[max(reasons, key=list(Unmatched).index, default=Unmatched.NO_HOLDER)] += 1
    return Matching(tuple(still), dict(unmatched), before)


UnwoundBy = Literal["tables", "frame pointers"]


@dataclass(frozen=True, slots=True)
class CallStack:
    """The functions that led to a call, as far as they are known; two that are equal are one path through the code."""

    frames: tuple[StackFrame, ...] = ()
    """Innermost first."""
    unclear: int = -1
    """The place of the first frame before which a caller may be missing; −1 where there is none."""
    cut: bool = False
    """Whether it goes on where the copy of the stack ended."""
    unwound_by: UnwoundBy = "frame pointers"
    """How the caller of the innermost function is known."""
    pid: int = 0
    """Of the process, where addresses are all that is known of some frames; else 0: they tell nothing of another."""
    run_time: tuple[int, ...] = field(default=(), compare=False)
    """Where its frames of code are that was made at run time and has no name."""

    @property
    def matters(self) -> int:
        """The place of the frame that matters: the innermost of the program itself; −1 where none is known to be."""
        place = next((place for place, frame in enumerate(self.frames) if frame.own), -1)
        return -1 if 0 <= self.unclear <= place else place


class LeakGroup(Struct, frozen=True):
    """Connections that the same code opened, and the same code half-closed."""

    comm: str
    call: CallName
    opened: CallStack
    half_closed: CallStack | None
    """None where nobody is known to have half-closed them during the trace."""
    still: tuple[Still, ...]
    """Oldest first."""

    @property
    def states(self) -> Mapping[int, int]:
        """State → connections."""
        return Counter(member.connection.state for member in self.still)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that hold them."""
        return tuple(sorted({member.opening.pid for member in self.still}))


def grouped(
    still: Iterable[Still], stacks: Mapping[TracedCall, CallStack], comms: Mapping[int, str]
) -> tuple[LeakGroup, ...]:
    """Group connections by the code that opened and half-closed them, the largest group first.

    Args:
        still: the connections.
        stacks: of each of their calls.
        comms: what processes are called.
    """
    alike: dict[tuple[object, ...], list[Still]] = {}
    for connection in still:
        opening, shut = connection.opening, connection.half_close
        comm = comms.get(opening.pid, "?")
        key = comm, opening.name, stacks[opening], None if shut is None else stacks[shut]
        alike.setdefault(key, []).append(connection)
    groups = {key: part for first, members in alike.items() for key, part in _parted(first, members, stacks)}
    result = []
    for members in groups.values():
        members.sort(key=lambda member: member.opening.sample.time_ns)
        opening, shut = members[0].opening, members[0].half_close
        result.append(
            LeakGroup(
                comms.get(opening.pid, "?"), opening.name, stacks[opening],
                None if shut is None else stacks[shut], tuple(members),
            )
        )  # fmt: skip
    result.sort(key=lambda group: (-len(group.still), group.still[0].opening.sample.time_ns))
    return tuple(result)


def _parted(
    key: tuple[object, ...], members: list[Still], stacks: Mapping[TracedCall, CallStack]
) -> Iterator[tuple[tuple[object, ...], list[Still]]]:
    """Yield the parts of connections whose stacks look alike.

    Code without a name that was made at run time is known by its place in its mapping. That is the same in processes
    that do the same; where one process has different code at such places, addresses tell the paths apart.
    """
    made: dict[tuple[object, ...], list[Still]] = {}
    for member in members:
        calls = (member.opening, member.half_close)
        places = tuple(stacks[call].run_time for call in calls if call is not None)
        made.setdefault((member.opening.pid, places), []).append(member)
    if len({place[0] for place in made}) == len(made):
        yield key, members
    else:
        yield from (((*key, place), part) for place, part in made.items())


_LIBRARY: Final = re.compile(
    r"^/(usr/)?(local/)?lib(32|64|x32)?/.*\.so(\.|$| )|^\[vdso\]$|/ld-(linux|musl)[^/]*$"
)
_INTERPRETER: Final = re.compile(
    r"/(libpython[^/]*|python\d?[.\d]*|pypy\d?[.\d]*|node|libnode[^/]*|java|libjvm\.so|ruby|libruby[^/]*|php[^/]*)"
    r"( \(deleted\))?$|/lib-dynload/[^/]*$"
)
_WRAPPER: Final = re.compile(
    r"^_*(GI_)?_*(libc_)?(connect|accept4?|shutdown|sendto|sendmsg)(\.\w+)*$"
    r"|^sccp$|^_*(GI_)?_*(syscall(_cp(_asm|_c|_internal)?|_cancel(_arch\w*)?)?|internal_syscall(_cancel)?|socketcall(_cp)?)"
    r"(\.\w+)*$"
)
"""What C libraries call their functions around these system calls."""
_START: Final = re.compile(
    r"^(_start(_c)?|__libc_start_(call_)?main(_impl)?|libc_start_main_stage2|start_thread|(__)?clone3?|thread_start)$"
)
_GO_START: Final = re.compile(r"^runtime\.(goexit|main|mstart|rt0_go)")
_GO_STANDARD: Final = re.compile(
    r"^(vendor/|golang\.org/x/)|^(archive|bufio|bytes|cmp|compress|container|context|crypto|database|embed|encoding|errors|expvar"
    r"|flag|fmt|go|hash|html|image|index|internal|io|iter|log|maps|math|mime|net|os|path|plugin|reflect|regexp|runtime|slices"
    r"|sort|strconv|strings|sync|syscall|testing|text|time|unicode|unique|unsafe|weak)[./]"
)
_RUST_STANDARD: Final = re.compile(
    r"^_ZN(K?\d+_?\$?LT\$)?(3std|4core|5alloc)\d|^_R\w*C\w*_(3std|4core|5alloc)"
)
_PYTHON_FRAME: Final = re.compile(r"^py::(?P<function>[^:]+):(?P<file>.*)$")
_SCRIPT_FRAME: Final = re.compile(r"^(JS|LazyCompile|Function|Script|Eval|RegExp|Builtin):")
_SCRIPT_RUNTIME: Final = re.compile(r"^(RegExp|Builtin):|\bnode:")


def own_frames(
    frames: Iterable[tuple[str, str, int]], doubtful: Collection[int] = (), *, cut: bool = False
) -> CallStack:
    """Return frames with what is known of them: which are the program's own, not its runtime's nor a library's.

    What an interpreter does between the functions of a script is left out.

    Args:
        frames: ``(function, file, offset)``, innermost first; a name or a file that is not known is empty.
        doubtful: places of frames before which a caller may be missing.
        cut: whether the stack goes on.
    """
    listed = list(enumerate(frames))
    if any(not file and _is_script(function) for _, (function, file, _) in listed):
        listed = [listed[0], *(entry for entry in listed[1:] if not _INTERPRETER.search(entry[1][1]))]
    in_go = any(_GO_START.match(function) for _, (function, _, _) in listed)
    result = []
    # A C library may be within the program: its functions around the system call are not the program's, and those
    # that are innermost and have no name may be such.
    wrapper = not listed or not _LIBRARY.search(listed[0][1][1])
    for _, entry in listed:
        wrapper = wrapper and (not entry[0] or bool(_WRAPPER.match(entry[0])))
        frame = _frame(*entry, in_go=in_go)
        result.append(replace(frame, own=False) if wrapper else frame)
    first = min(doubtful, default=-1)
    unclear = next((k for k, (place, _) in enumerate(listed) if place >= first), -1) if first >= 0 else -1
    return CallStack(tuple(result), unclear, cut)


def _is_script(function: str) -> bool:
    return bool(_PYTHON_FRAME.match(function) or _SCRIPT_FRAME.match(function))


def _frame(function: str, file: str, offset: int, *, in_go: bool) -> StackFrame:
    if not file:  # code made at run time
        if (python := _PYTHON_FRAME.match(function)) is not None:
            return StackFrame(python["function"], python["file"], own=not is_python_library(python["file"]))
        script = bool(_SCRIPT_FRAME.match(function)) and not _SCRIPT_RUNTIME.search(function)
        return StackFrame(function or f"{offset:#x}", "", own=script)
    if not function:
        function, where = f"{file}+{offset:#x}", ""
    else:
        where = file  # without the offset: two calls from one function are one path
    if _LIBRARY.search(file) or _INTERPRETER.search(file) or _START.match(function) or file.startswith("["):
        return StackFrame(function, where, own=False)
    standard = (in_go and bool(_GO_STANDARD.match(function))) or bool(_RUST_STANDARD.match(function))
    return StackFrame(function, where, own=not standard)
