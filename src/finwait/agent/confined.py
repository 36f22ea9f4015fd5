"""A process without rights, beside the looker: how it gives them up, and how the looker starts and ends it.

Whatever reads what a network sends runs so: the page's server (`finwait.agent.face`) and what follows a cluster
(`finwait.agent.cluster_follower`). `confine` is called in that process, `start` and `end` in the looker.

What it inherits is what it is given: standard input and descriptors by number. It is in a session of its own, so that
nothing can be typed into the looker's terminal, and what it says goes through the looker, a little of it and printable.

Somebody may have taken it over. Then it could start others, end, and leave them what it had, again and again. So the
kernel lets it start none beyond what it needs, and where it does all the same, its process group ends with it, and what
they say is read no longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import pwd
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Final

from finwait.table.units import printable

__all__ = ["NOBODY", "confine", "die_with", "end", "environment", "over", "own_user", "send_signal", "start"]

NOBODY: Final = 65534
_PYTHON: Final = (
    sys.executable,
    "-P",  # else a module that somebody left in the working directory runs with our rights
    "-m",
)
_LINE_MOST: Final = 2000
_SAID_MOST: Final = 60
_SAID_EVERY_S: Final = 60.0
"""Lines that are passed on in so long."""
_PAGE: Final = 1 << 16
_REST_S: Final = 0.05
_LONG_REST_S: Final = 1.0
_WAKE_MS: Final = 1000
"""After so long without a word it is looked whether who could say one has ended."""
_WAIT_S: Final = 0.01
_NEEDED: Final = frozenset({"PATH", "LANG", "TZ", "HOME", "LD_LIBRARY_PATH"})
_NEEDED_KINDS: Final = ("LC_", "PYTHON")
"""Beginnings of further ones: by which an interpreter finds what it runs."""
_LADDER: Final = ((None, 0.5), (signal.SIGTERM, 0.5), (signal.SIGKILL, 1.0))
"""How one is ended, and how many seconds each step has: 2 in all."""
_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 24, 4, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAP_VERSION_3: Final = 0x20080522


# ── in the process ───────────────────────────────────────────────────────────────────────────────────────


def confine(user: int = NOBODY, group: int = 0, *, threads: int = 0) -> None:
    """Give up every right, for good; root becomes a user that nothing else runs as, where there are other users.

    Args:
        user: that user; see `own_user`.
        group: the only group that it has afterwards; 0 for the one of the user's number.
        threads: how many threads and processes it may start from now on. The kernel counts those of a user together:
            some are only bounded where the user is its own.

    Raises:
        OSError: some could not be given up.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, argument: int = 0) -> int:
        return int(libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0))

    if prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    for capability in range(64):
        prctl(_PR_CAPBSET_DROP, capability)  # without CAP_SETPCAP it stays, and is of no use to us
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if os.geteuid() == 0:
        _change_user(user, group or user)
    if not threads or os.getuid() == user != NOBODY:
        resource.setrlimit(resource.RLIMIT_NPROC, (threads + 1, threads + 1))
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    prctl(_PR_SET_DUMPABLE, 0)
    with open("/proc/self/status", "rb") as file:  # as bytes: a codec could not be imported any more
        held = dict(line.split(b":", 1) for line in file if b":" in line)
    if any(int(held.get(name, b"0"), 16) for name in (b"CapEff", b"CapPrm", b"CapInh", b"CapAmb")):
        raise PermissionError("capabilities could not be dropped")


def _change_user(user: int, group: int) -> None:
    """Become a user without rights.

    Root of a user namespace that has no other users stays, where it is another user outside: it is no more than that.

    Raises:
        PermissionError: there are other users, and we may not become one (no CAP_SETUID, no CAP_SETGID). Root without
            capabilities still owns the files of root, so nothing that a network reaches runs as that.
    """
    try:
        with contextlib.suppress(
            PermissionError
        ):  # where setgroups is denied, there are no groups to give up
            os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    except OSError as error:
        if error.errno != errno.EINVAL or _is_root_outside():
            raise PermissionError(
                error.errno, "become a user without rights (needs CAP_SETUID and CAP_SETGID)"
            ) from None


def _is_root_outside() -> bool:
    """Return whether root is root outside of this user namespace, too (``uid_map`` of user_namespaces(7))."""
    with open("/proc/self/uid_map", "rb") as file:
        mapped = [tuple(map(int, line.split())) for line in file if len(line.split()) == 3]
    return not mapped or any(inside == 0 and outside == 0 for inside, outside, _ in mapped)


def die_with(parent: int) -> None:
    """End with the process that has started this one (prctl(2)); after `confine`, for a change of users resets it.

    A parent of another user without CAP_KILL cannot send the signal: who must not outlive it looks at a pipe, too.

    Args:
        parent: its pid.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


# ── in the looker ────────────────────────────────────────────────────────────────────────────────────────


def own_user(kind: int) -> int:
    """Return a number for a user that no process runs as and that has no name, else that of nobody.

    As ``nobody`` runs what many others run as: who breaks into one of those could take over all of them. The numbers
    are those of systemd's dynamic users (61184 to 65519).

    Args:
        kind: 0 to 7: two processes that are started at once take numbers of different kinds.
    """
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {entry.gr_gid for entry in grp.getgrall()}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                taken.add(os.stat(f"/proc/{name}").st_uid)
    return next((user for user in range(65519 - kind, 61183, -8) if user not in taken), NOBODY)


def start(
    module: str,
    words: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    answers: bool = False,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start one; what it says is passed on.

    Args:
        module: what it runs.
        words: its arguments.
        pass_fds: what it inherits beside its standard input, a pipe.
        answers: whether its standard output is a pipe, too; else it has none.
        variables: its environment; None for what a Python program needs of ours: others may hold secrets.

    Raises:
        OSError: it cannot be started.
    """
    process = subprocess.Popen(
        [*_PYTHON, module, *words],
        pass_fds=pass_fds,
        stdin=subprocess.PIPE,
        # It has no part in our terminal: what is written there is written by us, and nothing can be typed in.
        stdout=subprocess.PIPE if answers else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",  # who may enter ours could read what lies in it
        bufsize=0,
        env=environment() if variables is None else variables,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    name = f"{module.rpartition('.')[2]}-says"
    speaker = f"finwait {module.rpartition('.')[2]} (pid {process.pid})"
    threading.Thread(target=_pass_on, args=(process, speaker), name=name, daemon=True).start()
    os.set_blocking(process.stdin.fileno(), False)  # one that hangs must not hang the looking
    return process


def environment(*more: str) -> dict[str, str]:
    """Return what a process needs of our environment: to find an interpreter and its modules; others may hold secrets.

    Args:
        more: beginnings of further names.
    """
    kinds = (*_NEEDED_KINDS, *more)
    kept = {name: value for name, value in os.environ.items() if name in _NEEDED or name.startswith(kinds)}
    if path := kept.get("PYTHONPATH"):  # it runs in another folder
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    return kept


def end(process: subprocess.Popen[bytes]) -> bool:
    """End one that ends by itself when its standard input does; return whether it did, within two seconds."""
    assert process.stdin is not None
    process.stdin.close()
    for number, seconds in _LADDER:
        if number is not None:
            send_signal(process, number)
        until = time.monotonic() + seconds
        while not (ended := over(process)) and time.monotonic() < until:
            time.sleep(_WAIT_S)
        if ended:
            return True
    return False


def over(process: subprocess.Popen[bytes]) -> bool:
    """Return whether one has ended; what it has left in its process group is ended, if we may."""
    with _reaping:
        if process.returncode is None:
            with contextlib.suppress(OSError):
                if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return False
                os.killpg(process.pid, signal.SIGKILL)  # until it is reaped, its number is nobody else's
        return process.poll() is not None


_reaping: Final = threading.Lock()


def send_signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal; return whether we may."""
    try:
        process.send_signal(number)
    except PermissionError:  # it has another user, and we may have no CAP_KILL
        return False
    return True


def _pass_on(process: subprocess.Popen[bytes], speaker: str) -> None:
    """Write what a process says, made printable, to our standard error: a little of it, and at little cost.

    Each line begins with who says it: one that was taken over must not speak as we do.

    What comes too fast stays in the pipe, where it keeps who writes it waiting: we read a page at a time, and rest.
    When the process has ended, the pipe is read once more, and closed: others may hold its other end.
    """
    assert process.stderr is not None
    remaining, begun = _SAID_MOST, time.monotonic()
    pending = b""
    with process.stderr as stream:
        while data := _said(process, stream):
            *lines, pending = (pending + data).split(b"\n")
            if len(pending) > _LINE_MOST:
                lines, pending = [*lines, pending], b""
            if time.monotonic() - begun > _SAID_EVERY_S:
                remaining, begun = _SAID_MOST, time.monotonic()
            for line in lines[:remaining]:
                sys.stderr.write(_marked(speaker, line))
            sys.stderr.flush()
            if process.returncode is not None:
                break
            remaining = max(0, remaining - len(lines))
            time.sleep(_REST_S if remaining else _LONG_REST_S)
    if pending and remaining:
        sys.stderr.write(_marked(speaker, pending))
        sys.stderr.flush()


def _marked(speaker: str, line: bytes) -> str:
    return f"{speaker} says: {printable(line[:_LINE_MOST].decode('utf-8', 'replace'))}\n"


def _said(process: subprocess.Popen[bytes], stream: IO[bytes]) -> bytes:
    """Return what a process says next; nothing where all ends are closed, or it has ended and the pipe is empty."""
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    ended = False
    while not waiting.poll(0 if ended else _WAKE_MS):
        if ended:
            return b""
        ended = over(process)
    return stream.read(_PAGE)
