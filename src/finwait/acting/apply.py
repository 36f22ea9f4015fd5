"""A reviewed plan → the journal → the act → a look at what came of it.

*Theory of operation.* Everything that a plan rests on is read again, by cookie, immediately before: a
connection that left is no error, one that moved on (another state, more bytes) is left alone. Then every act is
written to the journal, durably, and only then done. Afterwards the connections are read once more, at both ends
where both are here, and the journal learns what came of each. A process that dies in between leaves entries
without a result, which `finwait journal` shows and `finwait undo` can take back where there is something to
take back.

*What cannot be taken back.* A FIN or a RST that was sent. Socket options can.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from finwait.acting.aftermath import Seen, open_descriptors, should_end_too, still_there, wait_gone
from finwait.acting.borrowed import borrow, not_gone, uninterrupted
from finwait.acting.identity import (
    NOT_ENTERED,
    Journal,
    Key,
    Say,
    failed,
    journal_target,
    journaled,
    kernel_target,
    key_of,
    leads,
    namespaces_of,
    quiet,
    reread,
    rows_by_cookie,
)
from finwait.acting.options import claim_options, put_back
from finwait.acting.rights import check_means
from finwait.diagnosis import forecast
from finwait.errors import FinwaitError, KernelError, Refused, TargetGone
from finwait.kernel import pidfd
from finwait.kernel.destroy import GONE, destroy
from finwait.remedy.journal import Act, Kind
from finwait.remedy.outcome import Outcome
from finwait.remedy.plan import Plan, Step, permit
from finwait.uapi import tcp

__all__ = ["apply"]

_SETTLE_S: Final = 3.0

_KIND: Final[Mapping[str, Kind]] = {
    "destroy": "destroy",
    "reset": "destroy",
    "fin": "shutdown",
    "keepalive": "sockopt",
    "user-timeout": "sockopt",
}


def apply(
    plan: Plan,
    journal: Journal,
    *,
    boot_id: str,
    rate: float = 0.0,
    keepalive: tuple[int, int, int] = (1, 1, 3),
    user_timeout_ms: int = 30_000,
    fault: Callable[[str], None] = quiet,
    say: Say = quiet,
) -> list[Outcome]:
    """Do what a plan says, connection by connection, and say what came of each.

    Args:
        plan: a plan of `finwait.remedy.plan.make`, perhaps read from a file.
        journal: where acts are written down before they are done.
        boot_id: of this machine now; cookies mean nothing on another boot.
        rate: at most so many connections destroyed a second; 0 for no limit.
        keepalive: idle, interval (seconds) and count for steps of that means.
        user_timeout_ms: for steps of that means.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.

    Raises:
        Refused: the plan was made on another boot, is too large, or needs what cannot be done here; nothing was done.
        KernelError: the journal could not be written; nothing was done.
    """
    if boot_id and plan.boot_id != boot_id:
        raise Refused("boot", "the plan was made before this machine was started: its connections are gone")
    permit(plan)
    check_means([step for step in plan.steps if not step.gone])
    say("reading the connections again")
    fault("before reading")
    now, closed = reread(plan.steps)
    rows = rows_by_cookie(now)
    states, inodes = now.state.tolist(), now.inode.tolist()
    known = now.present("bytes_received").tolist()
    moved = list(zip(now.bytes_received.tolist(), now.bytes_acked.tolist(), strict=True))
    outcomes: dict[int, Outcome] = {}
    todo: list[int] = []
    for k, step in enumerate(plan.steps):
        row = rows.get(key_of(step))
        if row is None and step.netns in closed:
            outcomes[k] = Outcome(step, "failed", NOT_ENTERED)
        elif row is None:
            outcomes[k] = Outcome(step, "left before", "it was gone when it was looked for again")
        elif (
            changed := _changed(step, states[row], inodes[row], moved[row] if known[row] else None)
        ) is not None:
            outcomes[k] = Outcome(step, "changed meanwhile", changed)
        else:
            todo.append(k)
    if todo:
        _do(plan, todo, journal, outcomes, rate, keepalive, user_timeout_ms, fault, say)
    return [outcomes[k] for k in range(len(plan.steps))]


def _changed(step: Step, number: int, inode: int, moved: tuple[int, int] | None) -> str | None:
    state = tcp.state_name(number)
    if state == "LISTEN":
        return "it is a listener"
    if state != step.state:
        return f"it is in {state} now, not in {step.state}"
    if step.inode and not inode:
        return "its last descriptor was closed since: it is an orphan now, which the kernel ends by itself"
    if inode != step.inode:
        return "a program has accepted it since"
    if moved is not None and moved != (step.bytes_received, step.bytes_acked):
        return "bytes moved since the plan was made"
    return None


def _do(
    plan: Plan,
    todo: Sequence[int],
    journal: Journal,
    outcomes: dict[int, Outcome],
    rate: float,
    keepalive: tuple[int, int, int],
    user_timeout_ms: int,
    fault: Callable[[str], None],
    say: Say,
) -> None:
    steps = {k: plan.steps[k] for k in todo}
    values = {
        "keepalive": {
            "keepidle": keepalive[0],
            "keepintvl": keepalive[1],
            "keepcnt": keepalive[2],
            "keepalive": 1,
        },
        "user-timeout": {"user_timeout_ms": user_timeout_ms},
    }
    say("writing the journal")
    wanted = {k: values[steps[k].means] for k in todo if steps[k].means in values}
    claim = claim_options({k: steps[k] for k in wanted}, wanted, journal, lambda step: step.rule)
    for k, error in claim.errors.items():
        outcomes[k] = failed(steps[k], error)
    others = [k for k in todo if k not in wanted]
    acts = [Act(_KIND[steps[k].means], journal_target(steps[k]), why=steps[k].rule) for k in others]
    ids = claim.ids | dict(zip(others, journal.record_many(acts), strict=True))
    todo = [k for k in todo if k in ids]
    before = claim.before
    fault("journaled")
    errors: dict[int, FinwaitError] = {}
    answered: set[int] = set()
    wait = _SETTLE_S
    if any(steps[k].means == "keepalive" for k in todo):
        wait = forecast.keepalive(*keepalive).seconds + 2.0
    try:
        # The gentle means first: a RST on one leg may make its program close the other by itself.
        for k in sorted(todo, key=lambda k: steps[k].means == "reset"):
            if steps[k].means != "destroy":
                try:
                    _through_descriptor(steps[k], values)
                except FinwaitError as error:
                    errors[k] = error
        errors |= not_gone(steps, errors)
        _destroy([k for k in todo if steps[k].means == "destroy"], steps, rate, errors, answered)
        fault("acted")
        say("looking at what came of it")
        done = [steps[k] for k in todo if k not in errors]
        left = wait_gone([step for step in done if step.means != "user-timeout"], wait)
        fault("verified")
    except BaseException as error:
        # Interrupted, or the kernel refused in the middle: what was done is done, and written down as it is.
        with uninterrupted():
            left = still_there([end for k in todo for end in (steps[k], steps[k].other) if end is not None])
            why = FinwaitError(f"interrupted: {str(error) or type(error).__name__}")
            for k in todo:
                if key_of(steps[k]) in left:  # or not known
                    if steps[k].means != "fin":
                        errors.setdefault(k, why)
                elif steps[k].means == "destroy" and k not in answered:
                    unknown = "it is gone; whether by this act is not known, which was interrupted"
                    errors.setdefault(k, TargetGone(int(steps[k].cookie, 16), unknown))
            _finish(todo, steps, before, errors, left, ids, journal)
        raise
    with uninterrupted():
        outcomes.update(_finish(todo, steps, before, errors, left, ids, journal))


def _finish(
    todo: Sequence[int],
    steps: Mapping[int, Step],
    before: Mapping[int, dict[str, int]],
    errors: Mapping[int, FinwaitError],
    left: Mapping[Key, Seen],
    ids: Mapping[int, int],
    journal: Journal,
) -> dict[int, Outcome]:
    """Say what came of each step, put options back that did not end theirs, and write it all down."""
    still_open = open_descriptors([steps[k] for k in todo if k not in errors])
    outcomes = {k: _outcome(steps[k], errors.get(k), left, still_open, ids[k]) for k in todo}
    answered = [k for k in todo if steps[k].means == "keepalive" and outcomes[k].result != "ended"]
    for k, why in put_back({k: steps[k] for k in answered}, before).items():
        outcomes[k] = replace(outcomes[k], result="failed", detail=why)
    journal.complete_many({ids[k]: journaled(outcomes[k]) for k in todo})
    return outcomes


def _through_descriptor(step: Step, values: Mapping[str, dict[str, int]]) -> None:
    with borrow(step) as sock:
        if step.means == "reset":
            pidfd.reset(sock)
        elif step.means == "fin":
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                if error.errno == errno.ENOTCONN:
                    raise TargetGone(int(step.cookie, 16), "it ended by itself meanwhile") from None
                raise KernelError(error.errno or 0, "shut the connection down") from None
        else:
            pidfd.set_options(sock, values[step.means])


def _destroy(
    mine: Sequence[int],
    steps: Mapping[int, Step],
    rate: float,
    errors: dict[int, FinwaitError],
    answered: set[int],
) -> None:
    """Destroy; ``answered`` learns of whom the kernel said what became of it, also when this is interrupted."""
    if not mine:
        return
    spaces = namespaces_of({steps[k].netns for k in mine}, leads(steps[k] for k in mine))
    results: dict[int, int] = {}
    try:
        _, gaps = destroy(spaces, [kernel_target(steps[k]) for k in mine], rate=rate, results=results)
    finally:
        answered.update(mine[n] for n in list(results))
    for n, k in enumerate(mine):
        code = results.get(n)
        if code is None:
            where = next((str(g) for g in gaps if g.netns == steps[k].netns), "its namespace is gone")
            errors[k] = FinwaitError(where)
        elif code == GONE:
            errors[k] = TargetGone(int(steps[k].cookie, 16))
        elif code:
            errors[k] = KernelError(code, "destroy it", netns=steps[k].netns)


def _outcome(
    step: Step,
    error: FinwaitError | None,
    left: Mapping[Key, Seen],
    still_open: Mapping[Key, tuple[tuple[int, int, str], ...]],
    act_id: int,
) -> Outcome:
    if error is not None:
        return failed(step, error, act_id)
    if step.means == "user-timeout":
        return Outcome(step, "set", "it ends when nothing is acknowledged for the time set", act_id)
    seen = left.get(key_of(step))
    open_ = still_open.get(key_of(step), ())
    if seen is not None and seen.unknown:
        return Outcome(
            step, "failed", f"it was done, and what came of it is not known: {NOT_ENTERED}", act_id
        )
    other = ""
    if step.other is not None:
        there = left.get(key_of(step.other))
        other = "gone" if there is None else "" if there.unknown else there.state
    if seen is not None and step.means == "fin" and seen.before_fin:
        said = f"the FIN waits behind {seen.before_fin} bytes that its peer has not taken; {seen.state}"
        return Outcome(step, "still there", said, act_id, other, open_)
    if seen is None or (step.means == "fin" and seen.state == "LAST_ACK"):
        if seen is not None:
            said = "FIN sent; LAST_ACK until the peer acknowledges it"
        elif step.means == "keepalive":
            said = "it ended while it was probed: no answer, or a RST (or its own program closed it)"
        elif not other:
            unseen = (
                "was not seen" if step.other is None else "is in a namespace that could not be looked into"
            )
            said = f"its other end {unseen}; it sees {step.peer_told}"
        elif other == "gone":
            said = "both ends are gone"
        else:
            why = f"{step.peer_told} did not arrive" if should_end_too(step) else f"it sees {step.peer_told}"
            said = f"the other end is still in {other}: {why}"
        return Outcome(step, "ended", said, act_id, other, open_)
    if step.means == "fin":
        said = f"FIN sent; {seen.state} until the peer closes"
    elif step.means == "keepalive" and seen.in_flight:
        said = "data is in flight, so keepalive did not run; the options are as they were"
    elif step.means == "keepalive":
        said = "its peer answered every probe: it is alive; the options are as they were"
    else:
        said = f"it is in {seen.state}"
    return Outcome(step, "still there", said, act_id, other, open_)
