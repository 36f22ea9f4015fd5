"""The process that diagnoses for the looker: it looks at everything once, answers, and ends.

    python -P -m finwait.agent.diagnoser QUESTION ANSWER PARENT

QUESTION and ANSWER are numbers of descriptors of files in memory, which the looker made (`finwait.agent.diagnosing`);
PARENT is the looker's pid. It only looks. It ends with the looker, whatever becomes of that (PR_SET_PDEATHSIG), and
where memory runs out the kernel takes it first: the looker tries again later, and goes on looking meanwhile. In a
container whose cgroup ends as one (memory.oom.group) the looker ends as well.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from finwait import session
from finwait.agent import causes, moving
from finwait.agent.confined import die_with
from finwait.agent.episode_values import Instant
from finwait.agent.explained import explained
from finwait.agent.selected import left_alone, passing, passing_both
from finwait.agent.telling import when_text
from finwait.agent.verdict import DiagnosedLook, decode_request, encode_answer, encode_failure
from finwait.diagnosis.view import Options
from finwait.errors import DecodeError, FinwaitError
from finwait.kernel import netns
from finwait.kernel.observe import RunningMachine
from finwait.table.filter import parse
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finwait.agent.verdict import DiagnosisRequest, Filters
    from finwait.uapi.cluster import ClusterNames

__all__ = ["main", "verdict"]

_ESTABLISHED_LIMIT: Final = 2_000
"""ESTABLISHED rows of larger namespaces cost more than all the rest, and no episode needs them."""
_QUESTION_MOST: Final = 1 << 26
_DOORS_MOST: Final = 10_000
"""Listeners whose workload is told."""
_FIRST_TO_GO: Final = b"500"
"""For oom_score_adj(5): as if it used half of the machine's memory more than it does."""


def verdict(
    machine: RunningMachine, options: Options, filters: Filters | None, cluster: ClusterNames | None = None
) -> DiagnosedLook:
    """Look at everything, at what seems stuck once more, and apply all rules.

    Args:
        machine: the running machine.
        options: of the look.
        filters: name → FILTERs; what all of one name let pass is told. None where nobody asks.
        cluster: what is known of the cluster that is followed; None where none is.

    Raises:
        FinwaitError: the look could not even begin.
    """
    at = Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())
    plan = LookPlan(established_limit=_ESTABLISHED_LIMIT)
    names = None if cluster is None else (lambda _: (cluster, ()))
    made = session.diagnose(machine, how=session.Look(plan=plan, options=options, names=names))
    made = moving.looked_again(made, moving.asking(netns.discover(*machine.ways)[0]))
    shot = made.snapshot
    now_ms = max(shot.observation.facts.boottime_ns, shot.observation.facts.boottime_end_ns) // 1_000_000
    statement = causes.diagnosed(shot.view, made.findings, shot.flows, now_ms)
    limits = causes.ports(shot.view)
    texts = explained(shot.view, made.findings, when_text(at.wall_ns))
    doors = causes.doors(shot.view, _DOORS_MOST)
    complete = not any(gap.unentered for gap in made.gaps)
    if filters is None:
        return DiagnosedLook(statement, limits, made.gaps, at, complete, texts=texts, doors=doors)
    s = shot.view.sockets

    def pairs(rows: NDArray[np.bool_]) -> frozenset[tuple[int, int]]:
        chosen = np.flatnonzero(rows & closing_rows)
        return frozenset(zip(s.netns[chosen].tolist(), s.cookie[chosen].tolist(), strict=True))

    closing_rows = (tcp.CLOSING_STATES >> s.state.astype(np.int64) & 1).astype(np.bool_)
    passed = {
        name: pairs(passing(where, made) & passing_both(spared, made))
        for name, (where, spared) in filters.items()
    }
    spared_rows = {} if cluster is None else left_alone(made, at.wall_ns / 1e9)
    alone = {reason: pairs(rows) for reason, rows in spared_rows.items()}
    held = shot.view.holders.counted(np.flatnonzero(s.state != tcp.LISTEN))
    return DiagnosedLook(statement, limits, made.gaps, at, complete, passed, held, texts, doors, alone)


def _answer(request: DiagnosisRequest) -> bytes:
    machine = RunningMachine(*request.ways)
    try:
        filters = None
        if request.filters is not None:
            filters = {
                name: (tuple(map(parse, where)), tuple(map(parse, spared)))
                for name, (where, spared) in request.filters.items()
            }
        look = verdict(machine, Options(**request.options), filters, request.cluster)
    except (DecodeError, FinwaitError, OSError) as error:
        return encode_failure(str(error))
    except MemoryError:
        return encode_failure("there is not enough memory")
    return encode_answer(look, machine.ways)


def _subordinate(parent: int) -> None:
    """End with the looker, and before it where memory runs out."""
    die_with(parent)
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, _FIRST_TO_GO)
        finally:
            os.close(fd)


def main(argv: list[str]) -> int:
    """Answer one question; return the exit status."""
    question, answer, parent = map(int, argv)
    _subordinate(parent)
    for number in (question, answer):  # no child of ours may keep them
        os.set_inheritable(number, False)
    data = _answer(decode_request(os.pread(question, _QUESTION_MOST, 0)))
    with os.fdopen(answer, "wb", closefd=False) as file:
        file.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
