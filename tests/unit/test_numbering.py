"""The numbers of an overview: what they stood for, and what is left of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from finwait import numbering
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.numbered import Numbered, rows_of
from finwait.diagnosis.view import NamespaceView, View
from finwait.errors import FinwaitError
from finwait.kernel.boot import boot_id
from finwait.report.text import shown_groups
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

HELD = socket(
    state=tcp.CLOSE_WAIT, shutdown=1, last_ack_recv_ms=60_000, last_data_recv_ms=60_000,
    last_data_sent_ms=60_000, bytes_received=10, bytes_acked=10, snd_wnd=65535, backoff=0, unacked=0,
)  # fmt: skip
SECOND = 1_000_000_000


def row(k: int, netns: int = 4026531840) -> dict[str, Any]:
    return HELD | {"inode": k, "cookie": k, "sport": 4000 + k, "netns": netns}


def held(*rows: dict[str, Any]) -> View:
    return view(*rows, holders={row["inode"]: [500] for row in rows})


def groups_of(v: View) -> list[Finding]:
    return shown_groups(v, engine.diagnose(v, catalogue.rules()))


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "state"))


def test_a_number_gives_the_connections_that_it_stood_for() -> None:
    v = held(row(1), row(2), row(3, 4026531841))
    assert numbering.keep(v, groups_of(v), now_ns=5 * SECOND)
    sizes = set()
    for number in (1, 2):
        group, age_s = numbering.numbered(number, now_ns=12 * SECOND)
        assert (group.number, group.rule, age_s) == (number, "close-wait-eof-read", 7.0)
        sizes.add(group.count)
        now = held(row(3, 4026531841), row(9), row(2))  # one is gone, one is new
        kept = now.sockets.cookie[rows_of(now, group)].tolist()
        assert kept == ([2] if group.count == 2 else [3])
    assert sizes == {1, 2}


@pytest.mark.parametrize(
    ("number", "now_s", "recorded", "why"),
    [
        (3, 6, "", "the last overview had 2 groups"),
        (1, 606, "", "older than 10 minutes"),
        (1, 1, "", "older than 10 minutes"),  # the clock of another boot
        (1, 6, "/x.finwait", "the last overview was of the running machine"),
    ],
)
def test_a_number_that_means_nothing_any_more_is_refused(
    number: int, now_s: int, recorded: str, why: str
) -> None:
    v = held(row(1), row(3, 4026531841))
    assert numbering.keep(v, groups_of(v), now_ns=5 * SECOND)
    with pytest.raises(FinwaitError, match=why):
        numbering.numbered(number, now_ns=now_s * SECOND, recorded=recorded)


def test_numbers_of_another_boot_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    v = held(row(1))
    assert numbering.keep(v, groups_of(v), now_ns=5 * SECOND)
    monkeypatch.setattr(numbering, "boot_id", lambda: "another")
    with pytest.raises(FinwaitError, match="another boot"):
        numbering.numbered(1, now_ns=6 * SECOND)


def test_without_an_overview_there_is_no_number() -> None:
    with pytest.raises(FinwaitError, match="no overview was printed before"):
        numbering.numbered(1, now_ns=0)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"boot_id": 1}', b"\xff" * 100, b"null"])
def test_a_file_of_something_else_is_refused(data: bytes, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "overview.json").write_bytes(data)
    with pytest.raises(FinwaitError, match="cannot be read"):
        numbering.numbered(1, now_ns=0)


def test_where_others_can_write_nothing_is_kept_and_no_link_is_followed(tmp_path: Path) -> None:
    v = held(row(1))
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    target = tmp_path / "target"
    target.write_text("mine")
    (state / "overview.json").symlink_to(target)
    numbering.keep(v, groups_of(v), now_ns=0)
    assert target.read_text() == "mine"
    (state / "overview.json").unlink(missing_ok=True)
    state.chmod(0o1777)
    assert not numbering.keep(v, groups_of(v), now_ns=0)
    assert not list(state.iterdir())


def test_a_place_that_is_missing_or_full_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    v = held(row(1))
    monkeypatch.setenv("FINWAIT_STATE_DIR", "/proc/finwait")
    assert not numbering.keep(v, groups_of(v), now_ns=0)
    monkeypatch.setenv("FINWAIT_STATE_DIR", "")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not numbering.keep(v, groups_of(v), now_ns=0)
    with pytest.raises(FinwaitError, match="XDG_RUNTIME_DIR"):
        numbering.numbered(1, now_ns=0)


def test_descriptors_without_a_row_are_known_by_their_process() -> None:
    from finwait.diagnosis.view import HiddenDescriptor

    v = view(row(1), holders={1: [500]}, hidden=tuple(HiddenDescriptor(500, fd, 900 + fd) for fd in range(6)))
    assert numbering.keep(v, groups_of(v), now_ns=0)
    group = next(g for g in (numbering.numbered(n, now_ns=0)[0] for n in (1, 2)) if g.rule == "hidden-leak")
    assert (group.pids, group.cookies, group.count) == ((500,), (), 6)
    assert not rows_of(v, group).any()


def test_what_was_not_looked_at_is_no_end_of_a_group() -> None:
    from msgspec.structs import replace

    from finwait.diagnosis.numbered import unseen
    from finwait.diagnosis.view import NamespaceView
    from finwait.report.text import group as text_of

    here, elsewhere = NamespaceView(1, ("host",), dumped=True), NamespaceView(2, ("pod",), dumped=True)
    v = view(row(1, 1), holders={1: [500]}, namespaces={1: here})
    assert numbering.keep(v, groups_of(v), now_ns=0)
    group, _ = numbering.numbered(1, now_ns=0)
    assert not unseen(v, group)
    other = view(row(9, 2), holders={9: [500]}, namespaces={2: elsewhere})
    (gap,) = unseen(other, group)
    assert gap.netns == 1
    told = "".join(text_of(other, (), group, 3.0, partly=True))
    assert "Nothing of it is left" not in told
    assert "not everything was looked at" in told
    assert "Nothing of it is left" in "".join(text_of(view(namespaces={1: here}), (), group, 3.0))
    open_ones = msgspec.structs.replace(group, open=True)
    assert unseen(v, open_ones) == ()
    partly = view(row(1, 1), holders={1: [500]}, namespaces={1: replace(here, dumped=False)})
    assert [g.netns for g in unseen(partly, open_ones)] == [1]
    assert not unseen(partly, group)


def test_descriptors_of_a_process_are_not_said_to_be_the_same_ones() -> None:
    from finwait.diagnosis.numbered import unseen
    from finwait.diagnosis.view import HiddenDescriptor
    from finwait.report.text import group as text_of

    hidden = tuple(HiddenDescriptor(500, fd, 900 + fd) for fd in range(20))
    v = view(row(1), hidden=hidden[:8])
    assert numbering.keep(v, groups_of(v), now_ns=0)
    group = next(g for g in (numbering.numbered(n, now_ns=0)[0] for n in (1, 2)) if g.rule == "hidden-leak")
    more = view(row(1), hidden=hidden)
    leaks = [f for f in groups_of(more) if f.rule == "hidden-leak"]
    told = "".join(text_of(more, leaks, group, 3.0))
    assert "8 × hidden-leak. Now 20: which of them are the same is not known." in told
    blind = view(row(1), hidden_known=False)
    assert unseen(blind, group)


def test_the_numbers_of_an_earlier_overview_never_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen shows other groups by then, or none."""
    v = view(row(1), holders={1: [500]})
    assert numbering.keep(v, groups_of(v), now_ns=0)
    assert numbering.keep(v, [], now_ns=0)
    with pytest.raises(FinwaitError, match="had 0 groups"):
        numbering.numbered(1, now_ns=0)
    assert numbering.keep(v, groups_of(v), now_ns=0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numbering, "_write", full)
    assert not numbering.keep(v, groups_of(v), now_ns=0)
    assert not list((tmp_path / "state").iterdir())
    with pytest.raises(FinwaitError, match="no overview was printed before"):
        numbering.numbered(1, now_ns=0)


@pytest.mark.parametrize(
    ("cookies", "netns", "count"),
    [
        ([[1, -1]], 1, 1),
        ([[1, 1 << 64]], 1, 1),
        ([[-1, 1]], 1, 1),
        ([], 1 << 40, 1),
        ([], 1, -7),
        ([], 1, 10**30),
    ],
)
def test_numbers_that_no_kernel_gives_are_refused(
    cookies: list[list[int]], netns: int, count: int, tmp_path: Path
) -> None:
    group = {"number": 1, "rule": "x", "count": count, "netns": netns, "pids": [], "cookies": cookies}
    overview = {"boot_id": boot_id(), "boottime_ns": 0, "recorded": "", "groups": [group]}
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    for data in (json.dumps(overview), "[" * 100_000, '{"groups":' + "[" * 100_000):
        (state / "overview.json").write_text(data)
        with pytest.raises(FinwaitError, match="cannot be read"):
            numbering.numbered(1, now_ns=0)


def test_where_connections_of_a_group_have_other_causes_now_each_cause_has_its_number() -> None:
    from finwait.report.text import group as text_of

    v = held(*(row(k) for k in range(1, 7)))
    assert numbering.keep(v, groups_of(v), now_ns=0)
    group, _ = numbering.numbered(1, now_ns=0)
    unread = {"rqueue": 6}
    some = held(row(1), row(2), row(3), row(4) | unread, row(5) | unread, row(6) | unread)
    told = " ".join("".join(text_of(some, groups_of(some), group, 3.0)).split())
    assert "6 × close-wait-eof-read. The causes are now close-wait-eof-" in told
    assert "close-wait-eof-read (3)" in told
    assert "close-wait-eof-unread (3)." in told
    every = held(*(row(k) | unread for k in range(1, 7)))
    told = " ".join("".join(text_of(every, groups_of(every), group, 3.0)).split())
    assert "The cause is now close-wait-eof-unread." in told
    same = "".join(text_of(v, groups_of(v), group, 3.0))
    assert "now" not in same.partition("\n")[0]


def test_a_group_whose_namespace_was_left_out_is_said_not_to_have_been_looked_at() -> None:
    from finwait.diagnosis.numbered import unseen

    other = view(row(9, 2), namespaces={2: NamespaceView(2)})
    for cookies, netns, missing in (
        (((1, 1), (3, 2)), 1, [1, 3]),
        (((2, 1),), 2, []),
        ((), 1, [1]),
        ((), 2, []),
        ((), 0, []),
    ):
        group = Numbered(1, "close-wait-eof-read", 2, netns, (500,), cookies)
        assert [gap.netns for gap in unseen(other, group)] == missing


def test_descriptors_without_a_connection_are_said_not_to_have_been_looked_for() -> None:
    from finwait.diagnosis.numbered import unseen

    group = Numbered(2, "hidden-leak", 6, 0, (500,), ())
    (gap,) = unseen(view(row(1), hidden_known=False), group)
    assert (gap.where, gap.needs) == ("group 2", "a look at all namespaces and owners")
    assert unseen(view(row(1), hidden_known=True), group) == ()
