"""Make the recordings of this folder: one of each lab scenario, redacted. See README.md.

sudo .venv/bin/python -m tests.captures.make [NAME…]      new recordings and golden files
.venv/bin/python -m tests.captures.make --golden          golden files of the recordings that are there
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finwait import session
from finwait.diagnosis.view import Options
from finwait.kernel import procfs
from finwait.kernel.observe import LookPlan
from finwait.lab.differences import differences
from finwait.lab.scenario import Situation, scenarios
from finwait.lab.topology import Lab
from finwait.pasted import open_pasted
from finwait.recording import open_recording, read, record
from finwait.recording.format import write
from finwait.report import text
from finwait.session import Diagnosis, Look
from finwait.uapi import tcp
from tests.captures.altered import STATE, TIMER, altered, rows

HERE = Path(__file__).parent
PATIENCE_S = 30
"""How long a scenario may take to be diagnosed as it should be."""

SYNTHETIC = {"unexplained": "fin-unanswered-held"}
"""What no kernel here can be brought to say → the recording that it is made of, see `make_synthetic`."""
PASTED = {"not-told": "fin-wait2-held-ss-plain"}
"""What only a text leaves open → the paste that it is made of."""


def _options(name: str) -> Options:
    scenario = scenarios().get(name)
    return Options() if scenario is None or scenario.idle_ms is None else Options(idle_ms=scenario.idle_ms)


def how(name: str, walled: frozenset[int] = frozenset(), only: frozenset[int] | None = None) -> Look:
    return Look(
        plan=LookPlan(only=only, established_limit=None),
        options=_options(name),
        watch_ms=1,
        not_holders=walled,
    )


def replay(path: Path) -> Diagnosis:
    """Diagnose a recording as the tests do: two looks, and nobody held anything that was not recorded."""
    walled = frozenset(read(str(path))[1][-1].descriptors.unreadable)
    return session.diagnose(open_recording(str(path)), how=how(path.stem, walled))


def summary(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """What a capture must go on saying: rules, severities and exact counts."""
    found = [
        {
            "rule": f.rule,
            "primary": f.primary,
            "severity": f.severity,
            "confidence": f.confidence.level,
            "count": f.count,
        }
        for f in diagnosis.findings
    ]
    return sorted(found, key=lambda f: json.dumps(f, sort_keys=True))


def golden(diagnosis: Diagnosis) -> str:
    """The text that a person would read."""
    facts = diagnosis.snapshot.observation.facts
    who = f"{facts.hostname} (Linux {facts.kernel})"
    return "".join(text.diagnosis(diagnosis.view, diagnosis.findings, diagnosis.gaps, who))


def _wanted(situation: Situation) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in situation.all:
        if one.rule:
            counts[one.rule] = counts.get(one.rule, 0) + 1
    return counts


def walled_off() -> frozenset[int]:
    """Processes that even root may not look into here (a sandbox's init); they hold none of the lab's sockets."""
    return frozenset(procfs.descriptors()[0].unreadable) if os.geteuid() == 0 else frozenset()


def _counts(diagnosis: Diagnosis) -> dict[str, int]:
    counts: dict[str, int] = {}
    for f in diagnosis.findings:
        if f.primary:
            counts[f.rule] = counts.get(f.rule, 0) + f.count
    return counts


def changed(name: str, got: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    """Return a sentence for each rule of which there are more rows, or fewer, than there should be."""
    return [
        f"{name}: {rule} has {got.get(rule, 0)} rows instead of {wanted.get(rule, 0)} "
        f"({got.get(rule, 0) - wanted.get(rule, 0):+d})"
        for rule in sorted({*got, *wanted})
        if got.get(rule, 0) != wanted.get(rule, 0)
    ]


def make(name: str, folder: Path | None = None) -> Path:
    """Build a scenario, wait until it is diagnosed as it should be, and record it with what is said of it.

    What was recorded takes the place of an older recording only when it is right.
    """
    folder = folder or HERE / f"linux-{'.'.join(os.uname().release.split('.')[:2])}"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as unfinished, Lab() as lab:
        path = Path(unfinished) / f"{name}.finwait"
        situation = scenarios()[name].build(lab).settle()
        only = frozenset(situation.namespaces.values())
        # The programs of the lab may keep their names; there are no others in its namespaces.
        shot = session.look(session.live_machine(), Look(plan=LookPlan(only=only)))
        names = frozenset(p.comm for p in shot.view.processes.values() if p.netns in only)
        interval_ms = max(700, scenarios()[name].watch_ms)
        end = time.monotonic() + PATIENCE_S
        while True:
            record(
                session.live_machine(), str(path), looks=2, interval_ms=interval_ms, only=only, redact=True,
                keep_names=names, note=f"lab scenario {name}",
            )  # fmt: skip
            wrong = changed(name, _counts(replay(path)), _wanted(situation))
            if not wrong:
                write_golden(path)
                for made in (path, path.with_suffix(".json"), path.with_suffix(".txt")):
                    made.replace(folder / made.name)
                return folder / path.name
            if time.monotonic() > end:
                live = session.diagnose(session.live_machine(), how=how(name, walled_off(), only))
                rows_now = [str(one) for one in differences(situation, live)]
                raise SystemExit("\n".join([*wrong, *(rows_now or ["now its rows are as expected"])]))


def make_synthetic(name: str) -> Path:
    """Alter bytes of a recording of real sockets, in both of its looks: no timer runs, or the state has no name."""
    folder = HERE / "linux-6.18"
    looks = read(str(folder / f"{SYNTHETIC[name]}.finwait"))[1]
    changes: list[dict[int, int]] = []
    for k, row in enumerate(rows(looks[0])):
        waiting = looks[0].buffer[row + STATE] == tcp.FIN_WAIT1
        changes.append({} if not waiting else {TIMER: 0} if k % 2 else {STATE: 14})
    path = folder / f"{name}.finwait"
    path.unlink(missing_ok=True)
    note = (
        f"made of {SYNTHETIC[name]} by tests.captures.make: some states and timers are not what a kernel said"
    )
    write(str(path), [altered(look, changes) for look in looks], redacted=True, note=note)
    return path


def make_pasted(name: str) -> Path:
    """Record what a paste says."""
    path = HERE / "linux-6.18" / f"{name}.finwait"
    path.unlink(missing_ok=True)
    text = HERE.parent / "pastes" / f"{PASTED[name]}.txt"
    write(str(path), open_pasted([str(text)]).looks, redacted=True, note=f"made of the paste {text.stem}")
    return path


def write_golden(path: Path) -> None:
    diagnosis = replay(path)
    path.with_suffix(".json").write_text(json.dumps(summary(diagnosis), indent=1) + "\n")
    path.with_suffix(".txt").write_text(golden(diagnosis))


def main() -> None:
    names = (*scenarios(), *SYNTHETIC, *PASTED)
    parser = argparse.ArgumentParser(description="Make recordings of the lab anew, and what is said of them.")
    parser.add_argument(
        "--golden", action="store_true", help="only write what is said of those that there are"
    )
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=f"of: {', '.join(names)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"no scenario is called {', '.join(sorted(unknown))}")
    if args.golden:
        for path in sorted(HERE.glob("*/*.finwait")):
            write_golden(path)
        return
    for name in args.names or names:
        if name in SYNTHETIC:
            write_golden(path := make_synthetic(name))
        elif name in PASTED:
            write_golden(path := make_pasted(name))
        else:
            path = make(name)
        print(f"{name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
