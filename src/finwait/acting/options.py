"""Socket options of running programs: claimed in the journal, set, and put back.

Nothing is set that could not be put back: old values out of the range of setsockopt(2) are refused, and each
option is first set to what it is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from finwait.acting.borrowed import (
    STILL_THERE,
    DescriptorMoved,
    borrow,
    holders_elsewhere,
    not_gone,
)
from finwait.acting.identity import (
    ActJournal,
    Key,
    Say,
    failed,
    in_words,
    journal_target,
    journaled,
    key_of,
    leads,
    namespaces_of,
    quiet,
)
from finwait.errors import FinwaitError, TargetGone
from finwait.kernel import netns as ns_edge
from finwait.kernel import pidfd, procfs
from finwait.kernel.interruption import check, interrupted, noted
from finwait.kernel.socket_locks import locked
from finwait.remedy.journal import Act
from finwait.remedy.outcome import Outcome, Probe
from finwait.remedy.plan import End, Step

__all__ = ["SYSCTLS", "Claimed", "arm", "claimed", "given_back", "options_of", "set_for_good", "set_since"]


class Claimed(Struct, frozen=True):
    """Connections whose options are ours to change, and why the others' are not."""

    before: dict[int, dict[str, int]]
    """All their options as they are."""
    ids: dict[int, int]
    """Their acts in the journal."""
    followed: dict[int, tuple[str, ...]]
    """Options that have the value of their sysctl, which the socket may follow as long as it has none of its own."""
    errors: dict[int, FinwaitError]


@contextmanager
def claimed(
    steps: Mapping[int, Step],
    settings: Mapping[int, Mapping[str, int]],
    journal: ActJournal,
    why: Callable[[Step], str],
) -> Iterator[Claimed]:
    """Write down acts that change options of connections, of those whose options can be put back and are free.

    They are read, written down as a claim that no other act of this journal overlaps, locked against those of other
    journals until this ends (`finwait.kernel.socket_locks`), and read again: what changed in between was another act's,
    which ended meanwhile, and nothing is known of how it was before. Then each option is set to what it is: what can be
    set so now can be put back later.

    Args:
        steps: the connections.
        settings: the options that each is to get.
        journal: where acts are written down, and claimed.
        why: what to write down as the reason.

    Raises:
        KernelError: the journal could not be written; nothing was done.
        KeyboardInterrupt: it was interrupted before anything was set; nothing was done, and nothing is open.
    """
    check()
    before, errors = _readable(steps, settings)
    followed = _follows(steps, before, settings)
    acts = [
        Act(
            "sockopt",
            journal_target(steps[k]),
            {"options": {name: options[name] for name in settings[k]}, "followed": followed[k]},
            {"options": dict(settings[k])},
            why(steps[k]),
        )
        for k, options in before.items()
    ]
    check()
    ids: dict[int, int] = {}
    for k, number in zip(list(before), journal.claim_many(acts), strict=True):
        if isinstance(number, int):
            ids[k] = number
        else:
            errors[k] = FinwaitError(f"{number}; nothing was set")
    claimed_steps = {k: steps[k] for k in ids}
    spaces = namespaces_of({step.netns for step in claimed_steps.values()}, leads(claimed_steps.values()))
    with locked(spaces, {key_of(step) for step in claimed_steps.values()}) as refused:
        lost = _unconfirmed(claimed_steps, before, settings, refused)
        if stop := interrupted():
            lost = {k: lost.get(k, FinwaitError("interrupted; nothing was set")) for k in claimed_steps}
        if lost:
            journal.complete_many(
                {ids.pop(k): {"error": str(error), "restored": True} for k, error in lost.items()}
            )
        if stop:  # and not what comes after the look: it is written down, and is the caller's to settle
            raise KeyboardInterrupt
        yield Claimed({k: before[k] for k in ids}, ids, followed, errors | lost)


def _readable(
    steps: Mapping[int, Step], settings: Mapping[int, Mapping[str, int]]
) -> tuple[dict[int, dict[str, int]], dict[int, FinwaitError]]:
    """Return the options that connections have and that can be put back, and why those of others cannot."""
    order = list(steps)
    read, failed = options_of([steps[k] for k in order])
    errors = {order[n]: error for n, error in failed.items()}
    before: dict[int, dict[str, int]] = {}
    for n, options in read.items():
        k = order[n]
        try:
            _in_range({name: options[name] for name in settings[k]})
            before[k] = options
        except FinwaitError as error:
            errors[k] = error
    return before, errors


def _follows(
    steps: Mapping[int, Step],
    before: Mapping[int, dict[str, int]],
    settings: Mapping[int, Mapping[str, int]],
) -> dict[int, tuple[str, ...]]:
    sysctls = _followed({steps[k].netns for k in before})
    return {
        k: tuple(
            n for n, v in sysctls.get(steps[k].netns, {}).items() if n in settings[k] and options[n] == v
        )
        for k, options in before.items()
    }


def _unconfirmed(
    steps: Mapping[int, Step],
    before: Mapping[int, dict[str, int]],
    settings: Mapping[int, Mapping[str, int]],
    refused: Mapping[Key, str],
) -> dict[int, FinwaitError]:
    """Return why connections are not ours to change, though the journal let us: a lock, or options that changed."""
    lost: dict[int, FinwaitError] = {}
    for k, step in steps.items():
        if interrupted():
            break
        if why := refused.get(key_of(step)):
            lost[k] = FinwaitError(f"{why}; nothing was set")
            continue
        try:
            _confirm(step, before[k], settings[k])
        except FinwaitError as error:
            lost[k] = error
    return lost | not_gone(steps, lost)


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
            f"its {name} of {value} could not be restored: setsockopt(2) accepts at most "
            f"{pidfd.OPTION_RANGES[name][1]} (the value of net.ipv4.{SYSCTLS[name]}, most likely); "
            "nothing was set"
        )


SYSCTLS: Final = {
    "keepidle": "tcp_keepalive_time",
    "keepintvl": "tcp_keepalive_intvl",
    "keepcnt": "tcp_keepalive_probes",
}
"""Option → what a socket follows that has no value of its own."""


def _confirm(step: Step, before: Mapping[str, int], settings: Mapping[str, int]) -> None:
    with borrow(step) as sock:
        if pidfd.get_options(sock) != before:
            raise FinwaitError("somebody else changed its options at this moment; nothing was set")
        pidfd.set_options(sock, {name: before[name] for name in settings if name != "keepalive"})


def _followed(netns: Iterable[int]) -> dict[int, dict[str, int]]:
    """Return what sockets without keepalive times of their own follow, by namespace: option → value of its sysctl."""

    def inside(_: ns_edge.NetNamespace) -> dict[str, int]:
        read = {n: procfs.read(f"/proc/sys/net/ipv4/{name}") for n, name in SYSCTLS.items()}
        return {n: int(data) for n, data in read.items() if data and data.strip().isdigit()}

    return ns_edge.visit(namespaces_of(netns), inside)[0]


class PutBack(Struct, frozen=True):
    """What came of putting options back."""

    failed: dict[int, str]
    """Why options are not as they were."""
    kept: dict[int, dict[str, int]]
    """Options that the program set meanwhile, which are left as it set them."""
    moved: set[int]
    """Those of ``failed`` that are still there and that no process was found to hold."""


def put_back(
    steps: Mapping[int, Step],
    before: Mapping[int, dict[str, int]],
    made: Mapping[int, Mapping[str, int]],
) -> PutBack:
    """Put options back that are still as an act made them.

    Args:
        steps: the connections; their holders are looked for anew where their descriptors were moved.
        before: what to put back.
        made: what the act set; what is something else by now was set by the program, and stays.
    """
    done = PutBack({}, {}, set())
    todo = dict(steps)
    for _ in range(3):  # a program may move its descriptor again
        lost: dict[int, tuple[Step | End, int]] = {}
        for k, step in todo.items():
            try:
                with borrow(step) as sock:
                    kept, why = put_back_one(sock, before[k], made[k])
                if kept:
                    done.kept[k] = kept
                if why:
                    done.failed[k] = f"the options are not as before: {why}"
            except TargetGone:
                lost[k] = (step, step.inode)
            except FinwaitError as error:
                done.failed[k] = f"the options could not be restored: {error}"
        if not lost:  # what has ended is not found again: there is nothing to put back
            return done
        todo = {}
        for k, holders in holders_elsewhere(lost).items():
            if isinstance(holders, DescriptorMoved):
                done.failed[k] = f"the options could not be restored: {in_words(holders)}"
                done.moved.add(k)
            else:
                todo[k] = msgspec.structs.replace(steps[k], holders=holders)
    for k in todo:
        done.failed[k] = f"the options could not be restored: {STILL_THERE}, and its descriptor keeps moving"
        done.moved.add(k)
    return done


def put_back_one(
    sock: socket.socket, before: Mapping[str, int], made: Mapping[str, int]
) -> tuple[dict[str, int], str]:
    """Put the options of one socket back; return what its program set meanwhile, and what is not as it should be."""
    kept = set_since(pidfd.get_options(sock), before, made)
    originals = {name: before[name] for name in made if name not in kept}
    pidfd.set_options(sock, originals)
    now = pidfd.get_options(sock)
    return kept, ", ".join(f"{n} is {now[n]}, was {v}" for n, v in originals.items() if now[n] != v)


def set_since(
    now: Mapping[str, int], before: Mapping[str, int], made: Mapping[str, int], *, halfway: bool = False
) -> dict[str, int]:
    """Return the options that are neither as an act made them nor as they were before: their program's own.

    That it switched keepalive on, which the act did too, cannot be seen; but who sets its times wants it on.

    Args:
        now: as they are.
        before: as they were.
        made: what the act set.
        halfway: the act, or one that took it back, was cut short. It may have been in the middle of setting them, when
            keepalive is off for a moment (`pidfd.set_options`); that is not taken for the program's.
    """
    own = {name: now[name] for name, value in made.items() if now[name] not in (value, before[name])}
    if own.keys() & SYSCTLS.keys() and made.get("keepalive") and now["keepalive"] and not before["keepalive"]:
        own["keepalive"] = now["keepalive"]
    if halfway and own.get("keepalive") == 0:
        del own["keepalive"]
    return own


@contextmanager
def given_back(
    steps: Mapping[int, Step],
    claim: Claimed,
    settings: Mapping[int, Mapping[str, int]],
    journal: ActJournal,
    probes: dict[int, Probe],
) -> Iterator[None]:
    """Put options back at the end, whatever happens inside, and write down what was found out.

    Args:
        steps: the connections, of those that are claimed.
        claim: see `claimed`.
        settings: what was set.
        journal: where their acts are.
        probes: what was found out until then; it learns, also when this raises, what became of the options.

    Raises:
        KernelError: the journal could not be written; the options were put back before.
    """
    try:
        yield
    finally:
        done = put_back(steps, claim.before, settings)
        results: dict[int, dict[str, Any]] = {}
        for k, step in steps.items():
            verdict: dict[str, Any] = {"result": probes[k].verdict if k in probes else "interrupted"}
            if k in done.failed:
                verdict = {"error": done.failed[k]}
            elif kept := done.kept.get(k):
                verdict |= {"restored": True, "kept": kept}
            else:
                verdict |= {"restored": True}
            if k not in done.moved:  # who finds its descriptor again can put it back: that act stays open
                results[claim.ids[k]] = verdict
            unjudged = Probe(step, "not judged", "interrupted before it was judged")
            probes[k] = replace(
                probes.get(k, unjudged),
                unrestored=done.failed.get(k, ""),
                kept=tuple(sorted(done.kept.get(k, {}).items())),
                pinned=tuple(n for n in claim.followed[k] if n not in done.kept.get(k, {})),
            )
        journal.complete_many(results)


@noted()
def arm(
    steps: Sequence[Step],
    journal: ActJournal,
    values: Mapping[str, int],
    *,
    fault: Callable[[str], None] = quiet,
    say: Say = quiet,
    into: dict[int, Outcome] | None = None,
) -> list[Outcome]:
    """Give live sockets of running programs options that they lack, for good.

    Args:
        steps: the connections, as a plan names them.
        journal: keeps the old values, so that `restore` can put them back.
        values: names of `finwait.kernel.pidfd.KEEPALIVE_OPTIONS`.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.
        into: takes what came of each, by index, also when this raises.

    Raises:
        ValueError: a value that no socket takes; nothing was done.
        KernelError: the journal could not be written; where ``into`` is empty nothing was done.
    """
    if wrong := pidfd.out_of_range(values):
        raise ValueError(f"setsockopt(2) does not accept {wrong}")
    outcomes = {} if into is None else into
    numbered = dict(enumerate(steps))
    with claimed(numbered, dict.fromkeys(numbered, values), journal, lambda _: "arm") as claim:
        outcomes |= {k: failed(steps[k], error) for k, error in claim.errors.items()}
        say(f"setting options of {len(claim.ids)} connections")
        fault("journaled")
        results = {}
        for k, act_id in claim.ids.items():
            if interrupted():
                outcomes[k] = failed(steps[k], FinwaitError("interrupted before it was done"), act_id)
                results[act_id] = journaled(outcomes[k]) | {"restored": True}
            else:
                outcomes[k], results[act_id] = set_for_good(steps[k], values, claim.before[k], act_id)
        fault("armed")
        journal.complete_many(results)
    check()
    return [outcomes[k] for k in range(len(steps))]


def set_for_good(
    step: Step, values: Mapping[str, int], before: dict[str, int], act_id: int
) -> tuple[Outcome, dict[str, Any]]:
    """Set options, all or none; return what came of it, and what the journal is to remember."""
    try:
        with borrow(step) as sock:
            pidfd.set_options(sock, values)
            _check(pidfd.get_options(sock), values)
    except FinwaitError as error:
        outcome = failed(step, error, act_id)
        if outcome.result == "left before":
            return outcome, journaled(outcome)
        failure = put_back({0: step}, {0: before}, {0: values}).failed.get(0)
        outcome = replace(outcome, detail=f"{outcome.detail}; {failure or 'the options are as they were'}")
        return outcome, journaled(outcome) | ({} if failure else {"restored": True})
    outcome = Outcome(step, "set", ", ".join(f"{n} {before[n]} → {v}" for n, v in values.items()), act_id)
    return outcome, journaled(outcome)


def _check(now: Mapping[str, int], values: Mapping[str, int]) -> None:
    if wrong := {n: now[n] for n, v in values.items() if now[n] != v}:
        raise FinwaitError(f"the kernel set {wrong}")
