"""The policy's file, kill switch, lock and journal on the running machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from finwait.agent.act_memory import ActMemory
from finwait.agent.episodes import Instant
from finwait.agent.hands import RunningHands, _MarkedJournal, past_act, read_policy
from finwait.agent.policing import PolicyMark
from finwait.agent.policy import PastAct
from finwait.errors import FileRefused, FinwaitError, KernelError, Refused
from finwait.kernel.boot import boot_id
from finwait.kernel.journal import SqliteJournal
from finwait.remedy.journal import Act

MARK = PolicyMark(
    name="node", rule="leak", finding="fin-wait2-held", workload="relay", processes=((7, 5),), subject=(1, "0x2"),
    boot_ns=99, cost=None,
)  # fmt: skip
ACT = Act("shutdown", {"netns": 1, "cookie": "0x2", "means": "fin"})


@pytest.fixture
def hands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunningHands:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "policy.toml"
    path.write_text("")
    path.chmod(0o600)
    machine: Any = None
    return RunningHands(str(path), machine, "boot", kill_switch=str(tmp_path / "no-act"))


def test_a_policy_that_others_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("mode = 'act'")
    path.chmod(0o644)
    assert read_policy(str(path)) == b"mode = 'act'"
    path.chmod(0o666)
    with pytest.raises(FileRefused, match="others can write to it"):
        read_policy(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_policy_of_another_user_and_a_link_of_his_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("mode = 'act'")
    path.chmod(0o600)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    os.lchown(link, 65534, 65534)
    with pytest.raises(FileRefused):
        read_policy(str(link))
    os.chown(path, 65534, 65534)
    with pytest.raises(FileRefused, match="belongs to"):
        read_policy(str(path))


def test_a_policy_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FinwaitError, match="could not read the policy"):
        read_policy(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("make", "killed"),
    [
        (lambda path: None, False),  # noqa: ARG005
        (lambda path: path.touch(), True),
        (lambda path: path.mkdir(), True),
        (lambda path: path.symlink_to("/nonexistent"), True),
    ],
)
def test_the_kill_switch_is_whatever_is_at_its_path(
    hands: RunningHands, tmp_path: Path, make: Callable[[Path], None], killed: bool
) -> None:
    make(tmp_path / "no-act")
    assert hands.killed() is killed


def test_a_kill_switch_that_cannot_be_looked_for_counts_as_there(
    hands: RunningHands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: str) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr("finwait.agent.hands.os.lstat", denied)
    assert hands.killed()


def test_two_agents_do_not_act_at_once(hands: RunningHands) -> None:
    with hands.alone(), pytest.raises(KernelError, match="EAGAIN"), hands.alone():
        pass
    with hands.alone():
        pass


def test_what_a_policy_did_is_read_back_from_the_journal(hands: RunningHands) -> None:
    assert hands.past() == []
    target = {"netns": 1, "cookie": "0x1", "means": "fin", "policy": msgspec.to_builtins(MARK)}
    with SqliteJournal() as journal:
        journal.record(Act("sysctl", {"netns": 1}))
        ids = [journal.record(Act("shutdown", target, decided_by="node")) for _ in range(5)]
        journal.complete(ids[0], {"result": "ended", "detail": ""})
        journal.complete(ids[1], {"error": "no"})
        journal.complete(ids[2], {"result": "still there", "detail": ""})
        journal.complete(ids[3], {"result": "changed meanwhile", "detail": "", "restored": True})
        assert {entry.user for entry in journal.of_policies(9)} == {"policy node"}
        assert journal.entries(kind="sysctl")[0].user != "policy node"
    acts = hands.past()
    assert [act.result for act in acts] == ["open", "nothing", "unexpected", "unexpected", "expected"]
    assert {(act.rule, act.netns, act.cookie, act.workload, act.processes) for act in acts} == {
        ("leak", 1, 2, "relay", ((7, 5),))
    }
    assert {act.boot for act in acts} == {boot_id()}
    assert {act.at.boot_ns for act in acts} == {99}


def recorded(n: int) -> None:
    with SqliteJournal() as journal:
        for k in range(n):
            mark = msgspec.to_builtins(msgspec.structs.replace(MARK, subject=(1, hex(k + 1))))
            target = {"netns": 1, "cookie": hex(k + 1), "means": "fin", "policy": mark}
            journal.complete(
                journal.record(Act("shutdown", target, decided_by="node")), {"result": "ended", "detail": ""}
            )


@pytest.mark.parametrize("anew", [0, 2, 3])
def test_a_journal_that_lost_acts_of_the_last_day_is_an_error_until_it_is_back(
    hands: RunningHands, tmp_path: Path, anew: int
) -> None:
    recorded(3)
    before = hands.past()
    assert len(before) == 3
    away = (tmp_path / "state").rename(tmp_path / "away")
    if anew:
        recorded(anew)
    if anew < 3:
        with pytest.raises(FinwaitError, match=f"no longer has {3 - anew} acts? of the last 24 hours"):
            hands.past()
        with pytest.raises(FinwaitError, match="put it back, or start the agent anew"):
            hands.past()
    if anew:
        (tmp_path / "state").rename(tmp_path / "other")
    away.rename(tmp_path / "state")
    assert hands.past() == before


def test_what_was_written_is_known_before_it_is_read(hands: RunningHands, tmp_path: Path) -> None:
    with SqliteJournal() as journal:
        marked = _MarkedJournal(journal, {(1, 2): MARK}, lambda *_: None, hands._wrote, hands.now)
        marked.record_many([ACT])
    (tmp_path / "state").rename(tmp_path / "away")
    with pytest.raises(FinwaitError, match="no longer has 1 act of the last 24 hours"):
        hands.past()


def test_an_act_is_as_old_as_its_entry_in_the_journal(hands: RunningHands) -> None:
    hands._boot, at = boot_id(), Instant(5_000, 7_000)
    with SqliteJournal() as journal:
        _MarkedJournal(journal, {(1, 2): MARK}, lambda *_: None, hands._wrote, lambda: at).record_many([ACT])
        (entry,) = journal.entries()
    assert past_act(entry).at.boot_ns == 5_000, "not as old as the decision"
    assert [act.at.boot_ns for act in hands.past()] == [5_000]


@pytest.mark.parametrize("guard", ["kill-switch", "window"])
@pytest.mark.parametrize("call", ["record_many", "claim_many"])
def test_what_is_forbidden_while_the_journal_was_waited_for_gets_its_result(
    hands: RunningHands, guard: str, call: str
) -> None:
    hands._boot, answers = boot_id(), iter([None, Refused(guard, "not now")])
    with SqliteJournal() as journal:
        marked = _MarkedJournal(journal, {(1, 2): MARK}, lambda *_: next(answers), hands._wrote, hands.now)
        with pytest.raises(Refused, match="not now"):
            getattr(marked, call)([ACT])
        (entry,) = journal.entries()
    assert entry.result == {"result": "left before", "refused": True, "detail": "not now"}
    assert [act.result for act in hands.past()] == ["nothing"]


def test_windows_and_the_kill_switch_are_asked_when_an_act_is_written_down(
    hands: RunningHands, tmp_path: Path
) -> None:
    refusal = hands._refusal(lambda _, now: now.wall_ns < 5)
    assert refusal([MARK], Instant(0, 4)) is None
    closed = refusal([MARK], Instant(0, 5))
    assert closed is not None
    assert closed.guard == "window"
    (tmp_path / "no-act").touch()
    killed = refusal([MARK], Instant(0, 4))
    assert killed is not None
    assert killed.guard == "kill-switch"


def test_acts_of_longer_ago_that_the_journal_lost_still_count() -> None:
    day = 86_400 * 10**9
    memory = ActMemory("b")
    act = PastAct("leak", "b", Instant(5, 5), 1, 2, "relay", ((7, 5),), "fin")
    assert memory.read([act], Instant(6, 6)) == [act]
    with pytest.raises(FinwaitError, match="no longer has"):
        memory.read([], Instant(day, day))
    assert memory.read([], Instant(day + 5, 6)) == [act], "the wall clock decides nothing"
    assert ActMemory("b").read([], Instant(6, 6)) == []


def test_probes_of_a_peer_that_lives_are_expected(hands: RunningHands) -> None:
    target = {"netns": 1, "cookie": "0x1", "means": "keepalive", "policy": msgspec.to_builtins(MARK)}
    with SqliteJournal() as journal:
        journal.complete(
            journal.record(Act("sockopt", target, decided_by="node")), {"result": "alive", "restored": True}
        )
    assert [act.result for act in hands.past()] == ["expected"]


@pytest.mark.parametrize("target", [{}, {"means": "fin"}, {"means": "fin", "policy": {"rule": 7}}])
def test_an_act_that_finwait_did_not_write_so_is_an_error(
    hands: RunningHands, target: dict[str, Any]
) -> None:
    with SqliteJournal() as journal:
        entry = journal.get(journal.record(Act("shutdown", target, decided_by="node")))
    with pytest.raises(FinwaitError, match="damaged"):
        past_act(entry)
    with pytest.raises(FinwaitError, match="damaged"):
        hands.past()


def test_the_mark_of_an_act_goes_through_json() -> None:
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(MARK)), PolicyMark) == MARK
