"""The sessions in `examples/` say what the commands say today."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.lab.scenario import scenarios
from finwait.lab.topology import unmet
from tests.docs.sessions import EXAMPLES, README, Session, blocks, form, readme, run, sessions
from tests.kernel.needs import missing

ALL = [one for path in EXAMPLES for one in sessions(path)]


def named(one: Session) -> str:
    return f"{one.path.name}: {one.command[:70]}"


@pytest.mark.parametrize("one", [s for s in ALL if s.exact], ids=named)
def test_a_session_with_a_recording_prints_what_is_pasted(one: Session) -> None:
    shown = "\n".join(line.rstrip() for line in run(one.command).splitlines())
    assert shown == one.output, "`python -m tests.docs.sessions` writes it anew"


@pytest.mark.kernel
@pytest.mark.parametrize("one", [s for s in ALL if s.lab], ids=named)
def test_a_session_of_the_lab_has_the_form_of_what_is_pasted(one: Session) -> None:
    scenario = scenarios()[one.command.split()[3]]
    if lacking := unmet(scenario.needs):
        missing("; ".join(lacking))
    assert form(run(one.command)).splitlines() == form(one.output).splitlines()


def test_there_are_sessions_of_both_kinds() -> None:
    assert len([s for s in ALL if s.exact]) > 10
    assert any(s.lab for s in ALL)


def test_the_form_of_a_report_keeps_causes_counts_and_words() -> None:
    report = (
        "vm (Linux 6.1): 3 of 9 connections\n\n"
        "PROBLEM  3 × FIN_WAIT2  fin-wait2-held  in node\n  age    about 4.1 s\n"
    )
    assert form(report) != form(report.replace("3 ×", "4 ×"))
    assert form(report) != form(report.replace("held", "orphan"))
    assert form(report) == form(report.replace("4.1 s", "12 min").replace("vm", "node-7"))


@given(st.lists(st.sampled_from(["prose\n", "    # finwait\n", "    output\n", "\n", "more\n"])))
def test_prose_and_sessions_together_are_the_text(lines: list[str]) -> None:
    text = "".join(lines).rstrip("\n") + "\n" if any(line.strip() for line in lines) else ""
    assert "".join(part for _, part in blocks(text)) == text


def test_the_readme_shows_what_is_printed() -> None:
    page = README.read_text()
    assert "<!-- printed by finwait" in page
    assert readme(page) == page, "`python -m tests.docs.sessions` writes it anew"
