"""How long a connection has been in its state: no more is claimed than the kernel's clocks hold."""

from __future__ import annotations

import pytest

from finwait.diagnosis.ages import FOLLOWED, OF_OTHER_END, ages
from finwait.diagnosis.assemble import followed
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view


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


def test_what_an_agent_has_followed_is_older_than_its_clocks_tell() -> None:
    row = socket(state=tcp.FIN_WAIT2, cookie=5, inode=7, last_ack_recv_ms=1000, last_data_sent_ms=90_000)
    row |= {"last_data_recv_ms": 1000}

    def told(
        least: int, most: int, key: tuple[int, int, int] = (1, 5, tcp.FIN_WAIT2)
    ) -> tuple[int, int, int]:
        v = followed(view(row), {key: (least, most)})
        return int(v.at_least_ms[0]), int(v.at_most_ms[0]), int(v.age_source[0])

    assert told(60_000, 75_000) == (60_000, 75_000, FOLLOWED)
    assert told(60_000, -1) == (60_000, 90_000, FOLLOWED)
    assert told(500, 95_000) == (1000, 90_000, 1), "the socket tells more"
    assert told(90_050, 90_060) == (90_000, 90_000, FOLLOWED), "clocks differ a little"
    assert told(95_000, 96_000) == (1000, 90_000, 1), "that is another story"
    for stranger in ((2, 5, tcp.FIN_WAIT2), (1, 6, tcp.FIN_WAIT2), (1, 5, tcp.CLOSE_WAIT)):
        assert told(60_000, 75_000, stranger) == (1000, 90_000, 1)


@pytest.mark.parametrize(
    ("closed_ack", "half_ack", "ages_of_closed", "ages_of_half"),
    [
        # Probes of the end in CLOSE_WAIT are answered: its clock stands at 2 s, the other end's went on.
        (2_000, 174_000, (174_000, 200_000), (174_000, 180_000)),
        # Those of the end in FIN_WAIT2: no older than what the other can be.
        (170_000, 2_000, (170_000, 200_000), (2_000, 180_000)),
    ],
)
def test_the_other_end_s_clock_goes_on_where_keepalive_sets_this_one_back(
    closed_ack: int, half_ack: int, ages_of_closed: tuple[int, int], ages_of_half: tuple[int, int]
) -> None:
    closed = socket(
        state=tcp.CLOSE_WAIT, cookie=5, inode=7, sport=80, dport=5000, last_ack_recv_ms=closed_ack
    )
    closed |= {"last_data_recv_ms": 200_000, "last_data_sent_ms": 200_000}
    half = socket(state=tcp.FIN_WAIT2, cookie=6, inode=8, sport=5000, dport=80, last_ack_recv_ms=half_ack)
    half |= {
        "last_data_recv_ms": 180_000,
        "last_data_sent_ms": 180_000,
        "src": "192.0.2.1",
        "dst": "10.0.0.1",
    }
    for rows in ((closed, half), (half, closed)):
        v = view(*rows)
        spans = list(zip(v.at_least_ms.tolist(), v.at_most_ms.tolist(), strict=True))
        assert spans[:: 1 if rows[0] is closed else -1] == [ages_of_closed, ages_of_half]
    assert (v.age_source == OF_OTHER_END).any() == (half_ack > closed_ack)
