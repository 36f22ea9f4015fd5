"""A reviewed plan → the journal → the act → a look at what came of it.

*Theory of operation.* Everything that a plan rests on is read again, by cookie: a connection that left is no error,
one that moved on (another state, more bytes) is left alone. Then every act is written to the journal, durably, and
only then done, each after one more reading right before it: the journal may have been waited for, and so may its turn
where a rate was asked for. Afterwards the connections are read once more, at both ends
where both are here, and the journal learns what came of each. A process that dies in between leaves entries
without a result, which `finwait journal` shows and `finwait undo` can take back where there is something to
take back.

*Relay pairs.* Both legs are ended or none: they are read again together, right before the first of them is ended. That
is the leg in FIN_WAIT2: its end wakes the relay, which may then close the other leg by itself; ended first, the leg
in CLOSE_WAIT would tell it nothing, and an interruption between the two would leave the pair stuck for good. The second
one follows at once, if the first was ended.

*What cannot be taken back.* A FIN or a RST that was sent. Socket options can.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from msgspec import Struct, field
from msgspec.structs import replace

from finwait.acting.aftermath import Seen, open_descriptors, should_end_too, still_there, wait_gone
from finwait.acting.borrowed import borrow, not_gone
from finwait.acting.identity import (
    NOT_ENTERED,
    ActJournal,
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
)
from finwait.acting.options import claimed, given_back, set_for_good
from finwait.acting.probe import asking, put_to_them
from finwait.acting.recheck import changed_at, kept_whole, unfit
from finwait.acting.rights import check_means
from finwait.errors import FinwaitError, KernelError, Refused, TargetGone
from finwait.kernel import netns as ns_edge
from finwait.kernel import pidfd
from finwait.kernel.destroy import GONE, destroy
from finwait.kernel.interruption import check, noted, pause
from finwait.remedy.journal import Act, Kind
from finwait.remedy.outcome import Outcome, Probe, Result
from finwait.remedy.plan import Plan, Step, permit

__all__ = ["apply", "batches"]

_ONE_END_ONLY: Final = "this end is gone; the other end is still in {}"
_SETTLE_S: Final = 3.0
_BATCH: Final = 250
"""So many connections are read again, and destroyed at once: within some milliseconds of each other."""

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
    journal: ActJournal,
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
        plan: a plan of `finwait.remedy.making.make`, perhaps read from a file.
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
    outcomes = {} if into is None else into
    steps = dict(enumerate(plan.steps))
    outcomes |= unfit(steps)
    outcomes |= kept_whole(steps, outcomes)
    if todo := {k: step for k, step in steps.items() if k not in outcomes}:
        _do(todo, journal, outcomes, _Manner(rate, keepalive, user_timeout_ms, fault, say))
    return [outcomes[k] for k in range(len(plan.steps))]


class _Manner(Struct, frozen=True):
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


def _do(
    steps: Mapping[int, Step], journal: ActJournal, outcomes: dict[int, Outcome], manner: _Manner
) -> None:
    """Write the acts down and do them: those that end connections first, then those that ask peers."""
    manner.say("writing the journal")
    settings = {k: values for k, step in steps.items() if (values := manner.options(step.means)) is not None}
    with claimed({k: steps[k] for k in settings}, settings, journal, _reason) as claim:
        outcomes |= {k: failed(steps[k], error) for k, error in claim.errors.items()}
        asked = {k: steps[k] for k in claim.ids if steps[k].means == "keepalive"}
        others = [k for k in steps if k not in settings]
        probes: dict[int, Probe] = {}
        try:
            with given_back(asked, claim, settings, journal, probes):
                acts = [
                    Act(_KIND[steps[k].means], journal_target(steps[k]), why=_reason(steps[k]))
                    for k in others
                ]
                ids = {k: act for k, act in claim.ids.items() if k not in asked}
                ids |= dict(zip(others, journal.record_many(acts), strict=True))
                if ids:
                    _Acts(steps, ids, claim.before, journal, outcomes, manner).carry_out()
                if asked:
                    if not ids:
                        manner.fault("journaled")
                    probes |= {
                        k: Probe(asked[k], "gone", outcome.detail)
                        for k, outcome in unfit(asked).items()
                        if outcome.result == "changed meanwhile"
                    }
                    asked = {k: step for k, step in asked.items() if k not in probes}
                    put_to_them(asked, probes, manner.keepalive, lambda _: manner.fault("acted"), manner.say)
                    manner.fault("verified")
        finally:
            outcomes |= _answered(probes, claim.ids)


def _answered(probes: Mapping[int, Probe], ids: Mapping[int, int]) -> dict[int, Outcome]:
    """Say what came of steps whose peers were asked."""
    ended = [p.step for p in probes.values() if p.verdict in ("dead", "reset")]
    others = still_there([step.other for step in ended if step.other is not None])
    still_open = open_descriptors([p.step for p in probes.values()])
    outcomes = {}
    for k, p in probes.items():
        result: Result = "changed meanwhile" if p.verdict == "gone" else "still there"
        detail, other = p.detail, ""
        if over := p.verdict in ("dead", "reset"):
            result = "ended"
            if p.step.other is not None:
                other_seen = others.get(key_of(p.step.other))
                other = "gone" if other_seen is None else "" if other_seen.unknown else other_seen.state
            if other not in ("", "gone"):
                result, detail = "still there", f"{detail}; {_ONE_END_ONLY.format(other)}"
        elif p.verdict == "alive":
            detail += ": it is alive"
        if p.unrestored:
            result, detail = "failed", f"{detail}; {p.unrestored}; `finwait undo {ids[k]}` tries again"
        elif p.kept:
            names = ", ".join(f"{name} {value}" for name, value in p.kept)
            detail += f"; its program set {names} meanwhile, and that stays"
        elif result == "still there" and not over:
            detail += "; the options are as they were"
        open_ = still_open.get(key_of(p.step), ())
        outcomes[k] = Outcome(p.step, result, detail, ids[k], other, open_, over)
    return outcomes


class _Acts(Struct):
    """Acts that are written down, and are done now, but for those that ask peers."""

    steps: Mapping[int, Step]
    ids: Mapping[int, int]
    """In the journal, of those that are done here."""
    before: Mapping[int, dict[str, int]]
    """Options, of those that set some."""
    journal: ActJournal
    outcomes: dict[int, Outcome]
    how: _Manner
    errors: dict[int, FinwaitError] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    """Of whom it is known what was done, also when this is interrupted."""
    set_: dict[int, tuple[Outcome, dict[str, Any]]] = field(default_factory=dict)
    unfit: dict[int, Outcome] = field(default_factory=dict)
    """What to say of those that are not as planned any more, and were left alone."""

    def carry_out(self) -> None:
        """Do them and look at what came of it."""
        steps, manner = self.steps, self.how
        try:
            manner.fault("journaled")
            check()
            # The gentle means first: a RST on one leg may make its program close the other by itself.
            alone = [k for k in self.ids if not steps[k].pair]
            for k in sorted(alone, key=lambda k: steps[k].means == "reset"):
                if steps[k].means != "destroy":
                    check()
                    self._through_descriptor(k)
            self._pairs([k for k in self.ids if steps[k].pair])
            self.errors |= not_gone(steps, self.errors)
            self._destroy([k for k in alone if steps[k].means == "destroy"])
            manner.fault("acted")
            manner.say("checking the result")
            done = [steps[k] for k in self.ids if not self._settled(k)]
            survivors = wait_gone(done, _SETTLE_S)
            manner.fault("verified")
        except BaseException:
            # Interrupted, or the kernel refused in the middle: what was done is done, and written down as it is.
            survivors = still_there(
                [end for k in self.ids for end in (steps[k], steps[k].other) if end is not None]
            )
            self._cut_short(survivors)
            self._finish(survivors)
            raise
        self._finish(survivors)
        check()

    def _through_descriptor(self, k: int) -> None:
        step = self.steps[k]
        values = self.how.options(step.means)
        if values is not None:
            with suppress(FinwaitError), borrow(step) as sock:  # of an error `set_for_good` says more
                if (outcome := changed_at(step, sock)) is not None:
                    self.unfit[k] = outcome
            if k not in self.unfit:
                self.set_[k] = set_for_good(step, values, self.before[k], self.ids[k])
            return
        try:
            if (outcome := _through_descriptor(step)) is not None:
                self.unfit[k] = outcome
        except FinwaitError as error:
            self.errors[k] = error
        self.done.add(k)

    def _destroy(self, indices: Sequence[int]) -> None:
        """Destroy, batch by batch, what is still as planned; what is known of each is noted, also when interrupted."""
        if not indices:
            return
        order = sorted(indices, key=lambda k: self.steps[k].netns)
        spaces = namespaces_of({self.steps[k].netns for k in order}, leads(self.steps[k] for k in order))
        for part in batches(order, self.how.rate):
            self.unfit |= unfit({k: self.steps[k] for k in part}, spaces)
            self._destroy_now([k for k in part if k not in self.unfit], spaces)
            check()

    def _pairs(self, indices: Sequence[int]) -> None:
        """End relay pairs, each as a whole: first what wakes the relay, then the rest of it, or nothing."""
        if not indices:
            return
        units: dict[int, list[int]] = {}
        for k in sorted(indices, key=lambda k: self.steps[k].netns):
            units.setdefault(self.steps[k].pair, []).append(k)
        spaces = namespaces_of({self.steps[k].netns for k in indices}, leads(self.steps[k] for k in indices))
        most = max(sum(self.steps[k].means == "destroy" for k in unit) for unit in units.values())
        for part in batches(list(units), self.how.rate / max(most, 1)):
            legs = {k: self.steps[k] for number in part for k in units[number]}
            self._leave(unfit(legs, spaces), legs)
            first = [k for k in legs if k not in self.unfit and not _second(self.steps[k])]
            self._end(first, spaces)
            self.how.fault("first legs")
            not_ended = {k: failed(self.steps[k], self.errors[k]) for k in first if k in self.errors}
            second = {k: step for k, step in legs.items() if _second(step) and k not in self.unfit}
            self._leave({k: self.unfit[k] for k in first if k in self.unfit} | not_ended, second)
            self.unfit |= unfit({k: step for k, step in second.items() if k not in self.unfit}, spaces)
            self._end([k for k in second if k not in self.unfit], spaces)
            check()

    def _leave(self, bad: Mapping[int, Outcome], steps: Mapping[int, Step]) -> None:
        """Leave alone what is not as planned, and what belongs to that."""
        self.unfit |= {k: outcome for k, outcome in bad.items() if k not in self.errors}
        self.unfit |= kept_whole(steps, bad)

    def _end(self, legs: Sequence[int], spaces: Sequence[ns_edge.NetNamespace]) -> None:
        """End legs of relay pairs, those through a descriptor first."""
        for k in legs:
            if self.steps[k].means != "destroy":
                self._through_descriptor(k)
        if destroyed := [k for k in legs if self.steps[k].means == "destroy"]:
            self._destroy_now(destroyed, spaces)

    def _destroy_now(self, part: Sequence[int], spaces: Sequence[ns_edge.NetNamespace]) -> None:
        results: dict[int, int] = {}
        try:
            _, gaps = destroy(spaces, [kernel_target(self.steps[k]) for k in part], results=results)
        finally:
            for n, code in results.items():
                self.done.add(k := part[n])
                if code == GONE:
                    self.errors[k] = TargetGone(int(self.steps[k].cookie, 16))
                elif code:
                    self.errors[k] = KernelError(code, "destroy it", netns=self.steps[k].netns)
        check()
        for k in (k for n, k in enumerate(part) if n not in results):
            reason = next((str(g) for g in gaps if g.netns == self.steps[k].netns), "its namespace is gone")
            self.errors[k] = FinwaitError(reason)

    def _settled(self, k: int) -> bool:
        """Return whether it is known what came of an act without looking at its connection."""
        return k in self.errors or k in self.set_ or k in self.unfit

    def _cut_short(self, survivors: Mapping[Key, Seen]) -> None:
        """Say of those that were not done, or of which that is not known, why."""
        for k in self.ids:
            if k in self.done or self._settled(k):
                continue
            if key_of(self.steps[k]) in survivors:  # or not known
                self.errors[k] = FinwaitError("interrupted before it was done")
            else:
                unknown = "it is gone; it is unknown whether this act, which was interrupted, ended it"
                self.errors[k] = TargetGone(int(self.steps[k].cookie, 16), unknown)

    def _finish(self, survivors: Mapping[Key, Seen]) -> None:
        """Say what came of each, and write it down."""
        still_open = open_descriptors([self.steps[k] for k in self.ids if k not in self.errors | self.unfit])
        results = {}
        for k, act_id in self.ids.items():
            if k in self.set_:
                outcome, results[act_id] = self.set_[k]
                if outcome.result == "set":
                    outcome = replace(outcome, detail=_WHEN_GIVEN_UP)
            elif k in self.unfit:
                outcome = replace(self.unfit[k], act_id=act_id)
                results[act_id] = journaled(outcome) | {"restored": True}  # nothing was done
            else:
                outcome = _outcome(self.steps[k], self.errors.get(k), survivors, still_open, act_id)
                results[act_id] = journaled(outcome)
            self.outcomes[k] = outcome
        self.journal.complete_many(results)


_WHEN_GIVEN_UP: Final = (
    "it ends when nothing is acknowledged, or its peer's window stays shut, for the time set, "
    "counted from the first retransmission or window probe"
)


def _second(step: Step) -> bool:
    """Say whether a leg of a relay pair is ended after the others: its relay waits for those, and not for this one."""
    return step.state == "CLOSE_WAIT" and step.selected is None


def _through_descriptor(step: Step) -> Outcome | None:
    """Act through a descriptor; return what to say of one that is not as planned any more, and is left alone."""
    with borrow(step) as sock:
        if (outcome := changed_at(step, sock)) is not None:
            return outcome
        if step.means == "reset":
            pidfd.reset(sock)
            return None
        try:
            # Where the peer may still send, only our direction is shut: what comes after SHUT_RD draws a RST.
            peer_is_done = step.state == "CLOSE_WAIT"
            sock.shutdown(socket.SHUT_RDWR if peer_is_done else socket.SHUT_WR)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise TargetGone(int(step.cookie, 16), "it ended by itself meanwhile") from None
            raise KernelError(error.errno or 0, "shut the connection down") from None
    return None


def batches(indices: Sequence[int], rate: float) -> Iterator[Sequence[int]]:
    """Give connections in batches, each when its time has come.

    Args:
        indices: of the connections.
        rate: at most so many a second; 0 for no limit.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    size = _BATCH if rate <= 0 else max(1, min(_BATCH, int(rate / 10)))
    begun = time.monotonic()
    for start in range(0, len(indices), size):
        if rate > 0:
            pause(max(0.0, begun + start / rate - time.monotonic()))
        check()
        yield indices[start : start + size]


def _outcome(
    step: Step,
    error: FinwaitError | None,
    survivors: Mapping[Key, Seen],
    still_open: Mapping[Key, tuple[tuple[int, int, str], ...]],
    act_id: int,
) -> Outcome:
    if error is not None:
        return failed(step, error, act_id)
    seen = survivors.get(key_of(step))
    open_ = still_open.get(key_of(step), ())
    if seen is not None and seen.unknown:
        return Outcome(step, "failed", f"it was done, but the result is unknown: {NOT_ENTERED}", act_id)
    other = ""
    if step.other is not None:
        other_seen = survivors.get(key_of(step.other))
        other = "gone" if other_seen is None else "" if other_seen.unknown else other_seen.state
    if seen is not None and step.means == "fin" and seen.before_fin:
        detail = f"the FIN waits behind {seen.before_fin} bytes that its peer has not taken; {seen.state}"
        return Outcome(step, "still there", detail, act_id, other, open_)
    result: Result = "still there"
    if seen is None and other not in ("", "gone") and should_end_too(step):
        detail = f"{_ONE_END_ONLY.format(other)}: {step.peer_told} did not arrive"
    elif seen is None:
        result, detail = "ended", _of_other_end(step, other)
    elif step.means == "fin" and seen.state == "LAST_ACK":
        # Where its other end took the FIN, the connection is over for both programs: only the last ACK is missing.
        detail = "FIN sent; LAST_ACK until the peer acknowledges it"
        if other == "gone":
            result, detail = "ended", f"{detail}; the other end is gone"
        elif other:
            detail = f"FIN sent, and it did not arrive: LAST_ACK here, and {other} at the other end"
    else:
        detail = f"it is in {seen.state}"
        if step.means == "fin":
            detail = f"FIN sent; {seen.state} until the peer closes"
    return Outcome(step, result, detail, act_id, other, open_, seen is None or result == "ended")


def _of_other_end(step: Step, other: str) -> str:
    """Say of a connection whose end is gone what became of its other end."""
    if other == "gone":
        return "both ends are gone"
    if other:
        return f"the other end is still in {other}: it sees {step.peer_told}"
    unseen = "was not seen" if step.other is None else "is in a namespace that could not be inspected"
    return f"its other end {unseen}; it sees {step.peer_told}"
