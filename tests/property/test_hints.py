"""What a finding suggests to type selects exactly its connections: on any table, and on the recordings of the lab."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.attribution.process import ProcessView
from finwait.cli import build_parser
from finwait.cli.clear import chosen_words
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.context import ViewContext
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.hint import Asked
from finwait.diagnosis.view import View
from finwait.table.filter import parse
from tests.captures.make import HERE, replay
from tests.property.test_nothing_is_silently_fine import FILTERS, tables
from tests.unit.diagnosis.views import view

NAMES = ["app", "my app", "app*", 'a"b', "held", "?"]


@st.composite
def views(draw: st.DrawFn) -> View:
    rows = draw(tables())
    holders = draw(
        st.dictionaries(st.sampled_from([7, 8]), st.lists(st.integers(500, 507), min_size=1, max_size=6))
    )
    processes = {pid: ProcessView(pid, draw(st.sampled_from(NAMES)), ppid=499) for pid in range(500, 506)}
    earlier = rows if draw(st.booleans()) else None
    unreadable = (1,) if draw(st.booleans()) else ()
    return view(
        *rows, holders=holders, processes=processes, earlier=earlier, watched_ms=3500 if earlier else 0,
        unreadable=unreadable,
    )  # fmt: skip


def selected(v: View, findings: tuple[Finding, ...], words: list[str]) -> list[int]:
    found = parse(words, rules=catalogue.NAMES)
    return np.flatnonzero(found.mask(v.sockets, ViewContext(v, findings))).tolist()


PARSER = build_parser()  # making one takes as long as a hundred of these tables


def words_of(command: str) -> list[str]:
    """The FILTER of a command line, as the command itself takes it."""
    args = PARSER.parse_args(shlex.split(command)[1:])
    return chosen_words(args.filter) if args.command == "clear" else list(args.filter)


def suggested(finding: Finding) -> list[str]:
    """The commands of a finding that are about its connections."""
    acts = ("finwait clear ", "finwait probe ", "finwait arm ")
    return [finding.listing, *(r.command for r in finding.ends_it if r.command.startswith(acts))]


def every_hint_is_exact(v: View, whole: tuple[Finding, ...], narrowed: tuple[Finding, ...]) -> None:
    for finding in narrowed:
        if not len(finding.rows):
            continue
        rows = sorted(finding.rows.tolist())
        assert selected(v, whole, [finding.select]) == rows, finding.select
        for command in suggested(finding):
            found = selected(v, whole, words_of(command))
            if parse(words_of(command)) == parse(finding.select):
                assert found == rows, command
            else:  # it is for some of them only, and says so
                assert set(found) <= set(rows), command


@given(views())
def test_a_hint_selects_the_connections_of_its_finding_and_no_others(v: View) -> None:
    findings = engine.diagnose(v, catalogue.rules())
    every_hint_is_exact(v, findings, findings)


@given(
    views(),
    st.sampled_from(
        [*FILTERS, "held or retrans > 0", "fin-wait-2,close-wait", "not ( orphan or netns = 1 )"]
    ),
)
def test_it_keeps_to_the_filter_that_was_given(v: View, text: str) -> None:
    findings = engine.diagnose(v, catalogue.rules())
    asked = Asked(parse(text), ("--netns", "web", "--not-holder", "1"))
    mask = parse(text).mask(v.sockets, ViewContext(v, findings))
    narrowed = engine.diagnose(v, catalogue.rules(), mask, asked)
    every_hint_is_exact(v, findings, narrowed)
    for finding in narrowed:
        for command in suggested(finding):
            assert not command or "--netns web --not-holder 1" in command


RECORDINGS = sorted(HERE.glob("*/*.finwait"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_hint_of_a_scenario_is_exact(path: Path) -> None:
    diagnosis = replay(path)
    every_hint_is_exact(diagnosis.view, diagnosis.findings, diagnosis.findings)
    assert all(f.select for f in diagnosis.findings if len(f.rows))


def commands() -> list[Any]:
    rules = catalogue.rules()
    ends = [(r, e) for r in rules for e in (*r.ends, *(e for case in r.cases for e in case.ends))]
    return [pytest.param(r.name, e.command, id=e.command) for r, e in ends if e.command]


@pytest.mark.parametrize(("rule", "command"), commands())
def test_a_command_of_a_rule_names_the_rule_where_it_acts_on_connections(rule: str, command: str) -> None:
    words = shlex.split(command)
    PARSER.parse_args(words[1:])
    if words[1] in ("clear", "probe", "arm", "list", "capture"):
        assert words.count(rule) == 1
