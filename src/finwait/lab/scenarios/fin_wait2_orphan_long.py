"""fin-wait2-orphan-long: an orphan whose time is longer than a minute is kept as a full socket first."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Two ways to get there: an option of the socket, and the sysctl of the namespace."""
    client, patient, server = lab.netns("client"), lab.netns("patient"), lab.netns("server")
    patient.sysctl("net.ipv4.tcp_fin_timeout", 120)
    link, other = lab.link(client, server), lab.link(patient, server)
    browser = lab.actor(client, "browser")
    agent = lab.actor(patient, "agent")
    backend = lab.actor(server, "backend")
    door = backend.listen("0.0.0.0", 8080)  # noqa: S104  # all of a private namespace
    near, far = meet(browser, link.b4, backend, door, 2)
    by_sysctl, far_too = meet(agent, other.b4, backend, door, 2)
    (plain, probed), kept = meet(browser, link.b4, backend, door, 2)
    browser.setsockopt(near, socket.IPPROTO_TCP, socket.TCP_LINGER2, 120)
    browser.setsockopt([probed], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    browser.leave([*near, plain])
    browser.shutdown([probed], "WR")
    agent.leave(by_sysctl)
    backend.read_to_end([*far, *far_too, *kept])
    return Situation(
        lab,
        "Four connections were closed with more than 60 s to wait, two because of TCP_LINGER2=120 and two "
        "because of tcp_fin_timeout=120. Such an orphan stays a full socket (timer 2, no inode) for the "
        "part above 60 s. Then the kernel keeps it as a small record for as long again. A fifth has the "
        "usual 60 s (timer 3). A sixth also shows timer 2, but because of SO_KEEPALIVE: it has an owner.",
        expected=orphan("fin-wait2-orphan-long", [*near, *by_sysctl], "FIN_WAIT2", timer=2),
        others=expect("fin-wait2-held", [probed], "FIN_WAIT2", timer=2)
        + expect("close-wait-eof-read", [*far, *far_too, *kept], "CLOSE_WAIT", rqueue=0),
        healthy=orphan("fin-wait2-orphan", [plain], "FIN_WAIT2", timer=3),
    )


SCENARIO = Scenario(
    name="fin-wait2-orphan-long",
    title="orphans that stay longer than a minute",
    story="With tcp_fin_timeout or TCP_LINGER2 above 60 s, the orphan first uses the keepalive timer.",
    claims=("C2b", "X01", "X05"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
