"""cgroup ids → paths.

The id that sock_diag gives is the inode of the cgroup v2 directory, and a kernfs file handle *is* that id
(fs/kernfs/mount.c: ``FILEID_KERNFS``), so one ``open_by_handle_at`` answers where a walk over all
directories would be needed. The walk remains for when the call is not permitted (CAP_DAC_READ_SEARCH).
A cgroup that was removed has no path any more: its id is then missing from the answer.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

__all__ = ["mount_point", "paths"]

_libc = ctypes.CDLL(None, use_errno=True)
_FILEID_KERNFS = 0xFE


def mount_point() -> str | None:
    """Return where cgroup2 is mounted here, or None."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                head, _, tail = line.partition(" - ")
                if tail.startswith("cgroup2 "):
                    words = head.split(" ")
                    if words[3] == "/":
                        return words[4]
    except OSError:
        return None
    return None


def paths(ids: Iterable[int]) -> dict[int, str]:
    """Return the path below the cgroup2 mount point of each id that still exists."""
    requested = {i for i in ids if i}
    root = mount_point()
    if root is None or not requested:
        return {}
    try:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return {}
    result: dict[int, str] = {}
    try:
        for number in requested:
            fd = _open_by_id(root_fd, number)
            if fd == -1:
                return _walk(root, requested)
            if fd is None:
                continue
            try:
                full = os.readlink(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
            if full.endswith(" (deleted)"):
                continue
            result[number] = full[len(root.rstrip("/")) :] or "/"
    finally:
        os.close(root_fd)
    return result


def _open_by_id(root_fd: int, number: int) -> int | None:
    """Return a descriptor, None when the cgroup is gone, -1 when the call is not for us."""
    handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, _FILEID_KERNFS, number))
    fd = _libc.open_by_handle_at(root_fd, handle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if fd >= 0:
        return int(fd)
    return None if ctypes.get_errno() == 116 else -1  # ESTALE: no such cgroup


def _walk(root: str, requested: set[int]) -> dict[int, str]:
    result: dict[int, str] = {}
    for directory, _, _ in os.walk(root):
        try:
            number = os.stat(directory).st_ino
        except OSError:
            continue
        if number in requested:
            result[number] = directory[len(root.rstrip("/")) :] or "/"
    return result
