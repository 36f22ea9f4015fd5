"""The times on the page about closing a connection are those that finwait predicts."""

from __future__ import annotations

from pathlib import Path

from finwait.diagnosis import forecast

PAGE = Path(__file__).parents[2] / "docs/explanation/closing-a-tcp-connection.md"


def test_the_times_of_each_state_are_those_that_are_predicted() -> None:
    lines = PAGE.read_text().splitlines()

    def row(begin: str) -> str:
        (found,) = [line for line in lines if line.startswith(f"| {begin}")]
        return found

    fin_wait1 = row("FIN_WAIT1 |")
    assert f"`tcp_orphan_retries` (about {forecast.span(forecast.orphan())})" in fin_wait1
    assert f"`tcp_retries2` (about {forecast.span(forecast.retransmission())})" in fin_wait1
    assert f"orphans about {forecast.span(forecast.zero_window(orphaned=True))}" in fin_wait1
    assert f"`tcp_fin_timeout`, {forecast.DEFAULTS.fin_timeout_s} s" in row("FIN_WAIT2, an orphan")
    assert f"{forecast.TIME_WAIT_S:.0f} s, compiled in" in row("TIME_WAIT")
