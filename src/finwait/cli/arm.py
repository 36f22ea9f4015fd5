"""``finwait arm``: give live sockets of a running program the options that its author forgot."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finwait.cli import options
from finwait.cli.probe import keepalive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finwait.diagnosis.forecast import Limits
    from finwait.diagnosis.view import View
    from finwait.errors import FinwaitError
    from finwait.remedy.plan import Step
    from finwait.table.schema import Mask

__all__ = ["Chosen", "add_parser", "chosen", "holder_unknown", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "arm",
        help="set keepalive and user timeout on live connections of a running program",
        description="Set SO_KEEPALIVE with its times and TCP_USER_TIMEOUT on connections, through a borrowed "
        "descriptor, "
        "without restarting anything. The old values are journaled; `finwait undo` puts them back.",
    )
    options.add_filter(parser)
    options.add_look(parser)
    options.add_output(parser, ("text", "json"))
    parser.add_argument(
        "--keepalive",
        type=keepalive,
        metavar="IDLE/INTERVAL/COUNT",
        help="e.g. 60/15/5: seconds, seconds, probes",
    )
    parser.add_argument(
        "--user-timeout",
        type=options.user_timeout_ms,
        metavar="DURATION",
        help="drop a connection whose data stays unacknowledged this long; with keepalive it takes the place of "
        "COUNT, so give it at least IDLE + INTERVAL × (COUNT − 1), e.g. 130s beside 60/15/5; 0 removes the "
        "timeout, and then COUNT and tcp_retries2 decide",
    )
    parser.add_argument(
        "--yes", action="store_true", help="do it; without it the connections are only listed"
    )
    parser.add_argument(
        "--max",
        type=options.count,
        default=1000,
        metavar="N",
        help="refuse more than N connections (default 1000)",
    )
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The connections that a FILTER selects for an act on their options."""

    steps: list[Step]
    gaps: tuple[object, ...]
    unknown: str
    """What kept us from finding the holders of connections that it selects; empty when nothing did."""
    limits: dict[int, Limits]
    """What decides how long unacknowledged data is sent again, by namespace."""
    left: dict[str, int]
    """Why others that the FILTER selects are not among them, and how many."""


def chosen(args: argparse.Namespace, verb: str) -> Chosen:
    """Return the held connections that the FILTER selects, as steps; listeners and minisockets are none.

    There may be no steps where holders are unknown: `holder_unknown` says so.

    Raises:
        FinwaitError: no FILTER, a recording, or nothing that it selects.
        Refused: more than ``--max``.
    """
    import numpy as np

    from finwait import session
    from finwait.diagnosis.forecast import Limits
    from finwait.errors import FinwaitError, Refused, UsageError
    from finwait.remedy.plan import step_of
    from finwait.uapi import tcp

    if args.recording:
        raise UsageError("`--from`: a recording cannot be acted upon")
    if not args.filter:
        raise UsageError(
            f"`finwait {verb}` needs a FILTER: which connections?",
            hint="for example `rule = idle-unprobed`, `pid = 812`, `dport = :5432`",
        )
    found = options.parse_filter(args.filter)
    diagnosis = session.diagnose(options.machine(args), how=options.how(args))
    view = diagnosis.view
    mask = options.mask_of(found, diagnosis.snapshot, diagnosis.findings)
    mask &= view.sockets.state != tcp.LISTEN
    left = _left_out(view, mask)
    mask &= view.sockets.protocol == 6
    rows = np.flatnonzero(mask & view.holder_found)
    unfound = int(np.count_nonzero(mask & view.held & ~view.holder_found))
    gaps: tuple[object, ...] = diagnosis.gaps
    unknown = ""
    if unfound and not view.holders.complete:
        which = "1 connection" if unfound == 1 else f"{unfound} connections"
        unknown = f"the holder of {which} that it selects is unknown: {view.holders.missing}"
        gaps = gaps or (unknown,)
    options.write_error(f"finwait: left out, {n}: {reason}\n" for reason, n in left.items())
    if not len(rows) and not unknown:
        error = FinwaitError(f"`{found.text}` selects no connection that a process holds")
        error.hint = f"`finwait list {found.text}` shows what it selects"
        raise error
    if len(rows) > args.max:
        raise Refused("max", f"{len(rows)} connections, more than {args.max}", override=f"--max {len(rows)}")
    limits = {n: Limits.of(space.sysctls) for n, space in view.namespaces.items()}
    steps = [step_of(view, row, "", "keepalive") for row in rows.tolist()]
    return Chosen(steps, gaps, unknown, limits, left)


def _left_out(view: View, selected: Mask) -> dict[str, int]:
    """Return why connections that were selected have no descriptor through which options can be set."""
    mptcp = selected & (view.sockets.protocol != 6)
    rest = selected & ~mptcp
    reasons = {
        "MPTCP, whose options are those of the whole connection": mptcp,
        "no process holds them (orphans, minisockets, connections not accepted yet)": rest & ~view.held,
        "no process has a descriptor of them": rest & view.holder_missing,
    }
    return {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}


def holder_unknown(selected: Chosen) -> Iterator[str]:
    """Say of connections that were left out that their holder is unknown, which is not that there is none."""
    if selected.unknown:
        yield f"finwait: {selected.unknown}; nothing is done there\n"
        yield "hint: run it as root, or give it CAP_SYS_PTRACE: then every process can be looked into\n"


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import msgspec

    from finwait.acting.options import arm
    from finwait.cli.clear import tell
    from finwait.cli.journal import opened, tell_unfinished
    from finwait.errors import UsageError

    values: dict[str, int] = {}
    if args.keepalive:
        values = dict(zip(("keepidle", "keepintvl", "keepcnt"), args.keepalive, strict=True)) | {
            "keepalive": 1
        }
    if args.user_timeout is not None:
        values["user_timeout_ms"] = args.user_timeout
    if not values:
        raise UsageError(
            "nothing to set: neither `--keepalive` nor `--user-timeout`",
            hint="`--keepalive 60/15/5`, `--user-timeout 130s`, or both",
        )
    if not args.recording:
        tell_unfinished()
    selected = chosen(args, "arm")
    options.tell_gaps(selected.gaps)
    options.write_error(holder_unknown(selected))
    if not selected.steps:
        return options.status(selected.gaps)
    ends, unread = _predicted(selected, values)
    if not args.yes:
        if args.output == "json":
            plan = {
                "apiVersion": "finwait/v1",
                "kind": "ArmPlan",
                "options": values,
                "steps": selected.steps,
                "predicted": [ends.get(k) for k in range(len(selected.steps))],
                "left": selected.left,
            }
            sys.stdout.write(msgspec.json.encode(plan).decode() + "\n")
        else:
            options.write(_plan(selected.steps, values))
            options.write(_follows(list(ends.values()), values))
        for text, n in Counter(map(str, unread.values())).most_common():
            options.write_error([f"finwait: of {n} the options cannot be read: {text}\n"])
        sys.stderr.write("finwait: nothing was done; `--yes` does it\n")
        return options.status(selected.gaps)
    options.write_error(_warnings(list(ends.values()), values))
    with opened() as journal:
        outcomes = arm(selected.steps, journal, values, say=options.progress() or (lambda _: None))
    return tell(args, outcomes) or options.status(selected.gaps)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What will end a connection whose peer is gone, with the options that it is to have."""

    silence_s: float | None
    """After so long a silence, when nothing is in flight; None: never, as keepalive is off."""
    probes: int
    """Probes that are unanswered by then."""
    count: int
    """… and TCP_KEEPCNT."""
    user_timeout_ms: int
    unacknowledged_s: float
    """After so long, when data is in flight."""


def _predicted(
    selected: Chosen, values: dict[str, int]
) -> tuple[dict[int, Predicted], dict[int, FinwaitError]]:
    from finwait.acting.options import options_of
    from finwait.diagnosis import forecast

    read, unread = options_of(selected.steps)
    found = {}
    for k, now in read.items():
        o = now | values
        limits = selected.limits.get(selected.steps[k].netns, forecast.DEFAULTS)
        timeout = o["user_timeout_ms"]
        idle = forecast.keepalive(o["keepidle"], o["keepintvl"], o["keepcnt"], timeout)
        busy = forecast.retransmission(limits, user_timeout_ms=timeout)
        on = bool(o["keepalive"])
        found[k] = Predicted(
            idle.seconds if on else None, idle.tries if on else 0, o["keepcnt"], timeout, busy.seconds
        )
    return found, unread


def _plan(steps: list[Step], values: dict[str, int]) -> Iterator[str]:
    from itertools import groupby

    from finwait.cli.clear import where

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


def _follows(ends: list[Predicted], values: dict[str, int]) -> Iterator[str]:
    """Say what the options will do; connections that keep other options of their own are told apart."""
    from finwait.cli.clear import wrapped
    from finwait.diagnosis import forecast

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


def _warnings(ends: list[Predicted], values: dict[str, int]) -> Iterator[str]:
    """Say of options that are about to be set what may not be meant: fewer unanswered probes than COUNT end it."""
    from finwait.diagnosis import forecast

    for end, n in Counter(e for e in ends if e.silence_s is not None and e.probes < e.count).most_common(5):
        yield (
            f"finwait: of {n}: {_probes(end.probes)} will end it, after {forecast.text(end.silence_s or 0)} of "
            f"silence: the user timeout of {end.user_timeout_ms / 1000:g} s takes the place of the count of "
            f"{end.count}\n"
        )
    for line in _hint(ends, values):
        yield f"{line}\n"


def _hint(ends: list[Predicted], values: dict[str, int]) -> Iterator[str]:
    from finwait.diagnosis import forecast

    if values.keys() >= {"keepalive", "user_timeout_ms"} and any(0 < e.probes < e.count for e in ends):
        least, most = forecast.user_timeout_for(values["keepidle"], values["keepintvl"], values["keepcnt"])
        yield f"hint: with a user timeout of {least / 1000:g} to {most / 1000:g} s all {values['keepcnt']} probes count"


def _probes(n: int) -> str:
    return "1 unanswered probe" if n == 1 else f"{n} unanswered probes"
