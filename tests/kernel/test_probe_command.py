"""`finwait probe` and `finwait arm` as they are typed: options come back, whatever ends the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finwait.acting.probe import probe
from finwait.kernel import pidfd
from finwait.kernel.journal import SqliteJournal
from finwait.lab.actor import ProgramSocket
from finwait.lab.scenario import scenarios
from finwait.lab.topology import Lab, unmet
from finwait.remedy.steps import step_of
from tests.kernel.acting_pair import Pair, cookie_of, row_of, settled
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "finwait", *words], text=True, cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "FINWAIT_STATE_DIR": str(folder)},
    )  # fmt: skip


def options_of(conn: ProgramSocket, cookie: int) -> dict[str, int]:
    with pidfd.borrowed(conn.actor.pid, conn.fd, inode=conn.inode, cookie=cookie) as sock:
        return pidfd.get_options(sock)


def until_armed(conn: ProgramSocket, cookie: int, keepidle: int = 30) -> None:
    end = time.monotonic() + 110  # a command starts in ten seconds or more on an emulated machine
    while options_of(conn, cookie)["keepidle"] != keepidle:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_probe_that_is_interrupted_puts_every_option_back(tmp_path: Path, number: signal.Signals) -> None:
    with Lab() as lab:
        pair = Pair(lab, 5)
        pair.near.setsockopt(pair.ours[:2], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        pair.near.setsockopt(pair.ours[1:3], socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 11)
        view = pair.look().view
        cookies = [cookie_of(view, c) for c in pair.ours]
        before = [options_of(c, k) for c, k in zip(pair.ours, cookies, strict=True)]
        where = ["--netns", str(pair.a.inode), "state established"]
        running = start(tmp_path, "probe", "--keepalive", "30/30/3", *where)
        until_armed(pair.ours[-1], cookies[-1])
        running.send_signal(number)
        _, said = running.communicate(timeout=20)
        assert running.returncode == 130, said
        assert "interrupted; every option is as it was before" in said
        assert [options_of(c, k) for c, k in zip(pair.ours, cookies, strict=True)] == before
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            assert journal.incomplete() == []
            assert {e.result["result"] for e in journal.entries()} == {"interrupted"}  # type: ignore[index]


def test_a_probe_that_is_killed_is_put_back_by_undo(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab, 3)
        view = pair.look().view
        cookies = [cookie_of(view, c) for c in pair.ours]
        before = [options_of(c, k) for c, k in zip(pair.ours, cookies, strict=True)]
        where = ["--netns", str(pair.a.inode), "state established"]
        running = start(tmp_path, "probe", "--keepalive", "30/30/3", *where)
        until_armed(pair.ours[-1], cookies[-1])
        running.kill()
        running.communicate(timeout=20)
        assert [options_of(c, k) for c, k in zip(pair.ours, cookies, strict=True)] != before
        undone = start(tmp_path, "undo", "--yes", "1-3")
        told, _ = undone.communicate(timeout=20)
        assert undone.returncode == 0
        assert told.count("restored ") == 3
        assert [options_of(c, k) for c, k in zip(pair.ours, cookies, strict=True)] == before


def test_a_thousand_connections_are_probed_at_once(tmp_path: Path) -> None:
    with Lab() as lab, SqliteJournal(tmp_path / "journal") as journal:
        pair = Pair(lab, 1000)
        view = pair.look().view
        cookies = [cookie_of(view, c) for c in pair.ours]
        before = [options_of(c, k) for c, k in zip(pair.ours, cookies, strict=True)]
        # Nobody is there any more for fifty of them: their RST got lost.
        pair.link.cut(a=True, b=False)
        pair.far.reset(pair.theirs[:50])
        pair.a.run("nft", "flush", "ruleset")
        steps = [step_of(view, row_of(view, c), "", "keepalive") for c in pair.ours]
        found = probe(steps, journal, keepalive=(1, 1, 3))
        verdicts = {p.step.sport: p.verdict for p in found}
        assert len(verdicts) == 1000
        assert {verdicts[c.sport] for c in pair.ours[:50]} == {"reset"}
        assert {verdicts[c.sport] for c in pair.ours[50:]} == {"alive"}
        after = [options_of(c, k) for c, k in zip(pair.ours[50:], cookies[50:], strict=True)]
        assert after == before[50:]
        assert journal.incomplete() == []


def test_a_live_subflow_of_mptcp_is_not_judged_and_nothing_of_it_is_set(tmp_path: Path) -> None:
    """The descriptor is the whole connection's, whose cookie is not the subflow's: that is no sign of an end."""
    if lacking := unmet(("mptcp",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        situation = scenarios()["mptcp-half-close"].build(lab).settle()
        inside = [w for ns in situation.namespaces.values() for w in ("--netns", str(ns))]
        words = [*inside, "-o", "json", "state established and sport = :8080"]
        told, said = start(tmp_path, "probe", "--keepalive", "1/1/2", *words).communicate(timeout=60)
        found = json.loads(told)["items"]
        assert len(found) == 3, said
        assert {p["verdict"] for p in found} == {"not judged"}
        assert all("a subflow of MPTCP" in p["detail"] for p in found)
        armed, said = start(tmp_path, "arm", "--yes", "--keepalive", "9/9/9", *words).communicate(timeout=60)
        items = json.loads(armed)["items"]
        assert {o["result"] for o in items} == {"failed"}, said
        assert all("a subflow of MPTCP" in o["detail"] for o in items)


def test_what_a_filter_selects_and_no_descriptor_leads_to_is_told(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.near.leave(pair.ours[:1])
        settled(pair, pair.theirs[:1], "CLOSE_WAIT")
        where = ["--netns", str(pair.a.inode), "--netns", str(pair.b.inode), "sport = :8080 or dport = :8080"]
        told, said = start(tmp_path, "probe", "-o", "json", *where).communicate(timeout=60)
        found = json.loads(told)
        assert len(found["items"]) == 3, said
        ((reason, n),) = [(one["reason"], one["count"]) for one in found["left_out"]]
        assert n == 1
        assert reason.startswith("no process holds them")
        assert f"finwait: left out, 1: {reason}" in said
        refused = start(tmp_path, "arm", "--keepalive", "9/9/9", *where[:4], "state fin-wait-2")
        _, said = refused.communicate(timeout=60)
        assert refused.returncode == 1
        assert "left out, 1: no process holds them" in said
        assert "selects no connection that a process holds" in said


def test_arm_shows_a_plan_that_can_be_read_and_then_does_it(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        words = [
            "arm",
            "--netns",
            str(pair.a.inode),
            "--keepalive",
            "60/15/5",
            "--user-timeout",
            "30s",
        ]
        shown, said = start(tmp_path, *words, "state established").communicate()
        assert "Would set, on 2 connections [reversible]:" in shown
        assert "noticed after 75 s of silence, with 1 unanswered probe\n" in shown
        assert "a connection with data in flight is dropped after 30 s (the user timeout)" in shown
        assert "with a user timeout of 127.5 to 135 s all 5 probes count" in shown
        assert f"in near (pid {pair.near.pid}), 2:" in shown
        assert "{" not in shown
        assert max(map(len, shown.splitlines())) < 100
        assert "nothing was done; add `--yes` to do it" in said
        view = pair.look().view
        one = pair.ours[0]
        assert options_of(one, cookie_of(view, one))["keepidle"] == 7200
        done, said = start(tmp_path, *words, "--yes", "state established").communicate()
        assert "2 set." in done, said
        assert max(map(len, done.splitlines())) <= 100
        assert options_of(one, cookie_of(view, one)) == {
            "keepidle": 60, "keepintvl": 15, "keepcnt": 5, "user_timeout_ms": 30_000, "keepalive": 1,
        }  # fmt: skip
        as_json, _ = start(tmp_path, *words, "-o", "json", "state established").communicate()
        plan = json.loads(as_json)
        assert plan["kind"] == "ArmPlan"
        assert [s["sport"] for s in plan["steps"]] == [c.sport for c in pair.ours]
        assert [(p["silence_s"], p["probes"]) for p in plan["predicted"]] == [(75.0, 1)] * 2
        back, _ = start(tmp_path, "undo", "--yes", "1-2").communicate()
        assert back.count("restored") == 2
        assert options_of(one, cookie_of(view, one))["keepidle"] == 7200


def test_a_user_timeout_of_less_than_a_millisecond_is_refused_and_0_says_what_it_does(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        words = ["arm", "--netns", str(pair.a.inode), "state established", "--user-timeout"]
        running = start(tmp_path, *words, "0.4ms")
        _, said = running.communicate(timeout=30)
        assert running.returncode == 2
        assert "less than 1 ms" in said
        told, _ = start(tmp_path, *words, "0").communicate(timeout=30)
        assert "user timeout: removed" in told


def test_arm_warns_also_when_it_does_it(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        words = [
            "arm",
            "--netns",
            str(pair.a.inode),
            "--keepalive",
            "60/15/5",
            "--user-timeout",
            "30s",
            "--yes",
        ]
        _, said = start(tmp_path, *words, "state established").communicate(timeout=30)
        assert "1 unanswered probe will end it" in said
        assert "with a user timeout of 127.5 to 135 s all 5 probes count" in said


@pytest.mark.parametrize("words", [["probe"], ["arm", "--yes", "--keepalive", "60/15/5"]])
def test_an_unknown_holder_is_not_called_no_holder(tmp_path: Path, words: list[str]) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        if lacking := unmet(("tool:setpriv",)):
            missing("; ".join(lacking))
        without = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"]
        command = [*without, sys.executable, "-m", "finwait", *words, "--netns", str(pair.a.inode)]
        environment = {**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)}
        done = pair.a.call(  # from inside: nothing else leads into it without that right
            lambda: subprocess.run(
                [*command, "state established"], text=True, cwd=ROOT, capture_output=True, check=False,
                stdin=subprocess.DEVNULL, env=environment,
            )
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert "selects no connection" not in done.stderr
        assert "holder of 1 connection that it selects is unknown" in done.stderr
        assert "CAP_SYS_PTRACE" in done.stderr


def test_who_may_not_look_into_a_namespace_is_not_told_that_nothing_is_there(tmp_path: Path) -> None:
    if lacking := unmet(("tool:setpriv",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        where = ["netns", "=", str(Pair(lab, 1).a.inode)]
        gate = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        done = subprocess.run(
            [*gate, sys.executable, "-m", "finwait", "probe", *where], cwd=ROOT, capture_output=True, text=True,
            timeout=60, stdin=subprocess.DEVNULL, env={**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)},
        )  # fmt: skip
        said = " ".join(done.stderr.split())
        assert done.returncode == 1, said
        assert "of this machine could not be seen, such as " in said
        assert "needs CAP_" in said
