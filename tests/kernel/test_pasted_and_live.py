"""The diagnosis from `ss`, `conntrack` and `sysctl` is that of a live look, but where a reason is known."""

from __future__ import annotations

import shutil

import pytest

from finwait import session
from finwait.diagnosis.view import Options
from finwait.lab.scenario import scenarios
from finwait.lab.topology import Lab, LabError, Netns, unmet
from finwait.pasted.lines import clean
from finwait.pasted.observation import PastedText, observations
from finwait.pasted.read import PastedMachine
from finwait.session import Diagnosis, Look
from finwait.uapi.observation import LookPlan
from tests.kernel.needs import missing, root_and

pytestmark = pytest.mark.kernel

ELSEWHERE = "the other end is in another namespace, which is not in the text"
STARTED = "when its holder started is not in the text"
WAITS = "who waits for it is not in the text"
FRESH = "the clock of a moment"
LESS: dict[str, str] = {
    "half-open": ELSEWHERE,
    "nat-entry-gone": ELSEWHERE,
    "nat-zombie": ELSEWHERE,
    "inherited-descriptor": STARTED,
    "hidden-leak": "descriptors of what no dump contains are not in the text",
    "holder-not-found": "that nobody else holds it is not in the text",
    "established-unread": WAITS,
    "relay-pair": STARTED,
    "time-wait-flood": "counters are not in the text",
}
"""Rules of a live look that a text may miss, and why; what it says then is never an all-clear (`UNFINISHED`)."""
MORE = {
    "idle-unprobed": ELSEWHERE,
    "close-wait-eof-read": WAITS,
    "never-accepted": FRESH,
    "zero-window": FRESH,
}
"""Rules that a text may give where a live look knows better."""
MPTCP = ("mptcp-half-close", "mptcp-no-subflow")
COMMANDS = ("ss -tanoeip", "conntrack -L", "sysctl -a")

Ends = tuple[str, str, int]


def causes(diagnosis: Diagnosis, netns: int | None = None) -> dict[Ends, str]:
    view = diagnosis.view
    return {
        (*view.ends(row), int(view.sockets.state[row])): finding.rule
        for finding in diagnosis.findings
        if finding.primary
        for row in finding.rows.tolist()
        if netns is None or int(view.sockets.netns[row]) == netns
    }


def printed(place: Netns) -> str:
    text = ""
    for command in COMMANDS:
        if shutil.which(command.split()[0]) is None:
            continue
        try:
            text += f"# {command}\n{place.run(*command.split())}"
        except LabError:  # conntrack where no module is
            continue
    return text


@pytest.mark.parametrize("name", sorted(set(scenarios()) - set(MPTCP)))
def test_a_text_says_what_a_look_says(name: str) -> None:
    scenario = scenarios()[name]
    root_and("ss")
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    options = Options() if scenario.idle_ms is None else Options(idle_ms=scenario.idle_ms)
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        how = Look(
            plan=LookPlan(only=frozenset(situation.namespaces.values()), established_limit=None),
            options=options,
        )
        before = session.diagnose(session.live_machine(), how=how)
        texts = {place.inode: printed(place) for place in lab.namespaces.values()}
        after = session.diagnose(session.live_machine(), how=how)
    for netns, text in texts.items():
        reading = observations([PastedText("text", clean(text.encode()))])
        if not reading.looks:
            continue
        pasted = session.diagnose(PastedMachine(reading), how=Look(options=options))
        said = causes(pasted)
        live = (causes(before, netns), causes(after, netns))
        for ends in live[0].keys() & live[1].keys() | said.keys():
            known = {one.get(ends, "") for one in live}
            cause = said.get(ends, "")
            if cause in known or cause in MORE or cause == "not-told":
                continue
            assert known & LESS.keys(), (ends, known, cause)
        assert pasted.gaps
