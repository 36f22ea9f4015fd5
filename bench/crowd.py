"""One look at a crowd of rows in a process of its own, so that its memory can be told: used by the benchmark.

python -m bench.crowd ROWS      prints seconds of decoding, of the diagnosis, of the text, and peak MiB
"""

from __future__ import annotations

import os
import resource
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main() -> int:
    from bench.synthetic import Crowd
    from finwait import session
    from finwait.diagnosis import catalogue, engine
    from finwait.kernel.observe import LookPlan
    from finwait.report import text
    from finwait.table import decode

    machine = Crowd(int(sys.argv[1]))
    observation = machine.observe(LookPlan())
    machine.observed = observation  # made once, and not part of what is measured
    begun = time.perf_counter()
    table = decode.sockets(observation)
    decoded = time.perf_counter()
    del table
    shot = session.look(machine, session.Look())
    findings = engine.diagnose(shot.view, catalogue.rules())
    diagnosed = time.perf_counter()
    size = sum(len(piece) for piece in text.diagnosis(shot.view, findings, shot.gaps, "crowd"))
    printed = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(len(shot), decoded - begun, diagnosed - decoded, printed - diagnosed, peak, size)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
