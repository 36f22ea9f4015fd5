"""The screenshots of the page in the documentation, made of a recorded diagnosis: ``python -m tests.e2e.pictures``."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from finwait import cli, session
from finwait.agent import protocol
from finwait.agent.explained import explained
from finwait.agent.page import group_id
from finwait.recording import open_recording
from finwait.report.agent_page import (
    AgentPage,
    AgeSpan,
    CountsDocument,
    CountSeries,
    GroupDetail,
    GroupItem,
    OtherEndItem,
    PageEnd,
    SaidCause,
)
from tests.e2e.browser import Browser
from tests.unit.web.documents import EPISODE, answer_to, group, page

ROOT = Path(__file__).parents[2]
CAPTURES = ROOT / "tests/captures/linux-6.18"
IMAGES = ROOT / "docs/how-to/img"
GROUPS = (
    # rule, workload, connections, oldest in seconds, survivors a second
    ("close-wait-eof-unread", "orders-api.service", 412, 187_000, 0.11),
    ("close-wait-eof-read", "pod/6f1c2a0e-93b7-4d1e-8a35-0d9f27c1b7aa", 38, 64_000, 0.0),
    ("fin-wait2-held", "kube-proxy", 57, 26_400, 0.0),
    ("fin-wait2-orphan", "nginx.service", 9, 45, 0.0),
)


def said(rule: str) -> SaidCause | None:
    """Return what a recorded diagnosis says of a rule."""
    path = CAPTURES / f"{rule}.finwait"
    if not path.exists():
        return None
    made = session.diagnose(open_recording(str(path)))
    texts = explained(made.view, made.findings, "2026-05-01T12:00:00Z")
    cause = next((cause for (name, _), cause in texts.causes.items() if name == rule), None)
    return msgspec.structs.replace(cause, about=1000) if cause is not None else None


def groups() -> list[tuple[GroupItem, SaidCause | None]]:
    """Return the groups."""
    items = []
    for rule, workload, count, oldest, rate in GROUPS:
        cause = said(rule)
        remedy = next((r for r in cause.ends_it if r.command), None) if cause is not None else None
        item = group(
            0, id=group_id(rule, workload), rule=rule, workload=workload, count=count, oldest_s=float(oldest),
            rate=rate, severity="problem" if oldest > 60 else "notice", reached_s=14_300.0 if rate else None,
            limit="nofile" if rate else "", title=cause.title if cause is not None else "",
            states={"CLOSE_WAIT": count, "FIN_WAIT2": count // 3} if "close" in rule else {"FIN_WAIT2": count},
            holders=["java(2218)"], confidence=cause.confidence if cause is not None else "certain",
            whose=cause.whose if cause is not None else "kernel", act=cause.act if cause is not None else "",
            harm=cause.harm if cause is not None else "residue", command=remedy.command if remedy is not None else "",
        )  # fmt: skip
        items.append((item, cause))
    return items


def shown(items: Sequence[GroupItem]) -> AgentPage:
    """Return the page."""
    now = time.time_ns()
    stuck = sum(item.count for item in items)
    return msgspec.structs.replace(
        page(0, at_ns=now, look_at_ns=now, gaps=0), groups=list(items), stuck=stuck,
        problems=sum(item.count for item in items if item.severity == "problem"), limits=[],
        sockets={"ESTABLISHED": 1834, "FIN_WAIT1": 2, "FIN_WAIT2": 203, "CLOSE_WAIT": 450, "LAST_ACK": 1,
                 "TIME_WAIT": 611, "LISTEN": 41},
    )  # fmt: skip


def curve(since_s: int) -> CountsDocument:
    """Return a day: a leak, a spike at a deploy, and an hour in which the agent did not run; or its last hour."""
    step, steps = 300, 288
    begin = int(time.time()) // step * step - step * (steps - 1)
    unseen = range(96, 108)
    first = max(0, (since_s - begin) // step)
    values = {
        "close-wait-eof-unread": [40 + int(372 * (k / steps) ** 1.3) for k in range(steps)],
        "fin-wait2-held": [57 if k > 200 else 24 for k in range(steps)],
        "close-wait-eof-read": [38 - k // 40 for k in range(steps)],
        "fin-wait2-orphan": [9 + int(140 * math.exp(-((k - 160) ** 2) / 18)) for k in range(steps)],
    }
    return CountsDocument(
        by="rule", step_s=step, at=[begin + step * k for k in range(steps)][first:],
        series=[
            CountSeries(name=name, values=[None if k in unseen else n for k, n in enumerate(counts)][first:])
            for name, counts in values.items()
        ],
        gaps=[None if k in unseen else 0 for k in range(steps)][first:],
    )  # fmt: skip


def _text(seconds_ago: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds_ago))


class Pictures:
    """Says what the page shows."""

    rounds = 0

    def __init__(self) -> None:
        self.groups = groups()

    def shown(self) -> AgentPage:
        """Return the page."""
        return shown([item for item, _ in self.groups])

    def answer(self, question: protocol.Question, picture: protocol.RoundPicture) -> protocol.AgentAnswer:
        """Return an answer."""
        if isinstance(question, protocol.AskCounts):
            return protocol.AgentAnswer(counts=curve(question.since_s))
        if isinstance(question, protocol.AskGroup):
            item, cause = next(pair for pair in self.groups if pair[0].id == question.id)
            end = PageEnd(
                state="CLOSE_WAIT", local="10.4.1.7:8080", peer="10.4.2.33:51904", netns=4026532481,
                netns_names=["orders"], cookie="0x5c1f", holder="java(2218)", first_seen=_text(187_000),
                age_s=AgeSpan(at_least=187_000.0, at_most=187_004.0), translated=None,
                other_end=OtherEndItem(cookie="0x5c20", netns=4026532513, holder="envoy(1740)", state="FIN_WAIT2"),
            )  # fmt: skip
            return protocol.AgentAnswer(group=GroupDetail(group=item, cause=cause, ends=[end], more=0))
        if isinstance(question, protocol.AskHistory):
            times = (
                (187_000, None),
                (63_000, 22_000),
                (48_000, None),
                (40_200, 39_000),
                (30_500, 28_000),
                (9_000, None),
            )
            rows = [
                {**EPISODE, "src": "10.4.1.7", "sport": 8080, "dst": f"10.4.2.{30 + k}", "dport": 51_904 + 7 * k,
                 "state": "CLOSE_WAIT", "rule": "close-wait-eof-unread", "holder": "java(2218)", "workload": "orders",
                 "first_seen": _text(began), "ended": _text(end) if end else None,
                 "how": "cleared" if end == 22_000 else "vanished" if end else None,
                 "age_s": {"at_least": float(began - (end or 0)), "at_most": float(began - (end or 0))}}
                for k, (began, end) in enumerate(times)
            ]  # fmt: skip
            return protocol.AgentAnswer(episodes=rows)
        return answer_to(question, picture, self.shown())


def main() -> None:
    """Make them."""
    from tests.e2e.test_page import Page

    IMAGES.mkdir(exist_ok=True)
    with Browser() as browser:
        made = Page(browser, module="tests.e2e.pictures")
        try:
            first = group_id(*GROUPS[0][:2])
            for name, path, ready, dark in (
                ("page-now", f"/?group={first}", ".detail .pairs", False),
                ("page-history", "/?view=history", ".episodes", True),
            ):
                browser.size(1180, 860, dark=dark)
                made.open(path, rows=False)
                browser.until(f"document.querySelector({ready!r}) && document.querySelector('.spark')")
                browser.until("document.querySelector('#live-text').innerText.startsWith('look ')")
                browser.picture(IMAGES / f"{name}.png")
        finally:
            made.stop()
        report(browser)


def report(browser: Browser) -> None:
    """Make those of the report: its top, and a group."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        recording = str(CAPTURES / "kube-proxy-userspace.finwait")
        cli.main(["report", str(path), "--from", recording, "--not-holder", "1"])
        for name, place, height, dark in (
            ("report", "body", 760, False),
            ("report-group", "#group-1", 980, True),
        ):
            browser.size(1180, height, dark=dark, motion=False)
            browser.open(f"file://{path}")
            browser.until(f"document.readyState === 'complete' && document.querySelector({place!r})")
            browser.js(f"document.querySelector({place!r}).scrollIntoView()")
            browser.picture(IMAGES / f"{name}.png")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        import asyncio

        from tests.e2e import page_server

        asyncio.run(page_server.main(int(sys.argv[1]), "", Pictures()))
    else:
        main()
