"""fin-wait2-streaming: half-closed on our side while the answer is still coming. Healthy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Three connections with bytes arriving, and one on which nothing comes any more."""
    client, server = lab.netns("client"), lab.netns("server")
    link = lab.link(client, server)
    reader = lab.actor(client, "log-reader", "log-reader", "--follow")
    source = lab.actor(server, "log-source")
    door = source.listen(link.b4, 8080)
    near, far = meet(reader, link.b4, source, door, 3)
    (silent,), (kept,) = meet(reader, link.b4, source, door)
    reader.send([*near, silent], "follow\n")
    source.recv([*far, kept], 7)
    reader.shutdown([*near, silent], "WR")
    source.read_to_end([*far, kept])
    reader.absorb(near)
    source.trickle(far, "line\n", 0.05)
    return Situation(
        lab,
        "`log-reader` sent its request and half-closed, as `ssh`, `nc -N` and many RPC protocols do; "
        "`log-source` sends a line every 50 ms on three of the connections. This is a proper use of "
        "half-close, and ending it would cut off the answer. On the fourth, nothing comes.",
        expected=expect("fin-wait2-streaming", near, "FIN_WAIT2"),
        others=expect("fin-wait2-held", [silent], "FIN_WAIT2", timer=0)
        + expect("close-wait-eof-read", [kept], "CLOSE_WAIT", rqueue=0),
        healthy=expect("closing-in-progress", far, "CLOSE_WAIT", rqueue=0),
    )


SCENARIO = Scenario(
    name="fin-wait2-streaming",
    title="half-closed connections whose answer still arrives (healthy)",
    story="The same state as fin-wait2-held. The difference is that bytes arrive between two looks.",
    claims=("C1b",),
    needs=("netns",),
    seconds=0.4,
    build=build,
    watch_ms=700,
)
