"""MPTCP connections that do not finish closing: whose move it is, by state and by what is unread or has no room."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine, outlook
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import View
from finwait.remedy import making
from finwait.remedy.guards import Limits
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

WHOLE = socket(protocol=262, inode=7, cookie=1, mptcp_token=9)
PART = socket(
    state=tcp.ESTABLISHED, inode=7, cookie=2, ulp=b"mptcp", mptcp_token_local=9, last_data_sent_ms=9000
)
PART |= {"last_data_recv_ms": 9000, "last_ack_recv_ms": 9000}
OWNED: dict[str, Any] = {"holders": {7: [500]}, "processes": {500: ProcessView(500, "app")}}
SHUT = {"timer": 4, "snd_wnd": 0, "wqueue": 90, "expires_ms": 400}


def told(built: View, row: int = 0) -> Finding:
    (finding,) = (
        f for f in engine.diagnose(built, catalogue.rules()) if f.primary and row in f.rows.tolist()
    )
    return finding


@pytest.mark.parametrize(
    ("cells", "part", "severity", "move"),
    [
        ({"state": tcp.FIN_WAIT2}, {}, "problem", ("peer", "close()")),
        ({"state": tcp.FIN_WAIT2, "rqueue": 80}, {}, "problem", ("holder", "read, close()")),
        ({"state": tcp.CLOSE_WAIT}, {}, "problem", ("holder", "close()")),
        ({"state": tcp.CLOSE_WAIT}, SHUT, "notice", ("peer", "read")),
        ({"state": tcp.LAST_ACK}, {}, "problem", ("far", "answer")),
        ({"state": tcp.CLOSE_WAIT, "mptcp_flags": 1}, {}, "healthy", ("kernel", "")),
        ({"state": tcp.FIN_WAIT2, "mptcp_flags": 1, "rqueue": 80}, {}, "healthy", ("kernel", "")),
    ],
)
def test_whose_move_it_is(
    cells: dict[str, Any], part: dict[str, Any], severity: str, move: tuple[str, str]
) -> None:
    built = view(WHOLE | cells, PART | part, **OWNED)
    finding = told(built)
    assert (finding.rule, finding.severity) == ("mptcp-half-close", severity)
    assert finding.turn is not None
    assert (finding.turn.whose, finding.turn.act) == move


def test_what_fell_back_ends_as_its_tcp_row_does_and_that_one_may_be_cleared() -> None:
    whole = WHOLE | {"state": tcp.CLOSE_WAIT, "mptcp_flags": 1}
    part = PART | {"state": tcp.CLOSE_WAIT, "shutdown": 1}
    built = view(whole, part, **OWNED)
    assert outlook.of_row(built, 0) == outlook.of_row(built, 1)
    findings = engine.diagnose(built, catalogue.rules())
    plan = making.make(built, findings, np.ones(2, np.bool_), Limits(share=1.0), force="destroy")
    assert [step.cookie for step in plan.steps] == ["0x2"]


def test_one_that_waits_for_room_is_told_so() -> None:
    built = view(WHOLE | {"state": tcp.CLOSE_WAIT}, PART | SHUT, **OWNED)
    assert "to read" in outlook.of_row(built, 0).why


def test_a_subflow_of_a_connection_that_is_being_opened_is_left_alone() -> None:
    """The program has the whole: to end the subflow is to end that connect()."""
    syn = {"state": tcp.SYN_SENT, "timer": 1, "retrans": 5, "backoff": 5, "expires_ms": 9000}
    built = view(WHOLE | {"state": tcp.SYN_SENT}, PART | syn, **OWNED)
    findings = engine.diagnose(built, catalogue.rules())
    plan = making.make(built, findings, np.ones(2, np.bool_), Limits(share=1.0))
    assert plan.steps == ()
