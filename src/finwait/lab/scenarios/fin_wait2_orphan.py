"""fin-wait2-orphan: closed for good on our side; the kernel counts down. Healthy, nothing to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Five orphans, and one held socket in the same state as the near miss."""
    client, server = lab.netns("client"), lab.netns("server")
    link = lab.link(client, server)
    browser = lab.actor(client, "browser")
    backend = lab.actor(server, "backend", "backend", "--listen=[::]:8080")
    door = backend.listen("::", 8080)
    near, far = meet(browser, link.b4, backend, door, 3)
    near6, far6 = meet(browser, link.b6, backend, door, 2)
    (held,), (kept,) = meet(browser, link.b4, backend, door)
    browser.shutdown([held], "WR")
    browser.leave([*near, *near6])
    backend.read_to_end([*far, *far6, kept])
    return Situation(
        lab,
        "`browser` closed five connections; `backend` has not closed its side yet. The kernel keeps a "
        "small record of each for tcp_fin_timeout seconds (timer 3, no inode) and then forgets it. The "
        "sixth connection was only half-closed and still has a descriptor, so that clock does not run for "
        "it.",
        expected=orphan("fin-wait2-orphan", [*near, *near6], "FIN_WAIT2", timer=3),
        others=expect("fin-wait2-held", [held], "FIN_WAIT2", timer=0)
        + expect("close-wait-eof-read", [*far, *far6, kept], "CLOSE_WAIT", rqueue=0),
    )


SCENARIO = Scenario(
    name="fin-wait2-orphan",
    title="closed connections that the kernel will forget within a minute (healthy)",
    story="close() was called and the peer has not closed yet. This is the only FIN_WAIT2 that "
    "tcp_fin_timeout is about.",
    claims=("C2", "X02"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
