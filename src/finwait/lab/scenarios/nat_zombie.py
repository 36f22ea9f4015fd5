"""nat-zombie: a stray RST through a translating gateway killed one end only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Two connections that lose their server end, two through the same gateway that are well."""
    translated = lab.translated()
    client, backend, door = translated.client, translated.backend, translated.door
    translated.gateway.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", 0)
    doomed, killed = meet(client, translated.address, backend, door, 2)
    well, fine = meet(client, translated.address, backend, door, 2)
    client.send([*doomed, *well], "ping")
    backend.recv([*killed, *fine], 4)
    for conn in killed:
        backend.inject_above_window(conn)
    backend.await_reset(killed)
    backend.close(killed)
    return Situation(
        lab,
        "On each of two connections, one late segment of `backend` was above the window. conntrack called "
        "it INVALID, and it was forwarded untranslated. The client's kernel knew no such connection and "
        "answered with a RST, which killed the connection at `backend`. `client` does not know this, and "
        "neither does conntrack: both say ESTABLISHED, conntrack for five days. Two other connections "
        "through the gateway are healthy.",
        expected=expect("nat-zombie", doomed, "ESTABLISHED", timer=0),
        healthy=expect("", [*well, *fine], "ESTABLISHED", timer=0),
    )


SCENARIO = Scenario(
    name="nat-zombie",
    title="a stray RST killed the server's end behind a gateway",
    story="An INVALID packet is forwarded untranslated, and the RST that answers it reaches only one end.",
    claims=("C14", "X35", "X38"),
    needs=("netns", "tool:nft"),
    seconds=0.4,
    build=build,
)
