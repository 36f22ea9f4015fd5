"""Every scenario builds what it says, to the row, and leaves nothing behind.

The oracles are ``/proc/net/tcp``, ``/proc/PID/fd`` and `ss`; none of finwait's own decoders takes part.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from finwait.lab import actor, topology
from finwait.lab import scenario as scenario_module
from finwait.lab.scenario import Scenario, scenarios
from finwait.lab.topology import Lab, unmet

pytestmark = pytest.mark.kernel

SS_STATES = {
    "ESTAB": "ESTABLISHED",
    "FIN-WAIT-1": "FIN_WAIT1",
    "FIN-WAIT-2": "FIN_WAIT2",
}


def require(needs: tuple[str, ...]) -> None:
    """Skip, or fail where the kernel tests are promised, when the machine lacks something."""
    if missing := unmet(needs):
        (pytest.fail if os.environ.get("FINWAIT_KERNEL_TESTS") == "1" else pytest.skip)("; ".join(missing))


@pytest.fixture(params=sorted(scenarios()))
def scenario(request: pytest.FixtureRequest) -> Scenario:
    found = scenarios()[request.param]
    require(found.needs)
    return found


def links(pid: str) -> dict[str, str]:
    """Return the links to a process's network namespace and of its descriptors; none of one that has ended.

    `Path.glob` would not do: where a process ends under it, it raises.
    """
    found = {}
    try:
        path = f"/proc/{pid}/ns/net"
        found[path] = os.readlink(path)
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for name in names:
        with contextlib.suppress(OSError):  # closed meanwhile
            path = f"/proc/{pid}/fd/{name}"
            found[path] = os.readlink(path)
    return found


def namespace_alive(inode: int) -> bool:
    """Whether any process or descriptor on this machine still refers to the network namespace."""
    return any(f"net:[{inode}]" in links(pid).values() for pid in os.listdir("/proc") if pid.isdigit())


def test_a_process_that_ends_while_it_is_looked_into_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each process ended between the list of all and the look into it."""
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if path.endswith("/fd"):
            raise FileNotFoundError(2, "gone", path)
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", listdir)
        assert not namespace_alive(1)
    assert namespace_alive(os.stat("/proc/self/ns/net").st_ino)


def test_a_scenario_has_exactly_its_rows_and_leaves_nothing(scenario: Scenario) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        rows = situation.rows()
        wanted = [one for one in situation.all if one.state != "CLOSE"]
        assert len({one.key for one in wanted}) == len(wanted)
        assert {one.key for one in wanted} == set(rows)
        assert not situation.missing()

        for netns in lab.namespaces.values():
            assert situation.namespaces[netns.name] == netns.inode
            shown = netns.run("ss", "-H", "-t", "-n", "-a", "-O").splitlines()
            names = [line.split()[0] for line in shown]
            states = Counter(SS_STATES.get(name, name.replace("-", "_")) for name in names)
            del states["LISTEN"]
            here = (row.state for key, row in rows.items() if key[:2] == (netns.inode, 6))
            assert states == Counter(state for state in here if state != "LISTEN")

        for one in situation.all:
            for pid, fd in one.owners:
                assert os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{one.inode}]"
                assert os.stat(f"/proc/{pid}/ns/net").st_ino in situation.namespaces.values()
        pids = [actor.pid for actor in lab.actors] + [pid for one in situation.all for pid, _ in one.owners]
        inodes = list(situation.namespaces.values())

    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    end = time.monotonic() + 60  # another finwait of this machine may be looking into it just now
    while left := [inode for inode in inodes if namespace_alive(inode)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_rule_names_and_the_modules_agree() -> None:
    package = Path(__file__).parents[2] / "src/finwait/lab/scenarios"
    modules = {path.stem.replace("_", "-") for path in package.glob("*.py") if path.stem != "__init__"}
    assert modules == set(scenarios())


def test_the_page_about_the_lab_has_every_scenario_with_its_title() -> None:
    page = (Path(__file__).parents[2] / "docs/explanation/lab.md").read_text()
    lines = [f"| `{one.name}` | {one.title} |" for one in scenarios().values()]
    assert [line for line in lines if line not in page] == []


def build_in_a_process(name: str) -> tuple[int, int]:
    """Return how many rows were expected and how many four-tuples they have."""
    with Lab() as lab:
        situation = scenarios()[name].build(lab).settle()
        return len(situation.expected), len({one.key for one in situation.expected})


def test_two_labs_of_one_scenario_at_once_do_not_meet() -> None:
    require(("netns",))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        results = list(pool.map(build_in_a_process, ["fin-wait2-held"] * 4))
    assert results == [(23, 23)] * 4


def test_the_command_lists_every_scenario() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "finwait.lab", "list"], capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in listed.stdout.splitlines()] == sorted(scenarios())


@pytest.mark.parametrize("name", ["fin-wait2-held", "close-wait-eof-read"])
def test_without_ipv6_a_scenario_is_built_on_ipv4_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``ipv6.disable=1``: no socket of that family, no address, no table."""
    for module in (actor, topology, scenario_module):
        monkeypatch.setattr(module, "has_ipv6", lambda: False)
    with Lab() as lab:
        situation = scenarios()[name].build(lab).settle()
        assert {one.family for one in situation.all} == {int(socket.AF_INET)}
        for netns in lab.namespaces.values():
            assert "fd66:" not in netns.run("ip", "-6", "addr")
