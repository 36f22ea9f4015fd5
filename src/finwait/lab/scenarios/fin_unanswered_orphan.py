"""fin-unanswered-orphan: closed, and the FIN is never acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.diagnosis import forecast
from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]

_LIFE = forecast.span(forecast.orphan())


def build(lab: Lab) -> Situation:
    """Orphans in FIN_WAIT1, LAST_ACK and CLOSING, and a held one."""
    client, server = lab.netns("client"), lab.netns("server")
    lost, one_way = lab.link(client, server), lab.link(client, server)
    app = lab.actor(client, "app")
    backend = lab.actor(server, "backend")
    door, other = backend.listen(lost.b4, 8080), backend.listen(one_way.b4, 8080)
    first, waiting = meet(app, lost.b4, backend, door, 3)
    last, orphaned = meet(app, lost.b4, backend, door, 2)
    (held,), (kept,) = meet(app, lost.b4, backend, door)
    (crossing,), (crossed,) = meet(app, one_way.b4, backend, other)
    backend.leave(orphaned)
    app.read_to_end(last)
    lost.cut()
    one_way.cut(a=False)
    app.close([*first, *last, crossing])
    app.shutdown([held], "WR")
    backend.close([crossed])
    return Situation(
        lab,
        "The path went dead, and then `app` closed. The kernel retransmits its FINs without an answer "
        "(timer 1, no inode). The state is FIN_WAIT1 where `app` closed first, LAST_ACK where the server "
        "had closed before, and CLOSING where both closed and only the server's FIN got through. The "
        f"kernel gives up such orphans after about {_LIFE} (tcp_orphan_retries). One FIN_WAIT1 still has an "
        "owner, and much more time.",
        expected=orphan("fin-unanswered-orphan", first, "FIN_WAIT1", timer=1, retrans=1)
        + orphan("fin-unanswered-orphan", last, "LAST_ACK", timer=1, retrans=1)
        + orphan("fin-unanswered-orphan", [crossing], "CLOSING", timer=1, retrans=1)
        + orphan("fin-unanswered-orphan", [crossed], "FIN_WAIT1", timer=1, retrans=1),
        others=expect("fin-unanswered-held", [held], "FIN_WAIT1", timer=1, retrans=1),
        healthy=orphan("fin-wait2-orphan", orphaned, "FIN_WAIT2", timer=3)
        + expect("", [*waiting, kept], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="fin-unanswered-orphan",
    title="closed, but nobody acknowledges the FIN",
    story="An orphan retransmits its FIN and nothing answers. The kernel gives up by itself.",
    claims=("C11", "S21", "X04"),
    needs=("netns", "tool:nft"),
    seconds=0.6,
    build=build,
)
