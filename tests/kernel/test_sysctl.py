import os
import subprocess
import sys
import threading

import pytest

from finwait.errors import KernelError
from finwait.kernel import sysctl
from finwait.lab import Lab
from finwait.remedy.settings.catalogue import CATALOGUE
from finwait.remedy.settings.model import Scope
from tests.kernel import needs

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs():
    needs.root_and()


FIN, ORPHANS, RFC = "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_orphan_retries", "net.ipv4.tcp_rfc1337"


@pytest.fixture
def target():
    with Lab() as lab, sysctl.open_target(lab.netns("tuned").fd) as found:
        yield found


def values(*keys, at):
    return dict(sysctl.read(keys, at).values)


WIDER = ("net.netfilter.nf_conntrack_tcp_max_retrans",)
"""What older kernels (5.10) take any number for; the catalogue keeps to what all of them take."""


@pytest.mark.parametrize("setting", CATALOGUE, ids=lambda s: s.key)
def test_a_setting_has_the_scope_default_and_range_that_the_catalogue_says(setting, target):
    here = sysctl.read([setting.key], target)
    if setting.scope is Scope.INIT_ONLY:
        assert not here.values
        return
    if setting.key not in here.values:
        pytest.skip(f"this kernel or namespace has no {setting.key}")
    if setting.scope is Scope.INIT_WRITES:
        assert here.read_only == {setting.key}
        return
    assert not here.read_only
    if setting.key != "net.ipv4.tcp_max_tw_buckets":  # computed from memory
        assert here.values[setting.key] == str(setting.default)
    for edge in (setting.low, setting.high):
        with sysctl.temporarily({setting.key: str(edge)}, target) as applied:
            assert applied.after[setting.key] == str(edge)
    for beyond in (setting.low - 1, setting.high + 1):
        if setting.low == -1 and beyond < -1:
            continue  # jiffies: the kernel takes negative times down to a bound that depends on HZ
        try:
            with sysctl.temporarily({setting.key: str(beyond)}, target):
                taken = True
        except KernelError:
            taken = False
        assert not taken or setting.key in WIDER
    assert values(setting.key, at=target) == here.values


def test_a_namespace_does_not_take_over_the_values_of_the_one_it_was_made_from(target):
    from finwait.lab.topology import Netns

    sysctl.apply({FIN: "7"}, target)
    with Lab() as lab:
        inner = lab.netns("fresh")
        with sysctl.open_target(inner.fd) as fresh:
            assert values(FIN, at=fresh) == {FIN: "60"}
        assert isinstance(inner, Netns)
    assert values(FIN, at=target) == {FIN: "7"}


def test_several_values_are_set_or_none(target):
    sysctl.apply({FIN: "31", RFC: "1"}, target)
    with pytest.raises(KernelError) as caught:
        sysctl.apply({FIN: "32", RFC: "0", ORPHANS: "999"}, target)
    assert "restored" in caught.value.hint
    assert ORPHANS in str(caught.value)
    assert values(FIN, RFC, ORPHANS, at=target) == {FIN: "31", RFC: "1", ORPHANS: "0"}


def test_nothing_is_written_when_a_sysctl_is_missing(target):
    with pytest.raises(KernelError):
        sysctl.apply({FIN: "32", "net.ipv4.tcp_no_such_thing": "1"}, target)
    assert values(FIN, at=target) == {FIN: "60"}


def test_nothing_is_written_when_a_value_changed_since_the_plan(target):
    sysctl.apply({RFC: "1"}, target)
    with pytest.raises(KernelError, match="not 0 as when the plan was made"):
        sysctl.apply({FIN: "32", RFC: "0"}, target, expected={FIN: "60", RFC: "0"})
    assert values(FIN, RFC, at=target) == {FIN: "60", RFC: "1"}


def test_a_block_that_fails_leaves_the_old_values(target):
    def fail():
        with sysctl.temporarily({FIN: "33", RFC: "1"}, target):
            assert values(FIN, at=target) == {FIN: "33"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert values(FIN, RFC, at=target) == {FIN: "60", RFC: "0"}


def test_the_caller_stays_where_it_is_and_no_thread_or_descriptor_is_left(target):
    here = os.stat("/proc/thread-self/ns/net").st_ino
    outside = sysctl.read([FIN]).values
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for value in ("34", "35"):
        sysctl.apply({FIN: value}, target)
    with pytest.raises(KernelError):
        sysctl.apply({FIN: "x"}, target)
    assert os.stat("/proc/thread-self/ns/net").st_ino == here != target.inode
    assert sysctl.read([FIN]).values == outside
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, fds)


def test_a_namespace_is_found_by_descriptor_path_pid_and_inode(target):
    with Lab() as lab:
        actor = lab.actor(lab.netns("there"), "holder")
        inode = lab.namespaces["there"].inode
        for spec in (lab.namespaces["there"].fd, f"pid:{actor.pid}", f"/proc/{actor.pid}/ns/net", f"netns:{inode}",
                     str(inode)):  # fmt: skip
            with sysctl.open_target(spec) as found:
                assert found.inode == inode
                assert not found.initial
                assert found.cookie != target.cookie or not found.cookie  # before 5.14 there are none
        everywhere, _ = sysctl.all_targets()
        for found in everywhere:
            found.close()
        assert len({t.inode for t in everywhere}) == len(everywhere)
        assert {inode, target.inode} <= {t.inode for t in everywhere}


def test_what_is_no_namespace_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(KernelError):
        sysctl.open_target(str(tmp_path / "file"))
    with pytest.raises(KernelError):
        sysctl.open_target("no-such-namespace-here")
    with pytest.raises(KernelError):
        sysctl.open_target("netns:1")
    with pytest.raises(KernelError):
        sysctl.pod_target("00000000-0000-0000-0000-00000000dead")
    with pytest.raises(ValueError, match="uid"):
        sysctl.pod_target("../../etc")
    with open(os.devnull) as file, pytest.raises(KernelError):
        sysctl.open_target(file.fileno())


def test_a_plain_user_reads_his_own_namespace_and_is_told_what_he_needs_to_set_it():
    code = (
        "import os\n"
        "from finwait.errors import PermissionNeeded\n"
        "from finwait.kernel import sysctl\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "with sysctl.open_target() as own:\n"
        f"    print(sysctl.read(['{FIN}'], own).values['{FIN}'])\n"
        "    try: sysctl.apply({'" + FIN + "': '59'}, own)\n"
        "    except PermissionNeeded as error: print(error.hint)\n"
    )
    if os.geteuid() != 0:
        pytest.skip("giving up root needs root")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    value, hint = done.stdout.splitlines()
    assert value == sysctl.read([FIN]).values[FIN]
    assert hint.startswith("needs root in the namespace")


def test_a_descriptor_that_is_closed_names_no_namespace():
    found = sysctl.open_target()
    found.close()
    found.close()
    with pytest.raises(ValueError, match="already closed"):
        sysctl.read([FIN], found)
