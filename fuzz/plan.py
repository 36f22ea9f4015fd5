"""Any bytes as a plan of `finwait clear`: a plan that can go to the kernel, or an error with file and line."""

import re

from finwait.acting.identity import kernel_target
from finwait.errors import FinwaitError, Refused
from finwait.remedy import plan as plans
from finwait.remedy import plan_file
from finwait.report.plan import plan_json

_STEP = plans.Step(
    "destroy", "destructive", "fin-wait2-held", 4026531840, 6, 2, "10.0.0.1", 4000, "192.0.2.1", 443, "FIN_WAIT2",
    "0x1001", 77, 10, 20, ((812, 5, "app"),), "reset", "a RST, once, not repeated",
    "the descriptor stays open in app (812:5)", 0,
    plans.End(4026531840, 6, 10, "::ffff:192.0.2.1", 443, "::ffff:10.0.0.1", 4000, "CLOSE_WAIT", "0x1002"),
)  # fmt: skip


def seeds() -> list[bytes]:
    plan = plans.Plan(
        1,
        "boot",
        (_STEP,),
        (plans.Left(_STEP.other, "min-age", "young"),) if _STEP.other else (),
        ("close it",),
    )
    return [plan_json(plan), b"{}", b'{"steps":[]}']


def one_input(data: bytes) -> None:
    try:
        plan = plan_file.decode(data, "plan")
    except Refused:
        return
    except FinwaitError as error:
        found = re.match(r"plan:(\d+): ", str(error))
        assert found
        assert 1 <= int(found[1]) <= data.count(b"\n") + 1
        return
    for step in plan.steps:
        kernel_target(step)
    assert plan_file.decode(plan_json(plan)) == plan
