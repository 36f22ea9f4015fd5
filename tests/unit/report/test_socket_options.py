"""What the options of a socket mean for how its connection ends."""

from __future__ import annotations

from finwait.report.socket_options import as_json, meaning
from finwait.uapi.observation import SocketOptions


def test_where_close_sends_a_rst_nothing_is_said_of_fin_wait2() -> None:
    said = dict(meaning(SocketOptions(keepalive=False, linger_s=0, linger2_s=60)))
    assert said["linger"] == "reset: close() sends a RST at once"
    assert "linger2" not in said
    said = dict(meaning(SocketOptions(keepalive=False, linger_s=5, linger2_s=60)))
    assert said["linger2"].startswith("60 s: so long it stays in FIN_WAIT2")


def test_a_maximum_of_the_rto_is_told_where_a_program_or_a_setting_made_it_smaller() -> None:
    said = dict(meaning(SocketOptions(keepalive=False, rto_max_ms=1000)))
    assert said["RTO max"].startswith("1.0 s: ")
    assert "RTO max" not in dict(meaning(SocketOptions(keepalive=False, rto_max_ms=120_000)))
    found = as_json(SocketOptions(rto_max_ms=1000))
    assert found is not None
    assert found["rto_max_ms"] == 1000
