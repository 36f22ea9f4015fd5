"""Whether two tasks share one descriptor table: kcmp(2) with KCMP_FILES.

clone(CLONE_FILES) without CLONE_THREAD makes two processes whose descriptors are the same ones: what one closes is
closed in both. /proc shows them like copies. The number of the system call differs between architectures; where it is
not known here, or the kernel was built without CONFIG_KCMP, nothing is told.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable
from typing import Final

__all__ = ["one_table", "order"]

_NUMBER: Final = {
    "x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272, "ppc64le": 354, "ppc64": 354, "s390x": 343,
    "i386": 349, "i686": 349, "armv7l": 378, "armv6l": 378,
}.get(platform.machine(), -1)  # fmt: skip
"""Of the system call: older than the unified table."""
_KCMP_FILES: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def order(one: int, other: int) -> int | None:
    """Return how the descriptor tables of two tasks compare (0: it is one); None where the kernel does not tell."""
    if _NUMBER < 0:
        return None
    answer = int(_libc.syscall(_NUMBER, one, other, _KCMP_FILES, 0, 0))
    return answer if answer in (0, 1, 2) else None


def one_table(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
    """Return for each pair of pids whether they share one descriptor table; without what cannot be told."""
    told = {pair: order(*pair) for pair in pairs}
    return {pair: answer == 0 for pair, answer in told.items() if answer is not None}
