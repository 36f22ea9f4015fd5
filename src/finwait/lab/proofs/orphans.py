"""Demonstrations about sockets that nobody holds any more: countdowns, retries, TIME_WAIT."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from finwait.diagnosis import forecast
from finwait.lab.proofs.instruments import (
    NET,
    NFT,
    SS,
    TCP_LINGER2,
    Measured,
    Place,
    Proof,
    Race,
    Took,
    as_forecast,
    counter,
    equal,
    error_of,
    gone,
    in_state,
    packets,
    rto_ms,
    seen,
    timer,
    until,
)
from finwait.lab.proofs.queues import reset_at
from finwait.lab.topology import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ORPHANS"]


def _held_and_orphan(lab: Lab) -> Iterator[Measured]:
    with Place(lab, tcp_fin_timeout=2) as place:
        held, both, orphan = place.half_closed(), place.half_closed(), place.half_closed()
        both.a.shutdown(socket.SHUT_RDWR)
        race = Race()
        predicted = forecast.fin_wait2_orphan_s(2, rto_ms(orphan.a))
        race.start("the orphan's life with tcp_fin_timeout=2", orphan, predicted, orphan.a.close)
        yield seen("the orphan, at first", orphan.at_a(), "FIN_WAIT2", timer=3, held=False)
        before = packets(place.ns)
        yield from race.results()
        time.sleep(2.5)
        yield seen("held after shutdown(WR), longer than that", held.at_a(), "FIN_WAIT2", timer=0, held=True)
        yield seen(
            "held after shutdown(RDWR), longer than that", both.at_a(), "FIN_WAIT2", timer=0, held=True
        )
        yield seen("the other end of the held socket", held.at_b(), "CLOSE_WAIT", timer=0, held=True)
        yield equal("packets meanwhile", 0, packets(place.ns) - before)


def _countdown_is_copied(lab: Lab) -> Iterator[Measured]:
    with Place(lab, tcp_fin_timeout=60) as place:
        early = place.orphan()
        until(lambda: early.at_a() is not None, "the orphan is there")
        place.ns.sysctl("net.ipv4.tcp_fin_timeout", 1)
        late = place.orphan()
        until(lambda: late.at_a() is None, "the later orphan is gone")
        row = early.at_a()
        yield gone("an orphan made after setting tcp_fin_timeout=1", late.at_a())
        yield seen("the one made before, after that", row, "FIN_WAIT2", timer=3)
        remaining_s = row.when_s if row else 0.0
        yield Measured("its time left", "more than 40 s", f"{remaining_s:.1f} s", remaining_s > 40)


def _time_wait_is_constant(lab: Lab) -> Iterator[Measured]:
    with Place(lab, tcp_fin_timeout=3) as place:
        pair = place.half_closed()
        pair.b.close()
        until(lambda: in_state(pair.at_a(), "TIME_WAIT"), "TIME_WAIT")
        row = pair.at_a()
        remaining_s = row.when_s if row else 0.0
        yield as_forecast(
            "TIME_WAIT's time with tcp_fin_timeout=3", forecast.TIME_WAIT_S, Took(remaining_s, remaining_s)
        )


def _lifetimes_above_sixty(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        pair.a.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, 500)
        kept = pair.a.getsockopt(socket.IPPROTO_TCP, TCP_LINGER2)
        yield equal("what TCP_LINGER2 reads after it is set to 500", 120, kept)
        yield equal("the same in the forecast", forecast.LINGER2_MAX_S, kept)
        race = Race()
        for seconds in (1, 3, 61, 62, 63):
            pair = place.pair()
            pair.a.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, seconds)
            pair.a.shutdown(socket.SHUT_WR)
            until(lambda p=pair: in_state(p.at_a(), "FIN_WAIT2"), "the FIN is acknowledged")  # type: ignore[misc]
            predicted = forecast.fin_wait2_orphan_s(seconds, rto_ms(pair.a))
            race.start(f"an orphan's life with TCP_LINGER2={seconds}", pair, predicted, pair.a.close)
        yield from race.results()
        with Place(lab, "beyond", tcp_fin_timeout=200) as beyond:
            pair = beyond.orphan()
            row = pair.at_a()
            remaining_s = (row.when_s if row else 0.0) + 200 - forecast.TIME_WAIT_S
            yield as_forecast("an orphan's life with tcp_fin_timeout=200, by its first timer",
                               forecast.fin_wait2_orphan_s(200), Took(remaining_s, remaining_s))  # fmt: skip
        pair = place.pair()
        pair.a.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, -1)
        pair.a.close()
        until(lambda: pair.at_b() is None, "the peer was reset")
        error = error_of(pair.b)
        reset = error in ("ECONNRESET", "EPIPE")
        yield Measured("the peer of TCP_LINGER2=-1", "a reset", error, reset)


def _orphan_retries(lab: Lab) -> Iterator[Measured]:
    with (
        Place(lab, "few", tcp_orphan_retries=1, tcp_fin_timeout=1) as few,
        Place(lab, "default", tcp_fin_timeout=1) as usual,
    ):
        orphan, held, other = few.pair(), few.pair(), usual.pair()
        few.silence()
        usual.silence()
        held.a.shutdown(socket.SHUT_WR)
        other.a.close()
        race = Race()
        end = forecast.orphan(forecast.NamespaceLimits(orphan_retries=1), rto_ms(orphan.a))
        race.start("an unanswered FIN with tcp_orphan_retries=1", orphan, end, orphan.a.close)
        yield from race.results()
        time.sleep(2)
        yield seen("the same with the default 0, later", other.at_a(), "FIN_WAIT1", timer=1, held=False)
        yield seen(
            "a held socket with tcp_orphan_retries=1, later", held.at_a(), "FIN_WAIT1", timer=1, held=True
        )


def _orphans_counted(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        place.orphan()

        def tw() -> str:
            text = Path("/proc/thread-self/net/sockstat").read_text(encoding="ascii")
            return next(line for line in text.splitlines() if line.startswith("TCP:")).split()[6]

        yield equal("sockstat's tw with one orphan in FIN_WAIT2", "1", place.ns.call(tw))


def _bucket_overflow(lab: Lab) -> Iterator[Measured]:
    with Place(lab, tcp_max_tw_buckets=1) as place:
        pairs = [place.orphan() for _ in range(3)]
        yield equal("orphans in FIN_WAIT2 with tcp_max_tw_buckets=1", 1,
                     sum(in_state(pair.at_a(), "FIN_WAIT2") for pair in pairs))  # fmt: skip
        yield equal("TCPTimeWaitOverflow", 2, counter(place.ns, "TCPTimeWaitOverflow"))
        yield equal("peers in CLOSE_WAIT", 3, sum(in_state(pair.at_b(), "CLOSE_WAIT") for pair in pairs))


def _port_reuse(lab: Lab) -> Iterator[Measured]:
    with Place(lab, tcp_tw_reuse=0) as place:
        place.ns.call(lambda: Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 50003"))
        door = place.fresh()
        door.bind(("127.0.0.1", 8080))
        door.listen(64)

        def more() -> str:
            sock = place.fresh()
            try:
                sock.connect(("127.0.0.1", 8080))
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, "?")
            place.open.append(door.accept()[0])
            return "connected"

        first = [place.pair(door) for _ in range(4)]
        for pair in first:
            pair.a.shutdown(socket.SHUT_WR)
            until(lambda p=pair: in_state(p.at_a(), "FIN_WAIT2"), "FIN_WAIT2")  # type: ignore[misc]
        place.ns.sysctl("net.ipv4.tcp_tw_reuse", 1)
        yield equal("another connection beside 4 held FIN_WAIT2, tcp_tw_reuse=1", "EADDRNOTAVAIL", more())
        for pair in first:
            pair.b.close()
            until(lambda p=pair: in_state(p.at_a(), "TIME_WAIT"), "TIME_WAIT")  # type: ignore[misc]
        place.ns.sysctl("net.ipv4.tcp_tw_reuse", 0)
        yield equal("beside 4 TIME_WAIT, tcp_tw_reuse=0", "EADDRNOTAVAIL", more())
        place.ns.sysctl("net.ipv4.tcp_tw_reuse", 1)
        took = until(lambda: more() == "connected", "a port is reused")
        yield Measured(
            "with tcp_tw_reuse=1", "connected after about a second", f"after {took:.2f} s", took < 6
        )


def _destroyed(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.half_closed()
        place.ns.run("ss", "-K", "-tn", "state", "fin-wait-2")
        until(lambda: pair.at_a() is None, "the row is gone")
        link = os.readlink(f"/proc/self/fd/{pair.a.fileno()}")
        yield Measured(
            "after SOCK_DESTROY", "row gone, descriptor open", f"row gone, {link}", link.startswith("socket:")
        )
        until(lambda: pair.at_b() is None, "the peer was reset")
        error = error_of(pair.b)
        yield Measured("its CLOSE_WAIT peer", "a reset", error, error in ("EPIPE", "ECONNRESET"))


def _reset_in_time_wait(lab: Lab) -> Iterator[Measured]:
    for flag in (0, 1):
        with Place(lab, f"rfc1337-{flag}", tcp_rfc1337=flag) as place:
            listening = place.ns.call(
                lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            )
            place.open.append(listening)
            pair = place.half_closed()
            pair.b.close()
            until(lambda p=pair: in_state(p.at_a(), "TIME_WAIT"), "TIME_WAIT")  # type: ignore[misc]
            reset_at(place, pair, listening)
            time.sleep(0.2)
            after = f"TIME_WAIT after a RST, tcp_rfc1337={flag}"
            yield seen(after, pair.at_a(), "TIME_WAIT", timer=3) if flag else gone(after, pair.at_a())
            orphan = place.orphan()
            until(lambda p=orphan: timer(p.at_a(), 3), "the orphan is a minisock")  # type: ignore[misc]
            reset_at(place, orphan, listening)
            time.sleep(0.2)
            yield gone(f"an orphan in FIN_WAIT2 after a RST, tcp_rfc1337={flag}", orphan.at_a())


ORPHANS: Final[tuple[Proof, ...]] = (
    Proof(
        "held-and-orphan", ("S02", "S03", "S12", "S24", "S30", "S40", "X11", "X17"), 5, NET, _held_and_orphan
    ),
    Proof("countdown-is-copied", ("X02",), 1.5, NET, _countdown_is_copied),
    Proof("time-wait-is-constant", ("X03",), 0.3, NET, _time_wait_is_constant),
    Proof("lifetimes-above-sixty", ("X01", "X05", "S25"), 8, NET, _lifetimes_above_sixty),
    Proof("orphan-retries", ("S21", "X04", "X25"), 4, NFT, _orphan_retries),
    Proof("orphans-counted", ("S20",), 0.2, NET, _orphans_counted),
    Proof("bucket-overflow", ("X40",), 0.4, NET, _bucket_overflow),
    Proof("port-reuse", ("X41", "X42"), 2, NET, _port_reuse),
    Proof("destroyed", ("X50",), 0.3, SS, _destroyed),
    Proof("reset-in-time-wait", ("S22",), 2, NET, _reset_in_time_wait),
)
