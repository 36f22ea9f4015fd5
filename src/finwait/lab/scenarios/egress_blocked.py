"""egress-blocked: a firewall rule of the own machine swallows what is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Orphans in FIN_WAIT1 and LAST_ACK, a held FIN_WAIT1 and an open connection, all behind a rule in OUTPUT."""
    client, server = lab.netns("client"), lab.netns("server")
    barred, cut = lab.link(client, server), lab.link(client, server)
    app = lab.actor(client, "app")
    backend = lab.actor(server, "backend")
    door, other = backend.listen(barred.b4, 8080), backend.listen(cut.b4, 8080)
    first, waiting = meet(app, barred.b4, backend, door, 3)
    last, orphaned = meet(app, barred.b4, backend, door, 2)
    (held, sending, idle), rest = meet(app, barred.b4, backend, door, 3)
    (lost,), (unaware,) = meet(app, cut.b4, backend, other)
    backend.leave(orphaned)
    app.read_to_end(last)
    cut.cut()
    barred.refuse(a=True)
    app.send([*first[:1], sending], "bye")
    app.close([*first, *last, lost])
    app.shutdown([held], "WR")
    return Situation(
        lab,
        "The firewall of `client` drops everything that leaves for the server. `app` does not know this: "
        "it closed five connections, shut one down and sends on another. Nothing gets out. The windows are "
        "open, nothing is in flight, and the kernel tries again on the window probe timer (timer 4). An "
        "idle connection is not affected yet. On another link the path is dead but this machine drops "
        "nothing; there, the FIN is out and is retransmitted (timer 1).",
        expected=orphan("egress-blocked", first, "FIN_WAIT1", timer=4, probes=1)
        + orphan("egress-blocked", last, "LAST_ACK", timer=4, probes=1)
        + expect("egress-blocked", [held], "FIN_WAIT1", timer=4, probes=1)
        + expect("egress-blocked", [sending], "ESTABLISHED", timer=4, probes=1),
        others=orphan("fin-unanswered-orphan", [lost], "FIN_WAIT1", timer=1, retrans=1),
        healthy=orphan("fin-wait2-orphan", orphaned, "FIN_WAIT2", timer=3)
        + expect("", [idle, *waiting, *rest, unaware], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="egress-blocked",
    title="closed, but a firewall rule of this machine lets nothing out",
    story="No answer is missing and no window is closed: the segments never leave.",
    claims=("C18",),
    needs=("netns", "tool:nft"),
    seconds=0.8,
    build=build,
)
