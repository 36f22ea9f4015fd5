"""A lab is what it says, is alone, and leaves nothing behind, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finwait.errors import KernelError, TargetGone
from finwait.kernel import destroy_trial
from finwait.lab.actor import meet
from finwait.lab.scenario import Situation, orphan, read_rows, scenarios
from finwait.lab.topology import Lab, LabError, Netns, unmet
from tests.kernel.test_lab_scenarios import links

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        bool(unmet(("netns",))) and os.environ.get("FINWAIT_KERNEL_TESTS") != "1",
        reason="; ".join(unmet(("netns",))),
    ),
]


def require(*needs: str) -> None:
    """Skip, or fail where the kernel tests are promised, when the machine lacks something."""
    if missing := unmet(needs):
        (pytest.fail if os.environ.get("FINWAIT_KERNEL_TESTS") == "1" else pytest.skip)("; ".join(missing))


def holders(inode: int) -> list[str]:
    """The /proc links that still lead to a network namespace."""
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    return [link for pid in pids for link, target in links(pid).items() if target == f"net:[{inode}]"]


def until(condition: Callable[[], bool], what: str, deadline_s: float = 60) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def pids_in(inode: int) -> list[int]:
    return [int(link.split("/")[2]) for link in holders(inode) if link.endswith("/ns/net")]


def test_an_exception_inside_a_lab_leaves_nothing() -> None:
    inodes: list[int] = []

    def fail_half_way() -> None:
        with Lab() as lab:
            scenarios()["inherited-descriptor"].build(lab)
            inodes.extend(netns.inode for netns in lab.namespaces.values())
            assert all(pids_in(inode) for inode in inodes)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_half_way()
    assert [holders(inode) for inode in inodes] == [[], []]


def kept_run(name: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start ``run NAME --keep`` and wait until it says which namespaces it has."""
    program = subprocess.Popen(
        [sys.executable, "-m", "finwait.lab", "run", name, "--keep"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stderr is not None
    assert "until you press Ctrl-C" in program.stderr.readline()
    words = [program.stderr.readline().split() for _ in range(2)]
    return program, [int(line[line.index("netns") + 1]) for line in words]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + 15), (signal.SIGINT, 0), (signal.SIGKILL, -9)]
)
def test_a_lab_that_is_ended_by_a_signal_leaves_nothing(number: int, status: int) -> None:
    program, inodes = kept_run("inherited-descriptor")
    with program:
        pids = [pid for inode in inodes for pid in pids_in(inode)]
        assert len(pids) == 3, "client, service and its child"
        program.send_signal(number)
        assert program.wait(20) == status
    until(lambda: not any(holders(inode) for inode in inodes), "the namespaces stay")


@pytest.mark.parametrize("kernel", ["this one", "one that harms orphans"])
def test_an_orphan_on_a_dead_path_does_not_keep_its_namespace(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for long, that is: where SOCK_DESTROY would leave it without a timer, it ends at its next retransmission."""
    asked: list[str] = []
    if kernel != "this one":
        monkeypatch.setattr(destroy_trial, "tried", lambda: destroy_trial.Trial(False, False))
        run = Netns.run

        def noted(self: Netns, *words: str, stdin: str = "", fds: Sequence[int] = ()) -> str:
            asked.extend(words)
            return run(self, *words, stdin=stdin, fds=fds)

        monkeypatch.setattr(Netns, "run", noted)
    with Lab() as lab:
        client, server = lab.netns("client"), lab.netns("server")
        link = lab.link(client, server)
        app, backend = lab.actor(client, "app"), lab.actor(server, "backend")
        near, _ = meet(app, link.b4, backend, backend.listen(link.b4))
        link.cut()
        app.close(near)
        Situation(lab, "", orphan("", near, "FIN_WAIT1")).settle()
        watch = os.dup(client.fd)
    # The lab has let go; through our own descriptor the namespace can still be looked at.
    client.fd = watch
    try:
        assert "-K" not in asked
        at_once = destroy_trial.tried().ends_orphans
        until = time.monotonic() + (0 if at_once else 60)
        while (rows := read_rows(client)) and time.monotonic() < until:
            time.sleep(0.05)
        assert rows == []
        assert [line.split(":")[1] for line in client.run("ip", "-o", "link").splitlines()] == [" lo"]
    finally:
        os.close(watch)
        client.fd = -1


def test_the_caller_stays_where_it_was() -> None:
    here = os.stat("/proc/self/ns/net").st_ino

    def only_here() -> bool:
        """Whether all threads are; one that was joined may take a moment to be gone from /proc."""
        found = set()
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.stat(f"/proc/self/task/{task}/ns/net").st_ino)
        return found == {here}

    descriptors = len(os.listdir("/proc/self/fd"))
    with Lab() as lab:
        netns = lab.netns("elsewhere")
        assert netns.call(lambda: os.stat("/proc/thread-self/ns/net").st_ino) == netns.inode
        until(only_here, "a thread stays in the foreign namespace")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_two_labs_of_one_process_have_different_networks() -> None:
    with Lab() as one, Lab() as two:
        links = [lab.link(lab.netns("a"), lab.netns("b")) for lab in (one, two)]
        addresses = [address for link in links for address in (link.a4, link.b4, link.a6, link.b6)]
        assert len(set(addresses)) == 8
        assert one.link(one.namespaces["a"], one.namespaces["b"]).a4 not in addresses


def test_a_program_shows_the_name_and_arguments_it_was_given() -> None:
    with Lab() as lab:
        actor = lab.actor(lab.netns("a"), "kube-proxy", "kube-proxy", "--proxy-mode=userspace", "-v 2")
        process = Path(f"/proc/{actor.pid}")
        assert process.joinpath("comm").read_text() == "kube-proxy\n"
        shown = process.joinpath("cmdline").read_bytes()
        assert shown.rstrip(b"\0").split(b"\0") == [b"kube-proxy", b"--proxy-mode=userspace", b"-v 2"]
        assert shown.endswith(b"\0")


def test_five_thousand_connections_are_five_thousand_rows() -> None:
    with Lab() as lab:
        client, server = lab.netns("client"), lab.netns("server")
        link = lab.link(client, server)
        app, backend = lab.actor(client, "app"), lab.actor(server, "backend")
        near, far = meet(app, link.b4, backend, backend.listen(link.b4), 5000)
        assert [(conn.sport, conn.dport) for conn in near] == [(conn.dport, conn.sport) for conn in far]
        assert len({conn.inode for conn in (*near, *far)}) == 10_000
        for netns in (client, server):
            shown = netns.run("ss", "-H", "-t", "-n", "state", "established").splitlines()
            assert len(shown) == len(read_rows(netns)) == 5000


def test_connection_tracking_runs_only_where_a_rule_needs_it() -> None:
    require("tool:nft", "tool:conntrack")
    with Lab() as lab:
        place = lab.translated()
        near, _ = meet(place.client, place.address, place.backend, place.door, 3)
        place.client.send(near, "x")
        counts = {
            name: netns.call(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text).strip()
            for name, netns in lab.namespaces.items()
        }
        assert counts == {"client": "0", "gateway": "3", "server": "0"}


def test_a_refused_connection_is_an_error_that_says_who_and_where() -> None:
    with Lab() as lab:
        netns = lab.netns("a")
        actor = lab.actor(netns, "app")
        with pytest.raises(KernelError, match="`app` connect") as caught:
            actor.connect("127.0.0.1", 9)
        assert caught.value.errno == errno.ECONNREFUSED
        assert str(netns.inode) in str(caught.value)
        actor.kill()
        with pytest.raises(TargetGone):
            actor.connect("127.0.0.1", 9)


def test_a_command_that_fails_is_an_error_with_what_it_said() -> None:
    with Lab() as lab:
        netns = lab.netns("a")
        said = subprocess.run(
            ["ip", "link", "set", "nothing", "up"], capture_output=True, text=True, check=False
        )
        with pytest.raises(LabError, match=re.escape(said.stderr.strip())):
            netns.ip("link set nothing up")
        with pytest.raises(LabError, match="not installed"):
            netns.run("finwait-no-such-command")
        with pytest.raises(ValueError, match="exists already"):
            lab.netns("a")


def test_a_named_lab_is_listed_by_ip_netns_and_forgotten_afterwards() -> None:
    prefix = f"finwait-test-{os.getpid()}"
    bound = Path("/run/netns") / f"{prefix}-a"
    if not os.access("/run", os.W_OK) or os.stat("/proc/self/ns/user").st_ino != 0xEFFFFFFD:
        pytest.skip("needs CAP_SYS_ADMIN in the first user namespace, to mount")
    with Lab(prefix) as lab:
        netns = lab.netns("a")
        assert bound.stat().st_ino == netns.inode
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
        assert bound.name in listed.stdout.split()
    assert not bound.exists()


def test_a_cgroup_is_entered_and_removed() -> None:
    require("cgroup2")
    with Lab() as lab:
        where = lab.cgroup("kubepods.slice/pod1.slice")
        actor = lab.actor(lab.netns("a"), "app", cgroup=where)
        assert str(actor.pid) in where.joinpath("cgroup.procs").read_text().split()
        lines = Path(f"/proc/{actor.pid}/cgroup").read_text().splitlines()
        unified = next(line[3:] for line in lines if line.startswith("0::"))
        assert str(where).endswith(unified)
    assert not where.parent.parent.exists()
