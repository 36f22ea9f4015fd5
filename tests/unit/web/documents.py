"""A looker of values: what it answers, and pages with as many groups as a test wants."""

from __future__ import annotations

from finwait.agent import protocol
from finwait.report.agent_page import (
    ActsDocument,
    AgentPage,
    AgeSpan,
    CountsDocument,
    CountSeries,
    GapItem,
    GapsDocument,
    GroupDetail,
    GroupItem,
    JournalItem,
    LimitItem,
    OtherEndItem,
    PageEnd,
    SaidAdvice,
    SaidCause,
    SaidEvidence,
    SaidRemedy,
    SettingItem,
    SettingsDocument,
    TranslatedEnds,
)

HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[31m</script>"
AT = "2026-05-01T12:00:00Z"
AT_NS = 1_777_636_800_000_000_000


def group(k: int, **more: object) -> GroupItem:
    """Return a group; of ten one is a problem."""
    values: dict[str, object] = {
        "id": f"{k:016x}",
        "rule": "fin-wait2-held" if k % 3 else "close-wait-unread",
        "severity": "problem" if k % 10 == 0 else "notice",
        "workload": f"service-{k}.service",
        "count": 1000 - k % 1000,
        "oldest_s": 3600.0 * (k % 48) + 61,
        "rate": 0.5 if k == 0 else 0.0,
        "reached_s": 7200.0 if k == 0 else None,
        "limit": "nofile" if k == 0 else "",
        "states": {"FIN_WAIT2": 1000 - k % 1000, "CLOSE_WAIT": 3},
        "holders": [f"app({800 + k})"],
        "title": "Connections are half-closed and held",
        "harm": "leak",
        "confidence": "certain",
        "whose": "holder",
        "act": "close()",
        "ends_it": "the program closes them",
        "command": "finwait clear rule = fin-wait2-held",
        **more,
    }
    return GroupItem(**values)  # type: ignore[arg-type]


def page(groups: int = 3, **more: object) -> AgentPage:
    """Return a page."""
    items = [group(k) for k in range(groups)]
    values: dict[str, object] = {
        "at": AT, "at_ns": AT_NS, "look_at_ns": AT_NS, "rounds": 7, "boot_id": "b", "version": "1", "interval_s": 15.0,
        "filter": "", "stuck": sum(g.count for g in items),
        "problems": sum(g.count for g in items if g.severity == "problem"), "undiagnosed": 0, "groups": items,
        "groups_dropped": 0, "sockets": {"ESTABLISHED": 120, "FIN_WAIT2": 5, "CLOSE_WAIT": 5, "TIME_WAIT": 9},
        "limits": [LimitItem(limit="nofile", workload="app", subject="pid 7", used=500, most=1024, reached_s=60.0)],
        "gaps": 1, "namespaces": 3, "unseen_s": 2.0, "untracked": 0, "store_said": "", "diagnosed_at": AT, **more,
    }  # fmt: skip
    return AgentPage(**values)  # type: ignore[arg-type]


def detail(item: GroupItem) -> GroupDetail:
    """Return a group with evidence, in which every text is hostile."""
    cause = SaidCause(
        title="t", harm="leak", whose="holder", act="close()", confidence="certain", reason="r",
        evidence=[SaidEvidence(column="state", value=HOSTILE, read_from="sock_diag", says="`x`")],
        ends_it=[SaidRemedy(text="close it", kind="advice", command=""),
                 SaidRemedy(text="end it", kind="destructive", command="finwait clear rule = fin-wait2-held")],
        does_not=[SaidAdvice(text="a sysctl", reason="it does nothing")],
        ends="never", ends_why="no timer runs", about=400, at=AT,
    )  # fmt: skip
    end = PageEnd(
        state="FIN_WAIT2", local="10.0.0.1:40000", peer="10.0.0.2:80", netns=4026531840, netns_names=[HOSTILE],
        cookie="0x1", holder=HOSTILE, first_seen=AT, age_s=AgeSpan(at_least=5.0, at_most=None),
        other_end=OtherEndItem(cookie="0x2", netns=1, holder=HOSTILE, state="CLOSE_WAIT"),
        translated=TranslatedEnds(local="1.2.3.4:5", peer="5.6.7.8:9"),
    )  # fmt: skip
    return GroupDetail(group=item, cause=cause, ends=[end], more=2)


EPISODE: dict[str, object] = {
    "netns": 1, "protocol": "tcp", "family": None, "src": "10.0.0.1", "sport": 1, "dst": "10.0.0.2", "dport": 80,
    "state": "FIN_WAIT2", "cookie": "0x1", "ifindex": 0, "boot_id": "b", "rule": "fin-wait2-held",
    "severity": "problem", "confidence": "certain", "workload": HOSTILE, "holder": HOSTILE, "first_seen": AT,
    "last_seen": AT, "age_s": {"at_least": 5.0, "at_most": None}, "ended": None, "how": None, "other_end": None,
    "translated": None, "story": None,
}  # fmt: skip


def counts(steps: int = 60, now_s: int = AT_NS // 10**9) -> CountsDocument:
    """Return a curve with a time in which nobody looked."""
    at = [now_s - 60 * (steps - k) for k in range(steps)]
    unseen = range(20, 26)
    return CountsDocument(
        by="rule", step_s=60, at=at,
        series=[
            CountSeries(name=name, values=[None if k in unseen else base + k // 3 for k in range(steps)])
            for name, base in (("fin-wait2-held", 40), ("close-wait-unread", 12), ("other", 3))
        ],
        gaps=[None if k in unseen else 0 for k in range(steps)],
    )  # fmt: skip


def answer_to(
    question: protocol.Question, picture: protocol.RoundPicture, shown: AgentPage | None = None
) -> protocol.AgentAnswer:
    """Return what a looker says."""
    shown = shown or page(rounds=picture.rounds, look_at_ns=picture.look_at_ns)
    if isinstance(question, protocol.AskPicture):
        return protocol.AgentAnswer(picture=picture)
    if isinstance(question, protocol.AskPage | protocol.AskGroup) and "(" in question.filter:
        return protocol.AgentAnswer(refused="it does not parse", error="a hint")
    if isinstance(question, protocol.AskPage):
        same = question.known == shown.rounds
        return protocol.AgentAnswer(unchanged=same, page=None if same else shown)
    if isinstance(question, protocol.AskGroup):
        item = next((g for g in shown.groups if g.id == question.id), None)
        return protocol.AgentAnswer(group=detail(item) if item is not None else None)
    if isinstance(question, protocol.AskHistory):
        return protocol.AgentAnswer(
            episodes=[EPISODE, {**EPISODE, "ended": AT, "how": "vanished"}],
            gaps=GapsDocument(items=[], dropped=0),
        )
    return _rest(question)


def _rest(question: protocol.Question) -> protocol.AgentAnswer:
    if isinstance(question, protocol.AskCounts):
        return protocol.AgentAnswer(counts=counts())
    if isinstance(question, protocol.AskSettings):
        item = SettingItem(
            key="net.ipv4.tcp_fin_timeout", title="t", value="60", default=60, unit="s", verdict="HARMFUL", why="w",
            instead="i", on_stuck="", where=[HOSTILE], namespaces=3,
        )  # fmt: skip
        return protocol.AgentAnswer(settings=SettingsDocument(at=AT, items=[item], dropped=0))
    if isinstance(question, protocol.AskJournal):
        act = JournalItem(
            id=1, at=AT, user="root", kind="destroy", whom="10.0.0.1:1 → 10.0.0.2:2", why=HOSTILE, result="ended",
            failed=False,
        )  # fmt: skip
        return protocol.AgentAnswer(acts=ActsDocument(items=[act], error=""))
    if isinstance(question, protocol.AskGaps):
        gap = GapItem(where="pid 1", doing="list its descriptors", needs="CAP_SYS_PTRACE", netns=None, pid=1)
        return protocol.AgentAnswer(gaps=GapsDocument(items=[gap], dropped=0))
    assert isinstance(question, protocol.AskStatus)
    return protocol.AgentAnswer(
        status=protocol.Status(
            version="1", pid=7, boot="b", started_ns=AT_NS, at_ns=AT_NS, share=0.01, cpu_s=1.0, rounds=7, open=3,
            undiagnosed=0, untracked=0, namespaces=1, unseen_s=1.0, gaps=[], store="/x", store_bytes=1,
            store_errors=0, store_said="", up_s=60.0,
        )
    )  # fmt: skip
