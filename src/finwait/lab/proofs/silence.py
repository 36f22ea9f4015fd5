"""Demonstrations about a peer that is silent: keepalive, user timeout, retransmissions, closed windows."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from finwait.diagnosis import forecast, opening
from finwait.lab.proofs.instruments import (
    NET,
    NFT,
    TCP_REPAIR,
    TCP_USER_TIMEOUT,
    Measured,
    Pair,
    Place,
    ProcRow,
    Proof,
    Race,
    by_scenario,
    equal,
    error_of,
    in_state,
    keepalive,
    life,
    packets,
    retransmits,
    rto_ms,
    seen,
    shown,
    timer,
    until,
)
from finwait.lab.topology import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SILENCE"]

_TCP_RTO_MAX_MS = 44


def _armed_keepalive(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        place.ns.sysctl("net.ipv4.tcp_keepalive_time", 3)
        pair.a.sendall(b"x")
        pair.b.recv(1)
        until(lambda: timer(pair.at_a(), 2), "the data is acknowledged")
        yield Measured(
            "an armed timer after tcp_keepalive_time=3 and data",
            "more than 7000 s left",
            shown(pair.at_a()),
            (row := pair.at_a()) is not None and row.when_s > 7000,
        )
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        row = pair.at_a()
        yield Measured(
            "after switching SO_KEEPALIVE off and on", "at most 3 s left", shown(row),
            row is not None and row.timer == 2 and row.when_s <= 3,
        )  # fmt: skip


def _live_peer_answers(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair, other = place.half_closed(), place.half_closed()
        keepalive(pair.a, 1, 1, 2)
        keepalive(other.b, 1, 1, 2)
        before = packets(place.ns)
        until(lambda: packets(place.ns) - before >= 8, "probes and answers on both")
        time.sleep(2)
        yield seen(
            "FIN_WAIT2 with keepalive 1/1/2, longer than that", pair.at_a(), "FIN_WAIT2", timer=2, held=True
        )
        yield equal("its unanswered probes", 0, (row := pair.at_a()) and row.retrans)
        yield seen("its other end", pair.at_b(), "CLOSE_WAIT", timer=0)
        yield seen(
            "CLOSE_WAIT with keepalive 1/1/2 whose peer waits", other.at_b(), "CLOSE_WAIT", timer=2, held=True
        )


def _half_close_without_a_peer(lab: Lab) -> Iterator[Measured]:
    """What keepalive does to a held FIN_WAIT2 whose peer is gone: without a trace, or with its socket only."""
    with Place(lab) as place:
        silent, left_alone, forgotten = place.half_closed(), place.half_closed(), place.half_closed()
        forgotten.b.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        forgotten.b.close()  # without a packet
        keepalive(forgotten.a, 1, 1, 9)
        took = until(lambda: forgotten.at_a() is None, "the first probe ends it")
        yield life("FIN_WAIT2 whose peer's socket is gone, keepalive 1/1/9", took, 0.5, 8)
        yield equal("its error", "ECONNRESET", error_of(forgotten.a))
        place.silence()
        race = Race()
        predicted = forecast.keepalive(1, 1, 2)
        case = "FIN_WAIT2 whose peer is silent, keepalive 1/1/2"
        race.start(case, silent, predicted, partial(keepalive, silent.a, 1, 1, 2))
        yield from race.results()
        yield equal("its error", "ETIMEDOUT", error_of(silent.a))
        yield seen("the same without keepalive, later", left_alone.at_a(), "FIN_WAIT2", timer=0, held=True)


def _dead_peer(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        idle, busy, patient, sending, closing, half = (place.pair() for _ in range(6))
        for pair in (idle, busy):
            keepalive(pair.a, 1, 1, 2)
        for pair in (patient, sending, closing, half):
            pair.a.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 2000)
        half.a.shutdown(socket.SHUT_WR)
        until(lambda: in_state(half.at_a(), "FIN_WAIT2"), "the FIN is acknowledged")
        place.silence()
        busy.a.sendall(b"x")
        sending.a.sendall(b"x")
        closing.a.shutdown(socket.SHUT_WR)
        took = until(lambda: idle.at_a() is None, "keepalive ends the idle one")
        yield life("keepalive 1/1/2, idle", took, 2, 9)  # a first probe may have been answered
        yield equal("its error", "ETIMEDOUT", error_of(idle.a))
        until(lambda: sending.at_a() is None and closing.at_a() is None, "TCP_USER_TIMEOUT ends two")
        yield equal("TCP_USER_TIMEOUT=2000 with data on its way", "ETIMEDOUT", error_of(sending.a))
        yield equal("TCP_USER_TIMEOUT=2000 with an unanswered FIN", "ETIMEDOUT", error_of(closing.a))
        time.sleep(2)
        yield seen("keepalive 1/1/2 with data on its way, later", busy.at_a(), "ESTABLISHED", timer=1)
        yield seen("TCP_USER_TIMEOUT=2000, idle, later", patient.at_a(), "ESTABLISHED", timer=0)
        yield seen("TCP_USER_TIMEOUT=2000 in FIN_WAIT2, later", half.at_a(), "FIN_WAIT2", timer=0)


def _user_timeout_replaces_count(lab: Lab) -> Iterator[Measured]:
    cases = ((1, 1, 3, 0), (1, 1, 9, 2000), (1, 1, 1, 6000), (2, 2, 5, 7000), (2, 2, 5, 1000))
    race = Race()
    with Place(lab) as place:
        pairs = [place.pair() for _ in cases]
        place.silence()
        for pair, (idle, interval, count, limit) in zip(pairs, cases, strict=True):
            case = f"keepalive {idle}/{interval}/{count}" + (
                f" with TCP_USER_TIMEOUT={limit}" if limit else ""
            )
            pair.a.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, limit)
            predicted = forecast.keepalive(idle, interval, count, limit)
            race.start(case, pair, predicted, partial(keepalive, pair.a, idle, interval, count))
        yield from race.results()


def _retransmission_limits(lab: Lab) -> Iterator[Measured]:
    """What decides when data and FINs that nobody acknowledges are given up, each in a namespace of its own."""
    cases: dict[str, tuple[dict[str, int], bool, int]] = {
        "held, tcp_retries2=3": ({"tcp_retries2": 3}, False, 0),
        "orphan, tcp_orphan_retries=3": ({"tcp_orphan_retries": 3}, True, 0),
        "orphan, tcp_orphan_retries=1": ({"tcp_orphan_retries": 1}, True, 0),
        "held, TCP_USER_TIMEOUT=3000": ({}, False, 3000),
        "orphan, TCP_USER_TIMEOUT=5000, tcp_orphan_retries=1": ({"tcp_orphan_retries": 1}, True, 5000),
    }
    if lab.netns("probe").call(lambda: Path("/proc/sys/net/ipv4/tcp_rto_max_ms").exists()):
        cases["orphan, tcp_rto_max_ms=1000"] = ({"tcp_rto_max_ms": 1000}, True, 0)
        cases["orphan, tcp_rto_max_ms=1000, tcp_orphan_retries=3"] = (
            {"tcp_rto_max_ms": 1000, "tcp_orphan_retries": 3}, True, 0,
        )  # fmt: skip
    remembered = "held, tcp_retries2=5, on a path whose metrics are known (tcp_metrics): an RTO of 200 ms"
    cases[remembered] = ({"tcp_retries2": 5}, False, 0)
    race = Race()
    with contextlib.ExitStack() as stack:
        for number, (case, (sysctls, orphaned, limit)) in enumerate(cases.items()):
            place = stack.enter_context(Place(lab, f"limit-{number}", **sysctls))
            if case == remembered:
                _remember(place.pair())
            pair = place.pair()
            pair.a.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, limit)
            place.silence()
            limits = forecast.NamespaceLimits.of(
                {f"ipv4/{name}": str(value) for name, value in sysctls.items()}
            )
            end = forecast.retransmission(limits, rto_ms(pair.a), orphaned=orphaned, user_timeout_ms=limit)
            begin = pair.a.close if orphaned else partial(pair.a.shutdown, socket.SHUT_WR)
            race.start(f"an unanswered FIN: {case}", pair, end, begin)
        yield from race.results()


def _remember(pair: Pair) -> None:
    """Let the kernel learn the metrics of a path: it keeps them when a connection closes that measured some."""
    pair.a.send(b"x")
    pair.b.recv(1)
    pair.a.close()
    pair.b.close()


def _syn_retries(lab: Lab) -> Iterator[Measured]:
    """How long connect() tries against an accept queue that is full, by tcp_syn_retries; tcp_retries2 has no part."""
    linear = lab.netns("probe").call(lambda: Path("/proc/sys/net/ipv4/tcp_syn_linear_timeouts").exists())
    doubled = {"tcp_syn_linear_timeouts": 0} if linear else {}
    cases: dict[str, dict[str, int]] = {"tcp_syn_retries=1": {"tcp_syn_retries": 1} | doubled}
    if linear:
        both = {"tcp_syn_retries": 1, "tcp_syn_linear_timeouts": 3}
        cases["tcp_syn_retries=1, tcp_syn_linear_timeouts=3"] = both
    cases["tcp_syn_retries=2, tcp_retries2=1"] = {"tcp_syn_retries": 2, "tcp_retries2": 1} | doubled
    timed, counted = "TCP_USER_TIMEOUT=2500", "TCP_SYNCNT=1"
    cases |= {timed: {}, counted: doubled}
    for number, (case, sysctls) in enumerate(cases.items()):
        with Place(lab, f"syn-{number}", **sysctls) as place, contextlib.ExitStack() as stack:
            door = stack.enter_context(place.fresh())
            door.bind(("127.0.0.1", 0))
            door.listen(0)
            stack.enter_context(place.fresh()).connect(door.getsockname())  # its queue is full now
            late = stack.enter_context(place.fresh())
            limits = forecast.NamespaceLimits.of(
                {f"ipv4/{name}": str(value) for name, value in sysctls.items()}
            )
            limit = 2500 if case == timed else 0
            late.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, limit)
            if case == counted:
                late.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
                limits = replace(limits, syn_retries=1)
            predicted = opening.expiry(limits, limit)
            begun = time.monotonic()
            error = ""
            try:
                late.connect(door.getsockname())
            except OSError as failed:
                error = errno.errorcode.get(failed.errno or 0, str(failed))
            took = time.monotonic() - begun
            yield equal(f"connect() to a full queue, {case}: its error", "ETIMEDOUT", error)
            yield life(f"connect() to a full queue, {case}", took, predicted.seconds, predicted.most_s + 0.3)


def _refused_here(lab: Lab) -> Iterator[Measured]:
    """A full queue of this machine refuses retransmissions: they are tried every 0.5 s, and time bounds them."""
    with Place(lab, tcp_retries2=4) as place:
        pair = place.pair()
        place.silence()
        pair.a.sendall(b"x")
        until(lambda: _resent(pair.at_a(), 1), "the first retransmission")
        place.ns.run("tc", "qdisc", "replace", "dev", "lo", "root", "pfifo", "limit", "0")
        most = 0
        while (row := pair.at_a()) is not None:
            most = max(most, row.retrans)
            time.sleep(0.01)
        yield Measured("retransmissions with tcp_retries2=4", "more than 8", str(most), most > 8)
        yield equal("its error", "ETIMEDOUT", error_of(pair.a))


def _full_queue_limits(lab: Lab) -> Iterator[Measured]:
    """What a full queue of this machine never takes is tried every 0.5 s, and counted: it ends within seconds."""
    cases: dict[str, tuple[dict[str, int], bool]] = {
        "held": ({}, False),
        "held, tcp_retries2=5": ({"tcp_retries2": 5}, False),
        "orphan": ({}, True),
        "orphan, tcp_orphan_retries=3": ({"tcp_orphan_retries": 3}, True),
    }
    race = Race()
    with contextlib.ExitStack() as stack:
        for number, (case, (sysctls, orphaned)) in enumerate(cases.items()):
            place = stack.enter_context(Place(lab, f"queue-{number}", **sysctls))
            pair = place.pair()
            limits = forecast.NamespaceLimits.of(
                {f"ipv4/{name}": str(value) for name, value in sysctls.items()}
            )
            first = rto_ms(pair.a) / 1000  # when the timer fires first
            remaining = forecast.probes_left(limits, 1000 * first, 0, 0, orphaned=orphaned, queue_full=True)
            assert remaining is not None
            place.ns.run("tc", "qdisc", "replace", "dev", "lo", "root", "pfifo", "limit", "0")
            begin = pair.a.close if orphaned else lambda p=pair: p.a.send(b"x")
            # The first firing may be late as well; it is a short one.
            end = replace(
                remaining, seconds=first + remaining.seconds, most_s=1.13 * first + remaining.most_s
            )
            race.start(f"a full queue: {case}", pair, end, begin)
        yield from race.results()


def _closed_window_unanswered(lab: Lab) -> Iterator[Measured]:
    with Place(lab, "answered", tcp_retries2=3) as place, Place(lab, "silent", tcp_retries2=3) as other:
        answered, silent = place.pair(), other.pair()
        for pair in (answered, silent):
            pair.a.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    pair.a.send(bytes(65536))
            until(lambda p=pair: _no_room(p.a), "there is no room left")  # type: ignore[misc]
            until(lambda p=pair: timer(p.at_a(), 4), "the window is probed")  # type: ignore[misc]
        other.silence()
        end = forecast.zero_window(forecast.NamespaceLimits(retries2=3), rto_ms(silent.a), answered=False)
        assert end is not None
        took = until(lambda: silent.at_a() is None, "it is given up")
        yield life("probes without answer, tcp_retries2=3", took, 0.5, 3 * end.seconds)
        yield equal("its error", "ETIMEDOUT", error_of(silent.a))
        time.sleep(end.seconds)
        yield seen("probes with answers, later", answered.at_a(), "ESTABLISHED", timer=4, held=True)


def _retransmissions_tell_time(lab: Lab) -> Iterator[Measured]:
    """A FIN that was sent again so many times has waited for so long, at least."""
    with Place(lab) as place:
        pair = place.pair()
        place.silence()
        before = time.monotonic()
        pair.a.shutdown(socket.SHUT_WR)
        for n in (1, 2, 3, 4):
            until(lambda n=n: retransmits(pair.a)[0] >= n, f"{n} retransmissions")  # type: ignore[misc]
            count, backoff, rto_us = retransmits(pair.a)
            waited = time.monotonic() - before
            proven = int(forecast.waited_ms(*(np.array([x]) for x in (rto_us, count, backoff)))[0]) / 1000
            yield Measured(
                f"the time that {count} retransmissions prove, at most what it was", f"{waited:.2f} s or less",
                f"{proven:.2f} s", 0 < proven <= waited,
            )  # fmt: skip


def _closed_window_limits(lab: Lab) -> Iterator[Measured]:
    cases: dict[str, tuple[dict[str, int], bool, int]] = {
        "held, TCP_USER_TIMEOUT=4000": ({}, False, 4000),
        "orphan, tcp_orphan_retries=1": ({"tcp_orphan_retries": 1}, True, 0),
    }
    if lab.netns("probe").call(lambda: Path("/proc/sys/net/ipv4/tcp_rto_max_ms").exists()):
        cases["orphan, tcp_rto_max_ms=2000"] = ({"tcp_rto_max_ms": 2000}, True, 0)
    race = Race()
    with contextlib.ExitStack() as stack:
        for number, (case, (sysctls, orphaned, limit)) in enumerate(cases.items()):
            pair = stack.enter_context(Place(lab, f"window-{number}", **sysctls)).pair()
            pair.a.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, limit)
            pair.a.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    pair.a.send(bytes(65536))
            # Until the last room is filled the timer of the probes sends data.
            until(lambda p=pair: _no_room(p.a), "there is no room left")  # type: ignore[misc]
            limits = forecast.NamespaceLimits.of(
                {f"ipv4/{name}": str(value) for name, value in sysctls.items()}
            )
            end = forecast.zero_window(limits, rto_ms(pair.a), orphaned=orphaned, user_timeout_ms=limit)
            assert end is not None
            begin = pair.a.close if orphaned else time.monotonic
            race.start(f"a peer that does not read: {case}", pair, end, begin)
        yield from race.results()


def _no_room(sock: socket.socket) -> bool:
    """Whether the peer's window is shut to the last byte (``tcpi_snd_wnd``), and all that fitted is acknowledged."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    unacked = struct.unpack_from("=I", info, 24)[0]
    return len(info) >= 232 and not unacked and struct.unpack_from("=I", info, 228)[0] == 0


def _closed_window(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        pair.a.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                pair.a.send(bytes(65536))
        pair.a.shutdown(socket.SHUT_WR)
        until(lambda: timer(pair.at_a(), 4), "the window is closed")
        row = pair.at_a()
        yield seen("the sender after shutdown(WR)", row, "FIN_WAIT1", timer=4, held=True)
        yield Measured(
            "its Send-Q",
            "more than 100000",
            str(row and row.wqueue),
            row is not None and row.wqueue > 100_000,
        )
        yield seen("the end that stopped reading: no FIN has come", pair.at_b(), "ESTABLISHED")


def _rto_max(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        old = place.fresh()
        place.ns.sysctl("net.ipv4.tcp_rto_max_ms", 5000)
        new = place.fresh()
        yield equal("TCP_RTO_MAX_MS of a socket made before the change", 120_000,
                     old.getsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS))  # fmt: skip
        yield equal(
            "TCP_RTO_MAX_MS of a socket made after the change",
            5000,
            new.getsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS),
        )


def _resent(row: ProcRow | None, times: int) -> bool:
    return row is not None and row.retrans >= times


def _half_open_heals(lab: Lab) -> Iterator[Measured]:
    for careless in (False, True):
        with Place(lab, "careless" if careless else "plain") as place:
            door = place.listener()
            old = place.pair(door)
            old.a.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            old.a.close()  # without a packet, as a machine does that loses power
            if careless:
                place.ns.nft(
                    "table inet careless {\n chain arriving {\n type filter hook input priority 0\n"
                    f" tcp sport {old.b_port} tcp flags & (syn | ack) == ack drop\n }}\n}}"
                )
            again = place.fresh()
            again.bind(("127.0.0.1", old.a_port))
            again.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                again.connect(door.getsockname())
            if careless:
                until(lambda p=old: _resent(p.at_a(), 2), "the SYN is sent again")  # type: ignore[misc]
                yield seen(
                    "behind a filter: the side that forgot the connection", old.at_a(), "SYN_SENT", timer=1
                )
                yield seen("behind a filter: the old end", old.at_b(), "ESTABLISHED", timer=0, held=True)
                keepalive(old.b, 1, 1, 2)
            took = until(lambda p=old: in_state(p.at_a(), "ESTABLISHED"), "the new connection is open")  # type: ignore[misc]
            error = error_of(old.b)
            case = "after a keepalive 1/1/2 of the old end" if careless else "left alone"
            yield life(f"{case}: until the new connection is open", took, 0, 12)
            as_expected = error in ("ECONNRESET", "ETIMEDOUT")
            yield Measured(f"{case}: the error of the old end", "ECONNRESET or ETIMEDOUT", error, as_expected)


SILENCE: Final[tuple[Proof, ...]] = (
    Proof("armed-keepalive", ("S18",), 0.3, NET, _armed_keepalive),
    Proof("live-peer-answers", ("S05", "S07", "X18", "S39"), 5, NET, _live_peer_answers),
    Proof("half-close-without-a-peer", ("S07",), 6, NFT, _half_close_without_a_peer),
    Proof("dead-peer", ("S19", "X20", "X21", "X23", "X24"), 6, NFT, _dead_peer),
    Proof("user-timeout-replaces-count", ("X22",), 8.5, NFT, _user_timeout_replaces_count),
    Proof("retransmission-limits", ("X58",), 14, NFT, _retransmission_limits),
    Proof("syn-retries", ("X60",), 18, NET, _syn_retries),
    Proof("refused-here", ("X58",), 7, (*NFT, "tool:tc"), _refused_here),
    Proof("full-queue-limits", ("X58",), 9, (*NET, "tool:tc"), _full_queue_limits),
    Proof("closed-window-unanswered", ("X53",), 9, NFT, _closed_window_unanswered),
    Proof("retransmissions-tell-time", (), 4, NFT, _retransmissions_tell_time),
    Proof("closed-window-limits", ("X59",), 6, NET, _closed_window_limits),
    Proof("closed-window", ("X26",), 0.5, NET, _closed_window),
    Proof("rto-max-of-new-sockets", (), 0.1, (*NET, "sysctl:net.ipv4.tcp_rto_max_ms"), _rto_max),
    Proof("pod-deleted", ("X37",), 1, NET, by_scenario("idle-unprobed")),
    Proof("half-open-heals", ("X56",), 9, NFT, _half_open_heals),
)
