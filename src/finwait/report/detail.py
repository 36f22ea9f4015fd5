"""One finding in full: who holds it, since when, how it ends, the evidence, what ends it, what does not."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.attribution.services import name_of
from finwait.diagnosis import outlook
from finwait.diagnosis.ages import FOLLOWED
from finwait.diagnosis.finding import Finding, Remedy, Whose
from finwait.report.cells import cut, padded, widest
from finwait.report.columns import Cells
from finwait.report.style import Style, wrap
from finwait.table.units import duration_text, span_text
from finwait.uapi import tcp
from finwait.uapi.observation import UNTOLD_FD

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = [
    "age_text",
    "blocks",
    "comms",
    "detail",
    "holders_text",
    "states_text",
    "turn_text",
    "where",
    "whose_text",
]


def _evidence(finding: Finding, width: int) -> list[str]:
    """Return the evidence in two columns: what was read, and what it says."""
    readings = [f"{e.column} {e.value}" for e in finding.evidence]
    reach = min(widest(readings), 32)
    stacked = width - 16 - reach < _BESIDE
    lines: list[str] = []
    for k, (reading, e) in enumerate(zip(readings, finding.evidence, strict=True)):
        label = "evidence" if k == 0 else ""
        if stacked:
            lines += wrap(label, reading, width)
            lines += [f"{'':14}{line}" for line in wrap("", e.says, width - 14, indent=2)]
            continue
        if len(reading) > reach:  # too long for its column: on a line of its own
            lines += wrap(label, reading, width)
            label, reading = "", ""
        body = textwrap.wrap(
            e.says, max(width - 16 - reach, 20), break_long_words=False, break_on_hyphens=False
        )
        text = f"{padded(reading, reach)}  {body[0] if body else ''}"
        lines.append(f"  {label:<12}{text}".rstrip())
        lines += [" " * (16 + reach) + line for line in body[1:]]
    return lines


_BESIDE: Final = 24
"""Characters that must be left beside what was read for what it says; else that stands below it."""


def where(view: View, finding: Finding) -> str:
    """Return the network namespace of a finding, by a name that people know, or by its inode."""
    space = view.namespaces.get(finding.netns)
    return space.label if space is not None else f"netns {finding.netns}"


def holders_text(view: View, finding: Finding) -> str:
    """Return who holds a group, in full; empty where it has no connections."""
    services: dict[int, list[int]] = {}
    for pid in finding.pids:
        services.setdefault(view.services.get(pid, pid), []).append(pid)
    names = [_service(view, finding, pids) for pids in [*services.values()][:4]]
    if rest := sum(map(len, [*services.values()][4:])):
        names.append("1 more process" if rest == 1 else f"{rest} more processes")
    if names:
        work = [w for r in finding.rows[:1].tolist() if (w := view.workloads[r])]
        extra = ""
        pod = next((p for r in finding.rows[:1].tolist() if (p := view.row_names.pod[r])), None)
        if pod is not None:
            extra = f", pod {pod.path}" + (f" of {pod.kind} {pod.workload}" if pod.owner else "")
        elif work and work[0].pod_uid:
            extra = f", pod {work[0].pod_uid}"
        elif work and work[0].container_id:
            extra = f", container {work[0].container_id[:12]}"
        elif work and work[0].unit:
            extra = f", {work[0].unit}"
        return ", ".join(names) + extra
    if not len(finding.rows):
        return ""
    held = finding.rows[view.held[finding.rows]]
    if view.held_untold[finding.rows].any():
        return f"unknown ({view.holder_doubt})"
    if not len(held):
        return "nobody (no descriptor refers to it)"
    unknown = int(view.holder_unknown[held].sum())
    if not unknown:
        return "no process (all were inspected)"
    if unknown == len(held):
        released = bool(view.releasers(int(held[0])))
        return f"no descriptor is left: {view.doubt_of(int(held[0]))}" if released else view.unknown_holder
    return f"no process (all were inspected); of {unknown} of {len(held)} unknown ({view.holder_doubt})"


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
    name = name_of(comms(view, pids))
    return f"{name} ×{len(pids)} (pids {min(pids)}…{max(pids)}{user}; {_shares(counts, 'connection')})"


def comms(view: View, pids: Sequence[int]) -> list[str]:
    """Return the names of processes; `?` for one that is not known."""
    return [view.processes[pid].comm if pid in view.processes else "?" for pid in pids]


def _shares(counts: Mapping[int, int], noun: str) -> str:
    """Return how many of something each process has: ``1 connection each``, or from how few to how many."""
    low, high = min(counts.values()), max(counts.values())
    if low == high:
        return f"{low} {noun}{'' if low == 1 else 's'} each"
    most = sorted(counts, key=lambda pid: (-counts[pid], pid))[:3]
    return f"{low} to {high} {noun}s each, most: " + ", ".join(f"pid {pid} {counts[pid]}" for pid in most)


def blocks(view: View, findings: Iterable[Finding]) -> list[Finding]:
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
    name = name_of(comms(view, pids))
    subject = f"{name} ×{len(pids)} (pids {pids[0]}…{pids[-1]}; {_shares(counts, 'descriptor')})"
    first = alike[0]
    evidence = tuple(
        replace(e, says=f"{e.says} (pid {first.pids[0]}; the same for the others)")
        for e in first.evidence[:1]
    )
    return replace(
        first,
        pids=pids,
        subject=subject,
        count=sum(counts.values()),
        evidence=(*evidence, *first.evidence[1:]),
    )


def age_text(view: View, finding: Finding) -> str:
    """Return how long the connections of a finding have been in their states; empty where that is not known."""
    least, most = view.at_least_ms[finding.rows], view.at_most_ms[finding.rows]
    known = least[least >= 0]
    if not len(known):
        return ""
    by = ", followed by the agent" if (view.age_source[finding.rows] == FOLLOWED).any() else ""
    if len(finding.rows) == 1:
        return span_text(int(least[0]), int(most[0])) + by
    low, high = duration_text(int(known.min())), duration_text(int(known.max()))
    span = f"for at least {low}" if low == high else f"for at least {low} (newest) … {high} (oldest)"
    return span + by


def states_text(view: View, finding: Finding) -> str:
    """Return how many connections of a finding are in which state: ``7 × FIN_WAIT2, 7 × CLOSE_WAIT``."""
    if not len(finding.rows):
        return f"{finding.count} × descriptor"
    counted = Counter(view.sockets.state[finding.rows].tolist())
    return ", ".join(f"{n} × {tcp.state_name(s)}" for s, n in counted.most_common())


def detail(
    view: View,
    finding: Finding,
    style: Style,
    limit: int,
    *,
    number: int = 0,
    again: bool = False,
    alone: bool = False,
    means_first: bool = False,
) -> list[str]:
    """Return the lines of a finding.

    Args:
        view: the sockets.
        finding: what is told.
        style: width and colour.
        limit: connections to show; 0 for all.
        number: its number in the overview; 0 where there is none.
        again: what would end it was told of the same rule already.
        alone: it is about one connection, of which all that is not about its cause was told already.
        means_first: what ends it comes before the evidence, for where not all of it is on the screen at once.
    """
    label = f"{finding.severity.upper():<8}"
    head = f"{states_text(view, finding)}  {finding.rule}  in {where(view, finding)}"
    head = f"{number}: {head}" if number else head
    lines = [f"{style.paint(label, finding.severity)} {style.paint(head, 'bold')}"]
    headline = finding.headline[0].upper() + finding.headline[1:] + "."
    lines += textwrap.wrap(headline, style.width - 2, initial_indent="  ", subsequent_indent="  ")
    if not alone:
        lines += _circumstances(view, finding, style)
    if finding.severity != "healthy":
        lines += wrap("whose move", turn_text(view, finding), style.width)
    because = wrap("confidence", f"{finding.confidence.level}: {finding.confidence.reason}", style.width)
    because += _evidence(finding, style.width)
    if not means_first:
        lines += because
    if again:
        lines += wrap("ends it", f"as above; see `finwait explain {finding.rule}`", style.width)
        for command in dict.fromkeys(r.command for r in finding.ends_it if r.command):
            lines += _typed("·", command, style.width)
        return lines + ([] if alone else _connections(view, finding, style, limit))
    for k, remedy in enumerate(finding.ends_it):
        lines += _remedy(remedy, "ends it" if k == 0 else "", style.width)
    if means_first:
        lines += because
    for k, advice in enumerate(finding.does_not):
        label = "won't help" if k == 0 else ""
        lines += wrap(label, f"· {advice.text}: {advice.reason}", style.width, hang=2)
    return lines + ([] if alone else _connections(view, finding, style, limit))


def turn_text(view: View, finding: Finding) -> str:
    """Return whose move it is, and what it would be: ``peer backend: close()``."""
    act = finding.turn.act
    return f"{whose_text(view, finding)}: {act}" if act else whose_text(view, finding)


def whose_text(view: View, finding: Finding) -> str:
    """Return whose move it is: ``peer backend``."""
    if finding.turn.whose == "peer" and (program := _peer(view, finding)):
        return f"peer {program}"
    return _WHOSE[finding.turn.whose]


_WHOSE: Final[dict[Whose, str]] = {
    "holder": "holder",
    "peer": "peer",
    "far": "peer or network",
    "path": "network",
    "kernel": "kernel (timer)",
    "you": "you",
    "unknown": "unknown",
}


def _peer(view: View, finding: Finding) -> str:
    """Return the program at the other end, where all that is known of those is one name."""
    rows = finding.rows[:1000]
    if finding.turn.act == "close()":  # not of a peer that has closed: of that of the other leg of its relay
        closed = (view.sockets.state[rows] == tcp.CLOSE_WAIT) & (view.relay_legs.set_of[rows] >= 0)
        rows = np.concatenate([rows[~closed], *(legs.half for legs in view.relay_legs.touched(rows[closed]))])
    others = view.other[rows]
    pids = view.holders.pids(others[others >= 0])
    names = set(comms(view, sorted(pids))) - {"?"}
    return names.pop() if len(names) == 1 else ""


def _circumstances(view: View, finding: Finding, style: Style) -> list[str]:
    """Return who holds a group, for how long, and when it ends."""
    lines: list[str] = []
    if finding.subject:
        lines += wrap("who", finding.subject, style.width)
    elif holders := holders_text(view, finding):
        lines += wrap("held by", holders, style.width)
    if age := age_text(view, finding):
        lines += wrap("age", age, style.width)
    if finding.severity != "healthy" and (ends := outlook.of_finding(view, finding.rows)) is not None:
        lines += wrap("ends", outlook.text(ends), style.width)
    return lines


def _remedy(remedy: Remedy, label: str, width: int) -> list[str]:
    """Return the lines of something that ends a finding, with the command as it has to be typed."""
    tag = "" if remedy.kind == "advice" else f" [{remedy.kind}]"
    sentence = f"· {remedy.text}{tag}"
    if len(remedy.command) + 18 > width:
        return [*wrap(label, f"{sentence}:", width, hang=2), *_typed(" ", remedy.command, width)]
    command = f": `{remedy.command}`".replace(" ", _NO_BREAK) if remedy.command else ""
    wrapped = wrap(label, sentence + command.replace(_NO_BREAK, " ", 1), width, hang=2)
    return [line.replace(_NO_BREAK, " ") for line in wrapped]


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
    remaining = len(finding.rows) - len(rows)
    if remaining > 0:
        notice = f"… and {remaining} more" + (f": `{finding.listing}`" if finding.listing else "")
        if len(notice) <= style.width - 14:
            return [*lines, f"{'':14}{style.paint(notice, 'dim')}"]
        lines.append(f"{'':14}{style.paint(f'… and {remaining} more:', 'dim')}")
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
        text = f"`{begin} …`: it names each connection by its cookie; `-o json` has it"
        return wrap("", f"{mark} {text}", width, hang=2)
    return [indent + lines[0], *(" " * (len(indent) + 2) + line for line in lines[1:])]


def _cut(text: str, width: int, limit: int) -> str:
    return text if limit <= 0 else cut(text, width)


def _fds(view: View, rows: NDArray[np.int64]) -> list[str]:
    result = []
    for row in rows.tolist():
        fds = view.holders.of(row)
        numbers = [fd for _, fd in fds if fd != UNTOLD_FD]
        result.append(f"fd {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} fds" if numbers else "")
    return result
