"""Sysctls of a network namespace: read, set all or none, put back, keep for the next boot.

``/proc/sys/net`` shows the namespace of the task that opens it, so everything here runs in a thread of its
own that enters the namespace with setns(2), does its work and ends. A thread that has been elsewhere never
goes back to a pool, and the calling thread never moves.

A namespace is named by a `SysctlTarget`: an open descriptor with the identity that tells whether it is still the
same one later. The inode of a namespace can be used again; its cookie (``SO_NETNS_COOKIE``) together with
the boot's id cannot.

Setting several values is atomic as far as the kernel lets it be: each old value is read first, each new one
is read back, and on the first failure those already written are put back, the last one first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from msgspec import Struct

from finwait import files
from finwait.errors import FileRefused, Gap, KernelError, PermissionNeeded
from finwait.kernel import netns, rights
from finwait.kernel.boot import boot_id
from finwait.uapi.nsfs import parse_netns_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from finwait.kernel.netns import NetNamespace
    from finwait.uapi.nsfs import NetnsName

__all__ = [
    "DropIn",
    "Reading",
    "SysctlTarget",
    "Written",
    "all_targets",
    "apply",
    "edited",
    "inside",
    "key_path",
    "open_target",
    "pod_target",
    "read",
    "read_drop_in",
    "remove_drop_in",
    "restore",
    "temporarily",
    "write_drop_in",
]

_T = TypeVar("_T")
_SO_NETNS_COOKIE = 71
_PROC_SYS = Path("/proc/sys")
_ONLY_INITIAL = _PROC_SYS / "net/ipv4/tcp_max_orphans"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*\Z")
_NETNS_LINK = re.compile(r"net:\[(\d+)\]\Z")
SYSCTL_D = Path("/etc/sysctl.d")


def key_path(key: str) -> Path:
    """Return the file of a sysctl given by its dotted name.

    As sysctl(8) writes it, a ``/`` inside a dotted name stands for a dot
    (``net.ipv4.conf.eth0/1.rp_filter``).

    Raises:
        ValueError: the name has an empty part, ``..``, or a character that no sysctl has.
    """
    parts = [part.replace("/", ".") for part in key.split(".")]
    if len(parts) < 2 or not all(_PART.match(part) and part not in (".", "..") for part in parts):
        raise ValueError(f"not the name of a sysctl: {key[:80]!r}")
    return _PROC_SYS.joinpath(*parts)


class SysctlTarget(Struct):
    """A network namespace, held open, with what identifies it. Close it, or use it as a context manager."""

    fd: int
    inode: int
    cookie: int
    """``SO_NETNS_COOKIE``; 0 on kernels before 5.14, which have none."""
    name: str
    initial: bool
    """Whether it is the machine's first one: the only one in which tcp_max_orphans exists."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the namespace; closing twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def identity(self) -> dict[str, object]:
        """Return what a journal needs to recognise the namespace later."""
        return {"netns": self.inode, "cookie": self.cookie, "boot_id": boot_id(), "name": self.name}


def _enter(fd: int, inode: int) -> None:
    try:
        netns.setns(fd)
    except OSError as error:
        number = error.errno or errno.EIO
        if number in (errno.EPERM, errno.EACCES):
            raise PermissionNeeded(
                number, "enter it", rights.missing("CAP_SYS_ADMIN"), netns=inode
            ) from error
        raise KernelError(number, "enter it", netns=inode) from error


def inside(fd: int | None, inode: int, work: Callable[[], _T]) -> _T:
    """Run ``work`` in a new thread that is in the namespace of ``fd`` (None: where we are) and then ends.

    An interruption waits for it: it takes milliseconds, and what it did must be known.
    """
    if fd is not None and fd < 0:
        raise ValueError("the namespace was already closed")
    done: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if fd is not None and inode != netns.own_netns():  # our own needs no privilege
                _enter(fd, inode)
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the calling thread, whatever it is
            failed.append(error)

    netns.finish(run, threading.Event(), f"netns-{inode}")
    if failed:
        raise failed[0]
    return done[0]


def _cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
    return int.from_bytes(raw, sys.byteorder)


def _adopt(fd: int, name: str) -> SysctlTarget:
    inode = os.fstat(fd).st_ino
    try:
        cookie, initial = inside(fd, inode, lambda: (_cookie(), _ONLY_INITIAL.exists()))
    except KernelError:
        os.close(fd)
        raise
    return SysctlTarget(fd, inode, cookie, name, initial)


def open_target(spec: NetnsName | str | int | None = None) -> SysctlTarget:
    """Open a network namespace.

    Args:
        spec: None for the caller's own; an open descriptor (int, duplicated); or what names one, see
            `finwait.uapi.nsfs.parse_netns_name`.

    Raises:
        ValueError: the text can name none.
        KernelError: there is no such namespace, or it cannot be opened or entered.
    """
    if spec is None:
        return _adopt(_open("/proc/thread-self/ns/net"), "own")
    if isinstance(spec, int):
        return _adopt(os.dup(spec), f"fd {spec}")
    named = parse_netns_name(spec) if isinstance(spec, str) else spec
    if named.form == "path":
        return _adopt(_open(named.text), named.text)
    if named.form == "pid":
        return _adopt(_open(f"/proc/{named.number}/ns/net"), f"pid:{named.number}")
    if named.form == "inode":
        return _by_inode(named.number)
    if not os.path.exists(f"/run/netns/{named.text}"):
        for namespace in netns.discover()[0]:
            if named.text in namespace.names:
                return _first_open(namespace)
    return _adopt(_open(f"/run/netns/{named.text}"), named.text)


def _open(path: str) -> int:
    try:
        fd = netns.open_path(path)
    except OSError as error:
        number = error.errno or errno.EIO
        if number in (errno.EPERM, errno.EACCES):
            raise PermissionNeeded(number, f"open `{path}`", rights.missing("CAP_SYS_PTRACE")) from error
        raise KernelError(number, f"open `{path}`", hint="`finwait netns` lists the namespaces") from error
    if not _is_netns(fd):
        os.close(fd)
        raise KernelError(errno.EINVAL, f"use `{path}` as a network namespace", hint="it is something else")
    return fd


def _is_netns(fd: int) -> bool:
    try:
        link = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    if _NETNS_LINK.match(link):
        return True
    # A bind mount reads as its own path; the namespace file system has its own device.
    with contextlib.suppress(OSError):
        return os.fstat(fd).st_dev == os.stat("/proc/self/ns/net").st_dev and stat.S_ISREG(
            os.fstat(fd).st_mode
        )
    return False


def _pids() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield int(entry.name)


def _first_open(namespace: NetNamespace) -> SysctlTarget:
    refused: PermissionNeeded | None = None
    for path in namespace.paths:
        try:
            target = _adopt(_open(path), namespace.names[0] if namespace.names else path)
        except PermissionNeeded as error:
            refused = error
            continue
        except KernelError:
            continue  # that way is gone; another may be there
        if target.inode == namespace.inode:
            return target
        target.close()
    raise refused or KernelError(errno.ENOENT, "open it", netns=namespace.inode)


def _by_inode(inode: int) -> SysctlTarget:
    refused: PermissionNeeded | None = None
    for find in (netns.discover, _discover_descriptors):  # the second walks every descriptor of the machine
        for namespace in find()[0]:
            if namespace.inode != inode:
                continue
            try:
                return _first_open(namespace)
            except PermissionNeeded as error:
                refused = error
            except KernelError:
                continue  # a thread that was only passing through led there; a descriptor may still
    raise refused or KernelError(
        errno.ENOENT, f"find the network namespace {inode}", hint="`finwait netns` lists them"
    )


def _discover_descriptors() -> tuple[list[NetNamespace], list[Gap]]:
    from finwait.kernel import procfs  # loads numpy

    return netns.discover(procfs.descriptors()[1])


def all_targets() -> tuple[list[SysctlTarget], list[Gap]]:
    """Open every network namespace that can be found, each once, the initial one first."""
    targets: list[SysctlTarget] = []
    namespaces, seen = _discover_descriptors()
    gaps = list(seen)
    for namespace in namespaces:
        try:
            targets.append(_first_open(namespace))
        except PermissionNeeded as error:
            needs = rights.missing(error.capability)
            gaps.append(Gap.of_namespace(namespace.inode, "enter it", needs, unentered=True))
        except KernelError:
            continue  # it ended while we looked
    return sorted(targets, key=lambda target: (not target.initial, target.inode)), gaps


def pod_target(uid: str) -> SysctlTarget:
    """Open the network namespace of a pod, found by its uid in the cgroup path of a process.

    Raises:
        ValueError: it is not a uid.
        KernelError: no process of such a pod is here, or its namespace cannot be opened.
    """
    plain = uid.strip().lower().removeprefix("pod").replace("_", "-")
    if not re.fullmatch(r"[0-9a-f-]{8,64}", plain):
        raise ValueError(f"not the uid of a pod: {uid[:80]!r}")
    forms = (f"pod{plain}", f"pod{plain.replace('-', '_')}")
    for pid in _pids():
        try:
            cgroup = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if any(form in cgroup for form in forms):
            target = open_target(f"pid:{pid}")
            target.name = f"pod:{plain}"
            return target
    raise KernelError(errno.ENOENT, f"find a process of pod {plain}", hint="is the pod on this node?")


class Reading(Struct, frozen=True):
    """Sysctls as they were read."""

    values: Mapping[str, str]
    read_only: frozenset[str]
    """Those whose file has no write permission in this namespace."""
    gaps: tuple[Gap, ...]
    """Those that are there and could not be read."""


def read(keys: Sequence[str], target: SysctlTarget | None = None) -> Reading:
    """Read sysctls of a namespace; those that do not exist there are left out.

    Args:
        keys: dotted names.
        target: the namespace; None for the caller's own.

    Raises:
        ValueError: a key is not the name of a sysctl.
        KernelError: the namespace cannot be entered.
    """
    paths = [(key, key_path(key)) for key in keys]
    inode = target.inode if target is not None else 0

    def work() -> Reading:
        values: dict[str, str] = {}
        locked: set[str] = set()
        gaps: list[Gap] = []
        for key, path in paths:
            try:
                values[key] = _get(path)
                if not path.stat().st_mode & stat.S_IWUSR:
                    locked.add(key)
            except FileNotFoundError:
                continue
            except OSError as error:
                denied = error.errno in (errno.EPERM, errno.EACCES)
                gaps.append(Gap(key, "read it", rights.missing("root") if denied else ""))
        return Reading(values, frozenset(locked), tuple(gaps))

    return inside(target.fd if target is not None else None, inode, work)


def _get(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8", errors="replace").split())


def _put(path: Path, value: str) -> None:
    # One write(2): procfs takes the value from a single call.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode("utf-8") + b"\n")
    finally:
        os.close(fd)


class Written(Struct, frozen=True):
    """What was set: the values before and after, by key."""

    before: Mapping[str, str]
    after: Mapping[str, str]


def apply(
    changes: Mapping[str, str],
    target: SysctlTarget | None = None,
    *,
    expected: Mapping[str, str] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Written:
    """Set several sysctls of a namespace: all of them, or none.

    Args:
        changes: the new values, by dotted name, written in this order.
        target: the namespace; None for the caller's own.
        expected: the values that must still be in force when the first is written.
        on_step: told ``reading``, ``writing KEY``, ``wrote KEY`` and ``done`` as the work goes on.

    Raises:
        ValueError: a key is not the name of a sysctl.
        KernelError: the kernel refused a value or the namespace, or a value was not what ``expected`` says.
        All that
            had been written is put back; where even that failed, the message names what was left changed.
    """
    paths = {key: key_path(key) for key in changes}
    inode = target.inode if target is not None else None
    tell = on_step or (lambda _step: None)

    def work() -> Written:
        tell("reading")
        before: dict[str, str] = {}
        for key, path in paths.items():
            with _doing(f"read {key}", inode):
                before[key] = _get(path)
        for key, value in (expected or {}).items():
            if key in before and before[key] != value:
                action = f"change {key}: it is now {before[key]}, not {value} as when the plan was made"
                raise KernelError(errno.ESTALE, action, netns=inode, hint="make a new plan")
        written: list[str] = []
        try:
            for key, value in changes.items():
                tell(f"writing {key}")
                written.append(key)
                with _doing(f"set {key} to {value}", inode):
                    _put(paths[key], value)
                    now = _get(paths[key])
                _same(key, value, now, inode)
                tell(f"wrote {key}")
        except BaseException as error:
            unrestored = _put_back(paths, before, written)
            if unrestored and isinstance(error, KernelError):
                error.hint = f"could not restore {', '.join(unrestored)}"
            elif isinstance(error, KernelError) and not error.hint:
                error.hint = "nothing was changed: finwait restored the values that it had written"
            raise
        after = {key: _get(path) for key, path in paths.items()}
        tell("done")
        return Written(before, after)

    return inside(target.fd if target is not None else None, inode or 0, work)


@contextlib.contextmanager
def _doing(action: str, inode: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        if number in (errno.EPERM, errno.EACCES):
            raise PermissionNeeded(
                number, action, "root in the namespace's user namespace", netns=inode
            ) from error
        raise KernelError(number, action, netns=inode) from error


def _same(key: str, value: str, now: str, inode: int | None) -> None:
    if now != " ".join(value.split()):
        raise KernelError(errno.EINVAL, f"set {key} to {value}: it reads {now}", netns=inode)


def _put_back(paths: Mapping[str, Path], before: Mapping[str, str], written: Sequence[str]) -> list[str]:
    unrestored: list[str] = []
    for key in reversed(written):
        try:
            if _get(paths[key]) != before[key]:
                _put(paths[key], before[key])
        except OSError:
            unrestored.append(f"{key} (was {before[key]})")
    return unrestored


def restore(before: Mapping[str, str], target: SysctlTarget | None = None) -> Written:
    """Put values back, the last one set first; all or none, like `apply`."""
    return apply(dict(reversed(list(before.items()))), target)


@contextlib.contextmanager
def temporarily(changes: Mapping[str, str], target: SysctlTarget | None = None) -> Iterator[Written]:
    """Set sysctls for the length of a ``with`` block; the old values come back however it ends."""
    applied = apply(changes, target)
    try:
        yield applied
    finally:
        restore(applied.before, target)


class DropIn(Struct, frozen=True):
    """A file of sysctl.d that was written."""

    path: str
    before: str | None
    """What the file held; None if there was none."""
    after: str


def write_drop_in(name: str, text: str, *, folder: Path = SYSCTL_D) -> DropIn:
    """Write a file of sysctl.d whole or not at all, and on the disk when this returns.

    Args:
        name: the file's name without a folder, ending in ``.conf``.
        text: what it shall hold.
        folder: where.

    Raises:
        ValueError: the name has a slash or does not end in ``.conf``.
        KernelError: it cannot be written; nothing was changed then.
    """
    path = _drop_in_path(name, folder)
    with _doing(f"write `{path}`", None):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        before = read_drop_in(name, folder=folder)
        _write_whole(path, text)
    return DropIn(str(path), before, text)


def read_drop_in(name: str, *, folder: Path = SYSCTL_D) -> str | None:
    """Return what a file of sysctl.d holds; None if there is none.

    Raises:
        ValueError: the name has a slash or does not end in ``.conf``.
        KernelError: it is there and cannot be read.
    """
    path = _drop_in_path(name, folder)
    with _doing(f"read `{path}`", None):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused(str(path), "it is a link or not a regular file", hint="edit it by hand")
        return files.read(str(path), 1 << 20).decode("utf-8", errors="surrogateescape")


def edited(dropped: DropIn, *, folder: Path = SYSCTL_D) -> str | None:
    """Return what a file of sysctl.d holds if that is neither what `write_drop_in` wrote nor what was there before.

    An empty text stands for a file that was removed.

    Raises:
        KernelError: it is there and cannot be read.
        FileRefused: it is there and no regular file.
    """
    now = read_drop_in(Path(dropped.path).name, folder=folder)
    return None if now in (dropped.before, dropped.after) else now or ""


def remove_drop_in(dropped: DropIn, *, folder: Path = SYSCTL_D, force: bool = False) -> None:
    """Put back what a file of sysctl.d held before `write_drop_in`, or remove it if there was none.

    Args:
        dropped: the file.
        folder: where it is.
        force: also where it was changed since.

    Raises:
        KernelError: the file was changed since, or cannot be written.
    """
    path = _drop_in_path(Path(dropped.path).name, folder)
    with _doing(f"restore `{path}`", None):
        now = read_drop_in(path.name, folder=folder)
        if now == dropped.before:
            return
        if now != dropped.after and not force:
            raise KernelError(
                errno.ESTALE, f"restore `{path}`: it has changed since then", hint="edit it by hand"
            )
        if dropped.before is None:
            path.unlink()
            _sync_folder(folder)
        else:
            _write_whole(path, dropped.before)


def _drop_in_path(name: str, folder: Path) -> Path:
    if "/" in name or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.conf", name):
        raise ValueError(f"not the name of a sysctl.d file: {name[:80]!r}")
    return folder / name


def _write_whole(path: Path, text: str) -> None:
    """Write a file that everybody may read, whole or not at all, in a folder that is ours alone."""
    if reason := files.stranger(str(path.parent)):
        raise FileRefused(str(path), f"the machine takes settings from it at boot, and {reason}")
    new = files.new_file(str(path), 0o644)
    try:
        with os.fdopen(new.fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            new.publish()
    finally:
        new.discard()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
