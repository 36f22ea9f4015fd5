"""Connections that are read again by a dump: those of a namespace that could not be entered have not left."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from finwait.acting import identity
from finwait.remedy.steps import step_of
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

V = view(*(socket(state=tcp.FIN_WAIT2, netns=n, protocol=262, inode=n, cookie=n) for n in (1, 2, 3)))
STEPS = [step_of(V, row, "", "keepalive") for row in range(3)]  # MPTCP is always dumped


@pytest.mark.parametrize(
    ("dumped", "there", "closed", "sought"),
    [
        ((1, 2, 3), (1, 2, 3), set(), []),
        ((1, 3), (1, 2, 3), {2}, [{2}]),
        ((1,), (1, 3), {3}, [{2, 3}]),  # 2 is gone, and its connections with it
        ((1,), (1,), set(), [{2, 3}]),
    ],
)
def test_what_was_not_dumped_and_is_there_could_not_be_entered(
    dumped: tuple[int, ...],
    there: tuple[int, ...],
    closed: set[int],
    sought: list[set[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[set[int]] = []

    def namespaces_of(inodes: Iterable[int]) -> list[SimpleNamespace]:
        asked.append(set(inodes))
        return [SimpleNamespace(inode=n) for n in there if n in asked[-1]]

    look = SimpleNamespace(namespaces=tuple(SimpleNamespace(inode=n) for n in dumped))
    machine = SimpleNamespace(observe=lambda _: look)
    monkeypatch.setattr(identity, "RunningMachine", lambda: machine)
    monkeypatch.setattr("finwait.table.decode.sockets", lambda _: V.sockets)
    monkeypatch.setattr(identity, "namespaces_of", namespaces_of)
    table, unentered = identity.reread(STEPS)
    assert table is V.sockets
    assert (set(unentered), asked) == (closed, sought)
