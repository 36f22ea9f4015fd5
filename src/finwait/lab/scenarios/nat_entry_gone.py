"""nat-entry-gone: a translation has expired, and the two ends cannot reach each other any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Three flows half-closed by the server, two by nobody; one more with its entry alive."""
    translated = lab.translated()
    client, backend, door = translated.client, translated.backend, translated.door
    half, answered = meet(client, translated.address, backend, door, 3)
    idle, waiting = meet(client, translated.address, backend, door, 2)
    client.send(half, "hello")
    backend.recv(answered, 5)
    # A timeout is written into the entry by each packet, so it acts on the flows that speak after this.
    translated.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close_wait", 1)
    translated.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", 1)
    backend.shutdown(answered, "WR")
    client.read_to_end(half)
    client.send(idle, "ping")
    backend.recv(waiting, 4)
    Situation(
        lab,
        "before the entries expire",
        expect("", answered, "FIN_WAIT2")
        + expect("", half, "CLOSE_WAIT")
        + expect("", waiting, "ESTABLISHED"),
    ).settle()
    translated.await_no_entries()
    translated.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close_wait", 3600)
    translated.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", 86400)
    (still,), (served,) = meet(client, translated.address, backend, door)
    backend.shutdown([served], "WR")
    client.read_to_end([still])
    client.close([*half, *idle])
    return Situation(
        lab,
        "A gateway translates a Service address to `backend`. On three connections `backend` had "
        "half-closed, and with nf_conntrack_tcp_timeout_close_wait=1 the gateway forgot them a second "
        "later; on two idle ones the entry for an established flow expired. Then `client` closed. A FIN "
        "cannot create an entry, so it is not translated and goes nowhere. `client` repeats it (LAST_ACK, "
        "FIN_WAIT1), and `backend` stays in FIN_WAIT2 or ESTABLISHED for ever. On the sixth connection the "
        "entry is alive, and the half-close is an ordinary one.",
        expected=expect("nat-entry-gone", answered, "FIN_WAIT2")
        + expect("nat-entry-gone", waiting, "ESTABLISHED")
        + orphan("nat-entry-gone", half, "LAST_ACK", timer=1, retrans=1)
        + orphan("nat-entry-gone", idle, "FIN_WAIT1", timer=1, retrans=1),
        others=expect("fin-wait2-held", [served], "FIN_WAIT2")
        + expect("close-wait-eof-read", [still], "CLOSE_WAIT", rqueue=0),
    )


SCENARIO = Scenario(
    name="nat-entry-gone",
    title="the gateway forgot the translation of half-closed and idle connections",
    story="A short nf_conntrack timeout makes stuck sockets at both ends instead of curing them.",
    claims=("C13", "S31", "X28"),
    needs=("netns", "tool:nft", "tool:conntrack"),
    seconds=2.0,
    build=build,
)
