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

__all__ = ["interrupted_lines", "probe_json", "probe_lines", "unrestored_lines"]


def probe_json(found: Sequence[Probe], left: Mapping[str, int]) -> str:
    """Return what probes found out as one JSON document; ``left``: why others were not probed, and how many."""
    items = [
        {
            "step": p.step,
            "verdict": p.verdict,
            "detail": p.detail,
            "unrestored": p.unrestored or None,
            "kept": dict(p.kept),
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
    yield from _kept_lines(found)
    pinned = [
        p for p in found if p.pinned and not p.unrestored and p.verdict not in ("gone", "reset", "dead")
    ]
    if pinned:
        names = sorted({name for p in pinned for name in p.pinned})
        yield "\n"
        yield from wrapped(
            f"Their options read as before. On {len(pinned)} "
            f"connection{'s' if len(pinned) > 1 else ''} {', '.join(names)} had the value of the "
            "sysctl: it is now the socket's own, and a later change of net.ipv4.tcp_keepalive_* does "
            "not reach it.",
            indent="",
        )


def _kept_lines(found: Sequence[Probe]) -> Iterator[str]:
    """Say which options were set by their programs meanwhile."""
    kept = [p for p in found if p.kept]
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


def interrupted_lines(found: Sequence[Probe]) -> Iterator[str]:
    """Say what became of the options when a probe was interrupted, and all could be put back."""
    kept = sum(1 for p in found if p.kept)
    but = f", except those that the programs of {kept} of them set meanwhile" if kept else ""
    yield f"finwait: interrupted; every option is as it was before{but}\n"


def unrestored_lines(steps: Sequence[Step], why: Mapping[int, str]) -> Iterator[str]:
    """Say which options could not be put back, and why."""
    for k, text in why.items():
        src, dst = where(steps[k])
        yield f"finwait: {src} → {dst}: {text}\n"
    yield "hint: `finwait journal` shows the old values; `finwait undo ACT` tries again\n"
