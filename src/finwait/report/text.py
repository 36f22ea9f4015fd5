"""A diagnosis for a person at 3 a.m.: what is wrong, who holds it, what ends it, what does not.

At most 100 columns wide, readable without colour. The worst comes first; healthy patterns are counted in a
line; what could not be seen is at the end, always.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.services import name_of
from finwait.diagnosis import catalogue
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.rules import peer_missing
from finwait.report.columns import Cells
from finwait.table.units import cell_text, duration_text, ink, span_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.select import Narrowed
    from finwait.diagnosis.view import View
    from finwait.errors import Gap

__all__ = ["Style", "connection", "diagnosis", "headline", "unowned"]

_COLORS = {"problem": "31;1", "notice": "33", "healthy": "32", "bold": "1", "dim": "2"}


@dataclass(frozen=True, slots=True)
class Style:
    """How to print: width in columns, and whether ANSI colours are wanted."""

    width: int = 100
    color: bool = False

    def paint(self, text: str, role: str) -> str:
        """Return text in the colour of a role (made by `finwait.table.units.printable`), or as it is."""
        return f"{ink(_COLORS[role])}{text}{ink('0')}" if self.color else text


def _wrap(label: str, text: str, width: int, indent: int = 14, hang: int = 0) -> list[str]:
    """Return a labelled paragraph; lines after the first are indented by ``hang`` more."""
    lines = textwrap.wrap(
        text,
        max(width - indent, 20),
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]
    pad = " " * indent
    return [f"  {label:<{indent - 2}}{lines[0]}", *(pad + line for line in lines[1:])]


def _evidence(finding: Finding, width: int) -> list[str]:
    """Return the evidence in two columns: what was read, and what it says."""
    left = [f"{e.column} {e.value}" for e in finding.evidence]
    reach = min(max(map(len, left), default=0), 32)
    lines: list[str] = []
    for k, (what, e) in enumerate(zip(left, finding.evidence, strict=True)):
        label = "evidence" if k == 0 else ""
        if len(what) > reach:  # too long for its column: on a line of its own
            lines += _wrap(label, what, width)
            label, what = "", ""
        body = textwrap.wrap(
            e.says, max(width - 16 - reach, 20), break_long_words=False, break_on_hyphens=False
        )
        text = f"{what:<{reach}}  {body[0] if body else ''}"
        lines.append(f"  {label:<12}{text}".rstrip())
        lines += [" " * (16 + reach) + line for line in body[1:]]
    return lines


def _extent(view: View, narrowed: Narrowed | None) -> tuple[int, str]:
    """Return how many connections are being told about, and where."""
    mask = view.sockets.state != tcp.LISTEN
    if narrowed is not None:
        mask = mask & narrowed.rows
    n = int(mask.sum())
    spaces = len(view.namespaces if narrowed is None else np.unique(view.sockets.netns[mask]))
    where = "one network namespace" if spaces == 1 else f"{spaces} network namespaces"
    what = f"{n} connection{'' if n == 1 else 's'}"
    if narrowed is None:
        return n, f"{what} in {where}"
    return n, f"{what} that the FILTER selects, in {where},"


def unowned() -> str:
    """Return what a look without owners leaves out."""
    return f"owners were not looked for (`--no-owners`): rules {', '.join(catalogue.by_owners())} not judged"


def headline(
    view: View,
    findings: Sequence[Finding],
    who: str,
    gaps: Sequence[Gap] = (),
    narrowed: Narrowed | None = None,
) -> str:
    """Return the sentence that everything else explains; with gaps it vouches only for what was seen."""
    shown = [f for f in findings if f.primary]
    problems = [f for f in shown if f.severity == "problem"]
    rows = [f.rows for f in problems if len(f.rows)]
    states = view.sockets.state[np.concatenate(rows)] if rows else np.empty(0, np.uint8)
    stuck = _stuck(states)
    lost = sum(f.count for f in problems if not len(f.rows))
    notices = sum(f.count for f in shown if f.severity == "notice")
    further = []
    if doors := int((states == tcp.LISTEN).sum()):
        further.append(f"{doors} {'listener does' if doors == 1 else 'listeners do'} not accept")
    if lost:
        word = "descriptor" if lost == 1 else "descriptors"
        further.append(f"{lost} {word} of connections that are gone, and still open")
    more = "; ".join(further)
    n, seen = _extent(view, narrowed)
    if not n and not shown and narrowed is not None:
        _, all_of_it = _extent(view, None)
        open_ = "; it could not judge everything" if narrowed.unjudged else ""
        return f"{who}: the FILTER selects no connection. Looked at: {all_of_it}{open_}."
    if stuck:
        bad = int((states != tcp.LISTEN).sum())
        told = f"{bad} of {seen} {stuck[0] if bad == 1 else stuck[1]}"
        return f"{who}: {told}; {more}." if more else f"{who}: {told}."
    seen = seen.rstrip(",")
    if more:
        among = f" No stuck connection was found among {seen}." if n else ""
        return f"{who}: {more}.{among}"
    partly = bool(gaps) or (narrowed is not None and bool(narrowed.unjudged)) or view.established_skipped > 0
    partly = partly or not view.holders.searched
    if notices:
        nothing = "nothing stuck was seen" if partly else "nothing is stuck"
        return f"{who}: {nothing} among {seen}; {notices} {'deserves' if notices == 1 else 'deserve'} a look."
    if gaps:
        return f"{who}: nothing wrong was seen in {seen}, but not everything could be seen."
    if narrowed is not None and narrowed.unjudged:
        return f"{who}: nothing wrong was seen in {seen}, but the FILTER could not judge everything."
    if view.established_skipped:
        return f"{who}: nothing wrong was seen in {seen}; ESTABLISHED ones were not looked at."
    if not view.holders.searched:
        return f"{who}: nothing wrong was seen in {seen}; owners were not looked for."
    return f"{who}: nothing is wrong. {seen[0].upper() + seen[1:]}; none fails to finish closing."


def _stuck(states: NDArray[np.uint8]) -> tuple[str, str] | None:
    """Return what is wrong with connections in some states, of one and of several; None where there are none.

    A listener is no connection, and one that is open has nothing to finish.
    """
    is_open = states == tcp.ESTABLISHED
    if not (states != tcp.LISTEN).any():
        return None
    if not is_open.any():
        return "does not finish closing", "do not finish closing"
    if (is_open | (states == tcp.LISTEN)).all():
        return "is open and stuck", "are open and stuck"
    return "", "do not finish closing, or are open and stuck"


def diagnosis(
    view: View,
    findings: Sequence[Finding],
    gaps: Sequence[Gap],
    who: str,
    *,
    style: Style = Style(),
    limit: int = 5,
    narrowed: Narrowed | None = None,
) -> Iterator[str]:
    """Return the lines of a diagnosis, in pieces.

    Args:
        view: the sockets.
        findings: what was found.
        gaps: what could not be seen.
        who: the machine, for the headline.
        style: width and colour.
        limit: connections to show of each finding; 0 for all.
        narrowed: the FILTER that the findings were narrowed by.
    """
    said = headline(view, findings, who, gaps, narrowed)
    for line in textwrap.wrap(said, style.width, break_long_words=False, break_on_hyphens=False):
        yield style.paint(line, "bold") + "\n"
    shown = _blocks(view, (f for f in findings if f.primary and f.severity != "healthy"))
    told: set[tuple[object, ...]] = set()
    for finding in shown:
        means = tuple((r.text, r.kind) for r in finding.ends_it)
        advice = (finding.rule, means, finding.does_not)
        yield "\n" + "\n".join(_finding(view, finding, style, limit, again=advice in told)) + "\n"
        told.add(advice)
    tail = _tail(view, findings, style)
    if tail:
        yield "\n" + "\n".join(tail) + "\n"
    if narrowed is not None and narrowed.unjudged:
        yield "\n" + "\n".join(_unjudged(view, narrowed, style)) + "\n"
    if gaps:
        yield "\n" + style.paint("Not seen:", "notice") + "\n"
        for gap in gaps:
            yield (
                "\n".join(
                    textwrap.wrap(str(gap), style.width - 2, initial_indent="  ", subsequent_indent="    ")
                )
                + "\n"
            )


def _unjudged(view: View, narrowed: Narrowed, style: Style) -> list[str]:
    """Return what a FILTER could not judge, a line each, and how to see it."""
    lines = [style.paint("Not judged, because the FILTER uses values that are not known for them:", "notice")]
    counted: Counter[str] = Counter()
    for f in narrowed.unjudged:
        whose = f.subject or f"in {_where(view, f)}"
        counted[f"{_states(view, f)}  {f.rule}  {whose}"] += 1
    for text, n in counted.most_common():
        lines += _wrap("", text + (f" (×{n})" if n > 1 else ""), style.width, indent=2)
    rules = sorted({f.rule for f in narrowed.unjudged})
    return lines + _wrap("", f"`finwait rule = {','.join(rules)}` shows them.", style.width, indent=2)


def _where(view: View, finding: Finding) -> str:
    space = view.namespaces.get(finding.netns)
    return space.label if space is not None else f"netns {finding.netns}"


def _holders(view: View, finding: Finding) -> str:
    services: dict[int, list[int]] = {}
    for pid in finding.pids:
        services.setdefault(view.services.get(pid, pid), []).append(pid)
    names = [_service(view, finding, pids) for pids in [*services.values()][:4]]
    if left := sum(map(len, [*services.values()][4:])):
        names.append("1 more process" if left == 1 else f"{left} more processes")
    if names:
        work = [w for r in finding.rows[:1].tolist() if (w := view.workloads[r])]
        extra = ""
        if work and work[0].pod_uid:
            extra = f", pod {work[0].pod_uid}"
        elif work and work[0].container_id:
            extra = f", container {work[0].container_id[:12]}"
        elif work and work[0].unit:
            extra = f", {work[0].unit}"
        return ", ".join(names) + extra
    if not len(finding.rows):
        return ""
    if not view.held[finding.rows].any():
        return "nobody (no descriptor refers to it)"
    if view.holders.complete:
        return "no process (all were inspected)"
    return "unknown; not every process could be inspected"


def _service(view: View, finding: Finding, pids: Sequence[int]) -> str:
    """Return a holding process, or the workers of one service together with how much each of them holds."""
    process = view.processes.get(pids[0])
    if process is None:
        return f"pid {pids[0]}"
    uids = {p.uid for pid in pids if (p := view.processes.get(pid)) is not None}
    user = f", uid {process.uid}" if len(uids) == 1 and process.uid > 0 else ""
    if len(pids) == 1:
        return f"{process.comm} (pid {pids[0]}{user})"
    counts = {pid: n for pid, n in view.holders.counted(finding.rows).items() if pid in set(pids)}
    name = name_of(_comms(view, pids))
    return f"{name} ×{len(pids)} (pids {min(pids)}…{max(pids)}{user}; {_shares(counts, 'connection')})"


def _comms(view: View, pids: Sequence[int]) -> list[str]:
    return [view.processes[pid].comm if pid in view.processes else "?" for pid in pids]


def _shares(counts: Mapping[int, int], what: str) -> str:
    """Return how many of something each process has: ``1 connection each``, or from how few to how many."""
    low, high = min(counts.values()), max(counts.values())
    if low == high:
        return f"{low} {what}{'' if low == 1 else 's'} each"
    most = sorted(counts, key=lambda pid: (-counts[pid], pid))[:3]
    return f"{low} to {high} {what}s each, most: " + ", ".join(f"pid {pid} {counts[pid]}" for pid in most)


def _blocks(view: View, findings: Iterable[Finding]) -> list[Finding]:
    """Return findings as they are shown: what has no rows, of the workers of one service, as one of them."""
    result: list[Finding] = []
    members: dict[tuple[object, ...], list[Finding]] = {}
    for f in findings:
        if len(f.rows) or len(f.pids) != 1:
            result.append(f)
            continue
        key = (f.rule, f.severity, f.title, f.netns, view.services.get(f.pids[0], f.pids[0]))
        if key not in members:
            result.append(f)
        members.setdefault(key, []).append(f)
    together = {id(alike[0]): _together(view, alike) for alike in members.values() if len(alike) > 1}
    return [together.get(id(f), f) for f in result]


def _together(view: View, alike: Sequence[Finding]) -> Finding:
    counts = {f.pids[0]: f.count for f in alike}
    pids = tuple(sorted(counts))
    name = name_of(_comms(view, pids))
    who = f"{name} ×{len(pids)} (pids {pids[0]}…{pids[-1]}; {_shares(counts, 'descriptor')})"
    first = alike[0]
    told = tuple(
        replace(e, says=f"{e.says} (pid {first.pids[0]}; the same for the others)")
        for e in first.evidence[:1]
    )
    return replace(
        first, pids=pids, subject=who, count=sum(counts.values()), evidence=(*told, *first.evidence[1:])
    )


def _age(view: View, finding: Finding) -> str:
    least, most = view.at_least_ms[finding.rows], view.at_most_ms[finding.rows]
    known = least[least >= 0]
    if not len(known):
        return ""
    if len(finding.rows) == 1:
        return span_text(int(least[0]), int(most[0]))
    low, high = duration_text(int(known.min())), duration_text(int(known.max()))
    return f"for at least {low}" if low == high else f"for at least {low} (newest) … {high} (oldest)"


def _states(view: View, finding: Finding) -> str:
    if not len(finding.rows):
        return f"{finding.count} × descriptor"
    counted = Counter(view.sockets.state[finding.rows].tolist())
    return ", ".join(f"{n} × {tcp.state_name(s)}" for s, n in counted.most_common())


def _finding(view: View, finding: Finding, style: Style, limit: int, *, again: bool = False) -> list[str]:
    """Return the lines of a finding; ``again``: what would end it was told of the same rule already."""
    label = f"{finding.severity.upper():<8}"
    head = f"{_states(view, finding)}  {finding.rule}  in {_where(view, finding)}"
    lines = [f"{style.paint(label, finding.severity)} {style.paint(head, 'bold')}"]
    title = finding.title[0].upper() + finding.title[1:] + "."
    lines += textwrap.wrap(title, style.width - 2, initial_indent="  ", subsequent_indent="  ")
    if finding.subject:
        lines += _wrap("who", finding.subject, style.width)
    elif holders := _holders(view, finding):
        lines += _wrap("held by", holders, style.width)
    if age := _age(view, finding):
        lines += _wrap("age", age, style.width)
    lines += _wrap("confidence", f"{finding.confidence.level}: {finding.confidence.reason}", style.width)
    lines += _evidence(finding, style.width)
    if again:
        lines += _wrap("ends it", f"as above; see `finwait explain {finding.rule}`", style.width)
        for command in dict.fromkeys(r.command for r in finding.ends_it if r.command):
            lines += _typed("·", command, style.width)
        return lines + _connections(view, finding, style, limit)
    for k, r in enumerate(finding.ends_it):
        tag = "" if r.kind == "advice" else f" [{r.kind}]"
        label, said = "ends it" if k == 0 else "", f"· {r.text}{tag}"
        if len(r.command) + 18 <= style.width:  # on one line, as it has to be typed
            typed = f": `{r.command}`".replace(" ", _NO_BREAK).replace(_NO_BREAK, " ", 1) if r.command else ""
            wrapped = _wrap(label, said + typed, style.width, hang=2)
            lines += [line.replace(_NO_BREAK, " ") for line in wrapped]
        else:
            lines += [*_wrap(label, f"{said}:", style.width, hang=2), *_typed(" ", r.command, style.width)]
    for k, a in enumerate(finding.does_not):
        lines += _wrap("won't help" if k == 0 else "", f"· {a.text}: {a.reason}", style.width, hang=2)
    lines += _connections(view, finding, style, limit)
    return lines


def _connections(view: View, finding: Finding, style: Style, limit: int) -> list[str]:
    if not len(finding.rows):
        return []
    rows = finding.rows if limit <= 0 else finding.rows[:limit]
    cells = Cells(view, rows)
    ends = cells.column("other_end")
    lines = []
    local, peer = cells.column("local"), cells.column("peer")
    wide = [max(map(len, c)) for c in (local, peer)]
    states = cells.column("state_name")
    holding = _fds(view, rows)
    for k, (a, b, state, end, fd) in enumerate(zip(local, peer, states, ends, holding, strict=True)):
        text = f"{a:<{wide[0]}}  {b:<{wide[1]}}  {state:<11}"
        if fd:
            text += f" {fd}"
        if end:
            text += f"  ⇄ {end}"
        lines.append(f"  {'sockets' if k == 0 else '':<12}{_cut(text.rstrip(), style.width - 14, limit)}")
    left = len(finding.rows) - len(rows)
    if left > 0:
        told = f"… and {left} more" + (f": `{finding.listing}`" if finding.listing else "")
        if len(told) <= style.width - 14:
            return [*lines, f"{'':14}{style.paint(told, 'dim')}"]
        lines.append(f"{'':14}{style.paint(f'… and {left} more:', 'dim')}")
        lines += [style.paint(line, "dim") for line in _typed(" ", finding.listing, style.width)]
    return lines


_NO_BREAK = "\u00a0"
_LONGEST_COMMAND = 6
"""Lines that a command may take; one that names very many connections one by one is left to `-o json`."""


def _typed(mark: str, command: str, width: int) -> list[str]:
    """Return a command on lines of its own, which may be pasted into a shell as they are.

    A line that ends in the middle of a command must say so: its beginning alone would act on more.
    """
    indent = " " * 14 + mark + " "
    if len(indent) + len(command) + 2 <= width:
        return [f"{indent}`{command}`"]
    lines: list[str] = []
    line, quote = "", ""
    for word in command.split(" "):
        deeper = 2 if lines else 0  # the lines after the first stand further in
        if line and len(indent) + deeper + len(line) + 1 + len(word) + 2 > width:
            lines.append(line if quote else f"{line} \\")
            line = ""
        line += f" {word}" if line else word
        for character in word:
            if not quote and character in "'\"":
                quote = character
            elif character == quote:
                quote = ""
    lines.append(line)
    if len(lines) > _LONGEST_COMMAND:
        begin = " ".join(command.split(" ")[:2])
        return [f"{indent}`{begin} …`: it names each connection by its cookie; `-o json` has it"]
    return [indent + lines[0], *(" " * (len(indent) + 2) + line for line in lines[1:])]


def _cut(text: str, width: int, limit: int) -> str:
    return text if limit <= 0 or len(text) <= width else text[: width - 1] + "…"


def _fds(view: View, rows: NDArray[np.int64]) -> list[str]:
    result = []
    for row in rows.tolist():
        fds = view.holders.of(row)
        result.append(f"fd {fds[0][1]}" if len(fds) == 1 else f"{len(fds)} fds" if fds else "")
    return result


def _tail(view: View, findings: Sequence[Finding], style: Style) -> list[str]:
    lines: list[str] = []
    also: Counter[str] = Counter()
    for f in findings:
        if not f.primary:
            also[f.rule] += f.count
    if also:
        text = ", ".join(f"{rule} ({n})" for rule, n in also.most_common())
        lines += _wrap("Also", f"matching as a secondary cause: {text}", style.width)
    healthy: Counter[tuple[str, str]] = Counter()
    for f in findings:
        if f.primary and f.severity == "healthy":
            healthy[f.rule, f.title] += f.count
    for (rule, title), n in healthy.most_common():
        lines += _wrap("Healthy", f"{n} × {rule}: {title.removesuffix(': healthy')}", style.width)
    if not view.holders.searched:
        lines += _wrap("Left out", unowned(), style.width)
    if view.established_skipped:
        text = (
            f"about {view.established_skipped} sockets in namespaces whose ESTABLISHED ones were left out; "
            "`--established always` includes them"
        )
        lines += _wrap("Left out", text, style.width)
    return lines


def connection(view: View, row: int, findings: Sequence[Finding], style: Style = Style()) -> Iterator[str]:
    """Return everything about one connection: a picture of both ends, the evidence, and its pages."""
    rows = np.array([row], np.int64)
    cells = Cells(view, rows, findings)
    yield "\n".join(_picture(view, row, cells, style.width)) + "\n"
    facts = [
        ("netns", _namespace(view, row)),
        ("cookie", f"{cells.column('cookie')[0]:#x}, inode {cells.column('inode')[0]}"),
        ("age", cells.column("age")[0]),
        ("timer", cells.column("timer_name")[0] or "none: nothing will fire"),
        ("queues", f"{cells.column('rqueue')[0]} to read, {cells.column('wqueue')[0]} not acknowledged"),
        ("owner", _owner_text(view, row, cells)),
        ("conntrack", cells.column("conntrack")[0] or "no entry was seen"),
    ]
    for name in ("unit", "container_id", "pod_uid", "cgroup"):
        value = cells.column(name)[0]
        if value:
            facts.append((name, value))
    yield "\n" + "\n".join(line for label, text in facts for line in _wrap(label, text, style.width)) + "\n"
    mine = [f for f in findings if (f.rows == row).any()]
    if not mine:
        yield "\n" + "\n".join(textwrap.wrap(_unsuspected(view, row), style.width)) + "\n"
    for finding in mine:
        yield "\n" + "\n".join(_finding(view, finding, style, 1)) + "\n"
        yield f"              See `finwait explain {finding.rule}`.\n"
    yield "\n" + "\n".join(_all_columns(view, row, style)) + "\n"


def _unsuspected(view: View, row: int) -> str:
    """Return what can be said of a connection that no rule has marked: one in a closing state has always one."""
    state = int(view.sockets.state[row])
    if state == tcp.ESTABLISHED:
        return (
            "It is open, and no rule suspects it. One look cannot tell whether its program still "
            "serves it: `finwait probe` checks whether the peer is alive, `--for 5s` looks twice."
        )
    return f"It is {tcp.state_name(state)}: there is no connection yet that could close."


def _who(view: View, row: int, cells: Cells) -> str:
    """Return who holds a socket, for the picture: a closed one has nobody, which is no gap."""
    text: str = cells.column("owner")[0]
    if text != "-" or view.held[row]:
        return text
    waiting = int(view.sockets.state[row]) in (
        tcp.SYN_RECV,
        tcp.NEW_SYN_RECV,
        tcp.ESTABLISHED,
        tcp.CLOSE_WAIT,
    )
    return "not accepted yet" if waiting else "closed: an orphan"


def _label(view: View, row: int) -> str:
    inode = int(view.sockets.netns[row])
    namespace = view.namespaces.get(inode)
    return namespace.label if namespace else f"netns {inode}"


def _namespace(view: View, row: int) -> str:
    """Return the name of a row's network namespace, and its inode if that is not the name already."""
    label, inode = _label(view, row), str(int(view.sockets.netns[row]))
    return label.removeprefix("netns ") if label.endswith(inode) else f"{label} ({inode})"


def _owner_text(view: View, row: int, cells: Cells) -> str:
    text = cells.column("owner")[0]
    if text == "-":
        return (
            "nobody: no descriptor refers to it" if not view.held[row] else "no process (all were inspected)"
        )
    if text == "?":
        return "unknown; not every process could be inspected"
    lines = [text]
    for pid, _ in view.holders.of(row)[:4]:
        process = view.processes.get(pid)
        if process and process.cmdline:
            lines.append(f"`{process.cmdline[:160]}`")
    return "  ".join(lines)


def _picture(view: View, row: int, cells: Cells, room: int) -> list[str]:
    """Both ends in their states, with what stands between them; one below the other where they are too wide."""
    state = cells.column("state_name")[0]
    other = int(view.other[row])
    left = [cells.column("local")[0], state, _who(view, row, cells)]
    if other >= 0:
        end = Cells(view, np.array([other], np.int64))
        right = [end.column("local")[0], end.column("state_name")[0], _who(view, other, end)]
        right.append(_label(view, other))
    else:
        far = "not on this machine" if view.whole else "not found: not every namespace was inspected"
        right = [cells.column("peer")[0], far, "", ""]
        if view.other_ambiguous[row]:
            right[1] = "several candidates here"
        elif (possible := int(view.other_possible[row])) >= 0:
            right[1] = (
                f"possible: {tcp.state_name(int(view.sockets.state[possible]))}, not known to be connected"
            )
            right[3] = _label(view, possible)
        elif peer_missing(view)[row]:
            right[1] = "should be here: it is gone"
        elif view.peer_here[row]:
            right[1] = "its address is here too: no such connection there"
    left.append(_label(view, row))
    link = {0: "──────────", 1: "──────────", 2: "──( NAT )──", 3: "─ ─ ✕ ─ ─ "}[int(view.other_how[row])]
    width = max(len(t) for t in left)
    reach = max(len(t) for t in right)
    if 10 + width + len(link) + reach > room:
        between = "✕" if "✕" in link else "│ NAT" if "NAT" in link else "│"
        lines = [*_box(left), f"    {between}", *_box(right)]
    else:
        lines = [f"  ┌─{'─' * width}─┐{' ' * len(link)}┌─{'─' * reach}─┐"]
        for k, (a, b) in enumerate(zip(left, right, strict=True)):
            middle = link if k == 1 else " " * len(link)
            lines.append(f"  │ {a:<{width}} │{middle}│ {b:<{reach}} │")
        lines.append(f"  └─{'─' * width}─┘{' ' * len(link)}└─{'─' * reach}─┘")
    said = _fins(view, row, state)
    if said:
        lines += textwrap.wrap(said, max(room, 20), initial_indent="  ", subsequent_indent="  ")
    return lines


def _box(texts: Iterable[str]) -> list[str]:
    some = [text for text in texts if text]
    width = max(map(len, some))
    return [f"  ┌─{'─' * width}─┐", *(f"  │ {text:<{width}} │" for text in some), f"  └─{'─' * width}─┘"]


def _fins(view: View, row: int, state: str) -> str:
    unread = int(view.sockets.rqueue[row])
    if state == "FIN_WAIT2" and unread:
        return (
            f"our FIN → acknowledged;  ← the peer's FIN has not come; {unread} bytes before it are not read"
        )
    s = view.sockets
    if state in ("FIN_WAIT1", "LAST_ACK", "CLOSING") and s.wqueue[row] > 1:
        come = "" if state == "FIN_WAIT1" else "← the peer's FIN has come;  "
        sent = "not sent" if s.notsent_bytes[row] else "not acknowledged"
        return f"{come}our FIN → {sent}: it is behind {int(s.wqueue[row]) - 1} bytes"
    return {
        "FIN_WAIT1": "our FIN → not acknowledged",
        "FIN_WAIT2": "our FIN → acknowledged;  ← the peer's FIN has not come",
        "CLOSE_WAIT": "← the peer's FIN has come;  ours → not sent, the program has not closed",
        "LAST_ACK": "← the peer's FIN has come;  our FIN → not acknowledged",
        "CLOSING": "our FIN → crossed with the peer's;  not acknowledged",
        "TIME_WAIT": "both FINs are acknowledged; late segments are being waited out",
    }.get(state, "")


def _all_columns(view: View, row: int, style: Style) -> list[str]:
    texts = []
    for column in view.sockets.schema:
        if column.name in ("src", "dst"):
            continue
        value = view.cell(column.name, row)
        if value is not None:
            texts.append(f"{column.name}={cell_text(column.name, value).replace(' ', '')}")
    body = textwrap.wrap(" ".join(texts), style.width - 2, break_long_words=False, break_on_hyphens=False)
    return ["  everything that the kernel reported:", *("  " + line for line in body)]
