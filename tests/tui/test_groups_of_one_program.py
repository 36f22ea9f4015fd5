"""Lines of `top` that would be equal: groups of one program keep their pids, and what its threads do instead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.report.board import board, judged
from finwait.report.history import History
from finwait.session import Diagnosis
from finwait.tui.listings import group_list
from tests.unit.diagnosis.test_rules import CW, HELD
from tests.unit.diagnosis.views import view
from tests.unit.report.test_overview import waiting_in


def test_the_short_forms_of_groups_of_one_program_differ() -> None:
    pids = range(41_000, 41_006)
    v = view(
        *(HELD | {"state": CW, "shutdown": 1, "inode": pid, "cookie": pid, "sport": pid} for pid in pids),
        holders={pid: [pid] for pid in pids},
        processes={pid: ProcessView(pid, "python3") for pid in pids},
        waits={pid: waiting_in(pid, "futex") for pid in pids},
    )  # fmt: skip
    findings = engine.diagnose(v, catalogue.rules())
    rows = np.arange(len(v), dtype=np.int64)
    groups = board(v, findings, judged(v, findings), rows, "cause")
    assert len(groups) == 6
    diagnosis = cast("Diagnosis", SimpleNamespace(view=v))
    listing = group_list(diagnosis, groups, "cause", new={}, rates=History(), span_s=60.0)
    shown: list[Any] = [list(line) for line in listing.cells(0, 6)]
    at = [column.title for column in listing.columns]
    owners = [line[at.index("held by")] for line in shown]
    assert sorted(short for _, _, short in owners) == [f"python3 ({pid})" for pid in pids]
    assert all("(in futex)" in line[at.index("whose move")][0] for line in shown)
