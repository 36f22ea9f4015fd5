"""Files that finwait reads, makes and replaces, in folders that somebody else may write to.

finwait runs as root and is told paths: where the journal is, where a recording goes, which log a relay keeps. Whoever
may write to a folder on such a path can put a link, a FIFO or a file of his own there, before we look or between two
looks. So a path is never used as text. `folder` walks it component by component and holds a descriptor of each; what is
done then is done relative to the last one, on what was opened and looked at, never on a name that was looked at before.

*Ours* are root, the effective user and whoever owns ``/`` (in a user namespace that maps only us, root shows as
nobody; who owns ``/`` decides about every path anyway). A folder is *alone* when it is ours and nobody else can write
to it. The rules:

* A link on the way is followed only if it is ours. The last component is never followed.
* A new file is made with O_EXCL, so it is ours whatever the folder is, and only what was just made is given a mode or
  an owner.
* A file that is there is opened for writing, or replaced, only if it is a regular file; where others could have put it,
  also only if it is ours and has one name. A hard link to a file of ours is then left alone, too.
* State, from which we act later, must be in a folder that is alone, below folders in which nobody else can rename it.

Reading is bounded, never waits, and takes regular files only: `read`. A pipe that the shell opened is taken where a
command asks for it. Where what is read decides what is done, no link of somebody else's is followed either, whatever
fs.protected_symlinks says: it would choose among the files of ours.

The surprise: O_NOFOLLOW says nothing about hard links and directories, and a sticky folder says nothing about what was
there before us. What this cannot see: ACLs of file systems that do not show them in the mode, and what root mounts.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import stat
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from finwait.errors import FileRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

__all__ = [
    "Folder",
    "NewFile",
    "append_to",
    "folder",
    "new_file",
    "open_to_read",
    "read",
    "remove",
    "stranger",
]

_MOST_LINKS: Final = 40
"""As the kernel's MAXSYMLINKS."""
_OPEN_ALREADY: Final = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")
"""What begins so is a descriptor of ours."""
_OF_OURS: Final = re.compile(r"(?:/dev/fd/|/proc/self/fd/)\d+|/dev/stdin")
"""A descriptor of ours, and nothing behind it."""
_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _ours() -> frozenset[int]:
    return frozenset((0, os.geteuid(), os.stat("/").st_uid))


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a regular file")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _others_write(status: os.stat_result, fd: int) -> bool:
    """Return whether somebody beside the owner may write; a group of the owner's own, with no other member, may."""
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        group, owner = grp.getgrgid(status.st_gid), pwd.getpwuid(status.st_uid)
    except KeyError:
        return True
    if group.gr_gid != owner.pw_gid or group.gr_name != owner.pw_name or {*group.gr_mem} - {owner.pw_name}:
        return True
    with contextlib.suppress(OSError):  # with an ACL the group's bits are its mask
        return "system.posix_acl_access" in os.listxattr(f"/proc/self/fd/{fd}")
    return False


class Folder:
    """A folder that is held open; what is done in it is done by name, relative to it.

    Attributes:
        fd: an O_PATH descriptor.
        path: as it was written.
        alone: why somebody else can write to it; empty if nobody can.
        way: why somebody else can put another folder in its place; empty if nobody can.
        sticky: whether nobody else can rename what is ours in it all the same.
    """

    def __init__(
        self, fd: int, path: str, alone: str, way: str, sticky: bool, own_uids: frozenset[int]
    ) -> None:
        self.fd = fd
        self.path = path
        self.alone = alone
        self.way = way
        self.sticky = sticky
        self._ours = own_uids

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; closing twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def name_of(self, name: str) -> str:
        """Return a path in it, for messages."""
        return os.path.join(self.path, name)

    def status(self, name: str) -> os.stat_result | None:
        """Return what is there under a name, links not followed; None if nothing is."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def check(self, name: str, status: os.stat_result) -> None:
        """Refuse what must not be written to or replaced.

        Raises:
            FileRefused: it is no regular file, or somebody else may have put it there.
        """
        path = self.name_of(name)
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused(
                path, f"it is {_kind(status)}, not a regular file", hint="name a new file, or a regular one"
            )
        if not self.alone:
            return
        if status.st_uid not in self._ours:
            raise FileRefused(
                path, f"it belongs to {_user(status.st_uid)}, and {self.alone}", hint="name a new file"
            )
        if status.st_nlink != 1:
            raise FileRefused(
                path,
                f"it has {status.st_nlink} names (hard links), and {self.alone}",
                hint="name a new file",
            )

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """Open a regular file without following a link or waiting, and look at it before anything is done with it.

        Raises:
            FileRefused: see `check`.
            OSError: the kernel refused.
        """
        status = self.status(name)  # a FIFO or a device can notice that it is opened
        if status is not None:
            self.check(name, status)
        try:
            fd = os.open(
                name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, mode, dir_fd=self.fd
            )
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO) and (status := self.status(name)) is not None:
                self.check(name, status)
            raise
        try:
            self.check(name, os.fstat(fd))
            os.set_blocking(fd, True)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def sync(self) -> None:
        """Write its entries to the disk; a file system that cannot promise that is no failure."""
        with contextlib.suppress(OSError):
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def folder(path: str, *, make: bool = False, also: Iterable[int] = ()) -> Folder:
    """Open a folder; no link of somebody else's is followed on the way.

    Args:
        path: which; an empty one is the working directory.
        make: make what is missing, with mode 0700, as far as all above it is ours alone.
        also: users who count as ours.

    Raises:
        FileRefused: a link on the way belongs to somebody else, or a folder is missing where others can write.
        OSError: the kernel refused; ENOENT, ENOTDIR, EACCES.
        ValueError: the path has a NUL.
    """
    walk = _Walk(path or ".", _ours() | frozenset(also))
    try:
        while walk.left:
            walk.step(make=make and not walk.others())
    except FileNotFoundError:
        reason = walk.others()
        os.close(walk.at)
        if not (make and reason):
            raise
        raise FileRefused(path, f"it would be made where {reason}", hint="name another folder") from None
    except BaseException:
        os.close(walk.at)
        raise
    sticky = _sticky(walk.at, walk.ours)
    return Folder(walk.at, path or ".", walk.alone, walk.way, sticky, walk.ours)


class _Walk:
    """Where we are on the way to a folder, as a descriptor, and what is left of the way."""

    def __init__(
        self, path: str, own_uids: frozenset[int], hint: str = "name the folder that it leads to"
    ) -> None:
        self.path = path
        self._hint = hint
        self.ours = own_uids
        self.left = deque(path.split("/"))
        self.links = 0
        self.way = ""
        self._start("/" if path.startswith("/") else ".")

    def _start(self, where: str) -> None:
        self.at = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.done = [""] if where == "/" else []
        self.alone = _not_alone(self.at, where, self.ours)

    def others(self) -> str:
        """Return why somebody else decides about what is made here; empty if nobody does."""
        return self.way or ("" if _sticky(self.at, self.ours) else self.alone)

    def step(self, *, make: bool) -> None:
        """Take the next component."""
        part = self.left.popleft()
        if part in ("", "."):
            return
        child_fd = _enter(self.at, part, make)
        try:
            status = os.fstat(child_fd)
            # In a sticky folder of ours nobody else renames what is ours.
            if self.alone and not (_sticky(self.at, self.ours) and status.st_uid in self.ours):
                self.way = self.way or self.alone
            shown = "/".join((*self.done, part))
            if stat.S_ISLNK(status.st_mode):
                self._follow(child_fd, status, shown)
            elif not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), shown)
            else:
                self.done.append(part)
                self.at, child_fd = child_fd, self.at
                self.alone = _not_alone(self.at, shown, self.ours)
        finally:
            os.close(child_fd)

    def _follow(self, link: int, status: os.stat_result, shown: str) -> None:
        self.links += 1
        if self.links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self.path)
        if status.st_uid not in self.ours or (self.alone and status.st_nlink != 1):
            raise FileRefused(
                shown,
                f"it is a symbolic link of {_user(status.st_uid)}'s, and is not followed",
                hint=self._hint,
            )
        target = os.readlink("", dir_fd=link)
        self.left.extendleft(reversed(target.split("/")))
        if target.startswith("/"):
            before = self.at
            self._start("/")
            os.close(before)


def _enter(at: int, part: str, make: bool) -> int:
    """Open one component, whatever it is."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(part, flags, dir_fd=at)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(part, 0o700, dir_fd=at)
    return os.open(part, flags, dir_fd=at)


def _not_alone(fd: int, shown: str, own_uids: frozenset[int]) -> str:
    """Return why somebody else can write to a folder, or an empty string."""
    status = os.fstat(fd)
    if status.st_uid not in own_uids:
        return f"the folder `{shown or '/'}` belongs to {_user(status.st_uid)}"
    if _others_write(status, fd):
        return f"others can write to the folder `{shown or '/'}` (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def _sticky(fd: int, own_uids: frozenset[int]) -> bool:
    status = os.fstat(fd)
    return bool(status.st_mode & stat.S_ISVTX) and status.st_uid in own_uids


def stranger(path: str, *, also: Iterable[int] = ()) -> str:
    """Return why a folder is not ours alone (it, or the way to it); empty if it is.

    Raises:
        FileRefused: a link on the way belongs to somebody else.
        OSError: it is not there, or cannot be looked at.
    """
    with folder(os.path.abspath(path), also=also) as opened:
        return opened.alone or opened.way


class NewFile:
    """A file without its name yet: `publish` gives it the name at once, `discard` leaves nothing behind.

    Attributes:
        fd: open for writing.
    """

    def __init__(self, where: Folder, name: str, partial: str, fd: int) -> None:
        self.fd = fd
        self._folder = where
        self._name = name
        self._partial = partial

    def publish(self) -> None:
        """Give it the name; a regular file of that name is replaced.

        Raises:
            FileRefused: what has the name now must not be replaced, or somebody put another file in our place.
            OSError: the kernel refused.
        """
        folder = self._folder
        status = folder.status(self._name)
        if status is not None:
            folder.check(self._name, status)
        os.rename(self._partial, self._name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        self._partial = ""
        own_status, named_status = os.fstat(self.fd), folder.status(self._name)
        if named_status is None or (named_status.st_dev, named_status.st_ino) != (
            own_status.st_dev,
            own_status.st_ino,
        ):
            raise FileRefused(
                folder.name_of(self._name),
                "somebody replaced it while it was made",
                hint=folder.alone and f"{folder.alone}: write to another one",
            )
        folder.sync()

    def discard(self) -> None:
        """Remove what has not been published, and let go of the folder; the descriptor is the caller's."""
        if self._partial and self._folder.fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._partial, dir_fd=self._folder.fd)
            self._partial = ""
        self._folder.close()


def new_file(path: str, mode: int = 0o600, *, where: Folder | None = None) -> NewFile:
    """Make a file beside a path, to be published there.

    Args:
        path: the name that it will have.
        mode: its mode, whatever the umask.
        where: the folder, if it is open already; becomes the file's own.

    Raises:
        FileRefused: what is at the path must not be replaced, or a link on the way belongs to somebody else.
        OSError: the kernel refused.
        ValueError: the path has a NUL.
    """
    above, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    where = where or folder(above)
    try:
        status = where.status(name)
        if status is not None:
            where.check(name, status)
        partial = f".{os.fsdecode(os.fsencode(name)[:200])}.{os.urandom(8).hex()}.partial"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(partial, flags, 0o600, dir_fd=where.fd)
    except BaseException:
        where.close()
        raise
    made = NewFile(where, name, partial, fd)
    try:
        os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        made.discard()
        raise
    return made


def append_to(path: str, mode: int = 0o600) -> int:
    """Open a file to append to, and make it if it is not there; return the descriptor.

    Raises:
        FileRefused: it is no regular file, or somebody else may have put it there.
        OSError: the kernel refused.
        ValueError: the path has a NUL.
    """
    above, name = os.path.split(path)
    flags = os.O_WRONLY | os.O_APPEND
    with folder(above) as where:
        try:
            return where.open(name, flags)
        except FileNotFoundError:
            pass
        try:
            fd = where.open(name, flags | os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # somebody made it just now
            return where.open(name, flags)
        try:
            os.fchmod(fd, mode)
        except BaseException:
            os.close(fd)
            raise
        return fd


def remove(path: str, known: tuple[int, int]) -> bool:
    """Remove a path if it is still the file that we know by device and inode; return whether it was.

    Raises:
        FileRefused: a link on the way belongs to somebody else.
        OSError: the kernel refused.
    """
    above, name = os.path.split(path)
    with folder(above) as where:
        status = where.status(name)
        if status is None or (status.st_dev, status.st_ino) != known:
            return False
        os.unlink(name, dir_fd=where.fd)
        return True


def open_to_read(path: str, *, pipes: bool = False, own_way: bool = False) -> BinaryIO:
    """Open a regular file for reading; never waits to open it.

    Args:
        path: which.
        pipes: also take what a shell has opened for us, as in ``finwait audit <(helm template .)``. A FIFO with a name
            is still refused: opening it waits until somebody writes.
        own_way: refuse a link of somebody else's on the way, the last component included.

    Raises:
        FileRefused: it is no regular file, or a link on the way is somebody else's.
        OSError: the kernel refused.
        ValueError: the path has a NUL.
    """
    opened_already = path.startswith(_OPEN_ALREADY)
    check = _readable if pipes and opened_already else _regular
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    if own_way and not _OF_OURS.fullmatch(path):
        fd = _opened_by_our_way(path, flags, check)
    else:
        check(path, os.stat(path))  # a FIFO or a device can notice that it is opened
        fd = os.open(path, flags)
    try:
        check(path, os.fstat(fd))
        os.set_blocking(fd, True)
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _opened_by_our_way(path: str, flags: int, check: Callable[[str, os.stat_result], None]) -> int:
    """Open what a path leads to, by no link of somebody else's.

    Raises:
        FileRefused: there is one, or ``check`` refuses it.
        OSError: the kernel refused.
    """
    walk = _Walk(path, _ours(), hint="name the file that it leads to")
    try:
        while True:
            while len(walk.left) > 1:
                walk.step(make=False)
            name = walk.left[0] or "."
            status = os.stat(name, dir_fd=walk.at, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                break
            walk.step(make=False)
        check(path, status)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=walk.at)
    finally:
        os.close(walk.at)


def read(path: str, most: int, *, pipes: bool = False, own_way: bool = False, own: str = "") -> bytes:
    """Return what a regular file holds, at most so many bytes; never waits, unless for a pipe (see `open_to_read`).

    Args:
        path: which.
        most: bytes.
        pipes: see `open_to_read`.
        own_way: see `open_to_read`. Without it links are followed: what is read is told to nobody but who named it.
        own: refuse what somebody else may have written, with this hint; what is in it is acted upon. Takes only our own
            way there. The folder does not matter, as it does for what is opened for writing: what somebody else puts in
            its place is not ours.

    Raises:
        FileRefused: it is no regular file, or larger; where that is asked for, also if somebody else may have written
            it, or somebody else's link leads there.
        OSError: the kernel refused.
        ValueError: the path has a NUL.
    """
    with open_to_read(path, pipes=pipes, own_way=own_way or bool(own)) as file:
        if own and (reason := _foreign(file.fileno())):
            raise FileRefused(path, reason, hint=own)
        data = file.read(most + 1)
    if len(data) > most:
        raise FileRefused(path, f"it is larger than {_size(most)}", hint="is this the file that you mean?")
    return data


def _foreign(fd: int) -> str:
    """Return why somebody else may have written what a descriptor refers to; empty if nobody could."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return ""  # a pipe that the shell has opened
    if status.st_uid not in _ours():
        return f"it belongs to {_user(status.st_uid)}, who may have written anything into it"
    if _others_write(status, fd):
        return f"others can write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def _regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileRefused(path, f"it is {_kind(status)}, not a regular file", hint="name a regular file")


def _readable(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
