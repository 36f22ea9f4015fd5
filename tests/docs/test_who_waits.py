"""The table of real programs on the page is the one that tests execute."""

from __future__ import annotations

from finwait.attribution.waiting import KINDS
from finwait.diagnosis.moves import Move
from finwait.uapi import tcp
from tests.docs.sessions import ROOT
from tests.kernel.test_waiting_programs import LEAKS

PAGE = (ROOT / "docs/explanation/who-waits.md").read_text()


def rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_programs_of_the_page_are_those_that_are_tried() -> None:
    said = [(row[0], *row[2:]) for row in rows("Real programs")[1:]]
    names = {tcp.CLOSE_WAIT: "CLOSE_WAIT", tcp.FIN_WAIT2: "FIN_WAIT2", tcp.ESTABLISHED: "ESTABLISHED"}
    tried = [(k.program, names[k.state], k.kind, k.call or "–", k.move.value) for k in LEAKS]
    assert said == tried


def test_all_that_may_be_said_is_explained() -> None:
    explained = {row[0] for row in rows("What `waited` says")}
    assert {*KINDS, *(move.value for move in Move)} <= explained
