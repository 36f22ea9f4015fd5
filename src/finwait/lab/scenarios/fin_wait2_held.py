"""fin-wait2-held: 23 half-closed sockets that a program keeps, and one orphan that goes by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """IPv4, IPv6 and IPv4-mapped connections, so that a tool that looks at one family only is caught."""
    client, server = lab.netns("client"), lab.netns("server")
    link = lab.link(client, server)
    poller = lab.actor(client, "poller", "poller", "--half-close", "--every=60s")
    backend = lab.actor(server, "backend", "backend", "--listen=[::]:8080")
    door = backend.listen("::", 8080)
    near, far = [], []
    for host, count in ((link.b4, 13), (link.b6, 6), (f"::ffff:{link.b4}", 4)):
        batch, others = meet(poller, host, backend, door, count)
        near += batch
        far += others
    (leaving,), (orphaned,) = meet(poller, link.b4, backend, door)
    poller.send(near, "GET /\r\n")
    backend.recv(far, 7)
    poller.shutdown(near, "WR")
    poller.leave([leaving])
    backend.read_to_end([*far, orphaned])
    return Situation(
        lab,
        "`poller` sent a request on each of 23 connections, called shutdown(SHUT_WR) and waits for the "
        "answer. `backend` read the end-of-file, and neither answers nor closes. The kernel has no timer "
        "for this, because tcp_fin_timeout counts only once the last descriptor is closed. A 24th "
        "connection was closed with close(). It is an orphan, and ends within tcp_fin_timeout.",
        expected=expect("fin-wait2-held", near, "FIN_WAIT2", timer=0),
        others=expect("close-wait-eof-read", [*far, orphaned], "CLOSE_WAIT", rqueue=0),
        healthy=orphan("fin-wait2-orphan", [leaving], "FIN_WAIT2", timer=3),
    )


SCENARIO = Scenario(
    name="fin-wait2-held",
    title="23 half-closed connections that a program keeps open",
    story="A client half-closes and waits for a server that never closes. It stays in FIN_WAIT2 for ever, "
    "whatever tcp_fin_timeout says.",
    claims=("C1", "S03", "S06"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
