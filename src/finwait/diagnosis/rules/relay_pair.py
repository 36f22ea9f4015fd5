"""relay-pair: a proxy passed on the FIN of one side and waits for the other side for ever.

Seen as       One process holds a CLOSE_WAIT socket (everything read) and a FIN_WAIT2 socket of
              about the same age. It accepted one of them on a port where it listens, and opened the
              other itself. Ages and byte counts tell which leg belongs to which; where they fit
              several, no partner is named, and `finwait clear` ends all of these legs or none.
              Where there are more legs on one side, some have lost their partner: which ones is not
              known, so finwait then does not say whose move it is. Ages that agree while byte counts
              do not are only "possible": a proxy that changes what it passes on (TLS), or two
              connections that have nothing to do with each other.
Why it stays  One side closed. The relay read to the end, passed that on with shutdown(SHUT_WR),
              and keeps both sockets open for the other side's answer, which never comes. This is
              the leak of kube-proxy's userspace mode (kubernetes/kubernetes#17641) and of many
              relays since.
Not this      A pair on which the answer still passes: one look says "possible" if data moved in the
              last 3 s, and `--for 5s` finds out. A program that talks to itself (the two sockets
              are each other's ends). CLOSE_WAIT sockets without their FIN_WAIT2
              (close-wait-eof-read). A pair of `finwait relay` that probes both peers is only a
              notice: the relay keeps a half-close while both are alive, and ends it when one is
              gone.
What ends it  Destroying both legs; the far server closing; a bounded half-close in the relay.
Won't help    tcp_fin_timeout (both are held); keepalive while the far server is alive; destroying
              one leg only.
Reproduce     finwait lab run relay-pair
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.relay_legs import TOLERANCE_MS, By, RelaySet
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    LONG_WORK,
    NOT_FIN_TIMEOUT,
    NOT_KEEPALIVE_ALIVE,
    PREVENT_SILENCE,
    RECENT_MS,
    just_received,
    just_sent,
    likely,
    look_again,
    peer_missing,
    peer_unseen,
    possible,
    probe,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains: both legs of every pair, and all that may be such legs."""
    return view.relay_legs.legs


OURS = "finwait-relay"
"""What the workers of `finwait relay` call themselves (PR_SET_NAME)."""
_KEEPALIVE = 2
"""``idiag_timer``: keepalive."""


def _ours(view: View, rows: NDArray[np.int64]) -> bool:
    """Return whether the process that holds a group is a worker of `finwait relay`."""
    process = view.processes.get(int(view.holders.first_pid()[rows[0]]))
    return process is not None and process.comm == OURS


def _watched_by_ours(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows a worker of `finwait relay` holds, and are of a pair with probes on both legs."""
    timer = view.sockets.timer
    probed = np.zeros(len(view), np.bool_)
    for legs in view.relay_legs.touched(rows):
        probed[legs.rows] = (timer[legs.rows] == _KEEPALIVE).all()
    pids, inverse = np.unique(view.holders.first_pid()[rows], return_inverse=True)
    comms = [view.processes[pid].comm if pid in view.processes else "" for pid in pids.tolist()]
    own = np.array([comm == OURS for comm in comms], np.bool_)[inverse.reshape(-1)]
    return probed[rows] & own


def _shown(view: View, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what tells rows apart that are told of alike: who watches them, and whether byte counts contradict."""
    return _watched_by_ours(view, rows).astype(np.int64) + 2 * view.relay_legs.unfit[rows]


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    """Return a notice for pairs that their relay watches: it is finwait's, and probes are under way on all legs."""
    return "notice" if _watched_by_ours(view, rows).all() else "problem"


def _counted(legs: RelaySet, rows: NDArray[np.int64]) -> int:
    """Return of how many pairs of a set some rows are legs."""
    if legs.known:
        return 1
    longest = max(int(np.isin(side, rows).sum()) for side in (legs.wait, legs.half))
    return min(longest, legs.pairs)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    sets = view.relay_legs.touched(rows)
    counts = [_counted(legs, rows) for legs in sets]
    total = sum(counts)
    n = "1 pair" if total == 1 else f"{total} pairs"
    where = _per_process(sets, counts)
    fresh = _fresh(view, sets, counts)
    if fresh:
        return look_again(
            f"data passed on {fresh} of {n} in the last {RECENT_MS // 1000} s, so the answer may still be "
            "streaming; check with `--for 5s`"
        )
    aged = all(legs.aged for legs in sets)
    fits = {legs.fits for legs in sets}
    ages = f"the ages of the legs agree within {TOLERANCE_MS} ms"
    if False in fits:
        where = where if any(legs.loose for legs in sets) else f"perhaps {where}"
        return possible(f"{where}; {ages if aged else 'the ages of some legs are hidden'}, but {_UNFIT}")
    if aged:
        return likely(f"{where}; {ages}{', and the byte counts fit' if fits == {True} else ''}; {LONG_WORK}")
    if all(legs.by == "bytes" for legs in sets if not legs.aged):
        return likely(f"{where}; the bytes that both legs have counted agree; {LONG_WORK}")
    clocks = view.sockets.present("last_ack_recv_ms")
    if not all(clocks[legs.half].all() for legs in sets):
        return possible(f"{where}; it is not known how old some FIN_WAIT2 legs are; {LONG_WORK}")
    return possible(f"{where}; keepalive hides the age of some legs; {LONG_WORK}")


_UNFIT = (
    "the byte counts do not fit: a proxy that changes what it passes on (TLS, headers), or connections that have "
    "nothing to do with each other"
)


def _n_pairs(n: int) -> str:
    return "1 pair" if n == 1 else f"{n} pairs"


def _per_process(sets: list[RelaySet], counts: list[int]) -> str:
    """Return how many pairs each process holds, given how many are told of each set."""
    each: Counter[int] = Counter()
    for legs, count in zip(sets, counts, strict=True):
        each[legs.pid] += count
    low, high = min(each.values()), max(each.values())
    amount = f"{low} to {high} pairs" if low < high else "1 pair" if high == 1 else f"{high} pairs"
    if any(legs.loose for legs in sets):
        waits, halves = sum(len(legs.wait) for legs in sets), sum(len(legs.half) for legs in sets)
        most = _n_pairs(sum(legs.pairs for legs in sets))
        processes = "one process" if len(each) == 1 else f"{len(each)} processes"
        return f"at most {most} among {waits} CLOSE_WAIT and {halves} FIN_WAIT2 legs in {processes}"
    return f"{amount} in one process" if len(each) == 1 else f"{amount} in each of {len(each)} processes"


def _fresh(view: View, sets: list[RelaySet], counts: list[int]) -> int:
    """Return on how many pairs, at least, data passed so short ago that one look cannot say whether more will."""
    received, sent = just_received(view), just_sent(view)
    if not (received.any() or sent.any()):
        return 0
    passed = (max(int(received[legs.half].sum()), int(sent[legs.wait].sum())) for legs in sets)
    return sum(map(min, passed, counts))


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    sets = view.relay_legs.touched(rows)
    counts = [_counted(legs, rows) for legs in sets]
    evidence = [_legs(view, rows, sets)]
    if _ours(view, rows):
        evidence.append(
            Evidence(
                "holder",
                OURS,
                "/proc/PID/stat",
                "finwait's relay; it ends a pair when a peer is gone, and every pair after `half_close` of "
                "silence; `finwait relay ls --half-closed` shows which connection it is, and when it ends",
            )
        )
    evidence += _lost(sets)
    if len(rows) == 1:
        evidence.append(_other_leg(view, int(rows[0])))
    elif unknown := sum(count for legs, count in zip(sets, counts, strict=True) if not legs.known):
        of = sum(legs.pairs for legs in sets if legs.loose)
        evidence.append(
            Evidence(
                "partners",
                f"unknown in {unknown} of {sum(counts)} pairs" if not of else "unknown",
                _READ_FROM,
                f"{_NO_FIT if view.relay_legs.unfit[rows].all() else 'ages and byte counts fit more than one leg'}; "
                "which two belong together is not known, and `finwait clear` ends all legs that may belong "
                "together, or none",
            )
        )
    return tuple(evidence)


_READ_FROM = "sock_diag and /proc/PID/fd"
_NO_FIT = "the ages fit, and the byte counts do not"


def _legs(view: View, rows: NDArray[np.int64], sets: list[RelaySet]) -> Evidence:
    """Return how many legs there are, of those that are asked about and their partners."""
    if any(legs.loose for legs in sets):
        waits, halves = sum(len(legs.wait) for legs in sets), sum(len(legs.half) for legs in sets)
        says = (
            "the same process holds all of them; it relays, and passed one side's FIN on to the other; some have "
            "lost their partner"
        )
    else:
        waits = halves = sum(_counted(legs, rows) for legs in sets)
        says = "the same process holds both; it relays, and passed one side's FIN on to the other"
        if view.relay_legs.unfit[rows].any():
            says = "the same process holds both; if it relays, it passed one side's FIN on to the other"
    return Evidence("legs", f"CLOSE_WAIT ×{waits}, FIN_WAIT2 ×{halves}", _READ_FROM, says)


def _lost(sets: list[RelaySet]) -> Iterator[Evidence]:
    """Yield what is known of the legs without a partner: how many they are at least, and whose move that is."""
    loose = [legs for legs in sets if legs.loose]
    more = sum(max(len(legs.wait) - len(legs.half), 0) for legs in loose)
    waits = sum(len(legs.wait) for legs in loose)
    if more:
        says = f"these the process has to close itself; which of the {waits} they are is not known"
        yield Evidence("CLOSE_WAIT alone", f"at least {more} of {waits}", _READ_FROM, says)
    if loose:
        says = "each waits for its far end to close, with or without a partner"
        yield Evidence("FIN_WAIT2", f"{sum(len(legs.half) for legs in loose)}", _READ_FROM, says)


def _other_leg(view: View, row: int) -> Evidence:
    """Say which leg is the other one of a row, and why; or which may be."""
    legs = view.relay_legs.of(row)
    assert legs is not None
    others = view.relay_legs.candidates(row).tolist()
    state = tcp.state_name(int(view.sockets.state[others[0]]))
    if legs.known:
        ends = " → ".join(view.ends(others[0]))
        return Evidence("other leg", ends, _READ_FROM, f"{state}{_fd(view, others[0])}; {_DECIDED[legs.by]}")
    if len(others) == 1:
        ends = " → ".join(view.ends(others[0]))
        why = "the ages agree, and the byte counts do not; it may have nothing to do with this one"
        if legs.loose:
            rivals = len(view.relay_legs.candidates(others[0]))
            why = f"it may as well be that of any of {rivals - 1} more like this one, and this one has none then"
        return Evidence("other leg", f"perhaps {ends}", _READ_FROM, f"{state}{_fd(view, others[0])}; {why}")
    shown = [" → ".join(view.ends(other)) + _fd(view, other) for other in others[:_SHOWN]]
    more = [f"{len(others) - _SHOWN} more"] if len(others) > _SHOWN else []
    fitting = "none of them, or one" if legs.loose else "each of them fits"
    says = f"{state}; as far as ages and byte counts tell, {fitting}: {'; '.join([*shown, *more])}"
    value = f"one of {len(others)}, or none" if legs.loose else f"one of {len(others)}"
    return Evidence("other leg", value, _READ_FROM, says)


def _fd(view: View, row: int) -> str:
    return "".join(f", fd {fd}" for _, fd in view.holders.of(row)[:1])


_SHOWN = 6
"""So many legs are named where each of several may be the other one."""
_DECIDED: dict[By, str] = {
    "age": "the ages of both agree, and no other leg of this process fits",
    "bytes": "what came in on one leg went out on the other, to the byte; no other leg of this process fits",
    "only": "the only legs in this process that fit each other",
}


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    """Return what ends a group by what is known of the far servers, for which its relay waits."""
    sets = view.relay_legs.touched(rows)
    halves = [legs.half[np.isin(legs.half, rows)] for legs in sets]
    waiting = np.concatenate(halves)
    if not len(waiting):  # asked about the other legs alone
        waiting = np.concatenate([legs.half for legs in sets])
    both = _whole(view, rows, sets)
    if any(legs.loose for legs in sets):
        return (_PROBE, _AT_SERVERS, _CLOSE_LEFT, both, _DEADLINE)
    at_server = _AT_SERVER if all(legs.fits is not False for legs in sets) else _IF_RELAY
    if peer_missing(view)[waiting].all():
        return (_PROBE, both, _DEADLINE)
    if peer_unseen(view)[waiting].any():
        return (_PROBE, at_server, both, _DEADLINE, PREVENT_SILENCE)
    return (at_server, both, _DEADLINE)


def _whole(view: View, rows: NDArray[np.int64], sets: list[RelaySet]) -> Remedy:
    """Return what ends the pairs of some rows: where those are not all legs that may belong to them, with the rest."""
    every = np.concatenate([side for legs in sets for side in (legs.wait, legs.half)])
    if np.isin(every, rows).all():
        return _ALL if any(legs.loose for legs in sets) else _BOTH
    every = np.sort(every)
    s = view.sockets
    spaces = ",".join(map(str, distinct(s.netns[every]).tolist()))
    cookies = ", ".join(f"{cookie:#x}" for cookie in s.cookie[every].tolist())
    select = f"netns = {spaces} and cookie = {cookies}"
    if all(legs.known for legs in sets):
        return replace(_BOTH, select=select)
    text = (
        f"end all {len(every)} legs that may belong together (`finwait clear` ends them all or none): {_HOW}"
    )
    return replace(_BOTH, text=text, select=select)


_HOW = "send a FIN to one peer, and a FIN to the relay from the far end if that is on this machine (otherwise a RST)"
_PROBE = replace(
    probe("relay-pair"),
    text="probe it: if the far server is gone, its leg ends, and a relay that notices closes the other leg",
)
_AT_SERVER = Remedy("close the connection at the far server; its FIN lets the relay finish both legs")
_BOTH = Remedy(
    f"end both legs: {_HOW}",
    "destructive",
    "finwait clear relay-pair",
)
_ALL = replace(_BOTH, text=f"end all legs that may belong together: {_HOW}")
_AT_SERVERS = Remedy(
    "close the connections of the FIN_WAIT2 legs at their far ends; the relay can then finish the pairs among them"
)
_IF_RELAY = Remedy(
    "close the connection of the FIN_WAIT2 leg at its far end; if the process relays, it can then finish both legs"
)
_CLOSE_LEFT = Remedy("make the relay close a leg whose partner is gone; a restart closes those it holds now")
_DEADLINE = Remedy(
    "set a deadline for the second direction in the relay (a bounded half-close) to prevent the next one"
)

_CLUES = (
    Clue("inode", "not 0: both legs are held, so no kernel timeout applies"),
    Clue("rqueue", "0: the relay has read everything, the FIN as well"),
    Clue(
        "last_ack_recv_ms",
        "time since the peer was last heard; without keepalive about the same on both legs",
    ),
    Clue("last_data_recv_ms", "time since data last arrived on either leg"),
)
_ENDS = (_PROBE, _AT_SERVER, _BOTH, _DEADLINE, PREVENT_SILENCE)
_DOES_NOT = (
    NOT_FIN_TIMEOUT,
    NOT_KEEPALIVE_ALIVE,
    Advice("destroy one leg", "the other leg stays, and nothing tells the relay to give it up"),
)
_EITHER = Turn("unknown", "close() by its far end, or by the holder")
RULE = Rule(
    name="relay-pair",
    title="a relay passed on one side's FIN and waits for the other side for ever",
    severity="problem",
    rank=30,
    harm="leak",
    turn=Turn("peer", "close()"),
    owners=True,
    means="by-state",
    beyond_sysctls="one process holds both legs; no timer is running on either",
    claims=("C3", "X52", "S01"),
    clues=_CLUES,
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    proven=_shown,
    softens=("fin-wait2-held", "close-wait-eof-read"),
    remedies=_remedies,
    cases=(
        Case(
            title="legs of a relay: some wait for the far server, others have lost their partner (unknown which)",
            rows=lambda view: view.relay_legs.loose,
            clues=_CLUES,
            ends=(_PROBE, _AT_SERVERS, _CLOSE_LEFT, _ALL, _DEADLINE),
            does_not=_DOES_NOT,
            turn=_EITHER,
        ),
        Case(
            title="a relay that waits for the other side for ever, or two connections that have nothing to do with "
            "each other",
            rows=lambda view: view.relay_legs.unfit,
            clues=_CLUES,
            ends=(_PROBE, _IF_RELAY, _BOTH, _DEADLINE, PREVENT_SILENCE),
            does_not=_DOES_NOT,
            turn=_EITHER,
        ),
    ),
)
