"""What probes of connections found out, as lines for a person."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from finwait.report.plan import where, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from finwait.remedy.outcome import Probe
    from finwait.remedy.plan import Step

__all__ = ["probe_json", "probe_lines", "unrestored_lines"]


def probe_json(found: Sequence[Probe], left: Mapping[str, int]) -> str:
    """Return what probes found out as one JSON document; ``left``: why others were not probed, and how many."""
    items = [
        {
            "step": p.step,
            "verdict": p.verdict,
            "detail": p.detail,
            "unrestored": p.unrestored or None,
            "pinned": p.pinned,
        }
        for p in found
    ]
    out = {"apiVersion": "finwait/v1", "kind": "ProbeList", "items": items, "left": left}
    return msgspec.json.encode(out).decode() + "\n"


def probe_lines(found: Sequence[Probe]) -> Iterator[str]:
    """Say of each connection what its probe found out."""
    counted = Counter(p.verdict for p in found)
    yield ", ".join(f"{n} {verdict}" for verdict, n in counted.most_common()) + "\n"
    for p in found:
        who = ", ".join(f"{comm}({pid}:{fd})" for pid, fd, comm in p.step.holders[:1]) or "-"
        src, dst = where(p.step)
        yield f"\n{p.verdict}  {src} → {dst}  {p.step.state}  {who}\n"
        yield from wrapped(p.detail)
    pinned = [
        p for p in found if p.pinned and not p.unrestored and p.verdict not in ("gone", "reset", "dead")
    ]
    if pinned:
        names = sorted({name for p in pinned for name in p.pinned})
        yield "\n"
        yield from wrapped(
            f"Their options read as before. Of {len(pinned)} connection{'s' if len(pinned) > 1 else ''} "
            f"{', '.join(names)} had the value of the sysctl: now it is the socket's own, and a later change of "
            "net.ipv4.tcp_keepalive_* does not reach it.",
            indent="",
        )


def unrestored_lines(steps: Sequence[Step], why: Mapping[int, str]) -> Iterator[str]:
    """Say which options could not be put back, and why."""
    for k, text in why.items():
        src, dst = where(steps[k])
        yield f"finwait: {src} → {dst}: {text}\n"
    yield "hint: `finwait journal` has the old values; `finwait undo ACT` tries again\n"
