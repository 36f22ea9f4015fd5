"""Failures on demand: real sockets of real programs in private network namespaces.

`finwait.lab.topology` makes the place, `finwait.lab.actor` the programs, `finwait.lab.scenario` says what a
scenario is, and each module of `finwait.lab.scenarios` is one, named for the rule that must see it::

    from finwait.lab import run
    run("fin-wait2-held", keep=False, then=lambda situation: print(situation.story) or 0)

Nothing of a scenario touches the namespaces that were there before, and nothing is left of it afterwards.
"""

from finwait.lab.scenario import (
    Expected,
    NotSettled,
    Scenario,
    Situation,
    list_scenarios,
    run,
)
from finwait.lab.topology import Lab, LabError

__all__ = [
    "Expected",
    "Lab",
    "LabError",
    "NotSettled",
    "Scenario",
    "Situation",
    "list_scenarios",
    "run",
]
