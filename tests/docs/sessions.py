"""Sessions in `examples/`: what is typed and what came of it, read, run again and compared.

In an example, prose starts in the first column and a session is indented by four. A line of a session that
starts with ``# `` was typed; what follows came out. What depends on a recording alone is compared to the letter;
what the lab builds anew has other addresses, pids and ages each time, so its form is compared.

    python -m tests.docs.sessions          writes the present output of what is compared to the letter
    python -m tests.docs.sessions --lab    that of the lab too
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*_example.txt"))
INDENT = "    "
_REFERENCE = re.compile(r"finwait (rules|lab list|explain [a-z0-9]+(-[a-z0-9]+)+)\b")


@dataclass(frozen=True, slots=True)
class Session:
    """One command of an example."""

    path: Path
    command: str
    output: str

    @property
    def exact(self) -> bool:
        """Whether it says the same on every machine: it looks at a recording, or at nothing."""
        if self.command.startswith("finwait top "):  # a whole screen, which tests/tui compares
            return False
        recorded = re.search(
            r"--from tests/|compare tests/captures/|finwait read (?:--show-lines )?tests/", self.command
        )
        return recorded is not None or bool(_REFERENCE.match(self.command))

    @property
    def lab(self) -> bool:
        """Whether it builds what it looks at."""
        return self.command.startswith("finwait lab run ") and "--keep" not in self.command


def blocks(text: str) -> list[tuple[bool, str]]:
    """Split a text into prose and indented parts, alternately; joined they are the text again."""
    parts: list[tuple[bool, str]] = []
    blank = ""
    for line in text.splitlines(keepends=True):
        if not line.strip():
            blank += line
            continue
        inside = line.startswith(INDENT)
        if parts and parts[-1][0] == inside:
            parts[-1] = (inside, parts[-1][1] + blank + line)
        elif inside and parts:
            parts[-1] = (parts[-1][0], parts[-1][1] + blank)
            parts.append((inside, line))
        else:
            parts.append((inside, blank + line))
        blank = ""
    return parts


def sessions(path: Path) -> list[Session]:
    """Return the sessions of an example, in order."""
    found = []
    for inside, part in blocks(path.read_text()):
        if inside:
            plain = "".join(line.removeprefix(INDENT) for line in part.splitlines(keepends=True))
            for typed in re.split(r"^# ", plain, flags=re.MULTILINE)[1:]:
                command, _, output = typed.partition("\n")
                found.append(Session(path, command, output.strip("\n")))
    return found


def run(command: str) -> str:
    """Return what a command prints on both streams, run from the root of the sources.

    Raises:
        SystemExit: it crashed; that is no session to show.
    """
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    text = done.stdout.decode().strip("\n")
    if "Traceback (most recent call last)" in text:
        raise SystemExit(f"`{command}` crashed:\n{text}")
    return text


def form(report: str) -> str:
    """Return a report of the lab without what differs from run to run."""
    report = report.partition("\nNot seen:")[0]
    report = re.sub(r"^\S+ \(Linux \S+\):", "MACHINE:", report, flags=re.MULTILINE)
    report = re.sub(r"^ +(sockets )?.*:\d+ .*$", "CONNECTION", report, flags=re.MULTILINE)
    report = re.sub(r"^  age .*$", "AGE", report, flags=re.MULTILINE)
    report = re.sub(r"[\d.]+ (ms|s|min|h|d)\b( … [\d.]+ (ms|s|min|h|d)\b)?", "TIME", report)
    report = re.sub(r"\(pid \d+", "(pid N", report)
    report = re.sub(r"\bthread \d+", "thread N", report)
    # Where a process cannot be inspected, as in a container.
    report = re.sub(
        r";\s+a\s+process\s+that\s+could\s+not\s+be\s+inspected\s+may\s+hold\s+it\s+too", "", report
    )
    report = re.sub(r"\binode [1-9]\d*", "inode N", report)  # 0 says something: nobody holds it
    # Groups of the same weight come in any order, here and in the overview.
    report = re.sub(r"^(PROBLEM|NOTICE) +\d+: ", r"\1 ", report, flags=re.MULTILINE)
    report = re.sub(r"^ *\d+  (PROB|NOTE).*$", "GROUP", report, flags=re.MULTILINE)
    report = re.sub(r"^ +(count|state) .*whose move$", "OVERVIEW", report, flags=re.MULTILINE)
    groups = sorted(re.sub(r"\s+", " ", group).strip() for group in re.split(r"\n\n+", report))
    return "\n".join(re.sub(r"(CONNECTION )+", "CONNECTION ", f"{group.strip()} ") for group in groups)


def renewed(path: Path, *, lab: bool = False) -> str:
    """Return an example with the present output of its exact sessions, and of those of the lab if asked."""
    out = []
    for inside, part in blocks(path.read_text()):
        if not inside or not part.lstrip("\n").startswith(f"{INDENT}# "):
            out.append(part)
            continue
        lead = part[: len(part) - len(part.lstrip("\n"))]
        plain = "".join(line.removeprefix(INDENT) for line in part.splitlines(keepends=True))
        pieces = []
        for typed in re.split(r"^# ", plain, flags=re.MULTILINE)[1:]:
            command, _, output = typed.partition("\n")
            one = Session(path, command, output.strip("\n"))
            text = run(command) if one.exact or (one.lab and (lab or not one.output)) else one.output
            pieces.append(f"# {command}\n{text}".rstrip("\n"))
        lines = "\n\n".join(pieces).splitlines()
        out.append(lead + "".join(f"{INDENT}{line}".rstrip() + "\n" for line in lines))
    return "".join(out)


README = ROOT / "README.md"
_PRINTED = re.compile(
    r"(?<=<!-- printed by )(finwait .*?)( -->\n```text\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL
)


def readme(text: str) -> str:
    """Return a page with the present output of the commands that its comments name."""
    return _PRINTED.sub(lambda found: f"{found[1]}{found[2]}{run(found[1]).rstrip()}\n", text)


if __name__ == "__main__":
    if (page := readme(README.read_text())) != README.read_text():
        README.write_text(page)
        print("README.md: written")
    for example in EXAMPLES:
        text = renewed(example, lab="--lab" in sys.argv[1:])
        if text != example.read_text():
            example.write_text(text)
            print(f"{example.relative_to(ROOT)}: written")
