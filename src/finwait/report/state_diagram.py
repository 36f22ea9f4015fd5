"""The TCP state diagram as text, with how many connections are in each state and how many pass each second.

The picture that says where things pile up: a state whose inflow is larger than its outflow grows. Made for
80 columns and no colour. Where there is less room, `states` says the same without the picture.
"""

from __future__ import annotations

from collections.abc import Mapping

from finwait.uapi import tcp

__all__ = ["HEIGHT", "WIDTH", "diagram", "states"]

WIDTH, HEIGHT = 79, 11
"""Of the diagram, in characters."""


def _count(counts: Mapping[int, int], state: int) -> str:
    return f"{tcp.state_name(state)} {counts.get(state, 0):,}"


def _rate(flows: Mapping[tuple[int, int], float] | None, *edges: tuple[int, int]) -> str:
    if flows is None:
        return ""
    rate = sum(flows.get(edge, 0.0) for edge in edges)
    if rate == 0:
        return "-"
    return f"{rate:.1f}/s" if rate < 100 else f"{rate:,.0f}/s"


def diagram(
    counts: Mapping[int, int], flows: Mapping[tuple[int, int], float] | None, why_no_flows: str = ""
) -> list[str]:
    """Return the diagram as lines of at most 79 characters.

    Args:
        counts: state → connections in it.
        flows: (old, new) → transitions a second; None when they are not known.
        why_no_flows: said in place of them.
    """

    def c(state: int) -> str:
        return _count(counts, state)

    def r(*edges: tuple[int, int]) -> str:
        return _rate(flows, *edges)

    e, w1, w2, tw, cl = tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.TIME_WAIT, tcp.CLOSE
    cw, la, cg, sr, ss, li = tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING, tcp.SYN_RECV, tcp.SYN_SENT, tcp.LISTEN
    left = f"{c(li):<18}--{r((li, sr)):-^10}-> {c(sr)}"
    lines = [
        left,
        f"{'(connect)':<18}--{r((cl, ss)):-^10}-> {c(ss)}",
        f"{'':18}  accepted {r((sr, e)):>10}   connected {r((ss, e)):>10}",
        f"{'':30}{c(e):^20}",
        f"{'we close first':>30}{r((e, w1)):>10} /  \\ {r((e, cw)):<10}the peer closes first",
        f"{'':8}{c(w1):<31}     {c(cw)}",
        f"{'':8}{'FIN acknowledged ' + r((w1, w2)):<36}{'we close too ' + r((cw, la))}",
        f"{'':8}{c(w2):<18}{c(cg):<18}{c(la)}",
        f"{'':8}{'done ' + r((w2, cl)):<18}{'done ' + r((cg, cl)):<18}{'done ' + r((la, cl))}",
        f"{'':8}{c(tw):<36}(closed)",
        f"reset or destroyed: {r((e, cl), (w1, cl), (cw, cl), (ss, cl), (sr, cl))}",
    ]
    if flows is None:
        lines[-1] = f"no flows: {why_no_flows or 'not known'}"[:WIDTH]
    return [line.rstrip() for line in lines]


_ORDER = (
    tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING, tcp.TIME_WAIT,
    tcp.SYN_SENT, tcp.SYN_RECV, tcp.LISTEN,
)  # fmt: skip


def states(
    counts: Mapping[int, int], flows: Mapping[tuple[int, int], float] | None, *, width: int, most: int
) -> list[str]:
    """Return the states that are in use, with what comes in and goes out, as few lines of a narrow screen.

    Args:
        counts: state → connections in it.
        flows: as of `diagram`.
        width: characters of a line.
        most: lines.
    """
    cells = []
    unknown = sorted(set(counts) - set(tcp.STATES))  # a newer kernel's
    for state in (*_ORDER, *unknown):
        into = sum(n for (old, new), n in (flows or {}).items() if new == state != old)
        out = sum(n for (old, new), n in (flows or {}).items() if old == state != new)
        if counts.get(state, 0) or into or out:
            rates = f" +{_short(into)} -{_short(out)}/s" if flows is not None else ""
            cells.append(_count(counts, state) + rates)
    lines: list[str] = []
    for cell in cells or ["no connections"]:
        if lines and len(lines[-1]) + 2 + len(cell) <= width:
            lines[-1] += "  " + cell
        elif len(lines) < most:
            lines.append(cell[:width])
        else:
            lines[-1] = (lines[-1] + "  …") if len(lines[-1]) + 3 <= width else lines[-1][: width - 1] + "…"
            break
    return lines


def _short(rate: float) -> str:
    return f"{rate:.1f}" if 0 < rate < 100 else f"{rate:,.0f}"
