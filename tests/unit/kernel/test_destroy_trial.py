"""The trial on throwaways: what it concludes of kernels that are not here."""

from __future__ import annotations

import errno

import pytest

from finwait.acting.rights import _harm
from finwait.errors import KernelError
from finwait.kernel.destroy_trial import Trial, judge
from finwait.uapi.inet_diag import SocketId


class Kernel:
    """A kernel that ends or spares orphans, and ends or refuses minisockets."""

    def __init__(self, *, ends_orphans: bool = True, minisockets: int = 0, refuses: int = 0) -> None:
        self.ends_orphans, self.minisockets, self.refuses = ends_orphans, minisockets, refuses
        self.there: set[int] = set()
        self.ended = False

    def _made(self, number: int) -> SocketId:
        self.there.add(number)
        return SocketId(number, 1, bytes(4), bytes(4), 0, number)

    def orphan(self) -> SocketId:
        return self._made(1)

    def minisocket(self) -> SocketId:
        return self._made(2)

    def destroy(self, whom: SocketId) -> int:
        if self.refuses:
            return self.refuses
        if whom.sport == 2 and self.minisockets:
            return self.minisockets
        if whom.sport == 2 or self.ends_orphans:
            self.there.discard(whom.sport)
        return 0

    def is_there(self, whom: SocketId) -> bool:
        return whom.sport in self.there

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    ("kernel", "trial"),
    [
        (Kernel(), Trial(True, True)),
        # Linux 5.10: the orphan's queue is purged and 0 returned, a minisocket is refused.
        (Kernel(ends_orphans=False, minisockets=errno.EOPNOTSUPP), Trial(False, False)),
        (Kernel(minisockets=errno.EOPNOTSUPP), Trial(True, False)),
    ],
    ids=["6.18", "5.10", "6.1 with the backport"],
)
def test_what_is_still_there_was_not_ended_whatever_the_kernel_answered(kernel: Kernel, trial: Trial) -> None:
    assert judge(kernel) == trial
    assert kernel.ended


def test_a_kernel_that_forbids_it_has_told_nothing() -> None:
    kernel = Kernel(refuses=errno.EPERM)
    with pytest.raises(KernelError):
        judge(kernel)
    assert kernel.ended


def test_what_is_not_known_keeps_orphans_as_harm_does() -> None:
    assert _harm(Trial(True, True)) == ""
    assert "stays for ever (tried" in _harm(Trial(False, False))
    unknown = _harm(Trial(why_unknown="it needs CAP_SYS_ADMIN"))
    assert "is unknown" in unknown
    assert "CAP_SYS_ADMIN" in unknown
