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
from dataclasses import dataclass, field, replace
from typing import Any, Final

from finwait.acting.aftermath import Seen, open_descriptors, should_end_too, still_there, wait_gone
from finwait.acting.borrowed import borrow, not_gone
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
from finwait.acting.options import claimed, given_back, set_for_good
from finwait.acting.probe import asking, put_to_them
from finwait.acting.rights import check_means
from finwait.errors import FinwaitError, KernelError, Refused, TargetGone
from finwait.kernel import pidfd
from finwait.kernel.destroy import GONE, destroy
from finwait.kernel.interruption import check, noted
from finwait.remedy.journal import Act, Kind
from finwait.remedy.outcome import Outcome, Probe, Result
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


@noted()
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
    into: dict[int, Outcome] | None = None,
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
        into: takes what came of each, by index, also when this raises or is interrupted.

    Raises:
        Refused: the plan was made on another boot, is too large, or needs what cannot be done here; nothing was done.
        KernelError: the journal could not be written; nothing was done but what ``into`` says.
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
    outcomes = {} if into is None else into
    todo: list[int] = []
    for k, step in enumerate(plan.steps):
        row = rows.get(key_of(step))
        if row is None and step.netns in closed:
            outcomes[k] = Outcome(step, "failed", NOT_ENTERED)
        elif row is None:
            outcomes[k] = Outcome(step, "left before", "it was gone at the second look")
        elif (
            changed := _changed(step, states[row], inodes[row], moved[row] if known[row] else None)
        ) is not None:
            outcomes[k] = Outcome(step, "changed meanwhile", changed)
        else:
            todo.append(k)
    if todo:
        how = _How(rate, keepalive, user_timeout_ms, fault, say)
        _do({k: plan.steps[k] for k in todo}, journal, outcomes, how)
    return [outcomes[k] for k in range(len(plan.steps))]


def _changed(step: Step, number: int, inode: int, moved: tuple[int, int] | None) -> str | None:
    state = tcp.state_name(number)
    if state == "LISTEN":
        return "it is a listener"
    if state != step.state:
        return f"it is in {state} now, not in {step.state}"
    if step.inode and not inode:
        return (
            "its last descriptor has been closed since: it is now an orphan, which the kernel ends by itself"
        )
    if inode != step.inode and not step.inode:
        return "a program has accepted it since"
    if inode != step.inode:
        return f"its inode is {inode}, and not {step.inode}, as the plan says"
    if moved is not None and moved != (step.bytes_received, step.bytes_acked):
        return "bytes moved since the plan was made"
    return None


@dataclass(frozen=True, slots=True)
class _How:
    """What a caller wants of all steps."""

    rate: float
    keepalive: tuple[int, int, int]
    user_timeout_ms: int
    fault: Callable[[str], None]
    say: Say

    def options(self, means: str) -> dict[str, int] | None:
        """Return what a means sets; None for one that sets no options."""
        if means == "keepalive":
            return asking(self.keepalive)
        return {"user_timeout_ms": self.user_timeout_ms} if means == "user-timeout" else None


def _reason(step: Step) -> str:
    return step.rule or f"clear --with {step.means}"


def _do(steps: Mapping[int, Step], journal: Journal, outcomes: dict[int, Outcome], how: _How) -> None:
    """Write the acts down and do them: those that end connections first, then those that ask peers."""
    how.say("writing the journal")
    wanted = {k: values for k, step in steps.items() if (values := how.options(step.means)) is not None}
    with claimed({k: steps[k] for k in wanted}, wanted, journal, _reason) as claim:
        outcomes |= {k: failed(steps[k], error) for k, error in claim.errors.items()}
        asked = {k: steps[k] for k in claim.ids if steps[k].means == "keepalive"}
        others = [k for k in steps if k not in wanted]
        found: dict[int, Probe] = {}
        try:
            with given_back(asked, claim, wanted, journal, found):
                acts = [
                    Act(_KIND[steps[k].means], journal_target(steps[k]), why=_reason(steps[k]))
                    for k in others
                ]
                ids = {k: act for k, act in claim.ids.items() if k not in asked}
                ids |= dict(zip(others, journal.record_many(acts), strict=True))
                if ids:
                    _Acts(steps, ids, claim.before, journal, outcomes, how).carry_out()
                if asked:
                    if not ids:
                        how.fault("journaled")
                    put_to_them(asked, found, how.keepalive, lambda _: how.fault("acted"), how.say)
                    how.fault("verified")
        finally:
            outcomes |= _answered(found, claim.ids)


def _answered(found: Mapping[int, Probe], ids: Mapping[int, int]) -> dict[int, Outcome]:
    """Say what came of steps whose peers were asked."""
    ended = [p.step for p in found.values() if p.verdict in ("dead", "reset")]
    others = still_there([step.other for step in ended if step.other is not None])
    still_open = open_descriptors([p.step for p in found.values()])
    outcomes = {}
    for k, p in found.items():
        result: Result = "changed meanwhile" if p.verdict == "gone" else "still there"
        detail, other = p.detail, ""
        if p.verdict in ("dead", "reset"):
            result = "ended"
            if p.step.other is not None:
                there = others.get(key_of(p.step.other))
                other = "gone" if there is None else "" if there.unknown else there.state
        elif p.verdict == "alive":
            detail += ": it is alive"
        if p.unrestored:
            result, detail = "failed", f"{detail}; {p.unrestored}; `finwait undo {ids[k]}` tries again"
        elif p.kept:
            names = ", ".join(f"{name} {value}" for name, value in p.kept)
            detail += f"; its program set {names} meanwhile, and that stays"
        elif result == "still there":
            detail += "; the options are as they were"
        outcomes[k] = Outcome(p.step, result, detail, ids[k], other, still_open.get(key_of(p.step), ()))
    return outcomes


@dataclass(slots=True)
class _Acts:
    """Acts that are written down, and are done now, but for those that ask peers."""

    steps: Mapping[int, Step]
    ids: Mapping[int, int]
    """In the journal, of those that are done here."""
    before: Mapping[int, dict[str, int]]
    """Options, of those that set some."""
    journal: Journal
    outcomes: dict[int, Outcome]
    how: _How
    errors: dict[int, FinwaitError] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    """Of whom it is known what was done, also when this is interrupted."""
    set_: dict[int, tuple[Outcome, dict[str, Any]]] = field(default_factory=dict)

    def carry_out(self) -> None:
        """Do them and look at what came of it."""
        steps, how = self.steps, self.how
        try:
            how.fault("journaled")
            check()
            # The gentle means first: a RST on one leg may make its program close the other by itself.
            for k in sorted(self.ids, key=lambda k: steps[k].means == "reset"):
                if steps[k].means != "destroy":
                    check()
                    self._through_descriptor(k)
            self.errors |= not_gone(steps, self.errors)
            _destroy(
                [k for k in self.ids if steps[k].means == "destroy"], steps, how.rate, self.errors, self.done
            )
            how.fault("acted")
            how.say("checking the result")
            done = [steps[k] for k in self.ids if k not in self.errors and k not in self.set_]
            left = wait_gone(done, _SETTLE_S)
            how.fault("verified")
        except BaseException:
            # Interrupted, or the kernel refused in the middle: what was done is done, and written down as it is.
            left = still_there(
                [end for k in self.ids for end in (steps[k], steps[k].other) if end is not None]
            )
            self._cut_short(left)
            self._finish(left)
            raise
        self._finish(left)
        check()

    def _through_descriptor(self, k: int) -> None:
        step = self.steps[k]
        values = self.how.options(step.means)
        if values is not None:
            self.set_[k] = set_for_good(step, values, self.before[k], self.ids[k])
            return
        try:
            _through_descriptor(step)
        except FinwaitError as error:
            self.errors[k] = error
        self.done.add(k)

    def _cut_short(self, left: Mapping[Key, Seen]) -> None:
        """Say of those that were not done, or of which that is not known, why."""
        for k in self.ids:
            if k in self.done or k in self.set_ or k in self.errors:
                continue
            if key_of(self.steps[k]) in left:  # or not known
                self.errors[k] = FinwaitError("interrupted before it was done")
            else:
                unknown = "it is gone; it is unknown whether this act, which was interrupted, ended it"
                self.errors[k] = TargetGone(int(self.steps[k].cookie, 16), unknown)

    def _finish(self, left: Mapping[Key, Seen]) -> None:
        """Say what came of each, and write it down."""
        still_open = open_descriptors([self.steps[k] for k in self.ids if k not in self.errors])
        results = {}
        for k, act_id in self.ids.items():
            if k in self.set_:
                outcome, results[act_id] = self.set_[k]
                if outcome.result == "set":
                    outcome = replace(outcome, detail=_WHEN_GIVEN_UP)
            else:
                outcome = _outcome(self.steps[k], self.errors.get(k), left, still_open, act_id)
                results[act_id] = journaled(outcome)
            self.outcomes[k] = outcome
        self.journal.complete_many(results)


_WHEN_GIVEN_UP: Final = (
    "it ends when nothing is acknowledged, or its peer's window stays shut, for the time set, "
    "counted from the first retransmission or window probe"
)


def _through_descriptor(step: Step) -> None:
    with borrow(step) as sock:
        if step.means == "reset":
            pidfd.reset(sock)
            return
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise TargetGone(int(step.cookie, 16), "it ended by itself meanwhile") from None
            raise KernelError(error.errno or 0, "shut the connection down") from None


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
        for n, code in results.items():
            answered.add(k := mine[n])
            if code == GONE:
                errors[k] = TargetGone(int(steps[k].cookie, 16))
            elif code:
                errors[k] = KernelError(code, "destroy it", netns=steps[k].netns)
    check()
    for n, k in enumerate(mine):
        if n not in results:
            where = next((str(g) for g in gaps if g.netns == steps[k].netns), "its namespace is gone")
            errors[k] = FinwaitError(where)


def _outcome(
    step: Step,
    error: FinwaitError | None,
    left: Mapping[Key, Seen],
    still_open: Mapping[Key, tuple[tuple[int, int, str], ...]],
    act_id: int,
) -> Outcome:
    if error is not None:
        return failed(step, error, act_id)
    seen = left.get(key_of(step))
    open_ = still_open.get(key_of(step), ())
    if seen is not None and seen.unknown:
        return Outcome(step, "failed", f"it was done, but the result is unknown: {NOT_ENTERED}", act_id)
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
        elif not other:
            unseen = "was not seen" if step.other is None else "is in a namespace that could not be inspected"
            said = f"its other end {unseen}; it sees {step.peer_told}"
        elif other == "gone":
            said = "both ends are gone"
        else:
            why = f"{step.peer_told} did not arrive" if should_end_too(step) else f"it sees {step.peer_told}"
            said = f"the other end is still in {other}: {why}"
        return Outcome(step, "ended", said, act_id, other, open_)
    said = (
        f"FIN sent; {seen.state} until the peer closes" if step.means == "fin" else f"it is in {seen.state}"
    )
    return Outcome(step, "still there", said, act_id, other, open_)
