"""``python -m finwait.lab list`` and ``python -m finwait.lab run NAME [--keep]``."""

from __future__ import annotations

import argparse
import sys

from finwait.errors import FinwaitError
from finwait.lab.scenario import Situation, list_scenarios, run


def show(situation: Situation) -> int:
    """Write the story and the rows of a situation."""
    out = [situation.story, ""]
    for title, rows in (
        ("expected", situation.expected),
        ("explained by other rules", situation.others),
        ("healthy", situation.healthy),
    ):
        out += [f"{title}: {len(rows)}"] if rows else []
        for row in rows[:30]:
            ends = f"{row.src}:{row.sport} → {row.dst}:{row.dport}" if row.src else f"socket:[{row.inode}]"
            held = ", ".join(f"pid {pid} fd {fd}" for pid, fd in row.owners) or "no owner"
            out.append(f"  {row.rule or '-':<22} {row.state:<11} {ends}  {held}")
    sys.stdout.write("\n".join(out) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m finwait.lab", description="Failures on demand.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the scenarios")
    running = commands.add_parser("run", help="build a scenario and show its rows")
    running.add_argument("name")
    running.add_argument("--keep", action="store_true", help="leave it up until Ctrl-C")
    asked = parser.parse_args(argv)
    if asked.command == "list":
        for scenario in list_scenarios():
            sys.stdout.write(f"{scenario.name:<24} {scenario.title}\n")
        return 0
    try:
        return run(asked.name, asked.keep, show)
    except (FinwaitError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        if hint := getattr(error, "hint", ""):
            sys.stderr.write(f"hint: {hint}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
