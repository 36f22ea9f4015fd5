"""50,000 half-closed connections ended: by finwait's batches, by a whole plan, and by ``ss -K``.

Each measurement has a load of its own, since it is used up. Both sides end the same end (FIN_WAIT2) of the same
number of connections in a private namespace, and each checks that they are gone.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.load import Load
from bench.measure import FINWAIT, Line, environment, write
from finwait import session
from finwait.acting.apply import apply
from finwait.acting.identity import kernel_target, namespaces_of
from finwait.acting.rights import abilities
from finwait.kernel.destroy import destroy
from finwait.kernel.journal import SqliteJournal
from finwait.kernel.observe import LookPlan
from finwait.remedy import making
from finwait.remedy import plan as plans
from finwait.remedy.guards import Limits
from finwait.session import Diagnosis, Look
from finwait.uapi import tcp

__all__ = ["measure"]

PAIRS, PROCESSES = 50_000, 10


def _look(load: Load) -> Diagnosis:
    look = Look(plan=LookPlan(only=frozenset({load.netns}), established_limit=None))
    return session.diagnose(session.live_machine(), how=look)


def _half_closed(diagnosis: Diagnosis) -> np.ndarray:
    return diagnosis.view.sockets.state == tcp.FIN_WAIT2


def _plan(diagnosis: Diagnosis) -> plans.Plan:
    rows = _half_closed(diagnosis)
    can = abilities(diagnosis.view, np.flatnonzero(rows).tolist())
    limits = Limits(max_connections=PAIRS, share=1.0)
    plan = making.make(diagnosis.view, diagnosis.findings, rows, limits, force="destroy", can=can)
    assert len(plan.steps) == PAIRS
    return plan


def _gone(load: Load) -> None:
    assert not _half_closed(_look(load)).any()


def _batches(load: Load) -> list[float]:
    """From tuples and cookies to the last acknowledgement."""
    plan = _plan(_look(load))
    begun = time.perf_counter()
    spaces = namespaces_of({load.netns})
    results, _ = destroy(spaces, [kernel_target(step) for step in plan.steps])
    taken = time.perf_counter() - begun
    assert len(results) == PAIRS
    assert set(results.values()) == {0}
    return [taken]


def _applied(load: Load) -> list[float]:
    """Making the plan; carrying it out with everything: read again, journaled, destroyed, looked at, journaled."""
    diagnosis = _look(load)
    begun = time.perf_counter()
    plan = _plan(diagnosis)
    made = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, SqliteJournal(Path(folder) / "journal") as journal:
        outcomes = apply(plan, journal, boot_id="")
        done = time.perf_counter()
    assert {o.result for o in outcomes} == {"ended"}
    assert {o.other for o in outcomes} == {"gone"}
    return [made - begun, done - made]


def _command(load: Load) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["--netns", str(load.netns), "--min-age", "0", "--max", str(PAIRS), "--share", "1"]
        begun = time.perf_counter()
        done = subprocess.run(
            [FINWAIT, "clear", "--yes", "--with", "destroy", *words, "fin-wait2-held"],
            env={**environment(), "FINWAIT_STATE_DIR": folder}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        taken = time.perf_counter() - begun
    assert f"{PAIRS} ended." in done.stdout, done.stderr
    return [taken]


def _ss(load: Load) -> list[float]:
    """It destroys while it dumps, and now and then its dump skips a row for that; then it is asked again."""
    ended, taken = 0, 0.0
    for _ in range(5):
        begun = time.perf_counter()
        done = subprocess.run(
            load.inside("ss", "-K", "-tnH", "state", "fin-wait-2"),
            capture_output=True,
            text=True,
            check=False,
        )
        taken += time.perf_counter() - begun
        ended += len(done.stdout.splitlines())
        if ended >= PAIRS:
            break
    assert ended == PAIRS, f"`ss -K` printed {ended} lines: {done.stderr[:300]}"
    return [taken]


def measure(rounds: int = 3) -> None:
    """Measure each side once a round, in turn, and write the section."""
    taken: dict[str, list[list[float]]] = {}
    for _ in range(rounds):
        for side in (_ss, _batches, _applied, _command):
            with Load(PROCESSES, PAIRS // PROCESSES, PAIRS) as load:
                taken.setdefault(side.__name__, []).append(side(load))
                _gone(load)
    medians = {name: [statistics.median(c) for c in zip(*runs, strict=True)] for name, runs in taken.items()}
    (ss,) = medians["_ss"]
    made, applied = medians["_applied"]
    write(
        "destroy",
        f"{PAIRS:,} half-closed connections of one namespace ended from their FIN_WAIT2 end; each peer gets a RST.",
        f"""
*Batches* is what corresponds to `ss -K`: SOCK_DESTROY by tuple and cookie, some hundreds of requests to a datagram,
from Python's objects to the last acknowledgement. `ss -K` is its whole process: it dumps, sends one request a
connection and prints a line each. *Applied* is what `finwait clear` adds so that nobody is hurt: every connection is
read again by cookie, every act is on the disk before it is done, both ends are looked at afterwards, and what came
of each is on the disk too. The command looks at the machine (twice, half a second apart, to leave alone what moves),
plans and applies. Medians of {rounds} rounds, each with a load of its own.
""",
        [
            Line("batches, in process", medians["_batches"][0], "`ss -K`", ss, 1),
            Line(f"batches of {PAIRS:,}", medians["_batches"][0], at_most=1),
            Line("plan made, in process", made),
            Line("plan applied and verified, in process", applied, "`ss -K`", ss),
            Line("`finwait clear --yes`, whole process", medians["_command"][0], "`ss -K`", ss, 2),
        ],
    )
