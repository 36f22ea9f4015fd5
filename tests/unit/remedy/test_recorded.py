"""What an act of the journal says of itself is believed only as far as finwait could have done it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from finwait.errors import FinwaitError, Refused
from finwait.remedy.journal import KINDS, check_undo, foreign_line, settings_act
from finwait.remedy.recorded import check_act, connection_of, options_act

FIN = "net.ipv4.tcp_fin_timeout"
DROP = {"path": "/etc/sysctl.d/90-finwait-x.conf", "text": None}
CONNECTION = {
    "netns": 1,
    "protocol": 6,
    "family": 2,
    "src": "10.0.0.1",
    "dst": "192.0.2.1",
    "sport": 4000,
    "dport": 80,
    "ifindex": 0,
    "cookie": "2a",
    "state": "CLOSE_WAIT",
}
HELD = CONNECTION | {"inode": 7, "holders": [[500, 3, "app"]]}
NAMESPACE = {"netns": 1, "cookie": 2, "boot_id": "b"}


@dataclass
class Written:
    """An act, as a journal could have it."""

    kind: str = "destroy"
    target: dict[str, Any] = field(default_factory=lambda: dict(CONNECTION))
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    undone_by: int | None = None
    id: int = 12
    started_ns: int = 0
    user: str = "root"
    why: str = ""


def tuned(**changed: Any) -> Written:
    return Written(
        **{
            "kind": "sysctl",
            "target": NAMESPACE,
            "before": {"sysctl": {FIN: "60"}},
            "after": {"sysctl": {FIN: "30"}},
            **changed,
        }
    )


def set_on_socket(**changed: Any) -> Written:
    return Written(
        **{
            "kind": "sockopt",
            "target": HELD,
            "before": {"options": {"user_timeout_ms": 0}},
            "after": {"options": {"user_timeout_ms": 30_000}},
            **changed,
        }
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("# a comment\n; another\n\n   \n", ""),
        ("net.ipv4.tcp_fin_timeout = 30\n", ""),
        ("net.ipv4.tcp_fin_timeout=-1\n", ""),
        ("kernel.core_pattern = |/tmp/x\n", "kernel.core_pattern = |/tmp/x"),
        ("# mine\nnet.ipv4.tcp_fin_timeout = 30; reboot\n", "net.ipv4.tcp_fin_timeout = 30; reboot"),
        ("net.ipv4.tcp_fin_timeout\n", "net.ipv4.tcp_fin_timeout"),
        ("net.ipv4.tcp_fin_timeout 30\n", "net.ipv4.tcp_fin_timeout 30"),
        ("net.ipv4.tcp_fin_timeout =\n", "net.ipv4.tcp_fin_timeout ="),
        ("net.ipv4.tcp_fin_timeout = 30\n  nonsense\n", "nonsense"),
        ("x" * 300, "x" * 100),
    ],
)
def test_a_line_of_a_settings_file_that_finwait_does_not_write_is_found(text: str, line: str) -> None:
    assert foreign_line(text) == line


def test_what_an_act_changed_is_read_back_whole() -> None:
    act = settings_act(tuned())
    assert (act.netns, act.cookie, act.boot_id) == (1, 2, "b")
    assert (act.before, act.after) == ({FIN: "60"}, {FIN: "30"})
    assert (act.drop_in, act.text_before, act.text_after) == ("", None, "")
    filed = settings_act(
        tuned(
            before={"sysctl": {FIN: "60"}, "drop_in": DROP},
            after={"sysctl": {FIN: "30"}, "drop_in": DROP | {"text": f"{FIN} = 30\n"}},
        )
    )
    assert (filed.drop_in, filed.text_before, filed.text_after) == (
        "90-finwait-x.conf",
        None,
        f"{FIN} = 30\n",
    )
    options = options_act(set_on_socket())
    assert (options.cookie, options.inode, options.holders) == (0x2A, 7, ((500, 3, "app"),))
    assert (options.before, options.after) == ({"user_timeout_ms": 0}, {"user_timeout_ms": 30_000})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"before": {"sysctl": []}}, "not a table"),
        ({"before": {"sysctl": {"kernel.panic": "1"}}}, "does not set `kernel.panic`"),
        ({"before": {"sysctl": {"tcp_fin_timeout": "60"}}}, "does not set `tcp_fin_timeout`"),
        ({"before": {"sysctl": {FIN: 60}}}, "not a value"),
        ({"after": {"sysctl": {FIN: "30\nx = 1"}}}, "not a value"),
        ({"after": {"sysctl": {}}}, "not the same ones"),
        ({"target": NAMESPACE | {"netns": "1"}}, "names no network namespace"),
        ({"target": NAMESPACE | {"cookie": None}}, "names no network namespace"),
        ({"target": {"netns": 1, "cookie": 2}}, "names no network namespace"),
        ({"after": {"sysctl": {FIN: "30"}, "drop_in": DROP}}, "names no sysctl.d file"),
    ],
)
def test_settings_that_finwait_would_not_have_written_are_refused(changed: dict[str, Any], said: str) -> None:
    for read in (settings_act, check_act):
        with pytest.raises(Refused, match=said) as refused:
            read(tuned(**changed))
        assert refused.value.guard == "catalogue"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (DROP, DROP, "wrote no sysctl.d file"),
        (DROP, DROP | {"text": "kernel.panic = 1"}, "does not write the line"),
        (DROP | {"text": "kernel.panic = 1"}, DROP | {"text": ""}, "does not write the line"),
        (DROP, {"path": "/etc/sysctl.d/90-finwait-y.conf", "text": ""}, "no sysctl.d file"),
        ({"path": "/etc/passwd", "text": None}, {"path": "/etc/passwd", "text": ""}, "no sysctl.d file"),
        (DROP | {"text": 7}, DROP | {"text": ""}, "no sysctl.d file"),
        ("x", "x", "no sysctl.d file"),
    ],
)
def test_a_settings_file_that_is_not_finwait_s_is_refused(before: Any, after: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        settings_act(
            tuned(
                before={"sysctl": {FIN: "60"}, "drop_in": before},
                after={"sysctl": {FIN: "30"}, "drop_in": after},
            )
        )


@pytest.mark.parametrize("kind", ["destroy", "shutdown", "sockopt"])
@pytest.mark.parametrize(
    "changed",
    [
        {"cookie": "0"},
        {"cookie": "f" * 16},
        {"cookie": "x"},
        {"family": 3},
        {"protocol": 17},
        {"netns": -1},
        {"netns": 1 << 32},
        {"ifindex": 1 << 32},
        {"ifindex": -1},
        {"sport": 1 << 16},
        {"dport": -1},
        {"state": "OPEN"},
        {"src": "10.0.0.01"},
        {"dst": "localhost"},
        {"dst": "::1"},
        {"netns": "one"},
    ],
    ids=str,
)
def test_an_act_that_names_no_connection_is_damaged_whatever_it_did(
    kind: str, changed: dict[str, Any]
) -> None:
    entry = set_on_socket() if kind == "sockopt" else Written(kind)
    entry.target = entry.target | changed
    for read in (connection_of, check_act):
        with pytest.raises(FinwaitError, match="act 12 of the journal is damaged") as damaged:
            read(entry)
        assert damaged.value.hint is not None
        assert "finwait journal -o json" in damaged.value.hint


@pytest.mark.parametrize(
    "changed",
    [
        {"cookie": "1"},
        {"cookie": "fffffffffffffffe"},
        {"family": 10, "src": "2001:db8::1", "dst": "2001:db8::2"},
        {"protocol": 262},
        {"netns": (1 << 32) - 1, "ifindex": (1 << 32) - 1},
        {"netns": 0, "ifindex": 0, "sport": 0, "dport": 65535},
    ],
    ids=str,
)
def test_what_identifies_a_connection_is_believed_up_to_its_bounds(changed: dict[str, Any]) -> None:
    for entry in (Written(), Written("shutdown"), set_on_socket()):
        entry.target = entry.target | changed
        check_act(entry)
        assert connection_of(entry).cookie == (CONNECTION | changed)["cookie"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"target": HELD | {"inode": 1 << 32}}, "there is no such socket"),
        ({"target": HELD | {"inode": -1}}, "there is no such socket"),
        ({"target": HELD | {"holders": [[0, 3, "x"]]}}, "no such holder"),
        ({"target": HELD | {"holders": [[1 << 31, 3, "x"]]}}, "no such holder"),
        ({"target": HELD | {"holders": [[500, -1, "x"]]}}, "no such holder"),
        ({"target": HELD | {"holders": [[500, 1 << 31, "x"]]}}, "no such holder"),
        ({"target": CONNECTION}, "damaged"),
        ({"before": {"options": {}}, "after": {"options": {}}}, "not the same ones"),
        ({"before": {"options": {"keepcnt": 1}}}, "not the same ones"),
        (
            {"before": {"options": {"reuse": 1}}, "after": {"options": {"reuse": 1}}},
            "does not set the option",
        ),
        ({"before": {"options": {"user_timeout_ms": -1}}}, "no socket has that"),
        ({"after": {"options": {"user_timeout_ms": 1 << 31}}}, "no socket has that"),
        (
            {"before": {"options": {"keepalive": 2}}, "after": {"options": {"keepalive": 1}}},
            "no socket has that",
        ),
    ],
    ids=str,
)
def test_options_that_finwait_would_not_have_set_are_damaged(changed: dict[str, Any], said: str) -> None:
    for read in (options_act, check_act):
        with pytest.raises(FinwaitError, match=said):
            read(set_on_socket(**changed))


def test_the_largest_values_of_a_socket_are_its_own() -> None:
    most: dict[str, Any] = {"options": {"user_timeout_ms": (1 << 31) - 1, "keepalive": 1}}
    least: dict[str, Any] = {"options": {"user_timeout_ms": 0, "keepalive": 0}}
    holders = [[1, 0, "a"], [(1 << 31) - 1, (1 << 31) - 1, "b"]]
    for inode in (0, (1 << 32) - 1):
        target = CONNECTION | {"inode": inode, "holders": holders}
        act = options_act(set_on_socket(target=target, before=most, after=least))
        assert (act.inode, act.before["keepalive"], act.after["keepalive"]) == (inode, 1, 0)


@pytest.mark.parametrize(
    ("entry", "guard"),
    [
        (Written("levitate"), "unknown-kind"),
        (Written("sysctl", undone_by=14), "undone"),
        (Written("sysctl", result={"restored": True}), "restored"),
        (Written("destroy", result={"result": "ended"}), "irreversible"),
        (Written("shutdown", result={"result": "ended"}), "irreversible"),
        (Written("conntrack-delete", result={}), "irreversible"),
    ],
)
def test_what_cannot_be_taken_back_is_refused_with_the_reason(entry: Written, guard: str) -> None:
    with pytest.raises(Refused) as refused:
        check_undo(entry)
    assert refused.value.guard == guard


@pytest.mark.parametrize(
    "entry",
    [
        Written("sysctl", result={"values": {}}),
        Written("sockopt", result={"result": "set"}),
        *(Written(kind) for kind in sorted(KINDS)),  # cut short: what came of it is not known
    ],
)
def test_what_can_be_taken_back_or_has_to_be_looked_at_is_not_refused(entry: Written) -> None:
    check: Callable[[Written], None] = check_undo
    check(entry)
