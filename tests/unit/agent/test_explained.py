"""What a diagnosis says to people is kept by cause and workload, bounded, and healthy patterns are none of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from finwait import session
from finwait.agent import explained as module
from finwait.agent.explained import explained
from finwait.recording import open_recording

CAPTURES = Path(__file__).parents[2] / "captures" / "linux-6.18"


def made(name: str) -> session.Diagnosis:
    return session.diagnose(open_recording(str(CAPTURES / f"{name}.finwait")))


def test_a_cause_has_its_sentences_evidence_and_commands() -> None:
    diagnosis = made("fin-wait2-held")
    texts = explained(diagnosis.view, diagnosis.findings, "now")
    said = {rule: cause for (rule, _), cause in texts.causes.items()}["fin-wait2-held"]
    finding = next(f for f in diagnosis.findings if f.rule == "fin-wait2-held" and f.primary)
    assert said.title == finding.headline
    assert (said.confidence, said.reason) == (finding.confidence.level, finding.confidence.reason)
    assert (said.whose, said.act) == (finding.turn.whose, finding.turn.act)
    assert [e.column for e in said.evidence] == [e.column for e in finding.evidence]
    assert [r.command for r in said.ends_it] == [r.command for r in finding.ends_it]
    assert [a.text for a in said.does_not] == [a.text for a in finding.does_not]
    assert texts.at == said.at == "now"
    assert said.about == len(finding.rows)


def test_of_several_findings_the_largest_speaks_and_it_is_told_that_there_are_others() -> None:
    diagnosis = made("fin-wait2-held")
    finding = next(f for f in diagnosis.findings if f.rule == "fin-wait2-held" and f.primary)
    smaller = replace(finding, rows=finding.rows[:1], title="another")
    texts = explained(diagnosis.view, (smaller, finding), "now")
    said = {rule: cause for (rule, _), cause in texts.causes.items()}["fin-wait2-held"]
    assert (said.title, said.others) == (finding.headline, 1)
    assert len(finding.rows) > 1
    alone = explained(diagnosis.view, (finding,), "now")
    assert [cause.others for cause in alone.causes.values()] == [0]


def test_settings_that_are_alike_stand_once() -> None:
    diagnosis = made("fin-wait2-held")
    texts = explained(diagnosis.view, diagnosis.findings, "now")
    keys = [(item.key, item.value, item.verdict, item.on_stuck) for item in texts.settings]
    assert len(keys) == len(set(keys)) > 10
    assert sum(item.namespaces for item in texts.settings if item.key == "net.ipv4.tcp_fin_timeout") == len(
        diagnosis.view.namespaces
    )


def test_healthy_patterns_have_no_cause() -> None:
    for path in sorted(CAPTURES.glob("*.finwait")):
        diagnosis = made(path.stem)
        texts = explained(diagnosis.view, diagnosis.findings, "now")
        healthy = {f.rule for f in diagnosis.findings if f.severity == "healthy"}
        severe = {f.rule for f in diagnosis.findings if f.primary and f.severity != "healthy"}
        assert {rule for rule, _ in texts.causes} <= severe
        assert not {rule for rule, _ in texts.causes} & (healthy - severe)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SENTENCES", 1)
    monkeypatch.setattr(module, "_LONGEST", 10)
    monkeypatch.setattr(module, "_SETTINGS", 2)
    diagnosis = made("fin-wait2-held")
    texts = explained(diagnosis.view, diagnosis.findings, "now")
    for cause in texts.causes.values():
        assert len(cause.evidence) <= 1
        assert max(len(cause.title), len(cause.reason), len(cause.ends_why)) <= 10
    assert len(texts.settings) == 2
    assert texts.settings_dropped > 0
