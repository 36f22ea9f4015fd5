"""Completions for bash, zsh and fish, out of the parser and of the names that finwait knows.

The three files do the same in three languages: read the words before the cursor as finwait would, and offer what fits
there. How that is done is in docs/shells/*.in; this module fills in the tables: the options of each command, what the
value of each option and each argument is (a *kind*), and the words of each kind.

A kind is the name of a set of words, or one of: ``none``, ``file``, ``netns``, ``filter``; or a set with how it is
written: ``list:`` with commas, ``sort:`` with or without a minus sign, ``assign:`` with a sign of equality behind it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, get_args

from finwait.cli import COMMANDS
from finwait.diagnosis import catalogue
from finwait.diagnosis.finding import Severity
from finwait.lab.proofs.catalogue import proofs
from finwait.lab.scenario import scenarios
from finwait.remedy.guards import ENTRY_GUARDS, GUARDS
from finwait.remedy.settings.catalogue import CATALOGUE
from finwait.shipped import profiles
from finwait.table import sockets
from finwait.table.derived import DERIVED
from finwait.table.vocabulary import ENUMERATIONS, NAMED_STATES, PREDICATES
from finwait.uapi import tcp

__all__ = ["FREE", "KINDS", "kind_of", "text"]

SHELLS = Path(__file__).parent / "shells"
SUMMARY = 72
"""How much of a help is shown beside a word."""

KINDS: Mapping[str, str] = {
    "FILE": "file",
    "DIR": "file",
    "NETNS": "netns",
    "A,B,…": "list:columns",
    "COLUMN": "sort:columns",
    "GUARD": "guards",
    "VERDICT,…": "list:verdicts",
    "SCENARIO": "scenarios",
    "CLAIM": "proofs",
    "KEY": "settings",
    "PROFILE|FILE|KEY=VALUE": "profiles assign:settings file",
    "FILTER": "filter",
    "FILE.html|FILTER": "file filter",
    "A": "file",
    "B": "file",
    "CONNECTION|RULE|NUMBER": "rules filter",
    "FILTER|CONNECTION": "filter",
}
"""How the value of an option or argument is called in its help → what completes it."""
FREE = frozenset(
    {
        *(
            "DURATION",
            "WHEN",
            "HOST:PORT",
            "PERCENT",
            "N",
            "X",
            "PID",
            "RANGE",
            "KIB",
            "MB",
            "BYTES",
            "IDLE/INTERVAL/COUNT",
        ),
        *("UID", "COMM", "NAME", "auto|off|URL", "TEXT", "ID", "ID|FIRST-LAST", "PATH", "NETWORK", "SERVICE"),
        *("ADDRESS", "ADDRESS[,weight=N][,max=N]"),
    }
)
"""Those for which there is nothing to offer."""


class _Command(Protocol):
    """What docs/generate.py knows of a command."""

    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def summary(self) -> str: ...
    @property
    def parser(self) -> argparse.ArgumentParser: ...
    @property
    def children(self) -> Sequence[_Command]: ...
    @property
    def positionals(self) -> list[argparse.Action]: ...
    @property
    def options(self) -> dict[str, list[argparse.Action]]: ...


def called(action: argparse.Action) -> str:
    """Return how help calls the value of an option or argument."""
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def kind_of(command: str, action: argparse.Action) -> str:
    """Return what completes the value of an option or argument; nothing for a switch."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "choices-" + "-".join(str(c) for c in action.choices)
    if command == "conntrack" and action.metavar == "GUARD":
        return "entry-guards"
    return KINDS.get(called(action), "none")


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────


def sets(commands: Iterable[_Command]) -> dict[str, dict[str, str]]:
    """Return each set of words: word → what it means, or nothing."""
    commands = list(commands)
    states = {tcp.STATES[s].lower().replace("_", "-"): "" for s in sorted(NAMED_STATES)}
    spelled = {re.sub(r"(?<=wait)(?=\d)", "-", name): "" for name in states}
    groups = {
        "all": "",
        "connected": "",
        "synchronized": "",
        "bucket": "minisockets",
        "big": "all but minisockets",
    }
    columns = {name: column.doc for name, column in DERIVED.items()} | {c.name: c.doc for c in sockets.SCHEMA}
    found = {
        "commands": {c.words[1]: c.summary for c in commands if len(c.words) == 2},
        "rules": {r.name: r.headline for r in catalogue.rules()},
        "scenarios": {name: s.title for name, s in scenarios().items()},
        "proofs": {name: " ".join(p.claims) for name, p in proofs().items()} | {"all": ""},
        "settings": {s.key: s.title for s in CATALOGUE},
        "profiles": {name: p.title for name, p in profiles().items()},
        "columns": columns,
        "guards": {name: says for name, (_, says) in GUARDS.items() if name != "listener"},
        "entry-guards": {name: says for name, (_, says) in ENTRY_GUARDS.items()},
        "verdicts": dict.fromkeys(_verdicts(commands), ""),
        "severities": dict.fromkeys(get_args(Severity), ""),
        "states": spelled | groups,
        "operators": {"=": "", "!=": ""},
        "filter-words": dict(PREDICATES) | {"and": "", "or": "", "not": ""},
        "filter-names": spelled
        | groups
        | {c.name: c.doc for c in sockets.SCHEMA if c.name not in PREDICATES},
        **{f"values-{name}": dict.fromkeys(values, "") for name, values in ENUMERATIONS.items()},
    }
    for c in commands:
        if c.children and len(c.words) > 1:
            found[f"of-{c.words[-1]}"] = {child.words[-1]: child.summary for child in c.children}
        for action in _actions(c):
            if action.choices is not None and action.nargs != 0:
                found[kind_of("", action)] = {str(choice): "" for choice in action.choices}
    assert set(COMMANDS) <= set(found["commands"])
    return found


def _verdicts(commands: Iterable[_Command]) -> list[str]:
    """Return the verdicts that `--fail-on` takes: its help lists them."""
    helps = [a.help or "" for c in commands for a in _actions(c) if a.metavar == "VERDICT,…"]
    return [
        word
        for text in helps
        for word in re.findall(r"[\w-]+", text.partition(": ")[2].partition(" (")[0])
        if word != "or"
    ]


def _actions(command: _Command) -> list[argparse.Action]:
    return [*command.positionals, *(a for some in command.options.values() for a in some)]


def _options(command: _Command) -> dict[str, str]:
    found = {o: a.help or "" for some in command.options.values() for a in some for o in a.option_strings}
    return found | {"--help": "what there is"}


# ── the three languages ──────────────────────────────────────────────────────────────────────────────────


def _short(text: str) -> str:
    """Return the beginning of a text, on one line, as long as a list of words has room for."""
    line = re.sub(r"\s+", " ", text.replace("`", "").replace("%%", "%")).strip()
    return line if len(line) <= SUMMARY else line[: SUMMARY - 1].rsplit(" ", 1)[0].rstrip(",;:") + "…"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _bash_words(words: Mapping[str, str]) -> str:
    return "echo " + _quoted(" ".join(words))


def _zsh_words(words: Mapping[str, str]) -> str:
    colon = (
        word.replace(":", "\\:") + ":" + _short(says) if says else word.replace(":", "\\:")
        for word, says in words.items()
    )
    return "print -rl -- " + " ".join(map(_quoted, colon))


def _fish_words(words: Mapping[str, str]) -> str:
    lines = (f"{word}\t{_short(says)}" if says else word for word, says in words.items())
    return "printf '%s\\n' " + " ".join(
        "'" + line.replace("\\", "\\\\").replace("'", "\\'") + "'" for line in lines
    )


def _posix_case(patterns: Iterable[str], body: str) -> str:
    return f"    {' | '.join(patterns)}) {body} ;;\n"


def _fish_case(patterns: Iterable[str], body: str) -> str:
    return f"    case {' '.join(patterns)}\n      {body}\n"


def _pattern(text: str) -> str:
    """Return a pattern of `case` that is this text, but for a star."""
    return "*".join(_quoted(part) if part else "" for part in text.split("*"))


def _fish_pattern(text: str) -> str:
    return "'" + text + "'"


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return what has the same body: body → patterns."""
    found: dict[str, list[str]] = {}
    for pattern, body in pairs:
        found.setdefault(body, []).append(pattern)
    return found


def _values(commands: Iterable[_Command]) -> list[tuple[str, str]]:
    return [
        (f"{name}:{option}", kind)
        for c in commands
        for name in [" ".join(c.words[1:])]
        for some in c.options.values()
        for action in some
        if (kind := kind_of(name, action))
        for option in action.option_strings
    ]


def _arguments(commands: Iterable[_Command]) -> list[tuple[str, str]]:
    found = []
    for c in commands:
        name = " ".join(c.words[1:])
        for number, action in enumerate(c.positionals):
            many = action.nargs in ("*", "+")
            found.append((f"{name}:*" if many else f"{name}:{number}", kind_of(name, action)))
    return found


def text(shell: str, commands: Iterable[_Command]) -> str:
    """Return the completions of a shell."""
    commands = [c for c in commands if len(c.words) > 1]
    case, pattern = (_fish_case, _fish_pattern) if shell == "fish" else (_posix_case, _pattern)
    words: Callable[[Mapping[str, str]], str] = {"bash": _bash_words, "zsh": _zsh_words, "fish": _fish_words}[
        shell
    ]

    def table(pairs: Iterable[tuple[str, str]]) -> str:
        return "".join(
            case(map(pattern, names), f"echo {_quoted(kind)}") for kind, names in _grouped(pairs).items()
        )

    compared = {"rule": "list:rules", "also": "list:rules", "severity": "list:severities"}
    compared |= {"state": "list:states"} | {name: f"list:values-{name}" for name in ENUMERATIONS}
    named = [(name, kind) for name, kind in compared.items() if name != "state"]
    alone = {"state", "exclude", "held", "orphan", "autobound", *compared}
    operands = [pattern(name) for name in PREDICATES if name not in alone]
    filled = {
        "OPTIONS": "".join(
            case(map(pattern, names), body)
            for body, names in _grouped((" ".join(c.words[1:]), words(_options(c))) for c in commands).items()
        ),
        "VALUES": table(_values(commands)),
        "ARGUMENTS": table(_arguments(commands)),
        "SETS": "".join(case([pattern(name)], words(some)) for name, some in sets(commands).items()),
        "COMPARED": table(compared.items()),
        "NAMED": "".join(case([pattern(name)], f"echo operators {kind}") for name, kind in named),
        "PREDICATES": "    case " + " ".join(operands) if shell == "fish" else "    " + " | ".join(operands),
    }
    source = (SHELLS / f"{shell}.in").read_text()
    return re.sub(r"@([A-Z]+)@(\n?)", lambda m: filled[m[1]].rstrip("\n") + m[2], source)
