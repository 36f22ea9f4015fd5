"""How long `finwait clear --plan` takes for a plan of 1,000 and of 60,000 steps, without the look and the acts.

Run it: ``python -m bench plan``.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from bench.measure import Line, write
from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.assemble import assemble
from finwait.diagnosis.view import NamespaceView, Options, View
from finwait.remedy import making, plan_file
from finwait.remedy.guards import Abilities, Limits
from finwait.report.plan import plan_json, plan_lines
from finwait.table.sockets import SocketTable, pack_address
from finwait.uapi import tcp
from finwait.uapi.observation import Descriptors

SMALL, LARGE = 1_000, 60_000
PROCESSES = 12


def leaking(n: int) -> View:
    """Return a view of connections that programs have leaked in CLOSE_WAIT."""
    number = np.arange(n, dtype=np.uint64)
    here, there = pack_address("10.0.0.1"), pack_address("192.0.2.1")
    sockets = SocketTable.from_columns(
        {
            "netns": np.full(n, 1), "protocol": np.full(n, 6), "family": np.full(n, 2),
            "state": np.full(n, tcp.CLOSE_WAIT), "src": np.array([here] * n), "dst": np.array([there] * n),
            "sport": np.full(n, 443), "dport": number % 60_000 + 1024, "cookie": number + 1, "inode": number + 1000,
            "shutdown": np.full(n, 1), "last_ack_recv_ms": np.full(n, 60_000), "bytes_received": np.full(n, 100),
        }
    )  # fmt: skip
    return assemble(
        sockets,
        flows=None,
        descriptors=Descriptors(
            (np.arange(n) * PROCESSES // n + 500).astype(np.uint32),
            (np.arange(n) + 3).astype(np.uint32),
            number + 1000,
        ),
        namespaces={1: NamespaceView(1, ("host",))},
        processes={500 + k: ProcessView(500 + k, f"app{k}") for k in range(PROCESSES)},
        cgroup_paths={},
        options=Options(),
    )


def measure() -> None:
    """Measure each part of it three times and write the section."""
    lines = []
    for n, target in ((SMALL, 5.0), (LARGE, 30.0)):
        view = leaking(n)
        limits = Limits(max_connections=n, share=1.0)
        findings = engine.diagnose(view, catalogue.rules())
        plan = making.make(view, findings, np.ones(n, np.bool_), limits)
        assert len(plan.steps) == n
        data = plan_json(plan)
        parts: dict[str, Callable[[], object]] = {
            "written": partial(plan_json, plan),
            "read": partial(plan_file.decode, data, "plan"),
            "made anew from a look": partial(making.again, plan, view, findings, limits, can=Abilities()),
            "shown": partial(plan_lines, plan),
        }
        for name, part in parts.items():
            best = float("inf")
            for _ in range(3):
                start = time.perf_counter()
                part()
                best = min(best, time.perf_counter() - start)
            lines.append(Line(f"{n:,} steps ({len(data) / 1e6:.1f} MB), {name}", best, at_most=target))
    write(
        "plan",
        "A plan of `finwait clear`, written with `-o json` and read with `--plan`, in process.",
        "Reading the file, the look at the machine and the acts are not included; the best of three.",
        lines,
    )
