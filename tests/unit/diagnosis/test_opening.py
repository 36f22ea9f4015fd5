"""How long connect() tries, as it was measured on Linux 6.18; `finwait lab prove` measures it again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from finwait.diagnosis import opening, outlook
from finwait.diagnosis.forecast import NamespaceLimits
from finwait.diagnosis.view import NamespaceView, View
from finwait.uapi import tcp
from finwait.uapi.observation import SocketOptions
from tests.unit.diagnosis.views import socket, view


@pytest.mark.parametrize(
    ("retries", "linear", "seconds", "tries"),
    [(6, 0, 127, 6), (6, 4, 131, 10), (1, 0, 3, 1), (2, 0, 7, 2), (0, 0, 1, 0), (1, 3, 3, 2), (5, 4, 67, 9)],
)
def test_how_long_connect_tries(retries: int, linear: int, seconds: int, tries: int) -> None:
    end = opening.expiry(NamespaceLimits(syn_retries=retries, syn_linear=linear))
    assert (end.seconds, end.tries) == (seconds, tries)
    assert seconds < end.most_s < 1.13 * seconds + 0.2


@pytest.mark.parametrize(
    ("user_timeout_ms", "measured"),
    [(100, 1.03), (500, 1.03), (2500, 2.52), (3000, 3.03), (6000, 6.01), (9000, 9.02), (20_000, 20.03)],
)
def test_a_user_timeout_ends_connect_as_it_was_measured(user_timeout_ms: int, measured: float) -> None:
    end = opening.expiry(NamespaceLimits(syn_linear=4), user_timeout_ms)
    assert end.seconds <= measured <= end.most_s
    assert end.seconds == pytest.approx(measured, rel=0.05)
    assert opening.expiry(NamespaceLimits(syn_retries=1, syn_linear=0), 600_000).seconds == 3


def test_the_user_timeout_of_a_row_bounds_what_is_left() -> None:
    one = view(socket(state=tcp.SYN_SENT, timer=1, retrans=4, backoff=0, expires_ms=700))
    found = opening.of_row(one, 0, SocketOptions(user_timeout_ms=6000))
    assert (found.since_ms, found.least_ms) == (4300, 1700)
    assert 1700 < found.most_ms < 2100
    late = opening.of_row(
        view(socket(state=tcp.SYN_SENT, timer=1, retrans=5, backoff=0, expires_ms=700)),
        0,
        SocketOptions(user_timeout_ms=6000),
    )
    assert (late.since_ms, late.least_ms) == (5300, 700)  # the timer was set to what is left of it


def test_the_count_that_a_program_set_takes_the_place_of_the_sysctl() -> None:
    one = view(socket(state=tcp.SYN_SENT, timer=1, retrans=1, backoff=1, expires_ms=700))
    found = opening.of_row(one, 0, SocketOptions(syncnt=1))
    assert found.least_ms == 700
    assert found.most_ms < 1000
    assert opening.of_row(one, 0).least_ms > 100_000


@pytest.mark.parametrize(
    ("syncnt", "user_timeout_ms", "measured"),
    [(1, 60_000, 7.12), (2, 20_000, 11.25), (2, 8_000, 8.02), (3, 60_000, 19.38)],
)
def test_a_user_timeout_takes_the_place_of_the_time_that_the_count_stands_for(
    syncnt: int, user_timeout_ms: int, measured: float
) -> None:
    end = opening.expiry(NamespaceLimits(syn_retries=syncnt, syn_linear=4), user_timeout_ms)
    assert end.seconds == pytest.approx(measured, rel=0.05)
    assert end.seconds <= measured <= end.most_s


def test_the_options_of_a_socket_whose_syn_is_unanswered_are_read_in_every_look() -> None:
    """They decide when connect() gives up."""
    v = view(
        socket(state=tcp.SYN_SENT, inode=7),
        socket(state=tcp.SYN_SENT, inode=0),
        socket(state=tcp.ESTABLISHED, inode=8),
    )
    assert v.sockets.unfinished.tolist() == [True, False, False]


def test_without_the_setting_a_kernel_shows_that_it_sends_syns_again_without_doubling() -> None:
    one = {"state": tcp.SYN_SENT, "timer": 1, "retrans": 3, "expires_ms": 500}
    plain = opening.of_row(view(socket(**one, backoff=3)), 0)
    assert (plain.since_ms, plain.least_ms) == (14_500, 112_500)
    linear = opening.of_row(view(socket(**one, backoff=0)), 0)
    assert (linear.since_ms, linear.least_ms) == (3500, 127_500)


@given(st.integers(0, 127), st.integers(0, 127), st.integers(0, 1_000_000), st.integers(0, 130))
def test_every_setting_gives_an_answer(retries: int, linear: int, user_timeout_ms: int, tries: int) -> None:
    limits = NamespaceLimits(syn_retries=retries, syn_linear=linear)
    end = opening.expiry(limits, user_timeout_ms)
    assert 1 <= end.seconds <= end.most_s
    assert end.seconds <= max(opening.expiry(limits).most_s, user_timeout_ms / 1000)
    found = opening.of_row(
        view(socket(state=tcp.SYN_SENT, timer=1, retrans=tries, expires_ms=300)),
        0,
        SocketOptions(user_timeout_ms=user_timeout_ms, syncnt=retries),
    )
    assert 300 <= found.least_ms <= found.most_ms


DOOR = socket(state=tcp.LISTEN, inode=5, sport=80, src="0.0.0.0", dst="0.0.0.0", dport=0)
SYSCTLS = {"ipv4/tcp_synack_retries": "5", "ipv4/tcp_syn_retries": "6"}
READ = SocketOptions(syncnt=6, defer_accept_s=0)
"""Of a listener whose program set nothing: TCP_SYNCNT reads as tcp_syn_retries."""


def begun(
    *rows: dict[str, Any],
    sysctls: dict[str, str] | None = None,
    options: SocketOptions | None = READ,
    backlog: int = 128,
    **cells: Any,
) -> View:
    """A handshake (row 1) at a listener (row 0)."""
    request = socket(state=tcp.SYN_RECV, inode=0, timer=1, sport=80, dport=4000) | cells
    spaces = {1: NamespaceView(1, ("host",), SYSCTLS if sysctls is None else sysctls)}
    built = view(DOOR | {"wqueue": backlog}, request, *rows, holders={5: [9]}, namespaces=spaces)
    return replace(built, socket_options={} if options is None else {5: options})


def left_ms(built: View) -> tuple[int, int]:
    found = opening.answering(built, 1)
    assert found is not None
    return found.least_ms, found.most_ms


def test_a_handshake_ends_by_tcp_synack_retries() -> None:
    """Measured: gone 64.0 s after the SYN with 5, 7.06 s with 2, and 3.0 s where the listener has a TCP_SYNCNT of 1."""
    least, most = left_ms(begun(retrans=0, expires_ms=1000))
    assert least == 63_000 < 64_000 < most < 72_000
    assert left_ms(begun(retrans=2, expires_ms=4000))[0] == 60_000
    two = SYSCTLS | {"ipv4/tcp_synack_retries": "2"}
    least, most = left_ms(begun(retrans=0, expires_ms=1000, sysctls=two))
    assert least <= 7060 <= most < 7500
    least, most = left_ms(begun(retrans=0, expires_ms=1000, options=replace(READ, syncnt=1)))
    assert least <= 3000 <= most < 3300


def test_what_an_older_recording_lacks_leaves_the_end_of_a_handshake_unknown() -> None:
    built = begun(retrans=0, expires_ms=1000, sysctls={"ipv4/tcp_syn_retries": "6"})
    assert opening.answering(built, 1) is None
    found = outlook.of_row(built, 1)
    assert (found.ends, found.at_most_s) == ("unknown", None)
    assert "tcp_synack_retries of its namespace was not read" in found.why


def test_what_an_end_of_a_handshake_rests_on_is_said() -> None:
    def why(**more: Any) -> str:
        return outlook.of_row(begun(retrans=1, expires_ms=2000, **more), 1).why

    assert why() == (
        "the client has not completed the handshake; tcp_synack_retries is 5; later if the client sends its SYN "
        "again; unless its listener itself set TCP_SYNCNT to 6, which reads the same as unset"
    )
    assert "TCP_SYNCNT of its listener is 2; later" in why(options=replace(READ, syncnt=2))
    assert "TCP_SYNCNT or TCP_DEFER_ACCEPT of its listener, which was not read" in why(options=None)
    assert "TCP_DEFER_ACCEPT" in why(options=replace(READ, defer_accept_s=7))
    assert "USER_TIMEOUT" not in why(options=None)


def test_many_handshakes_at_one_listener_may_end_sooner() -> None:
    """Measured with a backlog of 9 and six handshakes: two went after 7 s, with TCP_SYNCNT 3, four after 15 s."""
    more = [socket(state=tcp.SYN_RECV, inode=0, timer=1, sport=80, dport=4001 + k) for k in range(5)]
    own = replace(READ, syncnt=3)
    few = begun(*more, retrans=0, expires_ms=1000, options=own)
    small = begun(*more, retrans=0, expires_ms=1000, options=own, backlog=9)
    assert left_ms(few)[0] == 15_000
    least, most = left_ms(small)
    assert least <= 7060 < 15_250 <= most
    assert "sooner while more than half of the listener's backlog" in outlook.of_row(small, 1).why


def test_a_client_that_is_here_tells_how_often_its_syn_came_again() -> None:
    client = socket(
        state=tcp.SYN_SENT, inode=8, timer=1, src="192.0.2.1", dst="10.0.0.1", sport=4000, dport=80, retrans=1
    )
    alone = left_ms(begun(retrans=3, expires_ms=900))
    known = left_ms(begun(client, retrans=3, expires_ms=900))
    assert alone[0] == known[0] == 900 + 16_000 + 32_000
    assert alone[1] > 62_000 > 61_500 > known[1]


class Request(Struct):
    """``reqsk_timer_handler`` and the part of ``tcp_check_req`` that a SYN which comes again reaches."""

    retries: int
    now: int = 0
    fired: int = 0
    sent: int = 0
    due: int = 1000

    def run(self, until: int) -> bool:
        """Let time pass; return whether it is still there."""
        while self.due <= until:
            self.now = self.due
            if self.fired >= self.retries:
                return False
            self.fired, self.sent = self.fired + 1, self.sent + 1
            self.due = self.now + min(1000 << self.fired, 120_000)
        self.now = until
        return True

    def again(self) -> None:
        """The client sends its SYN again."""
        self.sent, self.due = self.sent + 1, self.now + min(1000 << self.fired, 120_000)


def gone_after(request: Request, syns: Iterable[int], look: int) -> tuple[Request, int] | None:
    """Return the request at a look, and how long it lasts from then on; None where it is gone by then."""
    for at in sorted(syns):
        if at < look:
            if not request.run(at):
                return None
            request.again()
    if not request.run(look):
        return None
    seen = replace(request)
    while request.run(request.due):
        pass
    return seen, request.now - look


@given(st.integers(0, 9), st.sets(st.integers(1, 60_000), max_size=8), st.integers(0, 100_000), st.booleans())
def test_a_handshake_ends_within_what_is_predicted_of_it(
    retries: int, syns: set[int], look: int, own: bool
) -> None:
    """Whenever one looks, and however often its client sent its SYN again before that."""
    found = gone_after(Request(retries), syns, look)
    if found is None or (own and not retries):
        return
    seen, left = found
    sysctls = SYSCTLS | {
        "ipv4/tcp_synack_retries": "3" if own else str(retries),
        "ipv4/tcp_syn_retries": "100",
    }
    options = replace(READ, syncnt=retries if own else 100)
    least, most = left_ms(
        begun(retrans=seen.sent, expires_ms=seen.due - look, sysctls=sysctls, options=options)
    )
    assert least <= left <= most
    if not syns:
        assert least == left or seen.due - look <= 1000 << (seen.fired - 1)
