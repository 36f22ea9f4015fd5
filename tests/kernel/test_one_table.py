"""Two processes with one descriptor table: what one closes is closed in both, and nobody inherited anything."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest

from finwait.kernel import kcmp
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel

_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
_CLONE_FILES = 0x400


def child(flags: int) -> int:
    """Make a process that waits to be ended."""
    number = _CLONE.get(os.uname().machine)
    if number is None:
        missing("the number of clone(2) on this architecture")
    made = ctypes.CDLL(None, use_errno=True).syscall(
        ctypes.c_long(number), ctypes.c_ulong(flags | signal.SIGCHLD), None, None, None, None
    )
    if made == 0:
        while True:
            signal.pause()
    assert made > 0
    return int(made)


@pytest.mark.parametrize(("flags", "same"), [(_CLONE_FILES, True), (0, False)])
def test_the_kernel_tells_whether_two_processes_share_their_descriptors(flags: int, same: bool) -> None:
    pid = child(flags)
    try:
        said = kcmp.one_table([(os.getpid(), pid)])
        if not said:
            missing("kcmp(2)")
        assert said == {(os.getpid(), pid): same}
        assert kcmp.one_table([(os.getpid(), 1 << 22)]) == {}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
