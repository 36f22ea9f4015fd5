"""The trial on throwaways with the running kernel: it agrees with the destroy matrix, and leaves nothing."""

from __future__ import annotations

import os
import threading

import pytest

from finwait.kernel import destroy_trial
from finwait.kernel.destroy_trial import Trial, judge
from finwait.lab.topology import Lab, unmet
from finwait.uapi.inet_diag import SocketId
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:ss")):
        missing("; ".join(lacking))


class OlderKernel(destroy_trial._Loopback):
    """The running kernel, whose SOCK_DESTROY does nothing to what it finds."""

    def destroy(self, whom: SocketId) -> int:
        return 0 if self.is_there(whom) else 2


def test_a_throwaway_that_stays_is_noticed_and_ended_by_its_peer() -> None:
    with Lab() as lab:
        place = lab.netns("place")
        assert place.call(lambda: judge(OlderKernel())) == Trial(False, False)
        left = place.run("ss", "-tanH").split("\n")
        assert not [line for line in left if line and not line.startswith("TIME-WAIT")]


def test_what_the_trial_says_is_what_this_kernel_does() -> None:
    destroy_trial.tried.cache_clear()
    found = destroy_trial.tried()
    assert found.why_unknown == ""
    assert None not in (found.ends_orphans, found.ends_minisockets)
    with Lab() as lab:
        place = lab.netns("place")
        assert place.call(lambda: judge(destroy_trial._Loopback())) == found


def test_without_cap_sys_admin_a_child_tries_it_in_a_user_namespace() -> None:
    child = destroy_trial._in_child()
    if child.why_unknown:
        assert "CAP_SYS_ADMIN" in child.why_unknown
        missing("user namespaces are forbidden here")
    assert child == destroy_trial.tried()


def test_no_thread_and_no_namespace_of_it_is_left() -> None:
    destroy_trial.tried.cache_clear()
    before = os.stat("/proc/thread-self/ns/net").st_ino
    threads = threading.active_count()
    destroy_trial.tried()
    assert threading.active_count() == threads
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
