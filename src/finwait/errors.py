"""Everything that finwait raises on purpose.

    FinwaitError
    ├── KernelError          the kernel said no: errno, what we were doing, in which netns
    │   ├── PermissionNeeded  EPERM/EACCES, with the capability that would have let us
    │   └── NotSupported      the facility is not in this kernel
    ├── DecodeError          bytes that are not what they claim: what, offset, the bytes around it
    ├── PasteError           a pasted text that cannot be read, or of which nothing is known
    ├── RecordingError       a recording that cannot be read or written
    ├── UsageError           a command line that asks for what no machine could do; names the argument
    ├── FileRefused          a file that is not what it must be, or that somebody else may have put there
    ├── FilterError          a FILTER that does not parse, with the column of the mistake
    ├── TargetGone           the connection left between the look and the act
    ├── SubflowOnly          its program's descriptor is that of a whole MPTCP connection, not of this subflow
    └── Refused              a guard of ours said no; nothing was done

Wrong arguments of a Python call stay ``ValueError``. A single request raises; a *sweep* returns `Gap`
values instead, because "nobody holds it" and "we were not allowed to look" lead to opposite advice.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

__all__ = [
    "DecodeError",
    "FileRefused",
    "FilterError",
    "FinwaitError",
    "Gap",
    "KernelError",
    "NotSupported",
    "PasteError",
    "PermissionNeeded",
    "RecordingError",
    "Refused",
    "SubflowOnly",
    "TargetGone",
    "UsageError",
]


@dataclass(frozen=True, slots=True, order=True)  # no msgspec.Struct: `finwait --help` does not wait for that
class Gap:
    """A part of the machine we could not look at, and what would have let us."""

    where: str
    """For example ``netns 4026532281`` or ``pid 812``."""
    doing: str
    """For example ``list the descriptors``."""
    needs: str
    """For example ``CAP_SYS_PTRACE``; empty when nothing would have helped (it vanished)."""
    netns: int = 0
    """The network namespace that it is about; 0 where it is about none, or several."""
    pid: int = 0
    """The process that it is about; 0 where it is about none, or several."""
    unentered: bool = False
    """Whether that namespace could not be entered, so that nothing in it was seen."""
    unlisted: bool = False
    """Whether network namespaces may exist that were not found, because of it."""

    @classmethod
    def of_namespace(
        cls, inode: int, doing: str, needs: str, *, name: str = "", unentered: bool = False
    ) -> Gap:
        """Return a gap about one network namespace."""
        where = f"netns {inode} ({name})" if name else f"netns {inode}"
        return cls(where, doing, needs, netns=inode, unentered=unentered)

    @classmethod
    def of_processes(cls, pids: Collection[int], doing: str, needs: str) -> Gap:
        """Return a gap about processes; one alone is named."""
        if len(pids) != 1:
            return cls(f"{len(pids)} processes", doing, needs)
        (pid,) = pids
        return cls(f"pid {pid}", doing, needs, pid=pid)

    def but(self, **fields: Any) -> Gap:  # noqa: ANN401 - each of its own type
        """Return it with some fields changed."""
        return replace(self, **fields)

    def __str__(self) -> str:
        tail = f" (needs {self.needs})" if self.needs else ""
        text = f"{self.where}: could not {self.doing}{tail}"
        # A gap can come out of somebody else's recording, and is printed on a terminal.
        return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class FinwaitError(Exception):
    """The base of all errors that finwait raises on purpose."""

    hint: str = ""
    """One line that says what to do about it; the command prints it as ``hint: …``."""
    needs: str = ""
    """What would have let us, in a few words, for example ``CAP_NET_ADMIN``."""


class KernelError(FinwaitError):
    """The kernel refused: which errno, what we were doing, and where."""

    def __init__(self, errno: int, doing: str, *, netns: int | None = None, hint: str = "") -> None:
        self.errno = errno
        self.doing = doing
        self.netns = netns
        self.hint = hint
        name = _errno.errorcode.get(errno, str(errno))
        where = f" in netns {netns}" if netns is not None else ""
        super().__init__(f"could not {doing}{where}: the kernel said {name}")


class PermissionNeeded(KernelError):
    """EPERM or EACCES, with the capability that would have let us."""

    def __init__(self, errno: int, doing: str, capability: str, *, netns: int | None = None) -> None:
        # Who lacks no capability but a policy's leave (`finwait.kernel.rights`) gets it from sudo neither.
        hint = f"needs {capability}" + ("; try with sudo" if capability.isidentifier() else "")
        super().__init__(errno, doing, netns=netns, hint=hint)
        self.capability = self.needs = capability


class NotSupported(KernelError):
    """This kernel lacks a facility (compiled out, too old, or its module is not there)."""

    def __init__(
        self, errno: int, doing: str, facility: str, *, netns: int | None = None, answer: str = ""
    ) -> None:
        attempt = f"{doing} ({answer})" if answer else doing
        super().__init__(errno, attempt, netns=netns, hint=f"this kernel has no {facility}")
        self.asked = doing
        """What we were doing, without the kernel's answer in words."""
        self.facility = facility
        self.needs = f"a kernel with {facility}"


class DecodeError(FinwaitError):
    """Bytes that are not what they claim to be.

    Args:
        what: the structure being read, in the kernel's words.
        offset: where in the input the reader stood, in bytes.
        window: up to 16 bytes from there.
        reason: what was wrong.
    """

    def __init__(self, subject: str, offset: int, window: bytes, reason: str) -> None:
        self.what = subject
        self.offset = offset
        self.window = bytes(window[:16])
        self.reason = reason
        shown = self.window.hex(" ") or "end of input"
        super().__init__(f"{subject}: {reason} at byte {offset} [{shown}]")


class PasteError(FinwaitError):
    """A pasted text cannot be read, or nothing in it is known."""


class RecordingError(FinwaitError):
    """A recording cannot be read (or written): which file and why."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(FinwaitError):
    """A command line that asks for what no machine could do: which argument, and what would be right.

    What depends on the machine (a file, a namespace or a process that is not there) is a plain `FinwaitError`.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class FileRefused(FinwaitError):
    """A file that is left alone: a link, a FIFO, too large, or where somebody else may have put it.

    Args:
        path: which.
        reason: what is wrong with it.
        hint: what to do about it.
    """

    def __init__(self, path: str, reason: str, *, hint: str = "") -> None:
        self.path = path
        self.reason = reason
        self.hint = hint
        super().__init__(f"`{path}` was left alone: {reason}")


class FilterError(FinwaitError):
    """A FILTER that does not parse or does not make sense.

    ``text`` is the whole filter, ``column`` the 0-based place of the mistake; ``str()`` shows both with
    a caret under it.
    """

    def __init__(self, text: str, column: int, message: str, *, hint: str = "") -> None:
        self.text = text
        self.column = column
        self.message = message
        self.hint = hint
        super().__init__(f"{message}\n  {text}\n  {' ' * column}^")


class TargetGone(FinwaitError):
    """The connection left between the look and the act. Not a failure: there is nothing left to do."""

    def __init__(self, cookie: int, detail: str = "") -> None:
        self.cookie = cookie
        super().__init__(f"connection with cookie {cookie:#x} is gone{': ' + detail if detail else ''}")


class SubflowOnly(FinwaitError):
    """A subflow of MPTCP: no descriptor leads to it alone, so options cannot be set nor a FIN be sent on it."""

    def __init__(self, pid: int, fd: int) -> None:
        super().__init__(
            f"it is a subflow of MPTCP: descriptor {fd} of pid {pid} belongs to the whole connection, so this "
            "would act on all of it"
        )


class Refused(FinwaitError):
    """A guard of ours said no; nothing was done."""

    def __init__(self, guard: str, reason: str, *, override: str = "") -> None:
        self.guard = guard
        self.reason = reason
        self.hint = f"override with {override}" if override else ""
        super().__init__(f"refused by guard `{guard}`: {reason}")
