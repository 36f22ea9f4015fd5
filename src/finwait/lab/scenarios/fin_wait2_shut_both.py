"""fin-wait2-shut-both: shutdown(SHUT_RDWR) was called, close() was not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Four sockets shut both ways, one shut one way."""
    client, server = lab.netns("client"), lab.netns("server")
    client.sysctl("net.ipv4.tcp_fin_timeout", 2)
    link = lab.link(client, server)
    caller = lab.actor(client, "caller")
    backend = lab.actor(server, "backend")
    door = backend.listen("::", 8080)
    near, far = meet(caller, link.b4, backend, door, 3)
    near6, far6 = meet(caller, link.b6, backend, door, 1)
    (one_way,), (kept,) = meet(caller, link.b4, backend, door)
    caller.shutdown([*near, *near6], "RDWR")
    caller.shutdown([one_way], "WR")
    backend.read_to_end([*far, *far6, kept])
    return Situation(
        lab,
        "`caller` called shutdown(SHUT_RDWR) on four connections and kept the descriptors. The peer sees a "
        "plain half-close. The kernel waits for the peer's FIN without any clock, even with "
        "tcp_fin_timeout=2 as here, because that clock starts only with close().",
        expected=expect("fin-wait2-shut-both", [*near, *near6], "FIN_WAIT2", timer=0),
        others=expect("fin-wait2-held", [one_way], "FIN_WAIT2", timer=0)
        + expect("close-wait-eof-read", [*far, *far6, kept], "CLOSE_WAIT", rqueue=0),
    )


SCENARIO = Scenario(
    name="fin-wait2-shut-both",
    title="shutdown(SHUT_RDWR) without close()",
    story="Shut down in both directions and never closed: tcp_fin_timeout does not apply here either.",
    claims=("C1c", "X11"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
