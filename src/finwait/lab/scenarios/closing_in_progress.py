"""closing-in-progress: closing states on which something still moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Three answers that are still being sent after the client's FIN, and one that is not."""
    client, server = lab.netns("client"), lab.netns("server")
    link = lab.link(client, server)
    asker = lab.actor(client, "asker")
    source = lab.actor(server, "slow-source")
    door = source.listen(link.b4, 8080)
    near, far = meet(asker, link.b4, source, door, 3)
    (silent,), (kept,) = meet(asker, link.b4, source, door)
    asker.shutdown([*near, silent], "WR")
    source.read_to_end([*far, kept])
    asker.absorb(near)
    source.trickle(far, "line\n", 0.05)
    return Situation(
        lab,
        "`asker` has sent its FIN on four connections; `slow-source` still answers on three of them, with "
        "a line every 50 ms. They are in CLOSE_WAIT but not leaked, because bytes were acknowledged "
        "between two looks. On the fourth, nothing moves.",
        expected=expect("closing-in-progress", far, "CLOSE_WAIT", rqueue=0),
        others=expect("fin-wait2-streaming", near, "FIN_WAIT2")
        + expect("fin-wait2-held", [silent], "FIN_WAIT2", timer=0)
        + expect("close-wait-eof-read", [kept], "CLOSE_WAIT", rqueue=0),
    )


SCENARIO = Scenario(
    name="closing-in-progress",
    title="CLOSE_WAIT while the answer still goes out (healthy)",
    story=(
        "The same state as close-wait-eof-read. The difference is that bytes are acknowledged between "
        "two looks."
    ),
    claims=("C20",),
    needs=("netns",),
    seconds=0.4,
    build=build,
    watch_ms=700,
)
