"""What setting options of sockets would do, as lines for a person."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

from finwait.diagnosis import forecast
from finwait.report.plan import where, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from finwait.diagnosis.forecast import PeerGone
    from finwait.remedy.plan import Step

__all__ = ["armed_lines", "follows_lines", "warning_lines"]


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
        yield "\nThen, where the peer is gone" + (f" (×{n})" if n < len(ends) else "") + ":\n"
        if end.silence_s is None:
            yield from wrapped("nothing notices it while nothing is in flight: keepalive is off")
        else:
            yield f"  it is noticed after {forecast.text(end.silence_s)} of silence, with {_probes(end.probes)}\n"
            if end.user_timeout_ms and end.probes != end.count:
                yield from wrapped(
                    f"(a user timeout takes the place of the count of {end.count}: the first probe that is due "
                    f"later than {end.user_timeout_ms / 1000:g} s into the silence ends the connection)"
                )
        bound = "the user timeout" if end.user_timeout_ms else "tcp_retries2"
        yield from wrapped(
            f"data in flight is given up in {forecast.text(end.unacknowledged_s)} ({bound}); keepalive does not run "
            "meanwhile"
        )
    for line in _hint(ends, values):
        yield from wrapped(line, indent="")


def warning_lines(ends: Sequence[PeerGone], values: Mapping[str, int]) -> Iterator[str]:
    """Say of options that are about to be set what may not be meant: fewer unanswered probes than COUNT end it."""
    for end, n in Counter(e for e in ends if e.silence_s is not None and e.probes < e.count).most_common(5):
        yield (
            f"finwait: of {n}: {_probes(end.probes)} will end it, after {forecast.text(end.silence_s or 0)} of "
            f"silence: the user timeout of {end.user_timeout_ms / 1000:g} s takes the place of the count of "
            f"{end.count}\n"
        )
    for line in _hint(ends, values):
        yield f"{line}\n"


def _hint(ends: Sequence[PeerGone], values: Mapping[str, int]) -> Iterator[str]:

    if values.keys() >= {"keepalive", "user_timeout_ms"} and any(0 < e.probes < e.count for e in ends):
        least, most = forecast.user_timeout_for(values["keepidle"], values["keepintvl"], values["keepcnt"])
        yield f"hint: with a user timeout of {least / 1000:g} to {most / 1000:g} s all {values['keepcnt']} probes count"


def _probes(n: int) -> str:
    return "1 unanswered probe" if n == 1 else f"{n} unanswered probes"
