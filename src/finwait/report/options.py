"""What setting options of sockets would do, as lines for a person."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

from finwait.diagnosis import forecast
from finwait.diagnosis.peer_gone import user_timeout_for
from finwait.report.plan import step_json, where, wrapped
from finwait.report.shape import document, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from finwait.diagnosis.forecast import UnderWay
    from finwait.diagnosis.peer_gone import PeerGone
    from finwait.errors import Gap
    from finwait.remedy.plan import Step

__all__ = ["arm_json", "armed_lines", "follows_lines", "left_out_json", "waiting_lines", "warning_lines"]


def arm_json(
    steps: Sequence[Step],
    values: Mapping[str, int],
    ends: Mapping[int, PeerGone],
    waiting: Mapping[int, UnderWay],
    left_out: Mapping[str, int],
    gaps: Iterable[Gap] = (),
) -> str:
    """Return what `finwait arm` would set, and what would follow, as one JSON document."""
    members = {
        "options": values,
        "steps": [step_json(step) for step in steps],
        "predicted": [ends.get(k) for k in range(len(steps))],
        "waiting": [waiting.get(k) for k in range(len(steps))],
        "left_out": left_out_json(left_out),
    }
    return encoded(document("ArmPlan", members, gaps))


def left_out_json(left_out: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return why connections that the FILTER selects are left out, and how many."""
    return [{"reason": reason, "count": n} for reason, n in left_out.items()]


def armed_lines(steps: Sequence[Step], values: Mapping[str, int]) -> Iterator[str]:
    """Say which options would be set on which connections, by program."""
    yield f"Would set, on {len(steps)} connection{'s' if len(steps) != 1 else ''} [reversible]:\n"
    if "keepalive" in values:
        idle, interval, count = values["keepidle"], values["keepintvl"], values["keepcnt"]
        yield f"  keepalive: a first probe at {idle} s of silence, then one every {interval} s, {count} in all\n"
    if "user_timeout_ms" in values:
        wait = values["user_timeout_ms"]
        yield f"  user timeout: {wait / 1000:g} s\n" if wait else "  user timeout: removed\n"
    by = sorted(steps, key=lambda s: s.holders[0])
    for (pid, comm), group in groupby(by, key=lambda s: (s.holders[0][0], s.holders[0][2])):
        members = list(group)
        yield f"\nin {comm} (pid {pid}), {len(members)}:\n"
        for step in members[:20]:
            src, dst = where(step)
            yield f"  fd {step.holders[0][1]:<5} {src} → {dst}  {step.state}\n"
        if len(members) > 20:
            yield f"  … and {len(members) - 20} more\n"


def follows_lines(ends: Sequence[PeerGone], values: Mapping[str, int]) -> Iterator[str]:
    """Say what the options will do; connections that keep other options of their own are told apart."""
    for end, n in Counter(ends).most_common(5):
        yield "\nThen, if the peer is gone" + (f" (×{n})" if n < len(ends) else "") + ":\n"
        if end.silence_s is None:
            yield from wrapped("this is not noticed while nothing is in flight, because keepalive is off")
        else:
            yield f"  it is noticed after {forecast.text(end.silence_s)} of silence, with {_probes(end.probes)}\n"
            if end.user_timeout_ms and end.probes != end.count:
                yield from wrapped(
                    f"(a user timeout replaces the count of {end.count}: the first probe that is due "
                    f"later than {end.user_timeout_ms / 1000:g} s into the silence ends the "
                    "connection)"
                )
        bound = "the user timeout" if end.user_timeout_ms else "tcp_retries2"
        yield from wrapped(
            "a connection with data in flight is dropped after "
            f"{forecast.about(end.unacknowledged_s, end.unacknowledged_most_s)} "
            f"({bound}); keepalive does not run meanwhile"
        )
        if end.user_timeout_ms:
            yield from wrapped(
                "a connection is also dropped if its peer is alive but keeps its window shut that long"
            )
    for line in _hint(ends, values):
        yield from wrapped(line, indent="")


_EACH = 20


def waiting_lines(waiting: Sequence[tuple[Step, UnderWay]]) -> Iterator[str]:
    """Say what becomes of connections on which something waits already, the soonest first."""
    if not waiting:
        return
    yield "\nThese already have data waiting:\n"
    for line in _waiting(waiting):
        yield from wrapped(line)


def _waiting(waiting: Sequence[tuple[Step, UnderWay]]) -> Iterator[str]:
    soonest = sorted(waiting, key=lambda entry: (entry[1].ends_s is None, entry[1].ends_s or 0.0))
    for step, under_way in soonest[:_EACH]:
        src, dst = where(step)
        waited = forecast.text(round(under_way.waited_s, 1))
        if under_way.window_shut:
            sentence = f"its peer's window has been shut for {waited} or more"
            unless = "unless the peer takes data" + (
                ", although the peer is alive" if under_way.lives else ""
            )
        else:
            sentence = f"data has been unacknowledged for {waited} or more"
            unless = "unless the peer acknowledges it"
        yield f"{src} → {dst}: {sentence}: {_ends(under_way)}, {unless}"
    if len(soonest) > _EACH:
        yield f"… and {len(soonest) - _EACH} more"


def _ends(under_way: UnderWay) -> str:
    if under_way.ends_s is None:
        return "it never ends by itself"
    if under_way.most_s is None:
        least = forecast.text(under_way.ends_s)
        return f"it ends in about {least} if its peer, which has not answered the last window probe, is gone"
    sentence = f"it ends in about {forecast.about(under_way.ends_s, under_way.most_s)}"
    if under_way.late_s is None or under_way.late_s < under_way.ends_s + 1:
        return sentence
    return f"{sentence} (or {forecast.text(under_way.late_s)}, if its timer fires before the option is set)"


def warning_lines(
    ends: Sequence[PeerGone], values: Mapping[str, int], waiting: Sequence[tuple[Step, UnderWay]] = ()
) -> Iterator[str]:
    """Say of options that are about to be set what may not be meant.

    Fewer unanswered probes than COUNT end a connection; what waits already ends soon, also where the peer lives.
    """
    for line in _waiting(waiting):
        yield f"finwait: {line}\n"
    for end, n in Counter(e for e in ends if e.silence_s is not None and e.probes < e.count).most_common(5):
        yield (
            f"finwait: on {n}: {_probes(end.probes)} will end it, after "
            f"{forecast.text(end.silence_s or 0)} of silence: the user timeout of "
            f"{end.user_timeout_ms / 1000:g} s replaces the count of {end.count}\n"
        )
    for line in _hint(ends, values):
        yield f"{line}\n"


def _hint(ends: Sequence[PeerGone], values: Mapping[str, int]) -> Iterator[str]:

    if values.keys() >= {"keepalive", "user_timeout_ms"} and any(0 < e.probes < e.count for e in ends):
        least, most = user_timeout_for(values["keepidle"], values["keepintvl"], values["keepcnt"])
        span = f"{least / 1000:g} to {most / 1000:g} s" if least < most else f"{least / 1000:g} s"
        yield f"hint: with a user timeout of {span} all {values['keepcnt']} probes count"


def _probes(n: int) -> str:
    return "1 unanswered probe" if n == 1 else f"{n} unanswered probes"
