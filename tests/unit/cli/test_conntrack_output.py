"""What `finwait conntrack` prints of sockets that have no entry."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finwait.attribution.tracked import tracked
from finwait.cli import conntrack
from finwait.table.flows import FlowTable
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view


def test_sockets_without_an_entry_are_in_json_and_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    v = view(
        *(
            socket(state=tcp.ESTABLISHED, inode=7 + k, sport=4000 + k, cookie=1 + k, dst="192.0.2.255")
            for k in range(25)
        ),
        holders={8: [500]},
    )
    shot: Any = SimpleNamespace(view=v)
    flows = FlowTable.empty()
    joined = tracked(v.sockets, flows, {}, frozenset())
    assert np.array_equal(joined.flow, [])
    conntrack._json((), shot, flows, joined, [], [1, 3], {})
    out = json.loads(capsys.readouterr().out)
    assert [(one["sport"], one["dst"]) for one in out["sockets_without_entry"]] == [
        (4001, "192.0.2.255"),
        (4003, "192.0.2.255"),
    ]
    assert out["items"] == []
    conntrack._text(shot, flows, joined, [], [], list(range(1, 23)), {})
    text = capsys.readouterr().out
    assert "\n22 sockets without an entry, in namespaces that track connections:\n" in text
    assert text.count(" → 192.0.2.255:80  ESTABLISHED") == 20
    assert "  … and 2 more\n" in text
    conntrack._text(shot, flows, joined, [], [], [], {})
    assert "without an entry" not in capsys.readouterr().out
