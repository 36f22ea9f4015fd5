"""`finwait report --since`: what the agent has seen, in the page and in the Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from finwait.cli import main
from finwait.session import Diagnosis
from tests.unit.cli.test_agent_history import HOUR, Past, past

__all__ = ["past"]  # a fixture


def report(past: Past, *words: str) -> tuple[int, str]:
    path = past.folder / "x.html"
    status = main(["report", str(path), "--netns", "1", *words, "--state-dir", str(past.folder)])
    return status, path.read_text() if path.exists() else ""


def test_the_page_has_episodes_and_what_nobody_saw(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    past.write([past.episode(k, k * HOUR // 2, over=k % 2 == 0) for k in range(1, 41)], looked_ago_ns=HOUR)
    monkeypatch.setattr("finwait.cli.report._diagnosed", nothing)
    status, text = report(past, "--since", "24h")
    assert "The latest 30 of 40 episodes" in text
    assert text.count('<th scope="row"') > 30
    assert 'href="#history"' in text
    assert "closed" in text
    assert status == 3  # no agent runs there
    assert "Not seen in that time" in text


def nothing(_args: object) -> Diagnosis:
    from finwait import session
    from finwait.recording import open_recording

    return session.diagnose(open_recording("tests/captures/linux-6.18/time-wait.finwait"))


def test_an_empty_history_is_no_all_clear(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    past.write([], looked_ago_ns=HOUR)
    monkeypatch.setattr("finwait.cli.report._diagnosed", nothing)
    _, text = report(past, "--since", "1h")
    assert "saw no connection that did not finish closing, as far as it looked" in text


@pytest.mark.parametrize(
    "words", [["--redact"], ["--from", "tests/captures/linux-6.18/time-wait.finwait"], ["-o", "json"]]
)
def test_it_is_about_this_machine_under_its_own_names(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "x.html"), "--since", "1h", *words]) == 2
    assert "not with `--from`, `--redact` or `-o json`" in capsys.readouterr().err


def test_counts_over_time_are_a_chart_with_a_table() -> None:
    from finwait.report.agent_page import CountsDocument, CountSeries
    from finwait.report.html.sections import history
    from finwait.report.markdown import markdown
    from finwait.report.past import AgentPast as Seen
    from tests.unit.report.reports import accounted, stuck

    counts = CountsDocument(
        by="rule", step_s=300, at=[1_780_000_000 + 300 * k for k in range(5)],
        series=[
            CountSeries(name="fin-wait2-held", values=[1, None, 9, 4, 3]),
            CountSeries(name="<script>", values=[None] * 5),
        ],
        gaps=[0, None, 0, 0, 0],
    )  # fmt: skip
    seen = Seen("2026-05-28", counts, "", (), 0, ())
    markup = history(seen).markup
    assert "fin-wait2-held from 1 to 3, at most 9" in markup
    assert markup.count('class="line ') == 1
    assert '<path d="M' in markup
    assert "h1.5M" in markup  # alone between two gaps
    assert "nobody looked in 1 of 5 steps" in markup
    assert "<script>" not in markup
    v = stuck()
    text = markdown(v, accounted(v), seen)
    assert "| `fin-wait2-held` | 1 | 9 | 3 |" in text
    assert "| `<script>` | not known | not known | not known |" in text
