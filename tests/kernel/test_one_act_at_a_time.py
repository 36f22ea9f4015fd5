"""Acts that meet others: another finwait with another journal, the program itself, Ctrl-C, a disk that fills up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from finwait.acting.apply import apply
from finwait.acting.identity import namespaces_of
from finwait.acting.options import arm
from finwait.acting.probe import probe
from finwait.acting.undo import restore
from finwait.diagnosis import forecast
from finwait.diagnosis.view import View
from finwait.errors import KernelError, Refused
from finwait.kernel import netns as ns_edge
from finwait.kernel import pidfd, sysctl
from finwait.kernel.journal import SqliteJournal
from finwait.kernel.socket_locks import address_of, locked
from finwait.lab.topology import Lab, unmet
from finwait.remedy import plan as plans
from finwait.remedy.outcome import Outcome, Probe
from finwait.remedy.steps import step_of
from tests.kernel.acting_pair import Pair, cookie_of, planned, row_of, settled
from tests.kernel.needs import missing
from tests.kernel.test_cut_short import Full
from tests.kernel.test_options_of_sockets import all_options, steps_of
from tests.kernel.test_probe_command import options_of, start, until_armed

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


# ── keepalive by `clear` is the same as by `probe` ───────────────────────────────────────────────────────


@pytest.mark.parametrize("gone", [True, False])
def test_clear_with_keepalive_judges_as_a_probe_does_beside_a_user_timeout(
    journal: SqliteJournal, gone: bool
) -> None:
    """A TCP_USER_TIMEOUT of the program's own takes the place of the count: nothing would end within the wait."""
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        diagnosis = pair.look()
        cookie = cookie_of(diagnosis.view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        plan = planned(diagnosis, pair.ours, "keepalive")
        if gone:
            pair.link.cut()
        (outcome,) = apply(plan, journal, boot_id="", keepalive=(1, 1, 2))
        # Its other end hears nothing of this one's end: that is here, and still there.
        assert (outcome.result, outcome.other, outcome.this_end_gone) == (
            "still there",
            "ESTABLISHED" * gone,
            gone,
        )
        assert ("it is alive" in outcome.detail) == (not gone)
        assert ("this end is gone; the other end is still in ESTABLISHED" in outcome.detail) == gone
        assert options_of(pair.ours[0], cookie) == before
        entry = journal.get(outcome.act_id)
        assert entry.result == {"result": "dead" if gone else "alive", "restored": True}
        assert entry.why == "clear --with keepalive"


def test_what_an_act_put_back_itself_is_not_taken_back_again(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        steps, cookies = steps_of(pair, pair.ours)
        (found,) = probe(steps, journal, keepalive=(1, 1, 2))
        assert found.verdict == "alive"
        pair.near.setsockopt(pair.ours, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with pytest.raises(Refused, match="nothing to revert"):
            restore(journal.entries()[0].id, journal)
        assert options_of(pair.ours[0], cookies[0])["keepalive"] == 1


def test_an_mptcp_socket_has_no_user_timeout_and_that_is_an_error_of_ours() -> None:
    """A bare OSError would end the whole plan, and be taken for one of the output."""
    try:
        mptcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError:
        missing("the kernel has no MPTCP")
    with mptcp, pytest.raises(KernelError, match="user_timeout_ms of an MPTCP connection"):
        pidfd.get_options(mptcp)


# ── the program sets options meanwhile ───────────────────────────────────────────────────────────────────


def test_options_that_the_program_sets_during_a_probe_stay_as_it_set_them(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        steps, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)

        def meanwhile(stage: str) -> None:
            if stage == "armed":
                pair.near.setsockopt(pair.ours[:1], socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
                pair.near.setsockopt(pair.ours[:1], socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
                pair.near.setsockopt(pair.ours[:1], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

        found = probe(steps, journal, keepalive=(1, 1, 2), fault=meanwhile)
        own = {"keepidle": 30, "user_timeout_ms": 60_000, "keepalive": 1}
        assert dict(found[0].kept) == own
        assert (found[0].unrestored, found[1].kept) == ("", ())
        assert all_options(pair.ours, cookies) == [before[0] | own, before[1]]


def test_undo_of_an_act_that_was_cut_short_leaves_what_the_program_set_since(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        cookie = cookie_of(pair.look().view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        running = start(
            tmp_path, "probe", "--keepalive", "30/30/3", "--netns", str(pair.a.inode), "state established"
        )
        until_armed(pair.ours[0], cookie)
        running.kill()
        running.communicate(timeout=20)
        pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            said = restore(1, journal)
        assert "left as the program has set them since: user_timeout_ms=60000" in said
        assert options_of(pair.ours[0], cookie) == before | {"user_timeout_ms": 60_000}


# ── another finwait, another journal ─────────────────────────────────────────────────────────────────────


def test_two_journals_do_not_change_one_socket_at_once(tmp_path: Path) -> None:
    """Each would take the other's keepalive for the program's, and leave it there for ever."""
    with (
        Lab() as lab,
        SqliteJournal(tmp_path / "a.sqlite") as one,
        SqliteJournal(tmp_path / "b.sqlite") as other,
    ):
        pair = Pair(lab, 2)
        steps, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        second: list[Probe] = []
        armed: list[Outcome] = []

        def meanwhile(stage: str) -> None:
            if stage == "armed":
                second.extend(probe(steps, other, keepalive=(1, 1, 2)))
                armed.extend(arm(steps[:1], other, {"keepidle": 9}))

        (first,) = probe(steps[:1], one, keepalive=(4, 1, 2), fault=meanwhile)
        assert first.verdict == "alive"
        assert [p.verdict for p in second] == ["not judged", "alive"]
        assert f"holds the lock `{address_of(cookies[0])}`" in second[0].detail
        assert [o.result for o in armed] == ["failed"]
        assert all_options(pair.ours, cookies) == before
        assert one.incomplete() == other.incomplete() == []
        assert {p.verdict for p in probe(steps, other, keepalive=(1, 1, 2))} == {"alive"}


def test_a_lock_that_somebody_squats_keeps_every_act_away(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        steps, cookies = steps_of(pair, pair.ours)
        (done,) = arm(steps, journal, {"keepidle": 60})
        after = all_options(pair.ours, cookies)
        squatter = pair.a.call(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        with squatter:
            squatter.bind(address_of(cookies[0]).replace("@", "\0", 1))
            (refused,) = arm(steps, journal, {"keepidle": 90})
            assert refused.result == "failed"
            with pytest.raises(Refused, match="another program holds the lock"):
                restore(done.act_id, journal)
        assert all_options(pair.ours, cookies) == after
        assert "restored" in restore(done.act_id, journal)


def test_more_locks_than_descriptors_that_are_allowed_by_default() -> None:
    with Lab() as lab:
        space = lab.netns("alone")
        wanted = {(space.inode, cookie) for cookie in range(1, 1501)}
        with locked(namespaces_of({space.inode}), wanted) as refused:
            assert refused == {}
            with locked(namespaces_of({space.inode}), {(space.inode, 7)}) as again:
                assert list(again) == [(space.inode, 7)]
        with locked(namespaces_of({space.inode}), {(space.inode, 7)}) as freed:
            assert freed == {}
        with locked((), {(1, 7)}) as closed:
            assert "could not be entered" in closed[1, 7]


# ── who sent the RST ─────────────────────────────────────────────────────────────────────────────────────


def test_a_reset_of_a_firewall_is_not_said_to_be_the_peers(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        steps, _ = steps_of(pair, pair.ours)
        rule = f"tcp sport {pair.ours[0].sport} reject with tcp reset"
        table = f"table inet rejecting {{ chain i {{ type filter hook input priority 0; {rule}; }}; }}"
        pair.b.run("nft", table)
        ours, theirs = probe(steps, journal, keepalive=(1, 1, 3))
        assert ours.verdict == "reset", ours
        assert "still in ESTABLISHED: something on the path sent it" in ours.detail
        assert theirs.verdict == "alive"


def test_one_that_is_destroyed_here_during_a_probe_was_not_reset(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        steps, _ = steps_of(pair, pair.ours)
        pair.link.cut()

        def destroyed() -> None:
            pair.look(lambda v: bool(v.sockets.retrans[row_of(v, pair.ours[0])]))  # a probe is under way
            pair.a.run("ss", "-K", "sport", "=", f":{pair.ours[0].sport}")

        thread = threading.Thread(target=destroyed)
        (found,) = probe(
            steps, journal, keepalive=(1, 4, 3), fault=lambda s: thread.start() if s == "armed" else None
        )
        thread.join()
        assert (found.verdict, "no RST came" in found.detail) == ("gone", True), found


# ── what waits already ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shut", [False, True])
def test_what_waits_already_ends_when_it_is_predicted(journal: SqliteJournal, shut: bool) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        if shut:
            pair.near.fill(pair.ours[0])
        else:
            pair.link.cut()
            pair.near.send(pair.ours, "into the void")

        def ready(view: View) -> bool:
            row = row_of(view, pair.ours[0])
            armed = int(view.sockets.timer[row]) == (4 if shut else 1) and int(view.sockets.backoff[row]) >= 4
            return armed and int(view.sockets.expires_ms[row]) > 2000

        view = pair.look(ready).view
        asked = time.monotonic()
        row = row_of(view, pair.ours[0])
        one = forecast.under_way(view, row, 1000)
        assert one is not None
        assert one.ends_s is not None
        assert (one.window_shut, one.lives) == (shut, shut)
        (set_,) = arm([step_of(view, row, "", "user-timeout")], journal, {"user_timeout_ms": 1000})
        assert set_.result == "set"
        pair.look(lambda v: row_of(v, pair.ours[0]) < 0)
        assert abs(time.monotonic() - asked - one.ends_s) < 1.5, one


# ── Ctrl-C, and a disk that fills up ─────────────────────────────────────────────────────────────────────


def test_ctrl_c_stops_a_clear_and_the_journal_is_true(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab, 300)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = [
            "--with",
            "destroy",
            "--min-age",
            "0",
            "--max",
            "400",
            "--share",
            "1",
            "--rate",
            "40",
            "--yes",
        ]
        running = subprocess.Popen(
            [sys.executable, "-m", "finwait", "clear", "--netns", str(pair.a.inode), *words, "state fin-wait-2"],
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)},
        )  # fmt: skip
        pair.look(lambda v: sum(row_of(v, c) < 0 for c in pair.ours) >= 20)
        running.send_signal(signal.SIGINT)
        told, said = running.communicate(timeout=60)
        gone = {
            c.sport for c, state in zip(pair.ours, pair.states(pair.ours), strict=True) if state == "gone"
        }
        assert running.returncode == 130, said
        assert "interrupted; the acts done until then are these" in said
        assert 20 <= len(gone) < 250
        assert f"{len(gone)} ended" in told
        assert f"{300 - len(gone)} failed" in told
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            assert journal.incomplete() == []
            entries = journal.entries(limit=1000)
        ended = {e.target["sport"] for e in entries if (e.result or {}).get("result") == "ended"}
        assert ended == gone
        left = [e.result for e in entries if e.target["sport"] not in gone]
        assert left == [{"error": "interrupted before it was done"}] * len(left)
        assert len(set(pair.states(pair.ours))) == 2  # nothing goes on behind our back


def test_an_interrupted_visit_has_ended_before_the_interruption_goes_on() -> None:
    """Of one that acts: what it does after Ctrl-C would be done behind the journal's back."""
    entered, stop, ended = threading.Event(), threading.Event(), threading.Event()

    def look(_: ns_edge.NetNamespace) -> None:
        entered.set()
        stop.wait(20)
        ended.set()

    def interrupt() -> None:
        entered.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ns_edge.visit(namespaces_of({ns_edge.own_netns()}), look, stop=stop)
    thread.join()
    assert ended.is_set()


def test_a_sysctl_is_not_written_behind_an_interruption() -> None:
    entered, done = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            time.sleep(0.01)
        done.set()

    def interrupt() -> None:
        entered.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        sysctl.inside(None, 0, work)
    thread.join()
    assert done.is_set()


def test_verdicts_are_told_also_when_the_journal_cannot_take_them(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        steps, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        found: dict[int, Probe] = {}
        with pytest.raises(KernelError, match="ENOSPC"):
            probe(steps, Full(journal), keepalive=(1, 1, 2), into=found)
        assert [(p.verdict, p.unrestored) for p in found.values()] == [("alive", "")] * 2
        assert all_options(pair.ours, cookies) == before
        armed: dict[int, Outcome] = {}
        for entry in journal.incomplete():
            journal.complete(entry.id, {"result": "alive"})
        for entry in journal.entries():
            if entry.result is None:
                journal.complete(entry.id, {"result": "alive"})
        with pytest.raises(KernelError, match="ENOSPC"):
            arm(steps, Full(journal), {"keepidle": 60}, into=armed)
        assert [o.result for o in armed.values()] == ["set", "set"]


def test_a_probe_whose_disk_fills_up_says_what_it_found_and_that_options_are_as_before(
    tmp_path: Path,
) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        cookie = cookie_of(pair.look().view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        code = (
            "import sys\nfrom finwait.kernel import journal\nfrom finwait.errors import KernelError\n"
            "def full(*_):\n    raise KernelError(28, 'write the journal')\n"
            "journal.SqliteJournal.complete_many = full\n"
            "from finwait.cli import main\nsys.exit(main(sys.argv[1:]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "probe", "--keepalive", "1/1/2", "-o", "json", "--netns", str(pair.a.inode),
             "state established"],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env={**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert [p["verdict"] for p in json.loads(done.stdout)["items"]] == ["alive"]
        assert "every option is as it was before" in done.stderr
        assert "could not write the journal: the kernel said ENOSPC" in done.stderr
        assert options_of(pair.ours[0], cookie) == before


def test_a_fin_whose_turn_never_came_is_told_as_not_done(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.far.shutdown(pair.theirs, "WR")
        pair.near.read_to_end(pair.ours)
        diagnosis = settled(pair, pair.ours, "CLOSE_WAIT")
        plan: plans.Plan = planned(diagnosis, pair.ours, "fin")

        def stop(stage: str) -> None:
            if stage == "journaled":
                raise KeyboardInterrupt

        found: dict[int, Outcome] = {}
        with pytest.raises(KeyboardInterrupt):
            apply(plan, journal, boot_id="", fault=stop, into=found)
        assert [(o.result, o.detail) for o in found.values()] == [
            ("failed", "interrupted before it was done")
        ] * 2
        assert pair.states(pair.ours) == ["CLOSE_WAIT"] * 2
