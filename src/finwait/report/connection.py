"""Everything about one connection: both ends in a picture, what is known of it, and its causes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from finwait.diagnosis.finding import Finding
from finwait.diagnosis.rules import peer_missing
from finwait.report.cells import padded, widest
from finwait.report.columns import Cells
from finwait.report.detail import detail
from finwait.report.socket_options import meaning
from finwait.report.style import PLAIN, Style, wrap
from finwait.report.waiting import waiting_text
from finwait.table.units import cell_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["connection"]


def connection(
    view: View, row: int, findings: Sequence[Finding], style: Style = PLAIN, *, raw: bool = False
) -> Iterator[str]:
    """Return what there is to know of one connection: a picture of both ends, what is known of it, and its cause.

    Args:
        view: the sockets.
        row: which of them.
        findings: what is said of it.
        style: width and colour.
        raw: end with every column that the kernel reported.
    """
    cells = Cells(view, np.array([row], np.int64), findings)
    yield "\n".join(_picture(view, row, cells, style.width)) + "\n"
    facts = _facts(view, row, cells)
    yield "\n" + "\n".join(line for label, text in facts for line in wrap(label, text, style.width)) + "\n"
    causes = [f for f in findings if (f.rows == row).any()]
    if not causes:
        yield "\n" + "\n".join(textwrap.wrap(_unsuspected(view, row), style.width)) + "\n"
    also = [f.rule for f in causes if not f.primary]
    for finding in causes:
        if finding.primary:
            yield "\n" + "\n".join(detail(view, finding, style, 0, alone=True)) + "\n"
            yield f"              See `finwait explain {finding.rule}`.\n"
    if also:
        text = f"matches, but is not the cause: {', '.join(also)}"
        yield "\n" + "\n".join(wrap("Also", text, style.width)) + "\n"
    if raw:
        yield "\n" + "\n".join(_all_columns(view, row, style)) + "\n"


def _facts(view: View, row: int, cells: Cells) -> list[tuple[str, str]]:
    """Return what is known of a connection, labelled."""
    facts = [
        ("netns", _namespace(view, row)),
        ("cookie", f"{_cookie(cells)}, inode {_known(cells, 'inode')}"),
        ("age", cells.column("age")[0]),
        ("timer", _known(cells, "timer_name") or "none: nothing will fire"),
        ("ends", cells.column("outlook")[0]),
        ("queues", _queues(cells)),
        ("owner", _owner_text(view, row, cells)),
        *_waits(view, row),
        *_options(view, row),
        *_other_end(view, row),
        ("conntrack", cells.column("conntrack")[0] or "no entry was seen"),
    ]
    names = (
        "pod",
        "workload",
        "container",
        "service",
        "peer_pod",
        "unit",
        "container_id",
        "pod_uid",
        "cgroup",
    )
    return [*facts, *((name, value) for name in names if (value := cells.column(name)[0]))]


def _queues(cells: Cells) -> str:
    return f"{_known(cells, 'rqueue')} to read, {_known(cells, 'wqueue')} not acknowledged"


def _known(cells: Cells, name: str) -> str:
    """Return a cell as text, where what was read says it."""
    value = cells.column(name)[0]
    return "not told" if value is None else str(value)


def _cookie(cells: Cells) -> str:
    value = cells.column("cookie")[0]
    return "not told" if value is None else f"{value:#x}"


def _other_end(view: View, row: int) -> list[tuple[str, str]]:
    """Return what is known of the other end beyond the picture, where it is on this machine."""
    other = int(view.other[row])
    if other < 0:
        return []
    cells = Cells(view, np.array([other], np.int64))
    texts = [f"cookie {_cookie(cells)}; {_queues(cells)}"]
    texts += [f"waits: {text}" for _, text in _waits(view, other)]
    if ends := cells.column("outlook")[0]:
        texts.append(f"ends: {ends}")
    return [("other end" if k == 0 else "", text) for k, text in enumerate(texts)]


def _unsuspected(view: View, row: int) -> str:
    """Return what can be said of a connection that no rule has marked: one in a closing state has always one."""
    state = int(view.sockets.state[row])
    if state == tcp.ESTABLISHED:
        return (
            "It is open, and no rule suspects it. One look cannot tell whether its program still "
            "serves it: `finwait probe` checks whether the peer is alive, `--for 5s` looks twice."
        )
    return f"It is {tcp.state_name(state)}: there is no connection yet that could close."


def _holder_text(view: View, row: int, cells: Cells) -> str:
    """Return who holds a socket, for the picture: a closed one has nobody, which is no gap."""
    if view.holder_found[row] or view.held[row]:
        owner: str = cells.column("owner")[0]
        return owner
    if view.held_untold[row]:
        return "not told"
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
    inode = int(view.sockets.netns[row])
    namespace = view.namespaces.get(inode)
    return f"{namespace.label} ({inode})" if namespace and namespace.names else str(inode)


def _owner_text(view: View, row: int, cells: Cells) -> str:
    if not view.holder_found[row]:
        if view.held_untold[row]:
            return "unknown: what was read does not say whether a process holds it"
        if not view.held[row]:
            return "nobody: no descriptor refers to it"
        unknown = view.holder_unknown[row]
        if view.releasers(row):
            return f"no descriptor is left: {view.doubt_of(row)}"
        return view.unknown_holder if unknown else "no process (all were inspected)"
    lines = [cells.column("owner")[0]]
    for pid, _ in view.holders.of(row)[:4]:
        process = view.processes.get(pid)
        if process and process.cmdline:
            lines.append(f"`{process.cmdline[:160]}`")
    return "  ".join(lines)


def _options(view: View, row: int) -> list[tuple[str, str]]:
    """Return the options of a connection's socket, labelled; nothing where they were not asked."""
    options = view.socket_options.get(int(view.sockets.inode[row]))
    return [] if options is None else meaning(options)


def _waits(view: View, row: int) -> list[tuple[str, str]]:
    """Return who waits for a connection, labelled; nothing where that was not asked."""
    if not view.waits.asked[row]:
        return []
    wait = view.waits.of(row)
    text = waiting_text(wait)
    if wait.kind == "nobody":
        text = "nobody: no thread and no event loop of its holders does"
        if wait.others:
            text += "; a process that could not be inspected may hold it too"
    return [("waits", text)]


def _picture(view: View, row: int, cells: Cells, room: int) -> list[str]:
    """Both ends in their states, with what stands between them; one below the other where they are too wide."""
    state = cells.column("state_name")[0]
    other = int(view.other[row])
    left = [cells.column("local")[0], state, _holder_text(view, row, cells)]
    if other >= 0:
        end = Cells(view, np.array([other], np.int64))
        right = [end.column("local")[0], end.column("state_name")[0], _holder_text(view, other, end)]
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
            right[1] = "gone: it should be on this machine"
        elif view.peer_here[row]:
            right[1] = "its address is on this machine, but no such connection"
    left.append(_label(view, row))
    link = {0: "──────────", 1: "──────────", 2: "──( NAT )──", 3: "─ ─ ✕ ─ ─ "}[int(view.other_how[row])]
    width, reach = widest(left), widest(right)
    if 10 + width + len(link) + reach > room:
        between = "✕" if "✕" in link else "│ NAT" if "NAT" in link else "│"
        lines = [*_box(left), f"    {between}", *_box(right)]
    else:
        lines = [f"  ┌─{'─' * width}─┐{' ' * len(link)}┌─{'─' * reach}─┐"]
        for k, (a, b) in enumerate(zip(left, right, strict=True)):
            middle = link if k == 1 else " " * len(link)
            lines.append(f"  │ {padded(a, width)} │{middle}│ {padded(b, reach)} │")
        lines.append(f"  └─{'─' * width}─┘{' ' * len(link)}└─{'─' * reach}─┘")
    sentence = _fins(view, row, state)
    if sentence:
        lines += textwrap.wrap(sentence, max(room, 20), initial_indent="  ", subsequent_indent="  ")
    return lines


def _box(texts: Iterable[str]) -> list[str]:
    filled = [text for text in texts if text]
    width = widest(filled)
    return [
        f"  ┌─{'─' * width}─┐",
        *(f"  │ {padded(text, width)} │" for text in filled),
        f"  └─{'─' * width}─┘",
    ]


def _fins(view: View, row: int, state: str) -> str:
    unread = int(view.sockets.rqueue[row])
    if state == "FIN_WAIT2" and unread:
        return (
            f"our FIN → acknowledged;  ← the peer's FIN has not come; {unread} bytes before it are not read"
        )
    s = view.sockets
    if state in ("FIN_WAIT1", "LAST_ACK", "CLOSING") and s.wqueue[row] > 1:
        prefix = "" if state == "FIN_WAIT1" else "← the peer's FIN has come;  "
        sent = "not sent" if s.notsent_bytes[row] else "not acknowledged"
        return f"{prefix}our FIN → {sent}, it waits behind {int(s.wqueue[row]) - 1} bytes"
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
