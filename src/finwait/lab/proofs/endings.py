"""Demonstrations of what the column ``ends`` says: each connection is looked at once, predicted, and then watched.

What is compared is what people read (`finwait.diagnosis.outlook`), with options read from the sockets, not a formula
beside it. A prediction holds if the connection ends within its bounds, give or take a tenth or the grain of a timer.
"""

from __future__ import annotations

import contextlib
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from finwait import session
from finwait.diagnosis import outlook
from finwait.diagnosis.outlook import Outlook
from finwait.lab.proofs.instruments import (
    NFT,
    TCP_USER_TIMEOUT,
    Late,
    Measured,
    Pair,
    Place,
    Proof,
    Took,
    equal,
    in_state,
    keepalive,
    until,
)
from finwait.lab.topology import Lab
from finwait.session import Look
from finwait.uapi.observation import LookPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ENDINGS"]

_GRAIN_S: Final = 0.25
"""What a timer may be late by, however short its time, and what passes between a look and the answer."""
_DEADLINE_S: Final = 60.0
_CROWD: Final = 6
"""Handshakes that are more than half of a backlog half as large again."""

Ends = tuple[int, int]
"""Local and remote port."""


def _outlooks(place: Place) -> tuple[dict[Ends, Outlook], float]:
    """Return what is predicted of each connection of a namespace, and when that was."""
    plan = LookPlan(only=frozenset({place.ns.inode}), established_limit=None)
    at = time.monotonic()
    view = session.look(session.live_machine(), Look(plan=plan, waits="everything")).view
    s = view.sockets
    ends = zip(s.sport.tolist(), s.dport.tolist(), strict=True)
    return {pair: outlook.of_row(view, row) for row, pair in enumerate(ends)}, at


def _watched(place: Place, pairs: Mapping[str, Pair]) -> Iterator[Measured]:
    """Predict when the near end of each pair ends by itself, and measure it."""
    predicted, at = _outlooks(place)
    running = dict(pairs)
    seen = dict.fromkeys(running, at)
    for subject, pair in pairs.items():
        if predicted[pair.a_port, pair.b_port].at_most_s is None:
            yield Measured(subject, "a time", outlook.text(predicted[pair.a_port, pair.b_port]), held=False)
            del running[subject]
    while running:
        for subject, pair in list(running.items()):
            asked = time.monotonic()
            if pair.at_a() is not None:
                seen[subject] = asked
                continue
            took = Took(seen[subject] - at, time.monotonic() - at)
            yield _compared(subject, predicted[pair.a_port, pair.b_port], took)
            del running[subject]
        if running and time.monotonic() > at + _DEADLINE_S:
            raise Late(f"after {_DEADLINE_S:.0f} s still there: {', '.join(running)}")
        time.sleep(0.01)


def _compared(subject: str, end: Outlook, took: Took) -> Measured:
    least, most = end.at_least_s or 0.0, end.at_most_s or 0.0
    held = took.most >= 0.9 * least - _GRAIN_S and took.least <= 1.1 * most + _GRAIN_S
    return Measured(subject, f"{end.ends}: {least:.2f} to {most:.2f} s", str(took), held)


def _by_timers(lab: Lab) -> Iterator[Measured]:
    with Place(lab, tcp_fin_timeout=3, tcp_retries2=3, tcp_orphan_retries=2) as place:
        orphan, closed, sending, limited, idle = (place.pair() for _ in range(5))
        limited.a.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 2000)
        orphan.a.shutdown(socket.SHUT_WR)
        until(lambda: in_state(orphan.at_a(), "FIN_WAIT2"), "the FIN is acknowledged")
        orphan.a.close()
        place.silence()
        keepalive(idle.a, 1, 1, 2)
        sending.a.sendall(b"x")
        limited.a.sendall(b"x")
        closed.a.close()
        yield from _watched(
            place,
            {
                "an orphan in FIN_WAIT2, tcp_fin_timeout=3": orphan,
                "an orphan whose FIN nobody answers, tcp_orphan_retries=2": closed,
                "data that nobody answers, tcp_retries2=3": sending,
                "data that nobody answers, TCP_USER_TIMEOUT=2000": limited,
                "idle, keepalive 1/1/2, the peer is dead": idle,
            },
        )


def _while_it_retries(lab: Lab) -> Iterator[Measured]:
    """The same, looked at late: some retransmissions have been sent already."""
    with Place(lab, tcp_retries2=5, tcp_orphan_retries=4) as place:
        closed, sending = place.pair(), place.pair()
        place.silence()
        sending.a.sendall(b"x")
        closed.a.close()
        for pair in (closed, sending):
            until(partial(_retried, pair), "two retransmissions")
        yield from _watched(
            place,
            {
                "an orphan after two retransmissions, tcp_orphan_retries=4": closed,
                "data after two retransmissions, tcp_retries2=5": sending,
            },
        )


def _retried(pair: Pair, tries: int = 2) -> bool:
    row = pair.at_a()
    return row is not None and row.retrans >= tries


def _handshakes(lab: Lab) -> Iterator[Measured]:
    """Handshakes whose clients are gone, looked at at once, and after the SYN-ACK was sent again."""
    with _answers_lost(lab, "at-once") as place:
        plain, counted, timed = (place.listener() for _ in range(3))
        counted.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        timed.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 1000)
        crowded = place.listener(_CROWD + _CROWD // 2)
        crowded.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 3)
        doors = {
            "tcp_synack_retries=2": plain,
            "TCP_SYNCNT=1 of the listener": counted,
            "TCP_USER_TIMEOUT=1000 of the listener, which changes nothing": timed,
        } | {
            f"TCP_SYNCNT=3 of a listener with a backlog of {_CROWD + _CROWD // 2}, {n} of {_CROWD}": crowded
            for n in range(1, _CROWD + 1)
        }
        pairs = {f"a handshake, {case}": _begun(place, door) for case, door in doors.items()}
        for pair in pairs.values():
            until(partial(_retried, pair, 0), "the handshake is under way")
            pair.b.close()
        yield from _watched(place, pairs)
    with _answers_lost(lab, "later") as place:
        door = place.listener()
        once, again = _begun(place, door), _begun(place, door)
        once.b.close()
        until(lambda: again.at_b() is None, "its client gives up")
        late = "a handshake looked at late, tcp_synack_retries=2"
        yield from _watched(place, {late: once, f"{late}; its client sent its SYN again, and is gone": again})


def _answers_lost(lab: Lab, name: str) -> Place:
    """Return a place where SYNs arrive and their answers get lost."""
    place = Place(lab, f"handshakes-{name}", tcp_synack_retries=2)
    place.ns.nft(
        "table inet silence {\n chain arriving {\n type filter hook input priority 0\n"
        " tcp flags & (syn | ack) == syn | ack drop\n }\n}"
    )
    return place


def _begun(place: Place, door: socket.socket) -> Pair:
    """Begin a handshake; the near end is that of the listener. The client sends its SYN once more."""
    client = place.fresh()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    client.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 2000)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect(door.getsockname())
    return Pair(place.ns, door, client, door.getsockname()[1], client.getsockname()[1])


def _never(lab: Lab) -> Iterator[Measured]:
    """What is said never to end by itself is still there after every limit of the namespace has passed."""
    with Place(lab, tcp_fin_timeout=1, tcp_retries2=1, tcp_orphan_retries=1, tcp_keepalive_time=1) as place:
        half, idle = place.half_closed(), place.pair()
        subjects = {
            "FIN_WAIT2 that a program holds": (half.a_port, half.b_port),
            "CLOSE_WAIT that a program holds": (half.b_port, half.a_port),
            "ESTABLISHED without keepalive": (idle.a_port, idle.b_port),
        }
        predicted, _ = _outlooks(place)
        time.sleep(4)
        still, _ = _outlooks(place)
        for subject, ends in subjects.items():
            forecast = outlook.brief(predicted[ends])
            yield equal(f"{subject}: the prediction", "never", forecast)
            yield equal(f"{subject}: 4 s later", "there", "there" if ends in still else "gone")


ENDINGS = (
    Proof("ends-by-timers", ("S03", "X20", "X22", "X58"), 8, NFT, _by_timers),
    Proof("ends-while-it-retries", ("X58",), 20, NFT, _while_it_retries),
    Proof("ends-of-handshakes", ("X61",), 24, NFT, _handshakes),
    Proof("ends-never", ("S03", "X24"), 4.5, NFT, _never),
)
