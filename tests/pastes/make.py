"""Make the pastes of the lab anew: what real tools print of known situations.

    python -m tests.pastes.make            build each situation, run the tools in its namespaces, write text and answer
    python -m tests.pastes.make --answers  only write what finwait says of the texts that there are

A paste is a text, and beside it its answer: what the lab knows of each connection (``true``, the rule that explains it
where everything can be seen) and what finwait has to say of it from this text alone (``says``). Those written by hand
have no ``true``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finwait import session
from finwait.diagnosis.view import Options
from finwait.lab.scenario import scenarios
from finwait.lab.topology import Lab
from finwait.pasted import open_pasted
from finwait.session import Diagnosis, Look
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Made:
    """A paste of the lab: the scenario, the namespace in which the commands run, and what damages the text."""

    scenario: str
    place: str
    commands: tuple[str, ...]
    damage: str = ""


FULL, PLAIN, OWNED, TIMED, KNOWN = "ss -tanoeip", "ss -tan", "ss -tanp", "ss -tano", "ss -tanoe"
OLD, OLD_OWNED, OLD_FULL, BUSY = "netstat -tan", "netstat -tanp", "netstat -tanpoe", "busybox netstat -tan"
FILES = "cat /proc/net/tcp /proc/net/tcp6"

PASTES: dict[str, Made] = {
    f"{scenario}-{name}": Made(scenario, place, commands, damage)
    for scenario, place, name, commands, damage in (
        ("fin-wait2-held", "client", "ss-full", (FULL,), ""),
        ("fin-wait2-held", "client", "ss-plain", (PLAIN,), ""),
        ("fin-wait2-held", "client", "ss-owned", (OWNED,), "prompt"),
        ("fin-wait2-held", "client", "ss-known", (KNOWN,), "quoted"),
        ("fin-wait2-held", "client", "netstat", (OLD,), ""),
        ("fin-wait2-held", "client", "netstat-owned", (OLD_OWNED,), "windows"),
        ("fin-wait2-held", "client", "netstat-full", (OLD_FULL,), ""),
        ("fin-wait2-held", "client", "busybox", (BUSY,), ""),
        ("fin-wait2-held", "client", "files", (FILES,), ""),
        ("fin-wait2-held", "client", "two-tools", (OLD_OWNED, TIMED), "prompt"),
        ("fin-wait2-held", "client", "one-line", ("ss -tanoeipOH",), ""),
        ("fin-wait2-held", "client", "no-header", ("ss -tanHp",), "log"),
        ("fin-wait2-held", "client", "lsof", ("lsof -nP -iTCP",), ""),
        ("fin-wait2-orphan", "client", "ss-full", (FULL,), "colour"),
        ("fin-wait2-orphan", "client", "ss-timed", (TIMED,), ""),
        ("fin-wait2-orphan", "client", "ss-plain", (PLAIN,), ""),
        ("fin-wait2-orphan", "client", "netstat-full", (OLD_FULL,), ""),
        ("fin-wait2-orphan-long", "client", "ss-known", (KNOWN,), ""),
        (
            "fin-wait2-orphan-long",
            "client",
            "ss-settings",
            (KNOWN, "sysctl net.ipv4.tcp_fin_timeout"),
            "prompt",
        ),
        ("fin-wait2-shut-both", "client", "ss-known", (KNOWN,), ""),
        ("fin-wait2-shut-both", "client", "netstat-owned", (OLD_OWNED,), ""),
        ("fin-wait2-streaming", "client", "ss-full", (FULL,), ""),
        ("close-wait-eof-read", "server", "ss-full", (FULL,), ""),
        ("close-wait-eof-read", "server", "ss-plain", (PLAIN,), ""),
        ("close-wait-eof-read", "server", "netstat-wide", ("netstat -tanW",), ""),
        ("close-wait-eof-read", "server", "lsof", ("lsof -nP -iTCP",), ""),
        ("close-wait-eof-unread", "client", "ss-known", (KNOWN,), "log"),
        ("close-wait-eof-unread", "client", "busybox", (BUSY,), ""),
        ("never-accepted", "server", "ss-full", (FULL,), ""),
        ("never-accepted", "server", "ss-plain", (PLAIN,), ""),
        ("accept-queue-full", "server", "ss-full", (FULL,), ""),
        ("accept-queue-full", "server", "netstat", (OLD,), ""),
        ("relay-pair", "node", "ss-full", (FULL,), ""),
        ("relay-pair", "node", "ss-owned", (OWNED,), "prompt"),
        ("relay-pair", "node", "netstat-full", (OLD_FULL,), ""),
        ("kube-proxy-userspace", "node", "ss-full", (FULL,), ""),
        ("fin-unanswered-held", "client", "ss-full", (FULL,), ""),
        ("fin-unanswered-held", "client", "ss-plain", (PLAIN,), ""),
        ("fin-unanswered-held", "client", "files", (FILES,), ""),
        ("fin-unanswered-orphan", "server", "ss-full", (FULL,), ""),
        ("fin-unanswered-orphan", "server", "ss-known", ("ss -tane",), ""),
        ("zero-window", "client", "ss-full", (FULL,), ""),
        ("zero-window", "client", "netstat-full", (OLD_FULL,), ""),
        ("data-unanswered", "client", "ss-full", (FULL,), ""),
        ("data-unanswered", "client", "ss-owned", (OWNED,), ""),
        ("syn-unanswered", "client", "ss-timed", (TIMED,), ""),
        ("syn-unanswered", "client", "netstat", (OLD,), ""),
        ("idle-unprobed", "client", "ss-full", (FULL,), ""),
        ("time-wait", "client", "ss-plain", (PLAIN,), ""),
        ("time-wait", "client", "netstat-full", (OLD_FULL,), ""),
    )
}


def damaged(text: str, how: str) -> str:
    """Return a text as it looks after somebody has copied it."""
    lines = text.rstrip("\n").split("\n")
    if how == "prompt":
        lines = [f"root@node-1:~{line}" if line.startswith("# ") else line for line in lines]
    elif how == "quoted":
        lines = [f"> {line}" for line in lines]
    elif how == "windows":
        lines = [f"{line}\r" for line in lines]
    elif how == "log":
        lines = [f"Nov 30 22:10:11 node-1 check[812]: {line}" for line in lines]
    elif how == "colour":
        lines = [f"\x1b[32m{line}\x1b[0m" for line in lines]
    return "\n".join(lines) + "\n"


def key(diagnosis: Diagnosis, row: int) -> str:
    """Return what tells a row apart in an answer."""
    local, peer = diagnosis.view.ends(row)
    return f"{local} {peer} {tcp.state_name(int(diagnosis.view.sockets.state[row]))}"


def told(diagnosis: Diagnosis) -> dict[str, str]:
    """Return the primary cause of every connection that has one; `open` of those that are not judged."""
    view = diagnosis.view
    result = {}
    for row in range(len(view)):
        if view.undecided[row] and view.sockets.state[row] == tcp.ESTABLISHED:
            result[key(diagnosis, row)] = "open"
    for finding in diagnosis.findings:
        if finding.primary:
            result |= {key(diagnosis, row): finding.rule for row in finding.rows.tolist()}
    return dict(sorted(result.items()))


def read(name: str) -> Diagnosis:
    """Diagnose a paste."""
    made = PASTES.get(name)
    scenario = scenarios().get(made.scenario) if made is not None else None
    options = Options() if scenario is None or scenario.idle_ms is None else Options(idle_ms=scenario.idle_ms)
    return session.diagnose(open_pasted([str(HERE / f"{name}.txt")]), how=Look(options=options))


def answer(name: str) -> dict[str, Any]:
    """Return what finwait says of a paste."""
    diagnosis = read(name)
    gaps = sorted({gap.doing for gap in diagnosis.gaps})
    return {"says": told(diagnosis), "not_seen": gaps}


def make(scenario: str, names: list[str]) -> None:
    """Build a situation and write its pastes."""
    with Lab() as lab:
        situation = scenarios()[scenario].build(lab).settle()
        only = frozenset(situation.namespaces.values())
        idle = scenarios()[scenario].idle_ms
        options = Options() if idle is None else Options(idle_ms=idle)
        for name in names:
            made = PASTES[name]
            place = lab.namespaces[made.place]
            how = Look(plan=LookPlan(only=only, established_limit=None), options=options)
            live = session.diagnose(session.live_machine(), how=how)
            spaces = live.view.sockets.netns
            true = {
                key(live, row): finding.rule
                for finding in live.findings
                if finding.primary
                for row in finding.rows.tolist()
                if spaces[row] == place.inode
            }
            text = "".join(f"# {command}\n{_run(place, command)}" for command in made.commands)
            (HERE / f"{name}.txt").write_text(damaged(text, made.damage), newline="")
            write(name, dict(sorted(true.items())))


def _run(place: Any, command: str) -> str:
    return str(place.run(*command.split()))


def write(name: str, true: dict[str, str] | None) -> None:
    """Write the answer of a paste beside it."""
    path = HERE / f"{name}.json"
    if true is None and path.exists():
        true = json.loads(path.read_text()).get("true")
    known = {} if true is None else {"true": true}
    path.write_text(json.dumps(known | answer(name), indent=1) + "\n")


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description="Make the pastes of the lab anew.")
    parser.add_argument("--answers", action="store_true", help="only write the answers")
    args = parser.parse_args()
    if args.answers:
        for path in sorted(HERE.glob("*.txt")):
            write(path.stem, None)
        return
    by_scenario: dict[str, list[str]] = {}
    for name, made in PASTES.items():
        by_scenario.setdefault(made.scenario, []).append(name)
    for scenario, names in by_scenario.items():
        make(scenario, names)
        print(f"{scenario}: {len(names)} pastes")


if __name__ == "__main__":
    main()
