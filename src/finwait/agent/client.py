"""What asks a running agent: one question on its Unix socket, and the answer.

This knows types and a socket, and loads nothing of what looks: every command may ask.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import stat
import struct
import time
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Final

import msgspec

from finwait.agent import protocol
from finwait.agent.option_texts import SOCKET
from finwait.errors import FinwaitError, Gap, KernelError
from finwait.table.units import printable
from finwait.uapi import tcp
from finwait.uapi.cluster import NO_NAMES, ClusterNames, merged

__all__ = [
    "SOCKET",
    "ages",
    "ask",
    "asking",
    "check_peer",
    "names",
    "naming",
    "not_bound",
    "status_command",
    "stories",
    "too_long",
]

_PATH_MOST: Final = 107
"""Bytes in the path of a Unix socket (unix(7))."""
Ages = dict[tuple[int, int, int], tuple[int, int]]
_AT_ONCE: Final = 4000
_COOKIES_MOST: Final = 20_000
"""Connections that are asked for: more than any report shows one by one."""
_ADDRESSES_AT_ONCE: Final = 1000
_ADDRESSES_MOST: Final = 20_000
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Span(msgspec.Struct, frozen=True):
    at_least: _Seconds
    at_most: _Seconds | None


class _Followed(msgspec.Struct, frozen=True):
    """What is needed of an episode; it says more."""

    netns: Annotated[int, msgspec.Meta(ge=0)]
    cookie: str
    state: str
    age_s: _Span


_TRIES: Final = 3
_NAMES_PATIENCE_S: Final = 10.0
"""For all names: a large cluster's come in several answers."""
_PATIENCE_S: Final = 1.0
"""For each part of the ages: a report does not wait for an agent that hangs."""


def ask(question: protocol.Question, path: str = SOCKET, timeout_s: float = 5.0) -> protocol.AgentAnswer:
    """Ask a running agent.

    Raises:
        KernelError: it does not answer.
        ValueError: what it answers is no answer.
    """
    if longer := too_long(path, f"ask the agent at `{path}`"):
        raise longer
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(path)
            check_peer(sock)
            sock.sendall(protocol.encode(question))
            return protocol.decode_answer(_answer_line(sock))
        except OSError as error:
            number = error.errno or errno.ETIMEDOUT
            hint = {
                errno.ENOENT: "no agent runs here; `finwait agent` starts one",
                errno.ECONNREFUSED: "the agent has ended; `finwait agent` starts one",
                errno.EACCES: "only root may ask it",
            }.get(number, "")
            raise KernelError(number, f"ask the agent at `{path}`", hint=hint) from None


def status_command(path: str) -> str:
    """Return the command that asks the agent at a socket how it is."""
    return "finwait agent status" + ("" if path == SOCKET else f" --socket {shlex.quote(path)}")


def too_long(path: str, doing: str) -> KernelError | None:
    """Return the error of a path that no Unix socket can have; None where it can."""
    if len(os.fsencode(path)) <= _PATH_MOST:
        return None
    hint = f"the path of a Unix socket has at most {_PATH_MOST} bytes; name a shorter `--socket`"
    return KernelError(errno.ENAMETOOLONG, doing, hint=hint)


def not_bound(error: OSError, path: str) -> KernelError:
    """Return why a Unix socket could not be bound."""
    doing, other = f"answer at `{path}`", "name another `--socket`"
    if longer := too_long(path, doing):
        return longer
    if error.errno != errno.EADDRINUSE:
        return KernelError(error.errno or errno.EIO, doing, hint=other)
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        mode = 0
    if stat.S_ISSOCK(mode):
        return KernelError(
            errno.EADDRINUSE, doing, hint=f"another agent answers there: `{status_command(path)}` asks it"
        )
    kind = "a symbolic link" if stat.S_ISLNK(mode) else "a file that is no socket"
    return KernelError(errno.EEXIST, doing, hint=f"{kind} is there; remove it, or {other}")


def _answer_line(sock: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        more = sock.recv(1 << 20)
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, "the agent ended")
        data += more
        if len(data) > protocol.ANSWER_MOST:
            raise ValueError("the answer is too long")
    return bytes(data)


def check_peer(sock: socket.socket) -> None:
    """Refuse what does not run as root or as we do (SO_PEERCRED, unix(7)): anybody could have made the socket.

    Raises:
        PermissionError: another user answers there.
    """
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, f"user {uid} answers there")


def asking(path: str | None) -> Callable[[Sequence[int]], tuple[Ages, tuple[Gap, ...]]] | None:
    """Return what asks an agent for ages; None where there is none to ask.

    Args:
        path: the agent's socket; ``none`` for no agent; None for the usual one, which need not run. Of one that does
            and tells nothing, a gap says so.

    Raises:
        KernelError: no agent is where the path says.
    """
    if path == "none":
        return None
    if path is None and not os.path.exists(SOCKET):
        return None
    if path is not None and not os.path.exists(path):
        raise KernelError(errno.ENOENT, f"ask the agent at `{path}`")

    def ask_for(cookies: Sequence[int]) -> tuple[Ages, tuple[Gap, ...]]:
        try:
            return ages(cookies, path or SOCKET), ()
        except (FinwaitError, ValueError) as error:
            if path is not None and isinstance(error, KernelError):
                raise
            if path is not None and isinstance(error, ValueError):
                raise FinwaitError(f"what answers at `{path}` is no agent: {str(error)[:200]}") from None
            return {}, _silent("ask it how long connections have been closing", error)

    return ask_for


def _silent(doing: str, error: Exception, *, named: bool = False) -> tuple[Gap, ...]:
    """Return the gap of an agent that is there, or was named, and does not answer; none where none runs."""
    number = error.errno if isinstance(error, KernelError) else 0
    if number in (errno.ENOENT, errno.ECONNREFUSED) and not named:
        return ()
    needs = "root" if number == errno.EACCES else "an agent that answers: `finwait agent status` asks it"
    return (Gap("the agent", f"{doing}: {printable(str(error)[:200])}", needs),)


def ages(cookies: Sequence[int], path: str = SOCKET) -> Ages:
    """Return how long connections have been in their states, as an agent has seen it.

    Args:
        cookies: of the connections; of more than 20,000 the first are asked for.
        path: the agent's socket.

    Returns:
        ``(netns, cookie, state)`` → at least and at most, in ms; −1 for unknown. Only what the agent follows.

    Raises:
        FinwaitError: the agent cannot tell.
        KernelError: no agent answers there.
        ValueError: what it answers is no answer.
    """
    result: Ages = {}
    for k in range(0, min(len(cookies), _COOKIES_MOST), _AT_ONCE):
        part = list(cookies[k : min(k + _AT_ONCE, _COOKIES_MOST)])
        answer = ask(protocol.AskAges(part), path, _PATIENCE_S)
        if reason := answer.refused or answer.error:
            raise FinwaitError(f"it says: {reason}")
        for item in answer.episodes or ():
            with contextlib.suppress(msgspec.ValidationError, KeyError, ValueError):  # one of a later agent's
                e = msgspec.convert(item, _Followed)
                key = e.netns, int(e.cookie[:20], 16), tcp.STATE_NUMBERS[e.state]
                most = e.age_s.at_most
                result[key] = int(1000 * e.age_s.at_least), -1 if most is None else int(1000 * most)
    return result


def naming(path: str | None) -> Callable[[Collection[str]], tuple[ClusterNames, tuple[Gap, ...]]] | None:
    """Return what asks an agent what a cluster calls some addresses; None where there is none to ask.

    Args:
        path: as `asking` takes it. Of an agent that is there and tells no names though it may know some, a gap says so.
    """
    if path == "none" or not os.path.exists(path or SOCKET):
        return None

    def ask_for(addresses: Collection[str]) -> tuple[ClusterNames, tuple[Gap, ...]]:
        try:
            return names(addresses, path or SOCKET)
        except (FinwaitError, ValueError) as error:
            return NO_NAMES, _silent("learn names of a cluster from it", error, named=path is not None)

    return ask_for


def names(addresses: Collection[str], path: str = SOCKET) -> tuple[ClusterNames, tuple[Gap, ...]]:
    """Return what a cluster calls the pods of this node and some addresses, as an agent knows it.

    Args:
        addresses: as text; of more than 20,000 the first in order are asked for.
        path: the agent's socket.

    Returns:
        Names, and what is not known; no names where the agent follows no cluster.

    Raises:
        FinwaitError: the agent tells none, though it may know some.
        KernelError: no agent answers there.
        ValueError: what it answers is no answer.
    """
    asked = sorted(addresses)
    gaps: list[Gap] = []
    if more := len(asked) > _ADDRESSES_MOST:
        gaps.append(
            Gap("the cluster", f"name more than {_ADDRESSES_MOST:,} addresses", "a FILTER, or `--netns`")
        )
    parts: list[ClusterNames] = []
    ends_s = time.monotonic() + _NAMES_PATIENCE_S
    for k in range(0, max(1, min(len(asked), _ADDRESSES_MOST)), _ADDRESSES_AT_ONCE):
        answers = _pieces(asked[k : k + _ADDRESSES_AT_ONCE], path, ends_s, pods=not k)
        if not answers:
            return NO_NAMES, ()
        parts += [answer.names for answer in answers]
        if not k:
            gaps += [Gap(gap.where, gap.doing, gap.needs) for gap in answers[0].gaps]
    every = merged(parts)
    if more:  # of addresses that were not asked for it is not known that no Service has them
        kept = {name: at for name, at in every.as_of.items() if name in ("pods", "namespaces")}
        every = msgspec.structs.replace(every, as_of=kept)
    return every, tuple(gaps)


def _pieces(
    addresses: list[str], path: str, ends_s: float, *, pods: bool
) -> list[protocol.NamesOfCluster] | None:
    """Return the pieces of an answer about some addresses; None where no cluster is followed.

    Raises:
        FinwaitError: there is none, or names change faster than they are told.
    """
    for _ in range(_TRIES):
        pieces: list[protocol.NamesOfCluster] = []
        begin = 0
        while True:
            if time.monotonic() > ends_s:
                raise FinwaitError(f"it did not tell all names within {_NAMES_PATIENCE_S:.0f} s")
            answer = ask(protocol.AskNames(addresses, pods, begin), path, _PATIENCE_S)
            if reason := answer.refused or answer.error:
                raise FinwaitError(f"it says: {reason}")
            if answer.names is None:
                return None
            if pieces and answer.names.names.as_of != pieces[0].names.as_of:
                break  # they changed meanwhile, and what is told of them no longer fits together
            pieces.append(answer.names)
            if not answer.names.next:
                return pieces
            if answer.names.next <= begin:
                raise FinwaitError("its answer has no end")
            begin = answer.names.next
    raise FinwaitError("its names changed while they were asked for")


def stories(
    connections: Sequence[protocol.StoryOf], path: str | None
) -> tuple[protocol.AgentAnswer | None, tuple[Gap, ...]]:
    """Return how connections got where they are, as a running agent recorded it; None where none can be asked.

    Args:
        connections: at most 100.
        path: as `asking` takes it.

    Returns:
        The answer, and why there is none of an agent that is there.

    Raises:
        FinwaitError: what answers at a path that was named is no agent, or an agent that knows no stories.
        KernelError: no agent answers at a path that was named.
    """
    if path == "none" or not connections or (path is None and not os.path.exists(SOCKET)):
        return None, ()
    doing = "ask it how connections got there"
    try:
        answer = ask(protocol.AskStories(list(connections)), path or SOCKET, 3 * _PATIENCE_S)
    except (KernelError, ValueError) as error:
        if path is None:
            return None, _silent(doing, error)
        if isinstance(error, ValueError):
            raise FinwaitError(f"what answers at `{path}` is no agent: {str(error)[:200]}") from None
        raise
    if answer.stories is not None:
        return answer, ()
    silence = FinwaitError(f"the agent at `{path or SOCKET}` says: {answer.error or 'nothing'}")
    if path is not None:
        raise silence
    return None, _silent(doing, silence)
