"""Every argument of every command, given what it cannot take: status 2, a sentence that names it, no traceback."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from finwait.cli import EXIT_STATUS, build_parser
from finwait.table.units import printable
from tests.kernel.needs import missing

SWEEP = Path(__file__).with_name("sweep.py")
RECORDING = str(Path(__file__).parents[1] / "captures/linux-6.18/relay-pair.finwait")
PASTE = str(Path(__file__).parents[1] / "pastes/hand-kube-proxy.txt")
LOOK = ["--from", RECORDING, "--not-holder", "1"]
HERE = ["--netns", "@NETNS@"]

BASE: dict[str, list[str]] = {
    "diagnose": LOOK,
    "list": LOOK,
    "explain": [*LOOK, "relay-pair"],
    "netns": LOOK,
    "rules": [],
    "check": LOOK,
    "trace": ["--poll", "-q", "--for", "10ms", "sport = :1"],
    "capture": ["--for", "10ms", "cookie = 0x1"],
    "top": [],
    "clear": [*LOOK, "--dry-run"],
    "probe": [*HERE, "sport = :1"],
    "arm": [*HERE, "--keepalive", "5/5/5", "sport = :1"],
    "conntrack": LOOK,
    "journal": [],
    "undo": ["7"],
    "tune show": [],
    "tune explain": ["tcp_fin_timeout", "--no-diagnosis"],
    "tune plan": ["tcp_fin_timeout=30", "--no-diagnosis"],
    "tune apply": ["tcp_fin_timeout=30", "--no-diagnosis"],
    "tune rollback": ["7"],
    "audit": [os.devnull],
    "agent": [],
    "agent schema": [],
    "agent serve": ["--listen", "127.0.0.1:0", "--serve-socket", "/nonexistent/x"],
    "agent status": ["--socket", "/nonexistent/x"],
    "history": ["--state-dir", "/nonexistent/x"],
    "policy check": [os.devnull],
    "policy try": ["--state-dir", "/nonexistent/x", os.devnull],
    "policy schema": [],
    "relay run": ["--check", "--listen", "127.0.0.1:1", "--to", "127.0.0.1:2"],
    "relay schema": [],
    "relay transitions": [],
    "relay ls": ["--admin", "/nonexistent/x"],
    "relay show": ["--admin", "/nonexistent/x", "0-1"],
    "relay close": ["--admin", "/nonexistent/x", "0-1"],
    "relay drain": ["--admin", "/nonexistent/x"],
    "relay stats": ["--admin", "/nonexistent/x"],
    "report": LOOK,
    "compare": [RECORDING, RECORDING],
    "read": [PASTE],
    "record": ["@TMP@/one.finwait", "--looks", "1", *HERE],
    "lab list": [],
    "lab run": ["no-such-scenario"],
    "lab prove": ["no-such-claim"],
    "lab demo": [],
}
"""Words with which each command ends soon and acts on nothing, on whatever machine."""

PARSED_ONLY = {"lab demo", "lab run", "lab prove", "agent", "agent serve"}
"""What builds namespaces for seconds, or runs on, as soon as its words are right."""

NOT_A_NUMBER = (
    "",
    " ",
    "x",
    "nan",
    "inf",
    "1e999",
    "1x",
    "--",
    "\u0663",
    "\u00b2",
    "a\udcff",
    "a\0b",
    "\x1b[2J",
    "9" * 5000,
)
HOSTILE = (
    "",
    "nan",
    "--",
    "9" * 5000,
    "a\udcff",
    "a\0b",
    "\x1b[2J",
    "-1",
    "9" * 30,
    "/",
    "/nonexistent/x",
    "%s{0}",
    "(" * 500,
)


@dataclass(frozen=True)
class Taker:
    """An option or argument that takes a value."""

    command: str
    action: argparse.Action

    @property
    def name(self) -> str:
        names = [n for n in self.action.option_strings if n.startswith("--")] or self.action.option_strings
        return names[0] if names else str(self.action.metavar or self.action.dest)

    def words(self, value: str) -> list[str]:
        """The command line with this value: an option once more at the end, an argument in place of the base's."""
        base = list(BASE[self.command])
        if self.action.option_strings:
            return [*self.command.split(), *base, f"{self.name}={value}"]
        arguments = {"explain": 1, "trace": 1, "capture": 1, "probe": 1, "arm": 1, "undo": 1, "audit": 1}
        n = arguments.get(self.command, 0)
        if self.command == "record":
            return ["record", value, *base[1:]]
        if self.command == "compare" and self.action.nargs is None:
            return ["compare", *((value, RECORDING) if self.action.dest == "a" else (RECORDING, value))]
        if self.command.startswith("tune") and base:
            return [*self.command.split(), value, *base[1:]]
        if self.command in (
            *("relay show", "relay close", "tune rollback", "lab run", "lab prove"),
            *("policy check", "policy try"),
        ):
            n = 1
        return [*self.command.split(), *base[: len(base) - n], "--", value]


def leaves(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if path and not any(action.required for action in below):
        yield " ".join(path), parser.fill() if hasattr(parser, "fill") else parser
    for action in below:
        for name, choice in action.choices.items():
            yield from leaves(choice, (*path, name))


PARSER = build_parser()
COMMANDS = dict(leaves(PARSER))
TAKERS = [
    Taker(command, action)
    for command, parser in COMMANDS.items()
    for action in parser._actions
    if action.nargs != 0
]


def test_every_command_is_swept() -> None:
    assert set(COMMANDS) == set(BASE)


def sweep(cases: list[list[str]], **environment: str | None) -> list[tuple[int | str, str, str]]:
    """Run command lines in a network namespace of their own."""
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*own, "true"], capture_output=True).returncode:
        missing("cannot make a network namespace")
    env = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    done = subprocess.run(
        [*own, sys.executable, "-W", "ignore", str(SWEEP)],
        input=json.dumps(cases).encode(),
        capture_output=True,
        env=env,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr.decode()
    return [(status, out, err) for status, out, err in json.loads(done.stdout)]


def faults(cases: list[list[str]], results: list[tuple[int | str, str, str]]) -> list[object]:
    """What ended in a way that no command line may end in."""
    wrong: list[object] = []
    for words, (status, out, err) in zip(cases, results, strict=True):
        allowed = {0, 1, 2, 3} if words[0] == "check" else set(EXIT_STATUS) - {130}
        if status not in allowed or "Traceback" in err or "Traceback" in out:
            wrong.append((words, status, err[-600:]))
        elif {*"\x1b\x9b"} & {*out, *err}:
            wrong.append((words, "an escape reaches the terminal", err[:200]))
        elif words[0] == "check":
            if not out.startswith("FINWAIT ") or out.count("\n") != 1 or len(out.split(" | ")[0]) < 30:
                wrong.append((words, "not one line with a sentence", out))
            elif status == 3 and not out.startswith("FINWAIT UNKNOWN - "):
                wrong.append((words, "not UNKNOWN", out))
        elif status in (1, 2) and "error: " not in err and not (words[0] == "audit" and out):
            wrong.append((words, status, "no message", err))
    return wrong


def _swept(command: str) -> Iterator[Taker]:
    """The arguments of a command but those that another has shown already; `check` has a status of its own."""
    seen: set[tuple[str, str | None]] = set()
    for taker in TAKERS:
        what = taker.name, taker.action.help
        if taker.command == command and (what not in seen or command == "check"):
            yield taker
        if taker.command != "check":
            seen.add(what)


@pytest.mark.kernel
@pytest.mark.parametrize("command", [c for c in COMMANDS if next(_swept(c), None)])
def test_whatever_an_argument_is_given_there_is_a_status_and_a_sentence(command: str) -> None:
    takers = list(_swept(command))
    cases = []
    for taker in takers:
        refused = 0
        for words in map(taker.words, _values(taker)):
            refused += not _parses(words)
            # That the parser refuses is tried below, without a process; one such case shows what comes of it.
            if (_parses(words) and command not in PARSED_ONLY) or (refused == 1 and not _parses(words)):
                cases.append(words)
    results = sweep(cases)
    assert faults(cases, results) == []
    for words, (status, _, err) in zip(cases, results, strict=True):
        if status == 2 and words[0] != "check":
            # A FILTER is shown with a caret under the place.
            named = "^" in err or any(t.name in err or _metavar(t) in err for t in takers)
            assert named or any(_shown(word) in err for word in words), (words, err)


def _values(taker: Taker) -> tuple[str, ...]:
    if (
        taker.command == "relay run"
    ):  # its durations and numbers are all judged by one function, in the configuration
        return ("a\udcff",) if taker.action.metavar in ("TEXT", "NETWORK", "FILE") else ()
    return HOSTILE if taker.command != "record" else ("a\udcff", "\x1b[2J", "/", "/nonexistent/x")


def _metavar(taker: Taker) -> str:
    return str(taker.action.metavar).split("|")[0]


def _shown(word: str) -> str:
    value = word.partition("=")[2] or word
    return f"`{printable(value)[:20]}"


def _parses(words: list[str]) -> bool:
    try:
        PARSER.parse_args(words)
    except SystemExit:
        return False
    return True


TEXT = {
    ("list", "--columns"), ("list", "--sort"), ("record", "--keep-name"), ("record", "--note"), ("lab run", "SCENARIO"),
    ("lab prove", "CLAIM"), ("clear", "--override"), ("conntrack", "--override"),
    ("explain", "CONNECTION|RULE|NUMBER"), ("capture", "FILTER|CONNECTION"), ("relay ls", "--service"),
    ("report", "FILE.html|FILTER"),
    *(
        (command, name) for command in ("relay ls", "relay show", "relay close", "relay drain", "relay stats")
        for name in ("--admin",)
    ),
}  # fmt: skip
"""What is looked up, or read, where it is used."""


NAMES = ("FILE", "A", "B", "DIR", "PATH", "UID", "KEY", "NAME", "PROFILE|FILE|KEY=VALUE")
"""What may be anything but empty; everything else is a number, a duration, a namespace or a choice."""


NO_NETNS = ("", " ", "-1", "0", "pid:x", "net:[x]", "..", "a\0b", "\x1b[2J", "9" * 5000, "x" * 256)
"""What can name no network namespace."""


def test_every_value_has_a_type_that_refuses_what_it_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    taken = []
    for taker in TAKERS:
        if taker.name == "FILTER" or taker.command == "relay run" or (taker.command, taker.name) in TEXT:
            continue
        text = taker.action.metavar in NAMES
        wrong = NO_NETNS if taker.action.metavar == "NETNS" else NOT_A_NUMBER
        for value in NOT_A_NUMBER[:2] if text else wrong:
            if value == "--":  # argparse takes it out; the sweep has it
                continue
            try:
                PARSER.parse_args(taker.words(value))
            except SystemExit as end:
                assert end.code == 2  # noqa: PT017
                err = capsys.readouterr().err
                assert taker.name in err or _metavar(taker) in err, (taker, value, err)
            else:
                taken.append((taker.command, taker.name, value))
    assert taken == []


def _swallowed(value: str, takers: list[Taker], capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """Return which options take a value."""
    taken = []
    for taker in takers:
        try:
            PARSER.parse_args(taker.words(value))
        except SystemExit as end:
            assert end.code == 2  # noqa: PT017
            err = capsys.readouterr().err
            assert taker.name in err or _metavar(taker) in err, (taker, value, err)
        else:
            taken.append((taker.command, taker.name))
    return taken


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_is_refused_by_every_option(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [taker for taker in TAKERS if taker.action.option_strings]
    assert len(options) > 150
    assert _swallowed(value, options, capsys) == []


ZERO_DOES_NOTHING = {
    "--max", "--share", "--rate", "--for", "--files", "--ring-mb", "--count", "--looks", "--limit", "--buffer-kb",
    "--snaplen",
}  # fmt: skip
"""Options of which 0 would be taken for "not given", or lets nothing through."""


def test_a_zero_that_would_do_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    takers = [taker for taker in TAKERS if taker.name in ZERO_DOES_NOTHING]
    assert {taker.name for taker in takers} == ZERO_DOES_NOTHING
    takers += [
        taker
        for taker in TAKERS
        if (taker.command, taker.name)
        in {("clear", "--user-timeout"), ("arm", "--keepalive"), ("probe", "--keepalive")}
    ]
    assert [name for name in _swallowed("0", takers, capsys) if name[0] != "relay run"] == []


@pytest.mark.parametrize("value", ["0/0/0", "0/1/1", "1/0/1", "1/1/0"])
@pytest.mark.parametrize("command", ["arm", "probe"])
def test_keepalive_that_would_never_probe_is_refused(
    command: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    takers = [taker for taker in TAKERS if (taker.command, taker.name) == (command, "--keepalive")]
    assert _swallowed(value, takers, capsys) == []
