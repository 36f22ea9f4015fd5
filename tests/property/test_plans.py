"""Plans and the journal under any input: never a listener, never more than allowed, a reason for all that is left."""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.acting.identity import kernel_target
from finwait.acting.undo import restore, settle
from finwait.attribution.process import ProcessView
from finwait.cli import main
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.view import View
from finwait.errors import FinwaitError, Refused
from finwait.kernel.journal import SqliteJournal
from finwait.remedy import guards, making, plan_file
from finwait.remedy import plan as plans
from finwait.remedy.guards import GUARDS, Limits
from finwait.remedy.journal import Act
from finwait.report.plan import plan_json
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import INFO
from tests.unit.diagnosis.views import socket, view

STATES = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
NAMES = ["app", "kubelet", "sshd"]


@st.composite
def pairs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw connections, some with both ends here, some ends with the same cookie in another namespace."""
    made = []
    for k in range(draw(st.integers(0, 8))):
        near = INFO | socket(
            state=draw(st.sampled_from(STATES)), inode=draw(st.integers(0, 6)), timer=draw(st.integers(0, 4)),
            shutdown=draw(st.integers(0, 3)), rqueue=draw(st.integers(0, 3)), cookie=draw(st.integers(1, 30)),
            netns=draw(st.integers(1, 2)), sport=4000 + k, protocol=draw(st.sampled_from([6, 6, 6, 262])),
        )  # fmt: skip
        made.append(near)
        if draw(st.booleans()):
            made.append(
                near
                | {
                    "state": draw(st.sampled_from(STATES)), "inode": draw(st.integers(0, 6)), "cookie": 100 + k,
                    "timer": draw(st.integers(0, 4)), "netns": draw(st.integers(1, 2)),
                    "src": near["dst"], "dst": near["src"], "sport": near["dport"], "dport": near["sport"],
                }
            )  # fmt: skip
    return made


OVERRIDES = st.sets(st.sampled_from(sorted(GUARDS)))
CANNOT = st.builds(
    lambda destroy, borrow, harm, spared: guards.Abilities(
        dict.fromkeys(destroy, "no CONFIG_INET_DIAG_DESTROY"),
        dict.fromkeys(borrow, "no CAP_SYS_PTRACE"),
        harm,
        spared,
    ),
    st.sets(st.tuples(st.integers(1, 2), st.sampled_from([6, 262]))),
    st.sets(st.integers(501, 506)),
    st.sampled_from(["", "its timer would be taken"]),
    st.booleans(),
)


def built(sockets: list[dict[str, Any]], names: list[str]) -> View:
    processes = {500 + k: ProcessView(500 + k, names[k % len(names)]) for k in range(1, 7)}
    return view(*sockets, holders={k: [500 + k] for k in range(1, 7)}, processes=processes)


def key(v: View, row: int) -> tuple[int, int]:
    return int(v.sockets.netns[row]), int(v.sockets.cookie[row])


@given(
    pairs(), OVERRIDES, CANNOT, st.integers(0, 12), st.sampled_from([None, *plans.MEANS]),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=6), st.integers(0, 2**16 - 1),
)  # fmt: skip
def test_a_plan_touches_what_was_selected_and_allowed_and_says_why_it_leaves_the_rest(
    sockets: list[dict[str, Any]], override: set[str], can: guards.Abilities, most: int, force: Any,
    names: list[str], chosen: int,
) -> None:  # fmt: skip
    v = built(sockets, names)
    mask = np.array([bool(chosen >> (k % 16) & 1) for k in range(len(v))], np.bool_)
    limits = Limits(max_connections=most, override=frozenset(override))
    findings = engine.diagnose(v, catalogue.rules())
    plan = making.make(v, findings, mask, limits, force=force, can=can)
    assert {one.guard for one in plan.refused} <= {"max", "share"} - override
    assert all(one.override for one in plan.refused)
    assert ("max" in {one.guard for one in plan.refused}) == (
        len(plan.steps) > most and "max" not in override
    )
    rows = np.flatnonzero(mask).tolist()
    allowed = {key(v, r) for r in rows} | {key(v, int(v.other[r])) for r in rows if v.other[r] >= 0}
    state_of = {(key(v, r), tcp.STATES[int(v.sockets.state[r])]) for r in range(len(v))}
    for step in plan.steps:
        where = (step.netns, int(step.cookie, 16))
        assert step.state != "LISTEN"
        assert where in allowed
        assert (where, step.state) in state_of
        assert step.peer_told
        if force is not None:
            assert step.means == force or (force == "destroy" and step.means == "reset" and step.note)
            assert not step.selected
        if step.means == "destroy":
            assert (step.netns, step.protocol) not in can.no_destroy
            orphan = not step.inode and step.state in ("FIN_WAIT1", "LAST_ACK", "CLOSING")
            timers = {int(v.sockets.timer[r]) for r in range(len(v)) if key(v, r) == where}
            if orphan and timers == {1} and "harmed-orphan" not in override:
                assert not can.harms_orphans
        else:
            assert any(pid not in can.no_borrow for pid, _, _ in step.holders)
        if "protected" not in override:
            assert not {comm for _, _, comm in step.holders} & {"kubelet", "sshd"}
    assert len({(s.netns, s.cookie) for s in plan.steps}) == len(plan.steps)
    assert all(one.reason and one.guard in {*GUARDS, "means"} for one in plan.left)
    assert not {one.guard for one in plan.left} & (override - {"listener"})
    done = {(s.netns, int(s.cookie, 16)) for s in plan.steps}
    covered = sum(
        key(v, r) in done or (v.other[r] >= 0 and key(v, int(v.other[r])) in done and force is None)
        for r in rows
    )
    assert covered + len(plan.left) >= len(rows)
    steps = tuple(
        msgspec.structs.replace(step, cost=None) for step in plan.steps
    )  # that is of the look alone
    assert plan_file.decode(plan_json(plan)) == msgspec.structs.replace(plan, steps=steps)
    if force is None or len({key(v, r) for r in range(len(v))}) == len(v):
        read = making.again(plan, v, findings, limits, can=can)
        assert not any(step.gone for step in read.steps)
        assert len(read.steps) + len(read.left) == len(plan.steps)


PLAN = plan_json(
    making.make(
        (v := built([INFO | socket(state=8, inode=1, cookie=7, shutdown=1)], ["app"])),
        engine.diagnose(v, catalogue.rules()),
        np.ones(1, np.bool_),
        Limits(),
    )
)


def read(data: bytes) -> None:
    """A plan, or an error that begins with the file and a line of it."""
    wrong: FinwaitError | None = None
    try:
        plan = plan_file.decode(data, "some/plan.json")
    except FinwaitError as error:
        wrong = error
    if isinstance(wrong, Refused):
        assert wrong.guard == "listener"
    elif wrong is not None:
        found = re.match(r"some/plan\.json:(\d+): ", str(wrong))
        assert found, wrong
        assert 1 <= int(found[1]) <= data.count(b"\n") + 1
    else:
        for step in plan.steps:
            kernel_target(step)  # what is accepted can go to the kernel


@given(st.binary(max_size=300))
def test_any_bytes_are_a_plan_or_told_with_their_line(data: bytes) -> None:
    read(data)


@given(st.integers(0, len(PLAN) - 1), st.binary(max_size=6), st.integers(0, 6))
def test_a_plan_with_a_mistake_is_told_with_its_line(at: int, put: bytes, drop: int) -> None:
    read(PLAN[:at] + put + PLAN[at + drop :])


FIELDS = [
    "cookie",
    "family",
    "protocol",
    "netns",
    "sport",
    "dport",
    "src",
    "dst",
    "ifindex",
    "owners",
    "state",
]
VALUES = [
    '"0xffffffffffffffff"', '"-1"', '"0"', '""', "-1", "65536", "4294967296", "1e9", '"fe80::1%eth0"', '"::"',
    '[{"pid":0,"fd":0,"comm":""}]', '[{"pid":99999999999,"fd":1,"comm":"x"}]', "null", '"LISTEN"',
    "99999999999999999999999",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", VALUES)
def test_what_does_not_identify_one_socket_never_goes_to_the_kernel(field: str, value: str) -> None:
    read(
        re.sub(
            rb'("%s": )(\[(?s:.*?)\n  \]|[^,\n]+)' % field.encode(), rb"\g<1>" + value.encode(), PLAN, count=1
        )
    )


def test_a_plan_for_any_socket_of_a_tuple_is_refused() -> None:
    forged = re.sub(rb'"cookie": "[^"]+"', b'"cookie": "0xffffffffffffffff"', PLAN)
    with pytest.raises(FinwaitError, match=r"p:\d+: `0xffffffffffffffff` is not a cookie"):
        plan_file.decode(forged, "p")


@given(st.binary(max_size=4096))
@settings(max_examples=50)
def test_any_bytes_as_a_journal_are_told_and_not_written_over(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        path.write_bytes(data)
        wrong: FinwaitError | None = None
        try:
            with SqliteJournal(path) as journal:
                assert journal.entries() == []
        except FinwaitError as error:
            wrong = error
        if wrong is not None:
            assert str(path) in str(wrong)
            assert path.read_bytes() == data


JSON = st.one_of(
    st.sampled_from(
        ["", "{", "[]", "null", "1", '"x"', "{}", '{"cookie":1}', '{"options":{"keepidle":"x"}}']
    ),
    st.text(max_size=20),
)


@given(st.sampled_from(["sockopt", "destroy", "shutdown", "conntrack-delete", "x"]), JSON, JSON, JSON)
@settings(max_examples=60)
def test_a_damaged_act_is_told_and_nothing_is_done(kind: str, target: str, before: str, command: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        with SqliteJournal(path) as journal:
            number = journal.record(Act("sockopt", {"cookie": "0x1"}, {"options": {}}, {}, ""))
        with sqlite3.connect(path) as db:
            db.execute(
                "UPDATE acts SET kind = ?, target = ?, before = ?, command = ?, pid_start = 0",
                (kind, target, before, command),
            )
        db.close()
        with SqliteJournal(path) as journal:
            for act in (restore, settle):
                with pytest.raises(FinwaitError) if act is restore else _told():
                    act(number, journal)


class _told:  # noqa: N801 - reads as a word
    """Allow an answer, or an error of ours."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, FinwaitError | ValueError)


CONNECTION = {
    "means": "keepalive", "netns": 4026531840, "protocol": 6, "family": 2, "src": "127.0.0.1", "sport": 1,
    "dst": "127.0.0.1", "dport": 2, "ifindex": 0, "cookie": "0xfffffff0fffffff", "inode": 4294967290,
    "connection": "127.0.0.1:1 127.0.0.1:2", "state": "ESTABLISHED", "holders": [[2147483000, 3, "x"]],
}  # fmt: skip
SETTINGS = {"netns": 1, "cookie": 1, "boot_id": "x", "name": "here"}
_DROP = {"path": "/etc/sysctl.d/90-finwait-x.conf", "text": "net.ipv4.tcp_fin_timeout = 30\n"}
RECORDED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sockopt": (
        CONNECTION,
        {"options": {"keepidle": 7200, "keepalive": 0}, "followed": ["keepidle"]},
        {"options": {"keepidle": 60, "keepalive": 1}},
    ),
    "sysctl": (
        SETTINGS,
        {"sysctl": {"net.ipv4.tcp_fin_timeout": "60"}, "drop_in": _DROP | {"text": None}},
        {"sysctl": {"net.ipv4.tcp_fin_timeout": "30"}, "drop_in": _DROP},
    ),
    "destroy": (CONNECTION, {}, {}),
    "shutdown": (CONNECTION, {}, {}),
    "conntrack-delete": ({"netns": 1, "original": "a b"}, {}, {}),
    "x": (CONNECTION, {}, {}),
}
ODD: tuple[object, ...] = (
    None, True, -1, 0, 1 << 20, 1 << 40, 1 << 70, 1.5, "", "x", "0x1", "\u001b[31m", [], [[1, 2]], [{}], {}, {"a": 1},
)  # fmt: skip


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Give the way to each value within one, itself included."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield from places(part, (*path, key))


def changed(value: object, path: tuple[str | int, ...], odd: object, *, remove: bool) -> object:
    """Return a value with another one at a place, or with none there."""
    if not path:
        return odd
    whole = json.loads(json.dumps(value))
    part = whole
    for key in path[:-1]:
        part = part[key]
    if remove:
        del part[path[-1]]
    else:
        part[path[-1]] = odd
    return whole


@given(st.data())
@settings(max_examples=150)
def test_no_damage_of_an_act_is_unforeseen(data: st.DataObject) -> None:
    """Each command says what it is, and begins nothing that it does not end."""
    kind = data.draw(st.sampled_from(sorted(RECORDED)))
    row = list(RECORDED[kind])
    part = data.draw(st.sampled_from([k for k in range(3) if row[k]]))
    path = data.draw(st.sampled_from(list(places(row[part]))))
    row[part] = changed(row[part], path, data.draw(st.sampled_from(ODD)), remove=data.draw(st.booleans()))  # type: ignore[call-overload]
    result = data.draw(
        st.sampled_from([None, "{}", "[]", '{"error": []}', '{"result": 1}', '{"restored": 0}'])
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setenv("FINWAIT_STATE_DIR", folder)
        path_of = Path(folder) / "journal.sqlite"
        with SqliteJournal(path_of) as journal:
            journal.record(Act("sockopt", {"cookie": "0x1"}, {"options": {}}, {}, ""))
        with sqlite3.connect(path_of) as db:
            db.execute(
                "UPDATE acts SET kind = ?, target = ?, before = ?, after = ?, result = ?, finished_ns = ?, pid_start=0",
                (kind, *map(json.dumps, row), result, None if result is None else 1),
            )
        db.close()
        for words in (
            ("journal",), ("journal", "-o", "json"), ("undo", "1"), ("undo", "1", "-o", "json"),
            ("tune", "rollback", "1"), ("undo", "1", "--yes"), ("undo", "--incomplete", "--yes", "-o", "json"),
            ("tune", "rollback", "1", "--yes"),
        ):  # fmt: skip
            assert main(words) in (0, 1, 4)
        with sqlite3.connect(path_of) as db:
            assert db.execute("SELECT id FROM acts WHERE finished_ns IS NULL AND id > 1").fetchall() == []
        db.close()
        with SqliteJournal(path_of) as journal:  # and nobody else is held up
            assert len(journal.claim_many([Act("sockopt", CONNECTION, {}, {})])) == 1
