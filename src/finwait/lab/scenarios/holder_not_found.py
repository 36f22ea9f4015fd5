"""holder-not-found: the socket has an inode and no process on the machine has a descriptor of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Four sockets inside an unread message, one that is held in the ordinary way, one as the kernel's own would be."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client = lab.actor(outside, "client")
    dispatcher = lab.actor(inside, "dispatcher", "dispatcher", "--pass-to=worker.sock")
    door = dispatcher.listen(link.b4, 8080)
    waiting, passed = meet(client, link.b4, dispatcher, door, 2)
    (orphaned,), (abandoned,) = meet(client, link.b4, dispatcher, door)
    (asking,), (own,) = meet(client, link.b4, dispatcher, door)
    dispatcher.shutdown([*passed, own], "WR")
    client.read_to_end([*waiting, asking])
    client.leave([orphaned])
    dispatcher.read_to_end([abandoned])
    (hoping,), (unanswered,) = meet(client, link.b4, dispatcher, door)
    (mounted,), (served,) = meet(client, link.b4, dispatcher, dispatcher.listen(link.b4, 2049))
    client.send([hoping], "GET /")
    dispatcher.recv([unanswered], 5)
    dispatcher.strand([*passed, abandoned, unanswered, served])
    return Situation(
        lab,
        "`dispatcher` passed sockets on over a Unix socket (SCM_RIGHTS) and closed its own copies; the "
        "worker that should receive them never reads. They exist only inside that message: they have an "
        "inode, and no descriptor in any /proc/PID/fd. One of them is still open, and its client waits for "
        "an answer. `dispatcher` kept one more socket. Another one is on port 2049, where a socket of the "
        "kernel's own NFS server looks exactly the same.",
        expected=expect("holder-not-found", passed, "FIN_WAIT2", owners=())
        + expect("holder-not-found", [abandoned], "CLOSE_WAIT", owners=(), rqueue=0)
        + expect("holder-not-found", [unanswered], "ESTABLISHED", owners=(), rqueue=0),
        others=expect("fin-wait2-held", [own], "FIN_WAIT2")
        + expect("close-wait-eof-read", [*waiting, asking], "CLOSE_WAIT", rqueue=0),
        healthy=orphan("fin-wait2-orphan", [orphaned], "FIN_WAIT2", timer=3)
        + expect("holder-not-found", [served], "ESTABLISHED", owners=())
        + expect("", [hoping, mounted], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="holder-not-found",
    title="sockets in flight between two processes",
    story="The kernel holds them for a message that nobody receives.",
    claims=("C8", "X15"),
    needs=("netns",),
    seconds=0.4,
    build=build,
    watch_ms=1200,
)
