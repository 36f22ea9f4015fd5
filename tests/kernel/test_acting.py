"""Acting: the right connection ends, its peer is told what the plan said, everything else stays as it was."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from finwait import session
from finwait.acting.apply import apply, batches
from finwait.acting.borrowed import borrow
from finwait.acting.identity import namespaces_of
from finwait.acting.options import arm
from finwait.acting.probe import probe
from finwait.acting.undo import restore
from finwait.diagnosis.rule import Means
from finwait.diagnosis.view import View
from finwait.errors import FinwaitError, Refused, TargetGone
from finwait.kernel import pidfd, procfs
from finwait.kernel.destroy import GONE, Target, destroy
from finwait.kernel.journal import SqliteJournal
from finwait.lab.actor import ProgramSocket
from finwait.lab.topology import Lab, unmet
from finwait.remedy import making
from finwait.remedy import plan as plans
from finwait.remedy.guards import Limits
from finwait.remedy.steps import step_of
from finwait.session import Look
from finwait.uapi import inet_diag, tcp
from finwait.uapi.observation import LookPlan
from tests.kernel.acting_pair import Pair, cookie_of, planned, row_of, settled, state_of
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def test_a_held_half_close_is_destroyed_and_its_peer_is_told(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab, 3)
        pair.near.shutdown(pair.ours[:2], "WR")
        diagnosis = settled(pair, pair.ours[:2], "FIN_WAIT2")
        outcomes = apply(planned(diagnosis, pair.ours[:2], "destroy"), journal, boot_id="")
        assert [o.result for o in outcomes] == ["ended", "ended"]
        assert [o.step.means for o in outcomes] == ["destroy", "destroy"]
        assert [(o.other, o.detail) for o in outcomes] == [("gone", "both ends are gone")] * 2
        assert {(pid, fd) for o in outcomes for pid, fd, _ in o.stays_open} == {
            c.owner for c in pair.ours[:2]
        }
        assert pair.states(pair.ours) == ["gone", "gone", "ESTABLISHED"]  # the third is nobody's business
        assert pair.states(pair.theirs) == ["gone", "gone", "ESTABLISHED"]
        assert journal.get(outcomes[0].act_id).result == {"result": "ended", "detail": outcomes[0].detail}


def test_a_half_close_whose_other_end_is_here_is_finished_from_there_without_a_reset(
    journal: SqliteJournal,
) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.near.shutdown(pair.ours[:1], "WR")
        pair.far.read_to_end(pair.theirs[:1])
        settled(pair, pair.theirs[:1], "CLOSE_WAIT")
        plan = planned(settled(pair, pair.ours[:1], "FIN_WAIT2"), pair.ours[:1])
        (step,) = plan.steps
        assert (step.means, step.sport) == ("fin", pair.theirs[0].sport)
        assert step.selected is not None
        assert step.selected.sport == pair.ours[0].sport
        (outcome,) = apply(plan, journal, boot_id="")
        assert (outcome.result, outcome.detail) == ("ended", "both ends are gone")
        assert pair.near.await_reset(pair.ours[:1]) == 0  # end of file, no error
        assert pair.states([*pair.ours, *pair.theirs]) == ["gone", "ESTABLISHED", "gone", "ESTABLISHED"]


def test_a_fin_that_queues_up_behind_data_is_not_said_to_be_out(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        pair.far.read_to_end(pair.theirs)
        pair.far.fill(pair.theirs[0])
        full = pair.look(
            lambda v: int(v.sockets.timer[row_of(v, pair.theirs[0])]) == 4
        )  # nothing moves any more
        plan = planned(full, pair.theirs, "fin", override=frozenset({"slow-reader"}))
        (outcome,) = apply(plan, journal, boot_id="")
        assert outcome.result == "still there", outcome
        assert "the FIN waits behind " in outcome.detail
        view = pair.look().view
        row = int(np.flatnonzero(view.sockets.cookie == int(plan.steps[0].cookie, 16))[0])
        assert f" {int(view.sockets.wqueue[row]) - 1} bytes" in outcome.detail
        assert view.sockets.notsent_bytes[row] > 1


def test_a_close_wait_leak_gets_a_fin_and_the_peer_sees_a_proper_end(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        pair.far.read_to_end(pair.theirs)
        diagnosis = settled(pair, pair.theirs, "CLOSE_WAIT")
        (outcome,) = apply(planned(diagnosis, pair.theirs), journal, boot_id="")
        assert (outcome.step.means, outcome.result) == ("fin", "ended")
        assert pair.near.await_reset(pair.ours) == 0  # end of file, no error


@pytest.mark.parametrize("state", ["ESTABLISHED", "FIN_WAIT2", "CLOSE_WAIT"])
def test_the_peer_of_a_destroyed_connection_gets_a_reset(journal: SqliteJournal, state: str) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        mine, peer, other = pair.ours, pair.far, pair.theirs
        if state == "FIN_WAIT2":
            pair.near.shutdown(pair.ours, "WR")
        elif state == "CLOSE_WAIT":
            pair.far.shutdown(pair.theirs, "WR")
        diagnosis = settled(pair, mine, state)
        (outcome,) = apply(planned(diagnosis, mine, "destroy"), journal, boot_id="")
        assert outcome.result == "ended"
        assert "RST" in outcome.step.peer_told
        settled(pair, other, "gone")
        assert pair.states(other) == ["gone"]
        assert peer.await_reset(other) in (0, errno.ECONNRESET, errno.EPIPE)
        if state == "ESTABLISHED":
            assert peer.netns is pair.b


def test_a_minisocket_is_destroyed_in_silence_as_the_plan_says(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.leave(pair.ours)
        diagnosis = pair.look(
            lambda v: bool(((v.sockets.state == tcp.FIN_WAIT2) & (v.sockets.timer == 3)).any())
        )
        view = diagnosis.view
        mask = (view.sockets.state == tcp.FIN_WAIT2) & (view.sockets.timer == 3)
        plan = making.make(view, diagnosis.findings, mask, Limits(override=frozenset({"minisocket"})))
        assert plan.steps[0].peer_told.startswith("nothing")
        (outcome,) = apply(plan, journal, boot_id="")
        assert outcome.result == "ended"
        assert pair.states(pair.theirs) == ["CLOSE_WAIT"]  # stranded: which is why the guard is there


def test_another_cookie_is_never_hit() -> None:
    with Lab() as lab:
        pair = Pair(lab)
        view = pair.look().view
        row = row_of(view, pair.ours[0])
        s = view.sockets
        cookie = int(s.cookie[row])
        addresses = [int(s[name][row][1]) & 0xFFFFFFFF for name in ("src", "dst")]
        for wrong in (cookie + 1, cookie ^ 1 << 40, 1):
            identity = inet_diag.SocketId(
                int(s.sport[row]), int(s.dport[row]), addresses[0].to_bytes(4, "big"), addresses[1].to_bytes(4, "big"),
                0, wrong,
            )  # fmt: skip
            spaces = namespaces_of({pair.a.inode})
            results, _ = destroy(spaces, [Target(pair.a.inode, 2, 6, identity)])
            assert results == {0: GONE}
        assert pair.states(pair.ours) == ["ESTABLISHED"]


def test_a_plan_never_hits_what_took_over_its_ports_its_descriptor_and_its_process(
    journal: SqliteJournal,
) -> None:
    """The same four-tuple and the same descriptor number in the same process, a hundred times over."""
    with Lab() as lab:
        pair = Pair(lab)
        door = pair.far.listen(pair.link.b4, 0)

        pair.a.sysctl("net.ipv4.ip_local_port_range", "45000 45000")

        def fresh() -> tuple[ProgramSocket, ProgramSocket]:
            return pair.near.connect(pair.link.b4, door.sport), pair.far.accept(door)

        client, accepted = fresh()
        diagnosis = settled(pair, [client], "ESTABLISHED")
        old = [
            planned(diagnosis, [client], means).steps[0] for means in ("destroy", "reset", "fin", "keepalive")
        ]
        inodes = {client.inode}
        for _ in range(100):
            pair.near.reset([client])
            pair.far.await_reset([accepted])
            pair.far.close([accepted])
            again, accepted = fresh()
            assert (again.sport, again.fd) == (client.sport, client.fd)
            client = again
            inodes.add(client.inode)
            steps = [replace_inode(step, client.inode) for step in old]
            told = apply(plans.Plan(0, "", (*old, *steps)), journal, boot_id="")
            assert {o.result for o in told} == {"left before"}
        assert len(inodes) > 50
        assert pair.states([client, accepted]) == ["ESTABLISHED", "ESTABLISHED"]
        step = replace_inode(old[3], client.inode)  # even with the right inode, only the cookie counts
        with pytest.raises(TargetGone), borrow(step):
            pass
        assert journal.entries() == []


def replace_inode(step: plans.Step, inode: int) -> plans.Step:
    return msgspec.structs.replace(step, inode=inode)


@pytest.mark.parametrize(("rate", "most"), [(0.0, 250), (200.0, 20), (5.0, 1)])
def test_a_rate_is_kept_by_small_batches(rate: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("finwait.acting.apply.pause", waits.append)
    parts = list(batches(range(600), rate))
    assert [k for part in parts for k in part] == list(range(600))
    assert {len(part) for part in parts[:-1]} == {most}
    assert len(waits) == (len(parts) if rate else 0)
    assert all(k * most / rate - 5 < wait <= k * most / rate for k, wait in enumerate(waits))


ANSWER = "an answer after all"


@pytest.mark.parametrize("means", ["destroy", "reset", "fin", "keepalive", "user-timeout"])
def test_what_moves_while_the_journal_is_waited_for_is_left_alone(
    journal: SqliteJournal, means: Means
) -> None:
    """Another finwait, or a slow disk, may keep the journal for seconds."""
    with Lab() as lab:
        pair = Pair(lab, 3)
        conns, state = pair.theirs, "CLOSE_WAIT"
        pair.near.shutdown(pair.ours, "WR")
        if means == "user-timeout":
            pair.link.cut()
            pair.far.send(conns, "lost")
        diagnosis = pair.look(
            lambda view: all(
                state_of(view, c) == state
                and (means != "user-timeout" or view.sockets.retrans[row_of(view, c)] > 0)
                for c in conns
            )
        )
        plan = planned(diagnosis, conns, means)
        assert [step.means for step in plan.steps] == [means] * 3

        def written(stage: str) -> None:
            if stage != "journaled":
                return
            assert len(journal.entries()) == 3
            if means == "user-timeout":
                for end, dev in ((pair.a, pair.link.a_dev), (pair.b, pair.link.b_dev)):
                    end.nft(f"delete table inet cut_{dev}")
                pair.look(lambda view: not view.sockets.timer[[row_of(view, c) for c in conns]].any())
            else:
                pair.far.send(conns, ANSWER)
                pair.near.recv(pair.ours, len(ANSWER))

        outcomes = apply(plan, journal, boot_id="", fault=written)
        assert [(o.result, o.detail) for o in outcomes] == [
            ("changed meanwhile", "bytes moved since the plan was made")
        ] * 3
        assert pair.states(conns) == [state] * 3
        for outcome in outcomes:
            entry = journal.get(outcome.act_id)
            assert entry.result is not None
            assert entry.result["restored"] is True
            with pytest.raises(Refused, match="changed nothing"):
                restore(outcome.act_id, journal)


def test_without_a_rate_no_connection_waits_for_its_turn(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lab() as lab:
        pair = Pair(lab, 6)
        pair.near.shutdown(pair.ours, "WR")
        plan = planned(settled(pair, pair.theirs, "CLOSE_WAIT"), pair.theirs, "destroy")
        waits: list[float] = []
        monkeypatch.setattr("finwait.acting.apply.pause", waits.append)
        outcomes = apply(plan, journal, boot_id="")
        assert [o.result for o in outcomes] == ["ended"] * 6
        assert waits == []


@pytest.mark.parametrize("size", [1, 2])
def test_what_moves_while_its_turn_is_waited_for_is_left_alone(
    journal: SqliteJournal, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lab() as lab:
        pair = Pair(lab, 6)
        pair.near.shutdown(pair.ours, "WR")
        plan = planned(settled(pair, pair.theirs, "CLOSE_WAIT"), pair.theirs, "destroy")
        by_port = {c.sport: c for c in pair.ours}
        waits = 0

        def answer(_: float) -> None:  # instead of the pause
            nonlocal waits
            waits += 1
            if waits == 2:
                ports = {step.dport for step in plan.steps[size:]}
                far = [c for c in pair.theirs if c.dport in ports]
                pair.far.send(far, ANSWER)
                pair.near.recv([by_port[c.dport] for c in far], len(ANSWER))

        monkeypatch.setattr("finwait.acting.apply.pause", answer)
        outcomes = apply(plan, journal, boot_id="", rate=10.0 * size)
        assert [o.result for o in outcomes] == ["ended"] * size + ["changed meanwhile"] * (6 - size)
        assert sorted(pair.states(pair.theirs)) == ["CLOSE_WAIT"] * (6 - size) + ["gone"] * size
        written = [journal.get(o.act_id).result or {} for o in outcomes]
        assert [result["result"] for result in written] == [o.result for o in outcomes]


@pytest.mark.parametrize("means", ["fin", "destroy"])
def test_what_did_not_arrive_is_no_end(journal: SqliteJournal, means: Means) -> None:
    """Something on the way drops FINs, or RSTs: one end, or both, are still there, and nobody says "ended"."""
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.near.shutdown(pair.ours, "WR")
        pair.far.read_to_end(pair.theirs)
        diagnosis = settled(pair, pair.theirs, "CLOSE_WAIT")
        flag = "fin" if means == "fin" else "rst"
        pair.b.nft(
            f"table inet lost {{\n chain leaving {{\n  type filter hook output priority 0\n"
            f"  tcp flags {flag} drop\n }}\n}}"
        )
        outcomes = apply(planned(diagnosis, pair.theirs, means), journal, boot_id="")
        assert [o.result for o in outcomes] == ["still there"] * 2
        assert [o.other for o in outcomes] == ["FIN_WAIT2"] * 2
        if means == "fin":
            said = "FIN sent, and it did not arrive: LAST_ACK here, and FIN_WAIT2 at the other end"
        else:
            said = "this end is gone; the other end is still in FIN_WAIT2: a RST, once, not repeated did not arrive"
        assert [(o.detail, o.this_end_gone) for o in outcomes] == [(said, means == "destroy")] * 2
        assert journal.get(outcomes[0].act_id).result == {"result": "still there", "detail": said}


def test_what_changed_since_the_plan_is_left_alone(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab, 3)
        pair.near.shutdown(pair.ours, "WR")
        diagnosis = settled(pair, pair.ours, "FIN_WAIT2")
        plan = planned(diagnosis, pair.ours, "destroy")
        pair.far.send(pair.theirs[:1], "an answer after all")
        pair.near.recv(pair.ours[:1], 19)
        pair.far.close(pair.theirs[1:2])
        pair.look(lambda view: state_of(view, pair.ours[1]) == "gone")
        outcomes = {o.step.sport: o for o in apply(plan, journal, boot_id="")}
        told = [outcomes[c.sport].result for c in pair.ours]
        assert told[0] == "changed meanwhile"
        assert told[1] in ("left before", "changed meanwhile")
        assert told[2] == "ended"
        assert pair.states(pair.ours[:1]) == ["FIN_WAIT2"]


def test_a_plan_of_another_boot_is_refused(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        plan = replace_boot(planned(pair.look(), pair.ours, "destroy"), "another")
        with pytest.raises(Refused, match="before this machine was started"):
            apply(plan, journal, boot_id="this one")
        assert pair.states(pair.ours) == ["ESTABLISHED"]
        assert journal.entries() == []


def replace_boot(plan: plans.Plan, boot_id: str) -> plans.Plan:
    return msgspec.structs.replace(plan, boot_id=boot_id)


def options_of(conn: ProgramSocket, cookie: int) -> dict[str, int]:
    with pidfd.borrowed(conn.actor.pid, conn.fd, inode=conn.inode, cookie=cookie) as sock:
        return pidfd.get_options(sock)


def probed(pair: Pair, conns: list[ProgramSocket], journal: SqliteJournal) -> dict[int, str]:
    view = pair.look().view
    steps = [step_of(view, row_of(view, c), "", "keepalive") for c in conns]
    return {p.step.sport: p.verdict for p in probe(steps, journal, keepalive=(1, 1, 2))}


def test_a_probe_tells_alive_and_leaves_every_option_as_it_was(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.near.setsockopt(pair.ours[:1], socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        view = pair.look().view
        before = [options_of(c, cookie_of(view, c)) for c in pair.ours]
        assert set(probed(pair, pair.ours, journal).values()) == {"alive"}
        assert [options_of(c, cookie_of(view, c)) for c in pair.ours] == before
        assert before[0]["keepidle"] == 77
        assert journal.incomplete() == []


def test_a_probe_tells_a_peer_that_vanished_from_one_that_was_reset(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        # Only one side of the second connection is gone: a RST that never arrived.
        pair.link.cut()
        pair.far.reset(pair.theirs[1:])
        pair.near.netns.call(lambda: None)
        assert probed(pair, pair.ours, journal) == {c.sport: "dead" for c in pair.ours}
        assert pair.states(pair.ours) == ["gone", "gone"]


def test_an_answer_that_takes_longer_than_a_look_is_an_answer(journal: SqliteJournal) -> None:
    """Looks see the probe under way; the answers to the first are lost. The last two had keepalive on before."""
    with Lab() as lab:
        pair = Pair(lab, 4)
        pair.near.setsockopt(pair.ours[2:], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        time.sleep(1.1)  # their probe is due at once
        pair.link.cut(a=True, b=False)
        pair.far.reset(pair.theirs[1::2])
        view = pair.look().view
        steps = [step_of(view, row_of(view, c), "", "keepalive") for c in pair.ours]

        def under_way(view: View) -> bool:
            rows = [row_of(view, c) for c in pair.ours]
            return all(view.sockets.timer[r] == 2 and view.sockets.retrans[r] for r in rows)

        def answers_again() -> None:
            pair.look(under_way)
            pair.a.run("nft", "flush", "ruleset")

        thread = threading.Thread(target=answers_again)
        found = probe(
            steps,
            journal,
            keepalive=(1, 1, 4),
            fault=lambda stage: thread.start() if stage == "armed" else None,
        )
        thread.join()
        assert [p.verdict for p in found] == ["alive", "reset"] * 2, found


def test_what_its_programs_do_meanwhile_is_not_taken_for_an_answer(journal: SqliteJournal) -> None:
    """Closed here, closed there, closed at both ends, reset by our own program: no probe has answered."""
    with Lab() as lab:
        pair = Pair(lab, 4)
        view = pair.look().view
        steps = [step_of(view, row_of(view, c), "", "keepalive") for c in pair.ours]

        def meanwhile(stage: str) -> None:
            if stage == "armed":
                pair.near.close(pair.ours[:1])
                pair.far.close(pair.theirs[1:3])
                pair.near.close(pair.ours[2:3])
                pair.near.reset(pair.ours[3:])

        told = probe(steps, journal, keepalive=(2, 1, 2), fault=meanwhile)
        assert [p.verdict for p in told] == ["gone"] * 4, told


def test_options_that_were_set_since_are_not_overwritten(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        view = pair.look().view
        cookie = cookie_of(view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        step = step_of(view, row_of(view, pair.ours[0]), "", "keepalive")
        (first,) = arm([step], journal, {"keepidle": 60, "keepalive": 1})
        (second,) = arm([step], journal, {"keepidle": 30, "keepalive": 1})
        with pytest.raises(Refused, match="keepidle is 30 now"):
            restore(first.act_id, journal)
        restore(second.act_id, journal)
        restore(first.act_id, journal)
        assert options_of(pair.ours[0], cookie) == before
        (third,) = arm([step], journal, {"keepidle": 60, "keepalive": 1})
        pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        restore(third.act_id, journal, force=True)
        assert options_of(pair.ours[0], cookie) == before


def test_data_in_flight_is_not_judged(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.link.cut()
        pair.near.send(pair.ours, "into the void")
        pair.look(lambda v: int(v.sockets.timer[row_of(v, pair.ours[0])]) == 1)
        assert set(probed(pair, pair.ours, journal).values()) == {"not judged"}


def test_arming_is_journaled_and_can_be_taken_back(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        view = pair.look().view
        cookie = cookie_of(view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        step = step_of(view, row_of(view, pair.ours[0]), "", "keepalive")
        values = {"keepidle": 60, "keepintvl": 15, "keepcnt": 5, "keepalive": 1, "user_timeout_ms": 30_000}
        (outcome,) = arm([step], journal, values)
        assert outcome.result == "set"
        assert options_of(pair.ours[0], cookie) == values
        assert (
            pair.look(lambda v: int(v.sockets.timer[row_of(v, pair.ours[0])]) == 2).view.sockets.timer[
                row_of(pair.look().view, pair.ours[0])
            ]
            == 2
        )
        restore(outcome.act_id, journal)
        assert options_of(pair.ours[0], cookie) == before
        with pytest.raises(Refused, match="already"):
            restore(outcome.act_id, journal)


def test_what_was_sent_cannot_be_taken_back(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        (outcome,) = apply(planned(pair.look(), pair.ours, "destroy"), journal, boot_id="")
        with pytest.raises(Refused, match="a RST was sent"):
            restore(outcome.act_id, journal)


KILLED = """
import os, signal, sys
import msgspec
from pathlib import Path
from finwait.acting.probe import probe
from finwait.kernel.journal import SqliteJournal
from finwait.remedy.plan import Step
steps = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Step])
def fault(stage):
    if stage == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
with SqliteJournal(Path(sys.argv[1])) as journal:
    probe(steps, journal, keepalive=(1, 1, 2), fault=fault)
"""


@pytest.mark.parametrize("stage", ["journaled", "armed"])
def test_a_probe_that_is_killed_is_told_and_put_back_by_the_journal(tmp_path: Path, stage: str) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        view = pair.look().view
        cookie = cookie_of(view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        step = step_of(view, row_of(view, pair.ours[0]), "", "keepalive")
        path = tmp_path / "journal"
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), stage], input=msgspec.json.encode([step]), check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert (options_of(pair.ours[0], cookie) == before) == (stage == "journaled")
        with SqliteJournal(path) as journal:
            (entry,) = journal.incomplete()
            restore(entry.id, journal)
            assert options_of(pair.ours[0], cookie) == before


def test_a_connection_that_ended_cannot_be_restored_and_says_so(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        view = pair.look().view
        step = step_of(view, row_of(view, pair.ours[0]), "", "keepalive")
        (outcome,) = arm([step], journal, {"keepidle": 60})
        pair.near.close(pair.ours)
        with pytest.raises(TargetGone):
            restore(outcome.act_id, journal)


def test_both_ends_of_a_lost_translation_are_destroyed(journal: SqliteJournal) -> None:
    from finwait.lab.scenario import scenarios

    with Lab() as lab:
        situation = scenarios()["nat-entry-gone"].build(lab).settle()
        only = frozenset(situation.namespaces.values())
        walled = frozenset(procfs.descriptors()[0].unreadable)
        end = time.monotonic() + 20
        while True:
            how = Look(plan=LookPlan(only=only, established_limit=None), not_holders=walled)
            diagnosis = session.diagnose(how=how)
            view = diagnosis.view
            rows = np.zeros(len(view), np.bool_)
            for f in diagnosis.findings:
                if f.rule == "nat-entry-gone" and f.primary:
                    rows[f.rows] = True
            if rows.sum() == 10 or time.monotonic() > end:
                break
            time.sleep(0.1)
        limits = Limits(share=1.0, established_named=True, override=frozenset({"silent-orphan"}))
        plan = making.make(view, diagnosis.findings, rows, limits)
        assert len(plan.steps) == 10
        assert {s.means for s in plan.steps} == {"destroy"}
        # Clients retransmit meanwhile; that is no movement.
        assert {o.result for o in apply(plan, journal, boot_id="")} == {"ended"}
        after = session.diagnose(how=replace(how))
        assert not [f for f in after.findings if f.rule == "nat-entry-gone"]


def test_the_command_shows_a_plan_and_does_nothing_without_yes(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        command = [
            sys.executable,
            "-m",
            "finwait",
            "clear",
            "fin-wait2-held",
            "--netns",
            str(pair.near.pid),
            "--min-age",
            "0",
        ]
        environment = {**os.environ, "FINWAIT_STATE_DIR": str(tmp_path)}
        shown = subprocess.run(
            command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
        )
        assert "destroy [destructive]" in shown.stdout
        assert "nothing was done" in shown.stderr
        assert pair.states(pair.ours) == ["FIN_WAIT2"]
        plan = subprocess.run(
            [*command, "-o", "json"], capture_output=True, env=environment, stdin=subprocess.DEVNULL
        )
        (tmp_path / "plan.json").write_bytes(plan.stdout)
        done = subprocess.run(
            [sys.executable, "-m", "finwait", "clear", "--plan", str(tmp_path / "plan.json"), "--yes"],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "1 ended" in done.stdout
        assert pair.states(pair.ours) == ["gone"]
        listed = subprocess.run(
            [sys.executable, "-m", "finwait", "journal"], capture_output=True, text=True, env=environment
        )
        assert "destroy" in listed.stdout
        young = subprocess.run(
            [*command[:-1], "1h", "--yes"],
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        assert young.returncode in (0, 3, 4)


def own_connection(pair: Pair) -> tuple[int, plans.Step]:
    """Return a descriptor of this process, connected in the near namespace, and its step."""
    listener = pair.far.listen(pair.link.b4, 8081)
    fd = pair.a.call(lambda: socket.create_connection((pair.link.b4, 8081)).detach())
    pair.far.accept(listener)
    inode = os.fstat(fd).st_ino
    view = pair.look().view
    row = int(np.flatnonzero(view.sockets.inode == inode)[0])
    return fd, step_of(view, row, "", "keepalive")


def moved(fd: int) -> int:
    new = os.dup(fd)
    os.close(fd)
    return new


def in_flight(fd: int) -> tuple[socket.socket, socket.socket]:
    """Put a descriptor into a message that nobody has taken: the socket lives, and no process holds it."""
    ends = socket.socketpair()
    socket.send_fds(ends[0], [b"x"], [fd])
    os.close(fd)
    return ends


def taken_from(ends: tuple[socket.socket, socket.socket]) -> socket.socket:
    _, fds, _, _ = socket.recv_fds(ends[1], 1, 1)
    for end in ends:
        end.close()
    return socket.socket(fileno=fds[0])


def test_a_probe_puts_options_back_through_a_descriptor_that_moved_meanwhile(journal: SqliteJournal) -> None:
    with Lab() as lab:
        fd, step = own_connection(Pair(lab))
        new: list[int] = []
        (found,) = probe(
            [step],
            journal,
            keepalive=(1, 1, 2),
            fault=lambda stage: new.append(moved(fd)) if stage == "armed" else None,
        )
        with socket.socket(fileno=new[0]) as sock:
            assert (found.verdict, found.unrestored) == ("alive", "")
            assert pidfd.get_options(sock)["keepalive"] == 0
            assert pidfd.get_options(sock)["keepidle"] != 1


def test_a_probe_whose_descriptor_nobody_holds_leaves_its_act_open_and_undo_says_so(
    journal: SqliteJournal,
) -> None:
    with Lab() as lab:
        fd, step = own_connection(Pair(lab))
        ends: list[tuple[socket.socket, socket.socket]] = []
        (found,) = probe(
            [step],
            journal,
            keepalive=(1, 1, 2),
            fault=lambda stage: ends.append(in_flight(fd)) if stage == "armed" else None,
        )
        assert "the connection is still there" in found.unrestored
        (entry,) = journal.entries()
        assert entry.result is None
        with pytest.raises(FinwaitError, match="still there: its descriptor was moved") as told:
            restore(entry.id, journal)
        assert not isinstance(told.value, TargetGone)
        assert journal.get(entry.id).result is None
        with taken_from(ends[0]) as sock:
            assert pidfd.get_options(sock)["keepalive"] == 1
            assert "restored" in restore(entry.id, journal)
            assert pidfd.get_options(sock)["keepalive"] == 0
            assert journal.get(entry.id).result is not None


def test_undo_finds_a_descriptor_that_moved_since(journal: SqliteJournal) -> None:
    with Lab() as lab:
        fd, step = own_connection(Pair(lab))
        (outcome,) = arm([step], journal, {"keepidle": 60, "keepalive": 1})
        with socket.socket(fileno=moved(fd)) as sock:
            assert f"fd {sock.fileno()})" in restore(outcome.act_id, journal)
            assert pidfd.get_options(sock)["keepalive"] == 0


def test_an_act_on_a_descriptor_that_moved_does_not_call_its_connection_gone(journal: SqliteJournal) -> None:
    with Lab() as lab:
        fd, step = own_connection(Pair(lab))
        with socket.socket(fileno=moved(fd)):
            (outcome,) = arm([step], journal, {"keepidle": 60})
            assert outcome.result == "failed"
            assert "its descriptor was moved since the look" in outcome.detail


def with_keepalive(pair: Pair, idle: int, interval: int, count: int) -> plans.Step:
    own = {socket.TCP_KEEPIDLE: idle, socket.TCP_KEEPINTVL: interval, socket.TCP_KEEPCNT: count}
    for option, value in own.items():
        pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, option, value)
    pair.near.setsockopt(pair.ours, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    view = pair.look().view
    return step_of(view, row_of(view, pair.ours[0]), "", "keepalive")


def test_a_probe_waits_for_its_own_first_probe_where_keepalive_was_on(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        step = with_keepalive(pair, 1234, 77, 5)
        (found,) = probe([step], journal, keepalive=(5, 1, 2))
        assert (found.verdict, found.detail) == ("alive", "the peer acknowledged a probe")


def test_a_silent_peer_is_dead_also_where_keepalive_was_on(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        step = with_keepalive(pair, 1234, 77, 5)
        pair.b.run("ip", "route", "add", "blackhole", f"{pair.link.a4}/32")
        (found,) = probe([step], journal, keepalive=(1, 1, 3))
        assert found.verdict == "dead", found


def test_an_acknowledgement_before_the_first_probe_was_due_is_no_answer_to_it(journal: SqliteJournal) -> None:
    """The program sends at once, its peer acknowledges that, and then falls silent."""
    with Lab() as lab:
        pair = Pair(lab)
        step = with_keepalive(pair, 1234, 77, 5)

        def meanwhile(stage: str) -> None:
            if stage == "armed":
                pair.near.send(pair.ours, "x")
                assert pair.far.recv(pair.theirs, 1) == 1
                pair.look(lambda v: int(v.sockets.wqueue[row_of(v, pair.ours[0])]) == 0)
                pair.link.cut()

        (found,) = probe([step], journal, keepalive=(3, 1, 2), fault=meanwhile)
        assert found.verdict == "dead", found
