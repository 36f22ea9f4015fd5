"""Which boot of the machine this is: cookies, inodes and pids mean nothing on another one."""

from __future__ import annotations

import os

__all__ = ["boot_id"]


def boot_id() -> str:
    """Return the kernel's id of this boot; an empty string where /proc does not say it."""
    try:
        fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 64).decode("ascii", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
