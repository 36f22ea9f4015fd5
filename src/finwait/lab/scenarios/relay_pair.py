"""relay-pair: one process holds CLOSE_WAIT on one leg and FIN_WAIT2 on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Four stuck pairs, one pair still in use, and single legs of other programs as near misses."""
    outside, node, inside = lab.netns("client"), lab.netns("node"), lab.netns("backend")
    front, back = lab.link(outside, node), lab.link(node, inside)
    client = lab.actor(outside, "client")
    relay = lab.actor(node, "relay", "relay", "--listen=:80", f"--to={back.b4}:8080")
    backend = lab.actor(inside, "backend", "backend", "--listen=:8080")
    door, target = relay.listen(front.b4, 80), backend.listen(back.b4, 8080)
    relay.relay(door, back.b4, 8080)
    leaving = client.connect_many(4, front.b4, 80)
    staying = client.connect_many(1, front.b4, 80)
    ends = backend.accept_many(target, 5)
    client.send(leaving + staying, "hello")
    backend.recv(ends, 5)
    leaving_ports = {conn.sport for conn in leaving}
    legs = relay.legs(door)
    stuck = [pair for pair in legs if pair[0].dport in leaving_ports]
    alive = [pair for pair in legs if pair[0].dport not in leaving_ports]
    stuck_ports = {outer.sport for _, outer in stuck}
    stuck_ends = [conn for conn in ends if conn.dport in stuck_ports]
    client.leave(leaving)
    backend.read_to_end(stuck_ends)
    # Near misses on the same node: a CLOSE_WAIT and a FIN_WAIT2, but of two programs that relay nothing.
    worker = lab.actor(node, "worker")
    cron = lab.actor(node, "cron")
    worker_door = worker.listen(front.b4, 9000)
    (caller,), (finished,) = meet(client, front.b4, worker, worker_door)
    (asking,), (asked,) = meet(cron, back.b4, backend, target)
    client.leave([caller])
    worker.read_to_end([finished])
    cron.shutdown([asking], "WR")
    backend.read_to_end([asked])
    return Situation(
        lab,
        "`relay` copies bytes both ways and passes half-closes on. Four clients have closed. The relay "
        "read their end-of-file (CLOSE_WAIT) and sent the backend a FIN (FIN_WAIT2 on the other leg). "
        "`backend` never closes, so the relay's second copy loop never ends, and both legs stay for ever. "
        "Two other programs on the node each hold one such leg, but relay nothing.",
        expected=expect("relay-pair", [inner for inner, _ in stuck], "CLOSE_WAIT", rqueue=0)
        + expect("relay-pair", [outer for _, outer in stuck], "FIN_WAIT2"),
        others=expect("close-wait-eof-read", [*stuck_ends, finished, asked], "CLOSE_WAIT", rqueue=0)
        + expect("fin-wait2-held", [asking], "FIN_WAIT2"),
        healthy=orphan("fin-wait2-orphan", [*leaving, caller], "FIN_WAIT2", timer=3)
        + expect("", staying, "ESTABLISHED")
        + expect("", [conn for conn in ends if conn not in stuck_ends], "ESTABLISHED")
        + expect("", [conn for pair in alive for conn in pair], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="relay-pair",
    title="a relay waits for a backend that never closes",
    story="A relay passes half-closes on and has no deadline for the second direction. The client's leg is "
    "in CLOSE_WAIT and the backend's leg in FIN_WAIT2, and the same process holds both.",
    claims=("C3", "S01", "X52"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
