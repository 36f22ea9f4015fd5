"""A plan as lines for a person: what would be done to which connections, and what is left alone and why."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from finwait.errors import FinwaitError
from finwait.report.shape import connection, document, encoded, owner
from finwait.table.units import duration_text, endpoint, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from finwait.attribution.process import Sigpipe
    from finwait.errors import Gap
    from finwait.remedy.cost import Cost, EndHolder, Failure, Notice
    from finwait.remedy.plan import End, Left, Plan, Step

__all__ = ["left_lines", "plan_json", "plan_lines", "step_json", "where", "wrapped"]

EACH = 20
"""So many connections of a group are shown one by one; `--all` shows them all, and `-o json` has everything."""

_GROUPS = 30
"""… and so many groups."""

WIDTH: Final = 98
"""Columns of a line where nothing else is asked for."""


_MOST_BYTES = 64 << 20
"""Of a plan as JSON: what `finwait clear --plan` reads. One of 60,000 steps has some 50 MB."""


def plan_json(plan: Plan, gaps: Iterable[Gap] = ()) -> bytes:
    """Return a plan as a JSON document, which `finwait.remedy.plan.decode` reads again.

    Raises:
        FinwaitError: it would be larger than what is read again.
    """
    left_alone = (
        {**_end_json(entry.end), "guard": entry.guard, "reason": entry.reason, "wait_ms": entry.wait_ms}
        for entry in plan.left
    )
    members = {
        "made_unix_ns": plan.made_unix_ns,
        "boot_id": plan.boot_id,
        "steps": [step_json(step) for step in plan.steps],
        "left": list(left_alone),
        "advice": plan.advice,
        "refused": plan.refused,
    }
    data = encoded(document("ClearPlan", members, gaps), indent=1).encode()
    if len(data) > _MOST_BYTES:
        error = FinwaitError(
            f"a plan of {len(plan.steps)} steps has {len(data) >> 20} MiB, and `--plan` reads {_MOST_BYTES >> 20} MiB"
        )
        error.hint = "narrow the FILTER, or make several plans"
        raise error
    return data


def step_json(step: Step) -> dict[str, Any]:
    """Return a step as JSON's types: the connection that it acts on, and the act."""
    owners = [owner(*holder) for holder in step.holders]
    return {
        "means": step.means,
        "class": step.kind,
        "rule": step.rule,
        **_end_json(step, inode=step.inode, owners=owners if owners or step.holders_known else None),
        "bytes_received": step.bytes_received,
        "bytes_acked": step.bytes_acked,
        "sees": step.sees,
        "peer_told": step.peer_told,
        "stays": step.stays,
        "other_end": None if step.other is None else _end_json(step.other),
        "selected": None if step.selected is None else _end_json(step.selected),
        "note": step.note,
        "gone": step.gone,
        "pair": step.pair or None,
        "cost": None if step.cost is None else _cost_json(step.cost),
    }


def _cost_json(cost: Cost) -> dict[str, Any]:
    """Return what a step costs as JSON's types."""
    return {
        "unread": cost.unread,
        "unread_lost": cost.unread_lost,
        "unacknowledged": cost.unacknowledged,
        "far_unacknowledged": cost.far_unacknowledged,
        "error": _failure_json(cost.error),
        "sigpipe": _sigpipe_json(cost.holders),
        "notice": cost.notice,
        "far_error": _failure_json(cost.far_error),
        "far_owners": _sigpipe_json(cost.far_holders),
        "far_notice": cost.far_notice,
        "held_by_process": [{"pid": pid, "connections": count} for pid, count in cost.held_by_process],
    }


def _failure_json(error: Failure | None) -> dict[str, str] | None:
    return None if error is None else {"read": error.read, "write": error.write}


def _sigpipe_json(programs: Iterable[EndHolder]) -> list[dict[str, Any]]:
    return [{"pid": holder.pid, "comm": holder.comm, "sigpipe": holder.sigpipe} for holder in programs]


def _end_json(end: Step | End, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - of `finwait.report.shape.MORE`
    return connection(
        netns=end.netns, protocol=end.protocol, family=end.family, src=end.src, sport=end.sport, dst=end.dst,
        dport=end.dport, state=end.state, cookie=end.cookie, ifindex=end.ifindex, **more,
    )  # fmt: skip


def plan_lines(plan: Plan, *, overrule: bool = True, whole: bool = False, width: int = WIDTH) -> list[str]:
    """Return a plan as lines for a person: steps of one kind, reason and program together.

    Args:
        plan: the plan.
        overrule: whether the reader has `--override` at hand.
        whole: whether to show every connection of it.
        width: of a line.
    """
    present = [step for step in plan.steps if not step.gone]
    classes = Counter(step.kind for step in present)
    kinds = ", ".join(f"{n} {kind}" for kind, n in classes.most_common())
    first = f"{connections_text(len(present))} to end" + (f" ({kinds})" if kinds else "")
    lines = wrapped(f"{first}, {len(plan.left)} left alone.", "", width)
    if gone := len(plan.steps) - len(present):
        verb = "has" if gone == 1 else "have"
        lines += wrapped(f"{connections_text(gone)} of the plan {verb} ended since it was made.", "", width)
    groups: dict[tuple[object, ...], list[Step]] = {}
    for step in present:
        holder = step.holders[0][2] if step.holders else (step.holders_known, not step.inode)
        key = (step.means, step.rule, step.state, step.sees, holder, bool(step.selected), step.note)
        groups.setdefault(key, []).append(step)
    ends = {(step.netns, step.cookie) for step in present if step.cost is not None}
    shown = list(groups.values()) if whole else list(groups.values())[:_GROUPS]
    for steps in shown:
        lines += _group(steps, len(steps) if whole else EACH, ends, width)
    if len(groups) > len(shown):
        rest = len(present) - sum(map(len, shown))
        more = f"… and {connections_text(rest)} in {len(groups) - len(shown)} more groups; `--all` shows them"
        lines += ["\n", *wrapped(more, "", width)]
    return lines + left_lines(plan, overrule=overrule, width=width) + _advice(plan, width)


def _group(steps: list[Step], most: int, ends: Collection[tuple[int, str]], width: int) -> list[str]:
    first = steps[0]
    heading = f"{first.means} [{first.kind}] ×{len(steps)}: {first.rule or 'no rule'}, {first.state}"
    lines = ["\n", *wrapped(f"{heading}, {_held(steps)}", "", width)]
    texts = []
    if first.selected:
        texts.append("done at the other end of the selected connection: its FIN closes both ends")
    if first.note:
        texts.append(first.note)
    texts += [f"peer sees: {first.peer_told}", *_costs(steps, ends)]
    if first.stays:
        open_ones = "the descriptor stays open" if len(steps) == 1 else "the descriptors stay open"
        texts.append(open_ones if first.holders else first.stays)
    for text in texts:
        lines += wrapped(text, width=width)
    for step in steps[:most]:
        at = ", ".join(f"{pid}:{fd}" for pid, fd, _ in step.holders[:3])
        lines += connection_lines(step, f"pid:fd {at}" if at else "", width)
    if len(steps) > most:
        lines.append(f"    … and {len(steps) - most} more; `--all` shows them\n")
    return lines


def _costs(steps: list[Step], ends: Collection[tuple[int, str]]) -> Iterator[str]:
    """Say what a group costs: what is lost, who gets an error, who will notice, how much of a process it is.

    Args:
        steps: of the group.
        ends: ``(netns, cookie)`` of the steps of the plan that cost something: what the other end of one has sent is
            told with that end.
    """
    costs = [step.cost for step in steps if step.cost is not None]
    if steps[0].means == "fin":
        yield "if its program still writes: EPIPE, and SIGPIPE ends a program that does not ignore it"
    if not costs:
        return
    far = sum(
        step.cost.far_unacknowledged or 0
        for step in steps
        if step.cost is not None and (step.other is None or (step.other.netns, step.other.cookie) not in ends)
    )
    unread = sum(cost.unread for cost in costs if cost.unread_lost)
    sent = sum(cost.unacknowledged for cost in costs)
    parts = (
        _bytes(unread, "unread here"),
        _bytes(sent, "sent from here and not acknowledged", bound="at most "),
        _bytes(far, "sent from there and not acknowledged", bound="at most "),
    )
    lost = [text for text in parts if text]
    unseen = any(cost.far_unacknowledged is None for cost in costs)
    beyond = "; what is on its way from the other end is not known" if unseen else ""
    yield f"lost: {', '.join(lost) or 'no byte'}{beyond}"
    if kept := sum(cost.unread for cost in costs if not cost.unread_lost):
        yield f"kept: {_bytes(kept, 'unread here; its program can still read them')}"
    yield from _failures(
        "the other end", [(c.far_error, c.far_holders, c.far_notice) for c in costs], far=True
    )
    yield from _failures("this end", [(c.error, c.holders, c.notice) for c in costs])
    yield from _shares(costs)


def _failures(
    end: str, costs: Iterable[tuple[Failure | None, Sequence[EndHolder], Notice | None]], *, far: bool = False
) -> Iterator[str]:
    """Say which programs get what error at one end, what SIGPIPE does to them, and when they notice.

    Args:
        end: which, as a person calls it.
        costs: of each connection, what its end gets, who holds it, and when they notice.
        far: whether they get it from a RST, which may be lost.
    """
    kinds: dict[tuple[Failure, Sigpipe, Notice | None], Counter[tuple[int, str]]] = {}
    for error, programs, notice in costs:
        if error is None:
            continue
        for pid, comm, sigpipe in [(p.pid, p.comm, p.sigpipe) for p in programs] or [(0, "", "unknown")]:
            kinds.setdefault((error, sigpipe, notice), Counter())[pid, comm] += 1
    order = ("kills", "unknown", "spares")
    for (error, sigpipe, notice), counts in sorted(kinds.items(), key=lambda kind: order.index(kind[0][1])):
        named = [
            (f"{printable(comm)} (pid {pid})" if pid else "a program that was not found")
            + (f" ×{count}" if count > 1 else "")
            for (pid, comm), count in counts.most_common(_NAMED)
        ]
        more = f" and {len(counts) - _NAMED} more programs" if len(counts) > _NAMED else ""
        if len(counts) == _NAMED + 1:
            more = " and 1 more program"
        reads = (
            f"reads give what has arrived, then {'the end of file' if error.read == 'EOF' else error.read}"
        )
        if error.write == "EPIPE":
            writes = f"the next write gets EPIPE, {_SIGPIPE[sigpipe]}"
        elif error.read == error.write:
            reads, writes = (
                f"a write, or a read once what has arrived is read, gets {error.write}",
                f"a write after that EPIPE, {_SIGPIPE[sigpipe]}",
            )
        else:
            writes = f"the next write gets {error.write}, one after that EPIPE, {_SIGPIPE[sigpipe]}"
        says = _NOTICES[notice] if notice is not None else ""
        if far:
            says = f"{says}; all if the RST arrives" if says else "if the RST arrives"
        yield f"{end}: {', '.join(named)}{more}: {reads}; {writes}" + (f"; {says}" if says else "")


def _shares(costs: Iterable[Cost]) -> Iterator[str]:
    """Say which part of its connections each process loses, those first that lose most of them."""
    touched: Counter[tuple[int, int]] = Counter()
    for cost in costs:
        touched.update(cost.held_by_process)
    ranked = sorted(touched.items(), key=lambda entry: (-entry[1] / entry[0][1], -entry[1], entry[0][0]))
    named = [
        f"{count} of the {connections_text(held)} that pid {pid} holds"
        for (pid, held), count in ranked[:_NAMED]
    ]
    if named:
        rest = len(ranked) - len(named)
        more = "" if not rest else " and of 1 more process" if rest == 1 else f" and of {rest} more processes"
        yield f"share: {', '.join(named)}{more}"


_NAMED: Final = 3
"""Programs that a line names; it counts the others."""
_SIGPIPE: Final[Mapping[Sigpipe, str]] = {
    "kills": "and SIGPIPE kills the program, which neither ignores nor catches it (unless it sends with MSG_NOSIGNAL)",
    "spares": "and SIGPIPE does not kill the program",
    "unknown": "and whether SIGPIPE kills the program is not known",
}
_NOTICES: Final[Mapping[Notice, str]] = {
    "at once": "a thread that waits for it is woken at once",
    "when it comes back": "no thread is woken: the program notices when it uses the descriptor again, perhaps never",
    "unknown": "",
    "nobody holds it": "",
}


def _bytes(count: int, words: str, *, bound: str = "") -> str:
    return f"{bound}{count:,} byte{'' if count == 1 else 's'} {words}" if count else ""


def _held(steps: list[Step]) -> str:
    """Say who holds connections of one group; that nobody does only where that is known."""
    first = steps[0]
    if first.holders:
        pids = {step.holders[0][0] for step in steps}
        processes = f"pid {first.holders[0][0]}" if len(pids) == 1 else f"{len(pids)} processes"
        return f"held by {printable(first.holders[0][2])} ({processes})"
    if not first.inode:
        return "held by no process"
    if first.holders_known:
        return "held by no process (all were inspected)"
    return f"holder unknown ({first.holder_doubt})" if first.holder_doubt else "holder unknown"


def left_lines(plan: Plan, *, overrule: bool = True, width: int = WIDTH) -> list[str]:
    """Return what a plan leaves alone, and why, as lines for a person."""
    lines = []
    guards: dict[str, list[Left]] = {}
    for entry in plan.left:
        guards.setdefault(entry.guard, []).append(entry)
    for guard, members in guards.items():
        lines.append(f"\nleft alone ×{len(members)} by guard `{guard}`:\n")
        counted = Counter(entry.reason for entry in members)
        for reason, n in counted.most_common(3):
            lines += wrapped(printable(reason) + (f" (×{n})" if len(counted) > 1 else ""), width=width)
        if len(counted) > 3:
            lines += wrapped(f"… and {len(counted) - 3} more reasons; `-o json` lists them", width=width)
        for entry in members[:3]:
            lines += wrapped(printable(entry.connection), "    ", width)
        if len(members) > 3:
            lines.append(f"    … and {len(members) - 3} more\n")
        lines += _old_enough(guard, members, width)
    if overrule and plan.left and not plan.steps:
        names = sorted({entry.guard for entry in plan.left} - {"listener", "means", "plan", "unseen"})
        if names:
            lines.append("\n")
            for name in names:
                lines += wrapped(f"`--override {name}` overrules that guard.", "", width)
    return lines


def _old_enough(guard: str, members: Sequence[Left], width: int) -> list[str]:
    """Return when waiting is enough for a guard that looks at the age."""
    if guard != "min-age":
        return []
    waits = [entry.wait_ms for entry in members if entry.wait_ms]
    untold = len(members) - len(waits)
    lines = []
    if waits:
        when = duration_text(-(-max(waits) // 1000) * 1000)
        subject = "it is" if len(members) == 1 else f"{len(waits)} of them are" if untold else "all are"
        lines += wrapped(f"{subject} old enough in {when}: run the same command again then", width=width)
    if untold:
        subject = "it" if len(members) == 1 else f"{untold} of them" if waits else "them"
        lines += wrapped(
            f"waiting does not show {subject} to be old enough, for only a lower bound of the age is known: `--for` "
            "with the duration of `--min-age` watches that long, and a lower `--min-age` takes what is known",
            width=width,
        )
    return lines


def _advice(plan: Plan, width: int) -> list[str]:
    advice = plan.advice[:EACH]
    lines = [line for text in advice for line in ("\n", *wrapped(f"advice: {printable(text)}", "", width))]
    if more := len(plan.advice) - len(advice):
        text = f"… and {more} more processes keep descriptors; `-o json` lists them"
        lines += ["\n", *wrapped(text, "", width)]
    return lines


def connections_text(n: int) -> str:
    return "1 connection" if n == 1 else f"{n} connections"


def wrapped(text: str, indent: str = "  ", width: int = WIDTH) -> list[str]:
    """Return a sentence as lines."""
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line + "\n" for line in lines]


def where(step: Step) -> tuple[str, str]:
    """Return both addresses of a step, with their ports."""
    return endpoint(step.src, step.sport), endpoint(step.dst, step.dport)


def connection_lines(step: Step, tail: str, width: int = WIDTH) -> list[str]:
    src, dst = where(step)
    line = f"    {src} → {dst}"
    if len(line) + len(tail) + 2 <= width:
        return [f"{line}  {tail}".rstrip() + "\n"]
    return [f"    {src}\n", f"      → {dst}  {tail}".rstrip() + "\n"]
