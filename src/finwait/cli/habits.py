"""What fingers type out of habit: options of ``ss``, commands and options of ``kubectl``, words spelt nearly right.

What means the same here is taken (``finwait list -tanp``: all of it is what `list` does anyway). What would mean
something else, or nothing, is answered by what to type. Nothing that acts is ever guessed at: ``finwait kill`` says
``finwait clear``, and does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from finwait.errors import UsageError

__all__ = ["REPORT_ENDINGS", "command", "misspelt", "names_report", "translated"]

_LOOKING: Final = ("diagnose", "list", "explain")
"""Commands that take options of ``ss``."""
_BY_FILTER: Final = ("trace", "capture", "top")
"""Commands that have no `--netns` as the others do."""
_ANYWAY: Final = frozenset("tanpoO")
"""TCP, all states, numbers, processes, timers, a line each: so it is here, always."""
_MORE: Final = frozenset("eim")
"""Extended, TCP's own values, memory: `-o wide` has most of it, `--columns` all."""
_NOT_TCP: Final = {"u": "UDP", "x": "Unix", "w": "raw", "d": "DCCP", "S": "SCTP"}
_BUNDLE: Final = re.compile(r"-[a-zA-Z46]+")
_TABLES: Final = frozenset({"tcp", "inet", "inet4", "inet6", "all"})
"""What may follow ``ss -A``."""

_COMMANDS: Final = {
    "ls": "`finwait list` lists connections; add a FILTER, as for `ss`",
    "ps": "`finwait list --sort=-pid` lists connections with the processes that hold them",
    "ss": "`finwait list` takes what `ss` takes as a FILTER, in all namespaces",
    "netstat": "`finwait list` lists connections, with the processes that hold them",
    "lsof": "`finwait list pid = PID` lists the connections that a process holds",
    "get": "`finwait list` lists connections; `finwait` says which are stuck",
    "describe": "`finwait explain CONNECTION`, or the number of a group",
    "show": "`finwait explain CONNECTION`, or the number of a group",
    "kill": "`finwait clear FILTER` ends connections; it shows a plan and asks first",
    "delete": "`finwait clear FILTER` ends connections; it shows a plan and asks first",
    "rm": "`finwait clear FILTER` ends connections; it shows a plan and asks first",
    "watch": "`finwait --watch 2` prints again and again; `finwait top` is the live view",
    "logs": "`finwait trace` prints each change of state; `finwait journal` what finwait did",
    "tail": "`finwait trace` prints each change of state as it happens",
    "tcpdump": "`finwait capture FILTER` records the packets of chosen connections",
    "sysctl": "`finwait tune show` has the settings that affect closing, with a verdict",
    "status": "`finwait check` answers in a line; `finwait` says what is stuck and why",
    "help": "`finwait --help`, or `finwait COMMAND --help`",
    "version": "`finwait --version`",
    "diagnosis": "`finwait diagnose`, or just `finwait`",
}
"""Words that people type as a command → what does that here."""


def command(word: str) -> UsageError | None:
    """Return the answer to a word that is a command elsewhere; None for any other."""
    hint = _COMMANDS.get(word)
    return UsageError(f"there is no command `{word}`", hint=hint) if hint else None


def misspelt(word: str, commands: Collection[str]) -> UsageError | None:
    """Return the answer to a word that is neither a FILTER nor a command but nearly one; None for any other."""
    import difflib

    near = difflib.get_close_matches(word, sorted(commands), 1, 0.75) if word.isascii() else []
    hint = f"did you mean `finwait {near[0]}`?" if near else ""
    return UsageError(f"there is no command `{word}`", hint=hint) if near else None


def translated(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with options of ``ss`` and ``kubectl`` as they are called here.

    Args:
        words: the command, and what follows it.

    Raises:
        UsageError: an option means nothing here; its hint says what to type.
    """
    if words and words[0] in _BY_FILTER:
        _refuse_netns(words)
    if len(words) > 1 and words[0] == "report" and names_report(words[1]):
        # argparse takes the words of a FILTER in one piece; options may stand between them and the file.
        return [words[0], f"--file={words[1]}", *words[2:]]
    if not words or words[0] not in _LOOKING:
        return list(words)
    result = [words[0]]
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*result, word, *rest]
        if word in ("-o", "--output") and rest and rest[0] in ("yaml", "name", "jsonpath", "go-template"):
            raise UsageError(
                f"there is no `-o {rest[0]}`",
                hint="`-o json`: every reader of YAML reads it, and so does `jq`",
            )
        if word in ("-o", "--output") and rest:
            result += [word, rest.pop(0)]
        elif word == "-A" and rest and set(rest[0].split(",")) <= _TABLES:
            rest.pop(0)  # of ss: which sockets
        elif word in ("-A", "--all-namespaces"):
            continue  # of kubectl: that is how it looks anyway
        elif word == "-n" and rest and _of_kubernetes(rest[0]):
            raise UsageError(
                f"`-n {rest[0]}`: finwait does not know namespaces of Kubernetes",
                hint="`--netns NAME` looks into one network namespace, `pod = UID` selects a pod",
            )
        elif _BUNDLE.fullmatch(word) and word != "-w":
            result += _of_ss(word, result[0])
        else:
            result.append(word)
    return result


REPORT_ENDINGS: Final = {".html": "html", ".htm": "html", ".md": "md", ".json": "json"}
"""Ending of a file of ``finwait report`` → its format."""


def names_report(word: str) -> bool:
    """Return whether the first word of ``finwait report`` is where to write, rather than the beginning of a FILTER."""
    return word == "-" or (
        not word.startswith("-") and ("/" in word or word.lower().endswith(tuple(REPORT_ENDINGS)))
    )


def _refuse_netns(words: Sequence[str]) -> None:
    """Refuse `--netns` where only a FILTER chooses the network namespace.

    Raises:
        UsageError: it is there.
    """
    for place, word in enumerate(words):
        if word == "--":
            return
        if word == "--netns" or word.startswith("--netns="):
            following = [word[8:]] if "=" in word else [*words[place + 1 : place + 2]]
            name = next((near for near in following if re.fullmatch(r"[\w.:@/-]+", near)), "NS")
            raise UsageError(
                f"`finwait {words[0]}` has no `--netns`: its FILTER chooses the network namespace",
                hint=f"add `netns = {name}` to the FILTER, as in `finwait {words[0]} netns = {name}`",
            )


def _of_kubernetes(word: str) -> bool:
    """Return whether a word is the name of a namespace of Kubernetes, rather than the beginning of a FILTER."""
    from finwait.table.vocabulary import KEYWORDS, PREDICATES, named_states

    if word in KEYWORDS or word in PREDICATES or named_states(word) is not None:
        return False
    return bool(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", word))


def _of_ss(bundle: str, command: str) -> list[str]:
    """Return what options of ``ss`` are here; the bundle itself where it holds one that is none."""
    letters = set(bundle[1:])
    if letters & {"h", "V"} or not letters <= _ANYWAY | _MORE | set(_NOT_TCP) | set("lH46K"):
        return [bundle]
    if other := sorted(letters & _NOT_TCP.keys()):
        kind = _NOT_TCP[other[0]]
        raise UsageError(
            f"`{bundle}`: finwait knows TCP only, not {kind}", hint=f"`ss -{other[0]}` shows {kind} sockets"
        )
    if "K" in letters:
        raise UsageError(
            f"`{bundle}`: {command} ends nothing", hint="`finwait clear FILTER` shows a plan and asks first"
        )
    if letters & set("46"):
        family = "inet" if "4" in letters else "inet6"
        raise UsageError(
            f"`{bundle}`: addresses are chosen by a FILTER", hint=f"`finwait {command} family = {family}`"
        )
    if "l" in letters:
        raise UsageError(
            f"`{bundle}`: listeners are chosen by a FILTER", hint=f"`finwait {command} state listening`"
        )
    result = ["-o", "wide"] if letters & _MORE and command != "explain" else []
    return [*result, *(["--no-headers"] if "H" in letters and command == "list" else [])]
