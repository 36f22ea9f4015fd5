"""kube-proxy-userspace: where finwait comes from. A userspace proxy, a backend that never closes.

The situation of kubernetes/kubernetes#17641: kube-proxy 1.0 and 1.1 relayed Service traffic through itself
and passed half-closes on, without a deadline. Rule: relay-pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan
from finwait.lab.topology import unmet

if TYPE_CHECKING:
    from pathlib import Path

    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]

_POD = "/".join(
    (
        "kubepods.slice",
        "kubepods-burstable.slice",
        "kubepods-burstable-pod3f1c6f0e_5d0b_4c53_9b3e_8a1f2c9d7e64.slice",
        "cri-containerd-9d2f4b8c1e7a6053f4c8d1b2a7e9f0635c8d4e1b2a7f9c0635d8e1f4b2a7c906.scope",
    )
)


def build(lab: Lab) -> Situation:
    """Seven stuck pairs, an orphan of the proxy's own beside them, one Service connection in use."""
    clients, node, pod = lab.netns("clients"), lab.netns("node"), lab.netns("pod")
    front, back = lab.link(clients, node), lab.link(node, pod)
    cgroup: Path | None = None if unmet(("cgroup2",)) else lab.cgroup(_POD)
    client = lab.actor(clients, "curl", "curl", "-s", f"http://{front.b4}:30080/")
    proxy = lab.actor(node, "kube-proxy", "kube-proxy", "--proxy-mode=userspace")
    backend = lab.actor(pod, "backend", "backend", "--listen=:8080", cgroup=cgroup)
    door, target = proxy.listen(front.b4, 30080), backend.listen(back.b4, 8080)
    proxy.relay(door, back.b4, 8080, keepalive=True)
    leaving = client.connect_many(7, front.b4, 30080)
    staying = client.connect_many(1, front.b4, 30080)
    ends = backend.accept_many(target, 8)
    client.send([*leaving, *staying], "GET / HTTP/1.0\r\n\r\n")
    backend.recv(ends, 18)
    leaving_ports = {conn.sport for conn in leaving}
    legs = proxy.legs(door)
    stuck = [pair for pair in legs if pair[0].dport in leaving_ports]
    alive = [conn for pair in legs if pair[0].dport not in leaving_ports for conn in pair]
    ports = {outer.sport for _, outer in stuck}
    held = [conn for conn in ends if conn.dport in ports]
    client.leave(leaving)
    backend.read_to_end(held)
    (check,), (checked,) = meet(proxy, back.b4, backend, target)
    proxy.leave([check])
    backend.read_to_end([checked])
    return Situation(
        lab,
        "`kube-proxy` relays a Service's connections to `backend`. Seven clients have finished and closed. "
        "The proxy passed that on (FIN_WAIT2 to the backend) and waits for the backend's end-of-file "
        "before it closes the client's leg (CLOSE_WAIT). `backend` never closes. Both legs stay for ever, "
        "with a keepalive that the live backend keeps answering. Beside them is a health check that the "
        "proxy closed properly: an orphan in FIN_WAIT2, which the kernel removes within a minute.",
        expected=expect("relay-pair", [inner for inner, _ in stuck], "CLOSE_WAIT", rqueue=0, timer=2)
        + expect("relay-pair", [outer for _, outer in stuck], "FIN_WAIT2", timer=2),
        others=expect("close-wait-eof-read", [*held, checked], "CLOSE_WAIT", rqueue=0),
        healthy=orphan("fin-wait2-orphan", [*leaving, check], "FIN_WAIT2", timer=3)
        + expect("", [*staying, *alive], "ESTABLISHED")
        + expect("", [conn for conn in ends if conn not in held], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="kube-proxy-userspace",
    title="the classic: FIN_WAIT2 in kube-proxy, to a backend that never closes",
    story="This rebuilds the incident behind the popular advice about tcp_fin_timeout.",
    claims=("C3", "S01", "S05", "S23"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
