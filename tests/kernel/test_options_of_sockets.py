"""Options of other programs' sockets: only set where they can be put back, by one act at a time, and each is told."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from finwait.acting.borrowed import borrow
from finwait.acting.identity import journal_target
from finwait.acting.options import arm
from finwait.acting.probe import probe
from finwait.acting.undo import restore
from finwait.errors import FinwaitError, KernelError, Refused
from finwait.kernel import pidfd
from finwait.kernel.journal import SqliteJournal, Taken
from finwait.lab.actor import ProgramSocket
from finwait.lab.topology import Lab, unmet
from finwait.remedy import plan as plans
from finwait.remedy.journal import Act
from finwait.remedy.outcome import Outcome, Probe
from finwait.remedy.steps import step_of
from tests.kernel.acting_pair import Pair, cookie_of, row_of
from tests.kernel.needs import missing
from tests.kernel.test_probe_command import options_of, start, until_armed

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def steps_of(pair: Pair, conns: Sequence[ProgramSocket]) -> tuple[list[plans.Step], list[int]]:
    view = pair.look().view
    steps = [step_of(view, row_of(view, c), "", "keepalive") for c in conns]
    return steps, [cookie_of(view, c) for c in conns]


def all_options(conns: Sequence[ProgramSocket], cookies: Sequence[int]) -> list[dict[str, int]]:
    return [options_of(c, k) for c, k in zip(conns, cookies, strict=True)]


def test_each_option_is_set_also_when_one_cannot_be() -> None:
    with socket.socket() as sock:
        values = {
            "keepidle": 86_400,
            "keepintvl": 7,
            "keepcnt": 200,
            "user_timeout_ms": 2**40,
            "keepalive": 1,
        }
        assert pidfd.out_of_range(values) == {"keepidle": 86_400, "keepcnt": 200, "user_timeout_ms": 2**40}
        with pytest.raises(KernelError, match=r"keepidle=86400, keepcnt=200, user_timeout_ms=1099511627776"):
            pidfd.set_options(sock, values)
        now = pidfd.get_options(sock)
        assert (now["keepintvl"], now["keepalive"]) == (7, 1)
        pidfd.set_options(sock, pidfd.nearest(values))
        assert pidfd.get_options(sock) == pidfd.nearest(values)
        assert pidfd.out_of_range(pidfd.nearest(values)) == {}


def test_the_ranges_are_those_of_the_kernel() -> None:
    with socket.socket() as sock:
        for name, (least, most) in pidfd.OPTION_RANGES.items():
            for value in {least, most}:
                pidfd.set_options(sock, {name: value})
            if name != "keepalive":  # any number but 0 is 1 there
                for value in (least - 1, most + 1):
                    with pytest.raises(KernelError):
                        pidfd.set_options(sock, {name: value})


@pytest.mark.parametrize(("sysctl", "value"), [("tcp_keepalive_time", 86_400), ("tcp_keepalive_probes", 200)])
def test_what_could_not_be_put_back_is_not_set(journal: SqliteJournal, sysctl: str, value: int) -> None:
    """A socket without times of its own reads the sysctl, which may be more than setsockopt takes."""
    with Lab() as lab:
        pair = Pair(lab, 3)
        pair.a.sysctl(f"net.ipv4.{sysctl}", value)
        fixed = {"keepidle": 50, "keepintvl": 5, "keepcnt": 5, "keepalive": 0, "user_timeout_ms": 0}
        for name in ("keepidle", "keepintvl", "keepcnt"):
            pair.near.setsockopt(pair.ours[1:2], *pidfd.KEEPALIVE_OPTIONS[name], fixed[name])
        steps, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        assert before[1] == fixed
        found = probe(steps, journal, keepalive=(1, 1, 2))
        assert [p.verdict for p in found] == ["not judged", "alive", "not judged"]
        assert f"of {value} could not be restored" in found[0].detail
        assert f"net.ipv4.{sysctl}" in found[0].detail
        assert all_options(pair.ours, cookies) == before
        outcomes = arm(steps, journal, dict.fromkeys(("keepidle", "keepintvl", "keepcnt", "keepalive"), 1))
        assert [o.result for o in outcomes] == ["failed", "set", "failed"]
        assert all_options(pair.ours[::2], cookies[::2]) == before[::2]
        assert journal.incomplete() == []
        only = arm(steps, journal, {"user_timeout_ms": 9000})  # which can be put back
        assert {o.result for o in only} == {"set"}


def test_acts_on_one_connection_do_not_overlap(journal: SqliteJournal, tmp_path: Path) -> None:
    with Lab() as lab, SqliteJournal(tmp_path / "journal.sqlite") as another:
        pair = Pair(lab, 2)
        steps, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        second: list[Probe] = []
        armed: list[Outcome] = []

        def meanwhile(stage: str) -> None:
            if stage == "armed":
                second.extend(probe(steps, another, keepalive=(1, 1, 2)))
                armed.extend(arm(steps[:1], another, {"keepidle": 9}))

        first = probe(steps[:1], journal, keepalive=(2, 1, 2), fault=meanwhile)
        assert [p.verdict for p in first] == ["alive"]
        assert [p.verdict for p in second] == ["not judged", "alive"]  # the other connection is free
        assert "is under way on it; nothing was set" in second[0].detail
        assert [o.result for o in armed] == ["failed"]
        assert all_options(pair.ours, cookies) == before
        assert {p.verdict for p in probe(steps, another, keepalive=(1, 1, 2))} == {"alive"}
        assert all_options(pair.ours, cookies) == before


def test_an_act_that_ended_between_reading_and_claiming_is_noticed(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        steps, cookies = steps_of(pair, pair.ours)

        class Late(SqliteJournal):
            """Another probe, which had set the keepalive that we read, puts it back before we claim."""

            def claim_many(self, acts: Any, *, besides: int | None = None) -> list[int | Taken]:
                pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7200)
                return super().claim_many(acts, besides=besides)

        pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        with Late(journal.path) as late:
            (found,) = probe(steps, late, keepalive=(1, 1, 2))
        assert (found.verdict, "at this moment" in found.detail) == ("not judged", True)
        assert options_of(pair.ours[0], cookies[0])["keepidle"] == 7200
        assert journal.incomplete() == []


def test_what_is_under_way_is_not_taken_back_and_what_was_cut_short_is_first(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        view = pair.look().view
        cookie = cookie_of(view, pair.ours[0])
        before = options_of(pair.ours[0], cookie)
        where = ["--netns", str(pair.a.inode), "state established"]
        # Long enough to be under way still when `undo` has started, on an emulated machine as well.
        running = start(tmp_path, "probe", "--keepalive", "900/30/3", *where)
        until_armed(pair.ours[0], cookie, 900)
        undone = start(tmp_path, "undo", "--yes", "1")
        _, said = undone.communicate(timeout=300)
        assert undone.returncode == 4, said
        assert f"pid {running.pid} is still doing it" in said
        assert options_of(pair.ours[0], cookie)["keepidle"] == 900
        running.kill()
        running.communicate(timeout=300)
        told, said = start(tmp_path, "probe", "-o", "json", *where).communicate(timeout=300)
        (item,) = json.loads(told)["items"]
        assert item["verdict"] == "not judged", said
        assert "`finwait undo 1` restores its options" in item["detail"]
        assert options_of(pair.ours[0], cookie)["keepidle"] == 900
        told, _ = start(tmp_path, "undo", "--yes", "1").communicate(timeout=300)
        assert "restored" in told
        assert options_of(pair.ours[0], cookie) == before
        told, said = start(tmp_path, "probe", "-o", "json", *where).communicate(timeout=300)
        assert json.loads(told)["items"][0]["verdict"] == "alive", said


def test_what_cannot_be_put_back_is_told_and_the_rest_is_put_back(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lab() as lab:
        pair = Pair(lab, 3)
        steps, cookies = steps_of(pair, pair.ours)
        before = all_options(pair.ours, cookies)
        real, cookie = pidfd.set_options, cookies[0]

        def stubborn(sock: socket.socket, values: dict[str, int]) -> None:
            seen = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
            if seen == cookie and values == before[0]:
                raise KernelError(1, "set it")
            real(sock, values)

        monkeypatch.setattr(pidfd, "set_options", stubborn)
        found = probe(steps, journal, keepalive=(1, 1, 2))
        assert [p.verdict for p in found] == ["alive"] * 3
        assert [bool(p.unrestored) for p in found] == [True, False, False]
        assert "could not be restored" in found[0].unrestored
        assert all_options(pair.ours[1:], cookies[1:]) == before[1:]
        failed = next(e for e in journal.entries() if "error" in (e.result or {}))
        monkeypatch.undo()
        restore(failed.id, journal)
        assert all_options(pair.ours, cookies) == before


def test_an_old_value_that_no_socket_takes_is_put_back_as_near_as_can_be(journal: SqliteJournal) -> None:
    """As an earlier version may have written it down."""
    with Lab() as lab:
        pair = Pair(lab)
        steps, cookies = steps_of(pair, pair.ours)
        pair.near.setsockopt(pair.ours, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        old = Act(
            "sockopt", journal_target(steps[0]), {"options": {"keepidle": 86_400, "keepalive": 0}},
            {"options": {"keepidle": 1, "keepalive": 1}}, "probe",
        )  # fmt: skip
        (act,) = journal.record_many([old])
        journal.complete_many({act: {"error": "Invalid argument"}})
        said = restore(act, journal)
        assert "keepidle=32767 (it was 86400, more than setsockopt(2) accepts)" in said
        now = options_of(pair.ours[0], cookies[0])
        assert (now["keepidle"], now["keepalive"]) == (32_767, 0)


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("before", {"keepidle": 7200}), ("after", {"keepidle": 60}), ("after", {}), ("before", []), ("before", "x"),
        ("before", {"keepidle": "x", "keepalive": 0}), ("before", {"keepidle": 1 << 31, "keepalive": 0}),
        ("after", {"keepidle": 60, "keepalive": 2}), ("before", {"keepidle": -1, "keepalive": 0}),
    ],
)  # fmt: skip
def test_an_act_whose_record_is_damaged_is_not_begun_to_be_taken_back(
    journal: SqliteJournal, part: str, options: object
) -> None:
    """The connection is there, and each option could be read and set."""
    with Lab() as lab:
        pair = Pair(lab)
        steps, cookies = steps_of(pair, pair.ours)
        whole = {"keepidle": 7200, "keepalive": 0}
        written = {"before": whole, "after": {"keepidle": 60, "keepalive": 1}} | {part: options}
        before, after = ({"options": written[name]} for name in ("before", "after"))
        act = journal.record(Act("sockopt", journal_target(steps[0]), before, after, "arm"))
        now = options_of(pair.ours[0], cookies[0])
        with pytest.raises(FinwaitError, match=f"act {act} of the journal is damaged: "):
            restore(act, journal, force=True)
        assert options_of(pair.ours[0], cookies[0]) == now
        assert [entry.id for entry in journal.entries()] == [act]


def test_that_a_socket_follows_the_sysctl_no_more_is_told(tmp_path: Path) -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.near.setsockopt(pair.ours[1:], socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        where = ["--netns", str(pair.a.inode), "state established"]
        told, said = start(tmp_path, "probe", "--keepalive", "1/1/2", *where).communicate(timeout=300)
        flat = " ".join(told.split())
        assert "On 2 connections keepcnt, keepidle, keepintvl had the value of the sysctl" in flat, said
        pair.a.sysctl("net.ipv4.tcp_keepalive_time", 600)
        _, cookies = steps_of(pair, pair.ours)
        assert [o["keepidle"] for o in all_options(pair.ours, cookies)] == [7200, 77]
        as_json, _ = start(tmp_path, "probe", "-o", "json", *where).communicate(timeout=300)
        pinned = {p["step"]["sport"]: p["pinned"] for p in json.loads(as_json)["items"]}
        assert pinned[pair.ours[1].sport] == ["keepintvl", "keepcnt"]
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            (outcome,) = arm(steps_of(pair, pair.ours[1:])[0], journal, {"keepintvl": 3})
            assert "; keepintvl: now the socket's own, and no longer those of the sysctls" in restore(
                outcome.act_id, journal
            )


@pytest.mark.parametrize("words", [("arm", "--user-timeout", "25d"), ("clear", "--user-timeout", "25d")])
def test_a_time_that_no_socket_takes_is_refused_before_anything_is_touched(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    refused = start(tmp_path, *words, "--yes", "netns = 1")
    _, said = refused.communicate(timeout=300)
    assert refused.returncode == 2
    assert "TCP_USER_TIMEOUT takes at most" in said


def test_arm_takes_no_value_that_a_socket_does_not(journal: SqliteJournal) -> None:
    with pytest.raises(ValueError, match="does not accept"):
        arm([], journal, {"user_timeout_ms": 2**31})
    assert journal.entries() == []


def test_a_step_without_a_known_holder_is_no_connection_that_is_gone() -> None:
    with Lab() as lab:
        pair = Pair(lab)
        (step,), _ = steps_of(pair, pair.ours)
        unheld = msgspec.structs.replace(step, holders=())
        with (
            pytest.raises(FinwaitError, match="no process is known to hold it") as caught,
            borrow(unheld),
        ):
            pass
        assert type(caught.value) is FinwaitError
        assert not isinstance(caught.value, Refused)
