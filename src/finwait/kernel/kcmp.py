"""Whether two tasks share one descriptor table: kcmp(2) with KCMP_FILES.

clone(CLONE_FILES) without CLONE_THREAD makes two processes whose descriptors are the same ones: what one closes is
closed in both. /proc shows them like copies. The number of the system call differs between architectures; where it is
not known here, or the kernel was built without CONFIG_KCMP, nothing is told.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Final

__all__ = ["one_table"]

_SYS_KCMP: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272}
_KCMP_FILES: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def one_table(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
    """Return for each pair of pids whether they share one descriptor table; without what cannot be told."""
    number = _SYS_KCMP.get(os.uname().machine)
    if number is None:
        return {}
    result: dict[tuple[int, int], bool] = {}
    for a, b in pairs:
        said = _libc.syscall(
            ctypes.c_long(number), ctypes.c_int(a), ctypes.c_int(b), ctypes.c_int(_KCMP_FILES),
            ctypes.c_ulong(0), ctypes.c_ulong(0),
        )  # fmt: skip
        if said >= 0:
            result[a, b] = said == 0
    return result
