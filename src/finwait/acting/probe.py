"""Whether the other end of a connection is still there: a keepalive for some seconds, and what follows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from finwait.acting.borrowed import borrow, not_gone
from finwait.acting.identity import ActJournal, Say, in_words, quiet
from finwait.acting.options import claimed, given_back
from finwait.acting.watch import watch
from finwait.diagnosis import forecast
from finwait.errors import FinwaitError, TargetGone
from finwait.kernel import pidfd
from finwait.kernel.interruption import check, noted
from finwait.remedy.outcome import Probe
from finwait.remedy.plan import Step

__all__ = ["asking", "probe", "put_to_them"]


@noted()
def probe(
    steps: Sequence[Step],
    journal: ActJournal,
    *,
    keepalive: tuple[int, int, int],
    fault: Callable[[str], None] = quiet,
    say: Say = quiet,
    into: dict[int, Probe] | None = None,
) -> list[Probe]:
    """Ask connections whether their peers live, and leave every option as it was.

    A keepalive is armed through a borrowed descriptor, its outcome watched by sock_diag, and the options are
    put back also when this is interrupted; what a SIGKILL leaves behind, `restore` puts back by the journal. A
    connection whose options could not be put back, or which another act is at, is not touched.

    Args:
        steps: the connections, as a plan names them.
        journal: where acts are written down before they are done.
        keepalive: idle, interval (seconds) and count.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.
        into: takes what was found out, by index, also when this raises.

    Raises:
        KernelError: the journal could not be written; where ``into`` is empty nothing was done.
    """
    probes = {} if into is None else into
    numbered = dict(enumerate(steps))
    settings = dict.fromkeys(numbered, asking(keepalive))
    with claimed(numbered, settings, journal, lambda _: "probe") as claim:
        probes |= {k: _unprobed(steps[k], error) for k, error in claim.errors.items()}
        claimed_steps = {k: steps[k] for k in claim.ids}
        with given_back(claimed_steps, claim, settings, journal, probes):
            fault("journaled")
            put_to_them(claimed_steps, probes, keepalive, fault, say)
    return [probes[k] for k in range(len(steps))]


def asking(keepalive: tuple[int, int, int]) -> dict[str, int]:
    """Return the options under which the kernel asks, and counts: a user timeout would take the place of the count."""
    idle, interval, count = keepalive
    return {"keepidle": idle, "keepintvl": interval, "keepcnt": count, "user_timeout_ms": 0, "keepalive": 1}


def put_to_them(
    steps: Mapping[int, Step],
    probes: dict[int, Probe],
    keepalive: tuple[int, int, int],
    fault: Callable[[str], None],
    say: Say,
) -> None:
    """Arm connections that are claimed, and watch them until each is judged.

    Args:
        steps: the connections; who calls puts their options back (`given_back`).
        probes: takes the verdicts.
        keepalive: idle, interval (seconds) and count.
        fault: called with the name of each stage.
        say: told what is being done.
    """
    begun: dict[int, float] = {}
    unarmed: dict[int, FinwaitError] = {}
    for k, step in steps.items():
        check()
        try:
            with borrow(step) as sock:
                before_arming = time.monotonic()
                pidfd.set_options(sock, asking(keepalive))
            begun[k] = before_arming
        except FinwaitError as error:
            unarmed[k] = error
    unarmed |= not_gone(steps, unarmed)
    probes |= {k: _unprobed(steps[k], error) for k, error in unarmed.items()}
    fault("armed")
    silence = forecast.keepalive(*keepalive).seconds
    many = "" if len(begun) == 1 else "s"
    say(f"probing {len(begun)} connection{many} for up to {silence + 1:.0f} s")
    first = {k: at + keepalive[0] for k, at in begun.items()}
    watch({k: steps[k] for k in begun}, first, probes, keepalive)


def _unprobed(step: Step, error: FinwaitError) -> Probe:
    return Probe(step, "gone" if isinstance(error, TargetGone) else "not judged", in_words(error))
