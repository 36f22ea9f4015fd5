"""Every command that a rule prints is typed in the situation that the rule sees: it does what it says, or says why not.

What it may touch are the rows of the finding and their other ends; everything else must be as it was.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finwait import session
from finwait.diagnosis import catalogue
from finwait.diagnosis.view import Options
from finwait.kernel import procfs
from finwait.lab.scenario import Expected, Scenario, Situation, scenarios
from finwait.lab.topology import Lab, unmet
from finwait.session import Look
from finwait.uapi.observation import LookPlan
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]
OVER = ("gone", "TIME_WAIT", "CLOSE", "LAST_ACK")
"""The program has nothing to wait for any more."""


def overruled(command: str) -> str:
    """What a rule says in general needs leave where nothing proves yet that a peer has stopped reading."""
    slow = "zero-window" in command and "--override" not in command
    return command.replace("finwait clear", "finwait clear --override slow-reader") if slow else command


PRINTED = [
    pytest.param(scenarios()[rule.name], overruled(remedy.command), id=remedy.command)
    for rule in catalogue.rules()
    for remedy in rule.ends
    if remedy.command and not rule.rest
]


def evident(situation: Situation, scenario: Scenario) -> None:
    """Wait until the rule sees all that was built: failed retransmissions, ages."""
    options = Options() if scenario.idle_ms is None else Options(idle_ms=scenario.idle_ms)
    plan = LookPlan(only=frozenset(situation.namespaces.values()), established_limit=None)
    walled = frozenset(procfs.descriptors()[0].unreadable)
    end = time.monotonic() + 40
    while True:
        look = Look(plan=plan, options=options, watch_ms=scenario.watch_ms, not_holders=walled)
        found = session.diagnose(how=look).findings
        mine = [f for f in found if f.rule == scenario.name and f.primary and f.severity != "healthy"]
        if sum(f.count for f in mine) == len(situation.expected):
            return
        assert time.monotonic() < end, [f.rule for f in found]
        time.sleep(0.1)


def typed(situation: Situation, scenario: Scenario, state: Path, command: str, *more: str) -> str:
    words = shlex.split(command)[1:]
    options = [w for inode in situation.namespaces.values() for w in ("--netns", str(inode))]
    for pid in procfs.descriptors()[0].unreadable:
        options += ["--not-holder", str(pid)]
    if scenario.idle_ms is not None:
        options += ["--idle", f"{scenario.idle_ms}ms"]
    if words[0] == "clear":
        # As documented, but for what takes long: nobody waits for half a minute here.
        options += ["--yes", "--min-age", "0", "--share", "1", "--user-timeout", "1s"]
        options += ["--override", "handed-over"]  # which lasts for ten minutes
        options += ["--override", "unread"]  # on a busy machine it may not be known that nobody waits
    done = subprocess.run(
        [sys.executable, "-m", "finwait", words[0], *options, *more, *words[1:]],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=ROOT,
        env={**os.environ, "FINWAIT_STATE_DIR": str(state)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert all(len(line) <= 100 for line in done.stdout.splitlines()), done.stdout
    assert all(len(line) <= 100 for line in done.stderr.splitlines()), done.stderr
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


def state_now(situation: Situation, one: Expected) -> str:
    row = situation.rows().get(one.key)
    return "gone" if row is None else row.state


@pytest.mark.parametrize(("scenario", "command"), PRINTED)
def test_a_printed_command_does_what_it_says(scenario: Scenario, command: str, tmp_path: Path) -> None:
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        evident(situation, scenario)
        touched = {both_ends(e) for e in situation.expected}
        others = [e for e in (*situation.others, *situation.healthy) if both_ends(e) not in touched]
        before = {e.key: state_now(situation, e) for e in others}
        said = typed(situation, scenario, tmp_path, command)
        # Where nothing arrives, one end alone ends, and that is no full success.
        assert said.startswith("1\n" if "this end is gone; the other end is still in" in said else "0\n"), (
            said
        )
        if command.startswith("finwait probe"):
            probed(said, len(situation.expected))
            assert {e.key: state_now(situation, e) for e in others} == before
            return
        end = time.monotonic() + 20
        while left := [e for e in situation.expected if not over(e, state_now(situation, e))]:
            assert time.monotonic() < end, (left, said)
            time.sleep(0.1)
        assert {e.key: state_now(situation, e) for e in others} == before
        if "--with" not in command and scenario.name in GENTLE:
            assert "destroy" not in said


def probed(said: str, most: int) -> None:
    """Each connection that a process holds was judged: its peer is alive, or it is dead or reset."""
    verdicts = said.splitlines()[1]
    counted = {word: int(n) for n, word in re.findall(r"(\d+) ([a-z ]+?)(?:,|$)", verdicts)}
    assert counted, said
    assert counted.keys() <= {"alive", "dead", "reset"}, said
    assert 1 <= sum(counted.values()) <= most, said


def over(one: Expected, state: str) -> bool:
    return state in OVER and state != one.state


GENTLE = {"fin-wait2-held", "close-wait-eof-read", "close-wait-eof-unread", "relay-pair", "mptcp-half-close"}
"""Where both ends are here, as in the lab, nobody needs to see a RST."""


def both_ends(one: Expected) -> frozenset[tuple[str, int]]:
    """Return what the rows of both ends of a connection (and of MPTCP's subflows) have in common."""
    return frozenset(
        (address.removeprefix("::ffff:"), port)
        for address, port in ((one.src, one.sport), (one.dst, one.dport))
    )
