"""Signals at the worst moments of acts, and undos that are cut short themselves: the journal and what is said are true.

The moments are exact: the command runs in a process in which the call that matters first sends the signals.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from finwait.acting.apply import apply
from finwait.acting.undo import restore
from finwait.errors import Refused
from finwait.kernel import sysctl
from finwait.kernel.journal import SqliteJournal
from finwait.kernel.socket_locks import address_of
from finwait.lab.topology import Lab, unmet
from finwait.remedy import plan as plans
from tests.kernel.acting_pair import Pair, cookie_of, planned, settled
from tests.kernel.needs import missing
from tests.kernel.test_options_of_sockets import all_options, steps_of

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]
LOOKED = (0, 3)
"""Done, or done where a process cannot be looked into."""
PROBED = ("probe", "--keepalive", "30/30/3")
CLEARED = (
    "clear",
    "--with",
    "keepalive",
    "--yes",
    "--share",
    "1",
    "--min-age",
    "0",
    "--override",
    "established",
)
ARMED = ("arm", "--keepalive", "60/15/5", "--yes")
TWO = (signal.SIGTERM, signal.SIGHUP)

COMMAND = """
import importlib, os, sys
from finwait.cli import main

where, name, at, numbers, *words = sys.argv[1:]
owner = importlib.import_module(where)
while "." in name:
    first, name = name.split(".", 1)
    owner = getattr(owner, first)
plain, calls = getattr(owner, name), 0

def called(*args, **kwargs):
    global calls
    calls += 1
    mine = calls == int(at)
    for number in numbers.split(",") if mine else ():
        os.kill(os.getpid(), int(number))
    try:
        return plain(*args, **kwargs)
    finally:
        for number in numbers.split(",") if mine else ():
            os.kill(os.getpid(), int(number))

setattr(owner, name, called)
sys.argv[1:] = words
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def finwait(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finwait", *words], capture_output=True, text=True, cwd=ROOT,
        stdin=subprocess.DEVNULL, env={**os.environ, "FINWAIT_STATE_DIR": str(folder)},
    )  # fmt: skip


def hit(
    folder: Path, where: str, at: int, numbers: tuple[signal.Signals, ...], *words: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that gets signals before and after the ``at``-th call of ``MODULE:NAME``."""
    sent = ",".join(str(int(number)) for number in numbers)
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *where.split(":"), str(at), sent, *words], capture_output=True, text=True,
        cwd=ROOT, stdin=subprocess.DEVNULL, env={**os.environ, "FINWAIT_STATE_DIR": str(folder)}, timeout=60,
    )  # fmt: skip


def own_options(pair: Pair) -> None:
    pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 900)
    pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12_345)
    pair.near.setsockopt(pair.ours, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def chosen(pair: Pair) -> tuple[str, ...]:
    return ("--netns", str(pair.a.inode), f"pid = {pair.ours[0].actor.pid}")


@pytest.mark.parametrize(
    ("words", "at"),
    [(PROBED, 2), (PROBED, 3), (("probe", "--keepalive", "1/1/2"), 5), (CLEARED, 2), (CLEARED, 4)],
    ids=str,
)
def test_signals_while_options_are_set_or_put_back_leave_none_behind(
    tmp_path: Path, words: tuple[str, ...], at: int
) -> None:
    """Of two connections: the first and second call confirm, the next two set, the last two put back."""
    with Lab() as lab:
        pair = Pair(lab, 2)
        own_options(pair)
        _, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        done = hit(tmp_path, "finwait.kernel.pidfd:set_options", at, TWO, *words, *chosen(pair))
        assert done.returncode == 130, done.stderr
        if at == 5:  # nothing was left to be done but to put back
            assert "2 alive" in done.stdout
        else:
            assert "interrupted" in done.stderr
        assert "Traceback" not in done.stderr
        assert all_options(pair.ours, cookies) == before
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            assert journal.incomplete() == []


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_arm_that_is_interrupted_is_told_as_far_as_it_went(tmp_path: Path, at: int) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        own_options(pair)
        _, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        done = hit(tmp_path, "finwait.kernel.pidfd:set_options", at, (signal.SIGINT,), *ARMED, *chosen(pair))
        assert done.returncode == 130, done.stderr
        changed = [now != was for now, was in zip(all_options(pair.ours, cookies), before, strict=True)]
        assert sum(changed) == max(0, at - 2)
        assert (f"{sum(changed)} set" in done.stdout) == any(changed)
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            assert journal.incomplete() == []
        for act, was_set in enumerate(changed, 1):
            assert finwait(tmp_path, "undo", str(act), "--yes").returncode == (0 if was_set else 4)
        assert all_options(pair.ours, cookies) == before


def test_an_undo_that_is_interrupted_ends_with_the_act_under_way(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab, 3)
        own_options(pair)
        _, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        assert finwait(tmp_path, *ARMED, *chosen(pair)).returncode in LOOKED
        armed = all_options(pair.ours, cookies)
        done = hit(tmp_path, "finwait.kernel.pidfd:_set_option", 2, (signal.SIGINT,), "undo", "1-3", "--yes")
        assert done.returncode == 130, done.stderr
        assert "act 3: restored" in done.stdout
        assert "interrupted; 2 acts (1 to 2) were not reverted" in done.stderr
        assert sum(now == was for now, was in zip(all_options(pair.ours, cookies), before, strict=True)) == 1
        assert sum(now == was for now, was in zip(all_options(pair.ours, cookies), armed, strict=True)) == 2
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            assert journal.incomplete() == []
        assert finwait(tmp_path, "undo", "1-2", "--yes").returncode == 0
        assert all_options(pair.ours, cookies) == before


@pytest.mark.parametrize("first", ["probe", "arm"])
@pytest.mark.parametrize("which", ["--incomplete", "1", "2"])
def test_an_undo_that_is_killed_is_finished_and_not_undone(tmp_path: Path, first: str, which: str) -> None:
    kill = (signal.SIGKILL,)
    with Lab() as lab:
        pair = Pair(lab)
        own_options(pair)
        _, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        if first == "arm":
            assert finwait(tmp_path, *ARMED, *chosen(pair)).returncode in LOOKED
        else:
            done = hit(tmp_path, "finwait.acting.probe:watch", 1, kill, *PROBED, *chosen(pair))
            assert done.returncode == -signal.SIGKILL
        done = hit(tmp_path, "finwait.kernel.pidfd:_set_option", 2, kill, "undo", "1", "--yes")
        assert done.returncode == -signal.SIGKILL
        assert all_options(pair.ours, cookies)[0]["keepalive"] == 0  # in the middle of it
        back = finwait(tmp_path, "undo", which, "--yes")
        assert back.returncode == 0, back.stderr
        assert "act 1: restored" in back.stdout
        assert all_options(pair.ours, cookies) == before
        assert finwait(tmp_path, "undo", "--incomplete", "--yes").stdout == "no act was interrupted\n"
        assert [finwait(tmp_path, "undo", n, "--yes").returncode for n in ("1", "2")] == [4, 4]
        assert all_options(pair.ours, cookies) == before


def test_a_probe_that_is_killed_while_it_arms_is_put_back_whole(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        own_options(pair)
        _, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        done = hit(tmp_path, "finwait.kernel.pidfd:_set_option", 6, (signal.SIGKILL,), *PROBED, *chosen(pair))
        assert done.returncode == -signal.SIGKILL
        assert all_options(pair.ours, cookies)[0]["keepalive"] == 0
        assert finwait(tmp_path, "undo", "--incomplete", "--yes").returncode == 0
        assert all_options(pair.ours, cookies) == before


@pytest.mark.parametrize("at", [1, 2])
def test_signals_while_the_journal_is_written_leave_no_act_open(tmp_path: Path, at: int) -> None:
    """The first is written before connections are destroyed, the second says what came of it."""
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        name = "record_many" if at == 1 else "complete_many"
        words = ("clear", "--with", "destroy", "--min-age", "0", "--share", "1", "--yes", *chosen(pair))
        done = hit(tmp_path, f"finwait.kernel.journal:SqliteJournal.{name}", 1, TWO, *words)
        assert done.returncode == 130, done.stderr
        assert ("2 failed" if at == 1 else "2 ended") in done.stdout
        assert set(pair.states(pair.ours)) == {"FIN_WAIT2" if at == 1 else "gone"}
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            assert journal.incomplete() == []


@pytest.mark.parametrize("name", ["apply", "rollback", "undo"])
def test_what_was_set_is_told_also_when_a_signal_came_meanwhile(tmp_path: Path, name: str) -> None:
    with Lab() as lab:
        where = lab.netns("tuned")
        lab.actor(where, "app")
        words = ["tune", "apply", "net.ipv4.tcp_fin_timeout=42", "--no-diagnosis", "--yes"]
        words += ["--netns", f"netns:{where.inode}"]
        if name != "apply":
            assert finwait(tmp_path, *words).returncode == 0
            words = ["undo", "1", "--yes"] if name == "undo" else ["tune", "rollback", "1", "--yes"]
        done = hit(tmp_path, "finwait.kernel.sysctl:apply", 1, (signal.SIGTERM,), *words)
        assert done.returncode == 130, done.stderr
        said = "tcp_fin_timeout: 60 -> 42" if name == "apply" else "tcp_fin_timeout: 42 -> 60"
        assert said in done.stdout
        assert ("undo with: finwait tune rollback 1" in done.stdout) == (name == "apply")
        with sysctl.open_target(where.fd) as target:
            now = sysctl.read(["net.ipv4.tcp_fin_timeout"], target).values["net.ipv4.tcp_fin_timeout"]
        assert now == ("42" if name == "apply" else "60")
        listed = finwait(tmp_path, "journal").stdout
        assert "net.ipv4.tcp_fin_timeout 60 → 42" in listed
        assert f"netns {where.inode}" in listed


def test_an_undo_of_settings_that_is_killed_is_finished(tmp_path: Path) -> None:
    key = "net.ipv4.tcp_fin_timeout"
    with Lab() as lab:
        where = lab.netns("tuned")
        lab.actor(where, "app")
        words = ("tune", "apply", f"{key}=42", "--no-diagnosis", "--yes", "--netns", f"netns:{where.inode}")
        assert finwait(tmp_path, *words).returncode == 0
        done = hit(tmp_path, "finwait.acting.sysctls:open_ones", 1, (signal.SIGKILL,), "undo", "1", "--yes")
        assert done.returncode == -signal.SIGKILL
        back = finwait(tmp_path, "undo", "--incomplete", "--yes")
        assert "act 1: nothing to restore" in back.stdout
        with sysctl.open_target(where.fd) as target:
            assert sysctl.read([key], target).values == {key: "60"}
        assert [finwait(tmp_path, "undo", n, "--yes").returncode for n in ("1", "2")] == [4, 4]


def test_force_takes_an_act_back_past_a_lock_and_says_so(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        steps, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        (done,) = apply(
            plans.Plan(0, "", tuple(msgspec.structs.replace(one, means="user-timeout") for one in steps)),
            journal,
            boot_id="",
        )
        squatter = pair.a.call(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        with squatter:
            squatter.bind(address_of(cookies[0]).replace("@", "\0", 1))
            with pytest.raises(Refused, match="another program holds the lock"):
                restore(done.act_id, journal)
            assert "without the lock, as --force says: another program" in restore(
                done.act_id, journal, force=True
            )
        assert all_options(pair.ours, cookies) == before


def test_an_inode_that_was_edited_is_no_accept(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        plan = planned(settled(pair, pair.ours, "FIN_WAIT2"), pair.ours, "destroy")
        (step,) = plan.steps
        edited = msgspec.structs.replace(step, inode=step.inode + 1)
        (outcome,) = apply(msgspec.structs.replace(plan, steps=(edited,)), journal, boot_id="")
        assert outcome.detail == f"its inode is {step.inode}, and not {step.inode + 1}, as the plan says"
        assert pair.states(pair.ours) == ["FIN_WAIT2"]
        assert cookie_of(pair.look().view, pair.ours[0])
