"""What probes of connections found out, as lines for a person."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from finwait.report.options import left_out_json
from finwait.report.plan import step_json, where, wrapped
from finwait.report.shape import document, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from finwait.errors import Gap
    from finwait.remedy.outcome import Probe
    from finwait.remedy.plan import Step

__all__ = ["counted", "interrupted_lines", "probe_json", "probe_lines", "unrestored_lines"]


def probe_json(probes: Sequence[Probe], left_out: Mapping[str, int], gaps: Iterable[Gap] = ()) -> str:
    """Return what probes found out as one JSON document; ``left_out``: why others were not probed, and how many."""
    items = [
        {
            "step": step_json(p.step),
            "verdict": p.verdict,
            "detail": p.detail,
            "unrestored": p.unrestored or None,
            "kept": dict(p.kept),
            "pinned": p.pinned,
        }
        for p in probes
    ]
    return encoded(document("ProbeList", {"items": items, "left_out": left_out_json(left_out)}, gaps))


def counted(probes: Iterable[Probe]) -> str:
    """Return how many probes had which verdict."""
    verdicts = Counter(p.verdict for p in probes)
    return ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())


def probe_lines(probes: Sequence[Probe]) -> Iterator[str]:
    """Say of each connection what its probe found out."""
    yield f"{counted(probes)}\n"
    for p in probes:
        holder = ", ".join(f"{comm}({pid}:{fd})" for pid, fd, comm in p.step.holders[:1]) or "-"
        src, dst = where(p.step)
        yield f"\n{p.verdict}  {src} → {dst}  {p.step.state}  {holder}\n"
        yield from wrapped(p.detail)
    yield from _kept_lines(probes)
    pinned = [
        p for p in probes if p.pinned and not p.unrestored and p.verdict not in ("gone", "reset", "dead")
    ]
    if pinned:
        names = sorted({name for p in pinned for name in p.pinned})
        yield "\n"
        yield from wrapped(
            f"Their options read as before. On {len(pinned)} connection{'s' if len(pinned) > 1 else ''} "
            f"{', '.join(names)} had the value of the sysctl. It is now the socket's own value, and a later "
            "change of net.ipv4.tcp_keepalive_* does not reach it.",
            indent="",
        )


def _kept_lines(probes: Sequence[Probe]) -> Iterator[str]:
    """Say which options were set by their programs meanwhile."""
    kept = [p for p in probes if p.kept]
    for p in kept[:20]:
        src, dst = where(p.step)
        values = ", ".join(f"{name}={value}" for name, value in p.kept)
        yield "\n"
        yield from wrapped(
            f"{src} → {dst}: its program set {values} during the probe. These values stay; the other "
            "options are as before.",
            indent="",
        )
    if len(kept) > 20:
        yield f"… and {len(kept) - 20} more\n"


def interrupted_lines(probes: Sequence[Probe]) -> Iterator[str]:
    """Say what became of the options when a probe was interrupted, and all could be put back."""
    kept = sum(1 for p in probes if p.kept)
    but = f", except those that the programs of {kept} of them set meanwhile" if kept else ""
    yield f"finwait: interrupted; every option is as it was before{but}\n"


def unrestored_lines(steps: Sequence[Step], why: Mapping[int, str]) -> Iterator[str]:
    """Say which options could not be put back, and why."""
    for k, text in why.items():
        src, dst = where(steps[k])
        yield f"finwait: {src} → {dst}: {text}\n"
    yield "hint: `finwait journal` shows the old values; `finwait undo ACT` tries again\n"
