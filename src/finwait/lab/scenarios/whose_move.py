"""whose-move: the same half-close ten times, and something else in the program waits for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]

_How = Literal["recv", "poll", "loop", "edge", "spent", "paused", "elsewhere"]
_CLIENT: Final[tuple[tuple[_How | None, str], ...]] = (
    ("recv", "waits-for-ever"),
    ("poll", "waits-limited"),
    ("loop", "loop-watches"),
    ("paused", "paused"),
    (None, "forgotten"),
)
"""How each client waits for the answer that does not come, and what that is called."""
_SERVER: Final[tuple[tuple[_How | None, str], ...]] = (
    ("edge", "told-once"),
    ("elsewhere", "loop-elsewhere"),
    ("spent", "paused"),
    ("paused", "paused"),
    (None, "forgotten"),
)
"""How each server waits for what is there already: the end-of-file."""


def build(lab: Lab) -> Situation:
    """Five half-closed connections; each of the ten ends is waited for in a way of its own."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client, server = lab.actor(outside, "client"), lab.actor(inside, "server")
    door = server.listen(link.b4, 8080)
    asking, serving = meet(client, link.b4, server, door, len(_CLIENT))
    client.shutdown(asking)
    for conn, (how, _) in zip(asking, _CLIENT, strict=True):
        if how is not None:
            client.wait([conn], how)
    for conn, (how, _) in zip(serving, _SERVER, strict=True):
        if how is not None:
            server.wait([conn], how)
    half = [
        row
        for conn, (_, move) in zip(asking, _CLIENT, strict=True)
        for row in expect("fin-wait2-held", [conn], "FIN_WAIT2", move=move)
    ]
    unread = [
        row
        for conn, (_, move) in zip(serving, _SERVER, strict=True)
        for row in expect("close-wait-eof-unread", [conn], "CLOSE_WAIT", rqueue=1, move=move)
    ]
    return Situation(
        lab,
        "`client` ended its requests with shutdown(SHUT_WR) and waits for five answers: in recv() without a "
        "limit, in poll() for ten minutes, in an event loop, in one that it paused, and not at all. `server` "
        "has read none of the five ends-of-file: its loop was told once and sleeps again, its loop's thread "
        "does something else, its one-shot is not armed again, it paused reading, and nothing waits for the "
        "last.",
        expected=tuple(half),
        others=tuple(unread),
    )


SCENARIO = Scenario(
    name="whose-move",
    title="half-closed connections that look alike, and what in their programs waits for each",
    story="The sockets look alike; only the threads and event loops of their programs differ.",
    claims=(),
    needs=("netns",),
    seconds=0.6,
    build=build,
)
