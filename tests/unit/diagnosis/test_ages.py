"""How long a connection has been in its state: no more is claimed than the kernel's clocks hold."""

from __future__ import annotations

from finwait.diagnosis.assemble import ages
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp


def of(**columns: list[int]) -> tuple[int, int, int]:
    least, most, source = ages(SocketTable.from_columns({"netns": [1], **columns}))
    return int(least[0]), int(most[0]), int(source[0])


def test_what_is_over_of_time_wait_is_the_least() -> None:
    """A FIN that came again started the 60 s again."""
    assert of(state=[tcp.TIME_WAIT], timer=[3], expires_ms=[53_000]) == (7_000, -1, 2)


def test_an_orphan_in_fin_wait2_says_nothing_about_its_age() -> None:
    assert of(state=[tcp.FIN_WAIT2], timer=[3], expires_ms=[53_000]) == (-1, -1, 0)


def test_close_wait_is_between_the_last_acknowledgement_and_the_last_data() -> None:
    clocks = {"last_ack_recv_ms": [3_000], "last_data_recv_ms": [9_000], "last_data_sent_ms": [1_000]}
    assert of(state=[tcp.CLOSE_WAIT], timer=[0], **clocks) == (3_000, 9_000, 1)
