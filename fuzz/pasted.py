"""Pasted text: any bytes are lines, sections and looks that decode."""

from __future__ import annotations

from pathlib import Path

from finwait.pasted.lines import clean
from finwait.pasted.observation import PastedText, observations
from finwait.table import decode

PASTES = Path(__file__).parents[1] / "tests" / "pastes"


def seeds() -> list[bytes]:
    return [path.read_bytes()[:4096] for path in sorted(PASTES.glob("hand-*.txt"))]


def one_input(data: bytes) -> None:
    reading = observations([PastedText("text", clean(data))])
    for look in reading.looks:
        sockets = decode.sockets(look)
        sockets.load()
        decode.flows(look)
        assert len(sockets) <= 4 * data.count(b"\n") + 4
    assert sum(reading.recognised.values()) <= len(data) + 1
