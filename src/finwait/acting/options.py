"""Socket options of running programs: claimed in the journal, set, and put back.

Nothing is set that could not be put back: old values out of the range of setsockopt(2) are refused, and each
option is first set to what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from finwait.acting.borrowed import (
    STILL_THERE,
    DescriptorMoved,
    borrow,
    holders_elsewhere,
    not_gone,
    uninterrupted,
)
from finwait.acting.identity import (
    Journal,
    Say,
    failed,
    in_words,
    journal_target,
    journaled,
    namespaces_of,
    quiet,
)
from finwait.errors import FinwaitError, TargetGone
from finwait.kernel import netns as ns_edge
from finwait.kernel import pidfd, procfs
from finwait.remedy.journal import Act
from finwait.remedy.outcome import Outcome
from finwait.remedy.plan import End, Step

__all__ = ["SYSCTLS", "arm", "options_of"]


@dataclass(frozen=True, slots=True)
class _Claim:
    """Connections whose options are ours to change, and why the others' are not."""

    before: dict[int, dict[str, int]]
    """All their options as they are."""
    ids: dict[int, int]
    """Their acts in the journal."""
    followed: dict[int, tuple[str, ...]]
    """Options that have the value of their sysctl, which the socket may follow as long as it has none of its own."""
    errors: dict[int, FinwaitError]


def claim_options(
    steps: Mapping[int, Step],
    wanted: Mapping[int, Mapping[str, int]],
    journal: Journal,
    why: Callable[[Step], str],
) -> _Claim:
    """Write down acts that change options of connections, of those whose options can be put back and are free.

    They are read, written down as a claim that no other act overlaps, and read again: what changed in between was
    another act's, which ended meanwhile, and nothing is known of how it was before. Then each option is set to what
    it is: what can be set so now can be put back later.

    Args:
        steps: the connections.
        wanted: the options that each is to get.
        journal: where acts are written down, and claimed.
        why: what to write down as the reason.

    Raises:
        KernelError: the journal could not be written; nothing was done.
    """
    order = list(steps)
    read, failed = options_of([steps[k] for k in order])
    errors = {order[n]: error for n, error in failed.items()}
    before: dict[int, dict[str, int]] = {}
    for n, options in read.items():
        k = order[n]
        try:
            _in_range({name: options[name] for name in wanted[k]})
            before[k] = options
        except FinwaitError as error:
            errors[k] = error
    sysctls = _followed({steps[k].netns for k in before})
    followed = {
        k: tuple(n for n, v in sysctls.get(steps[k].netns, {}).items() if n in wanted[k] and options[n] == v)
        for k, options in before.items()
    }
    acts = [
        Act(
            "sockopt",
            journal_target(steps[k]),
            {"options": {name: options[name] for name in wanted[k]}, "followed": followed[k]},
            {"options": dict(wanted[k])},
            why(steps[k]),
        )
        for k, options in before.items()
    ]
    ids: dict[int, int] = {}
    with uninterrupted():
        for k, claimed in zip(list(before), journal.claim_many(acts), strict=True):
            if isinstance(claimed, int):
                ids[k] = claimed
            else:
                errors[k] = FinwaitError(f"{claimed}; nothing was set")
        lost: dict[int, FinwaitError] = {}
        for k in ids:
            try:
                _confirm(steps[k], before[k], wanted[k])
            except FinwaitError as error:
                lost[k] = error
        lost |= not_gone(steps, lost)
        if lost:
            journal.complete_many({ids.pop(k): {"error": str(error)} for k, error in lost.items()})
    return _Claim({k: before[k] for k in ids}, ids, followed, errors | lost)


def options_of(steps: Sequence[Step]) -> tuple[dict[int, dict[str, int]], dict[int, FinwaitError]]:
    """Return the options that connections have now, by index, and why those of others cannot be read."""
    options: dict[int, dict[str, int]] = {}
    errors: dict[int, FinwaitError] = {}
    for k, step in enumerate(steps):
        try:
            with borrow(step) as sock:
                options[k] = pidfd.get_options(sock)
        except FinwaitError as error:
            errors[k] = error
    return options, errors | not_gone(dict(enumerate(steps)), errors)


def _in_range(values: Mapping[str, int]) -> None:
    """Refuse options that could not be put back, as their old values are none that setsockopt(2) takes."""
    wrong = pidfd.out_of_range(values)
    if wrong:
        name, value = next(iter(wrong.items()))
        raise FinwaitError(
            f"its {name} of {value} could not be put back: setsockopt(2) takes at most {pidfd.OPTION_RANGES[name][1]} "
            f"(the value of net.ipv4.{SYSCTLS[name]}, most likely); nothing was set"
        )


SYSCTLS: Final = {
    "keepidle": "tcp_keepalive_time",
    "keepintvl": "tcp_keepalive_intvl",
    "keepcnt": "tcp_keepalive_probes",
}
"""Option → what a socket follows that has no value of its own."""


def _confirm(step: Step, before: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    with borrow(step) as sock:
        if pidfd.get_options(sock) != before:
            raise FinwaitError(
                "its options were changed by somebody else at this very moment; nothing was set"
            )
        pidfd.set_options(sock, {name: before[name] for name in wanted if name != "keepalive"})


def _followed(netns: Iterable[int]) -> dict[int, dict[str, int]]:
    """Return what sockets without keepalive times of their own follow, by namespace: option → value of its sysctl."""

    def inside(_: ns_edge.NetNamespace) -> dict[str, int]:
        read = {n: procfs.read(f"/proc/sys/net/ipv4/{name}") for n, name in SYSCTLS.items()}
        return {n: int(data) for n, data in read.items() if data and data.strip().isdigit()}

    return ns_edge.visit(namespaces_of(netns), inside)[0]


def put_back(
    steps: Mapping[int, Step], before: Mapping[int, dict[str, int]], moved: set[int] | None = None
) -> dict[int, str]:
    """Put options back; return why, of each that could not be.

    Args:
        steps: the connections; their holders are looked for anew where their descriptors were moved.
        before: what to put back.
        moved: takes those that are still there and that no process was found to hold.
    """
    failed: dict[int, str] = {}
    todo = dict(steps)
    for _ in range(3):  # a program may move its descriptor again
        lost: dict[int, tuple[Step | End, int]] = {}
        for k, step in todo.items():
            try:
                if why := _put_back_one(step, before[k]):
                    failed[k] = why
            except TargetGone:
                lost[k] = (step, step.inode)
            except FinwaitError as error:
                failed[k] = f"the options could not be put back: {error}"
        if not lost:  # what has ended is not found again: there is nothing to put back
            return failed
        todo = {}
        for k, holders in holders_elsewhere(lost).items():
            if isinstance(holders, DescriptorMoved):
                failed[k] = f"the options could not be put back: {in_words(holders)}"
                if moved is not None:
                    moved.add(k)
            else:
                todo[k] = msgspec.structs.replace(steps[k], holders=holders)
    for k in todo:
        failed[k] = f"the options could not be put back: {STILL_THERE}, and its descriptor moves all the time"
        if moved is not None:
            moved.add(k)
    return failed


def _put_back_one(step: Step, before: dict[str, int]) -> str:
    """Put the options of one connection back; return what is not as it was."""
    with borrow(step) as sock:
        pidfd.set_options(sock, before)
        now = pidfd.get_options(sock)
    if now == before:
        return ""
    wrong = ", ".join(f"{n} is {now[n]}, was {v}" for n, v in before.items() if now[n] != v)
    return f"the options are not as they were: {wrong}"


def arm(
    steps: Sequence[Step],
    journal: Journal,
    values: Mapping[str, int],
    *,
    fault: Callable[[str], None] = quiet,
    say: Say = quiet,
) -> list[Outcome]:
    """Give live sockets of running programs options that they lack, for good.

    Args:
        steps: the connections, as a plan names them.
        journal: keeps the old values, so that `restore` can put them back.
        values: names of `finwait.kernel.pidfd.KEEPALIVE_OPTIONS`.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.

    Raises:
        ValueError: a value that no socket takes; nothing was done.
        KernelError: the journal could not be written; nothing was done.
    """
    if wrong := pidfd.out_of_range(values):
        raise ValueError(f"setsockopt(2) does not take {wrong}")
    claim = claim_options(
        dict(enumerate(steps)), dict.fromkeys(range(len(steps)), values), journal, lambda _: "arm"
    )
    outcomes = {k: failed(steps[k], error) for k, error in claim.errors.items()}
    say(f"setting options of {len(claim.ids)} connections")
    with uninterrupted():  # it is a matter of milliseconds
        fault("journaled")
        for k, act_id in claim.ids.items():
            outcomes[k] = _armed(steps[k], values, claim.before[k], act_id)
        fault("armed")
        journal.complete_many({act_id: journaled(outcomes[k]) for k, act_id in claim.ids.items()})
    return [outcomes[k] for k in range(len(steps))]


def _armed(step: Step, values: Mapping[str, int], before: dict[str, int], act_id: int) -> Outcome:
    try:
        with borrow(step) as sock:
            pidfd.set_options(sock, values)
            now = pidfd.get_options(sock)
    except FinwaitError as error:
        return _taken_back(failed(step, error, act_id), before)
    if wrong := {n: now[n] for n, v in values.items() if now[n] != v}:
        return _taken_back(Outcome(step, "failed", f"the kernel took {wrong}", act_id), before)
    return Outcome(step, "set", ", ".join(f"{n} {before[n]} → {v}" for n, v in values.items()), act_id)


def _taken_back(outcome: Outcome, before: dict[str, int]) -> Outcome:
    """Put options back after an act that was done by half."""
    if outcome.result == "left before":
        return outcome
    failed = put_back({0: outcome.step}, {0: before})
    return replace(outcome, detail=f"{outcome.detail}; {failed.get(0, 'the options are as they were')}")
