"""What a shell command only says or searches for, as opposed to what it does.

``echo "hint: net.ipv4.tcp_fin_timeout=10"`` sets nothing, and neither does ``grep net.ipv4.tcp_fin_timeout=10 FILE``;
with ``>> /etc/sysctl.conf`` or ``| sysctl -p -`` behind it the first one does. `spoken` blanks out the one kind and
leaves the other. A shell is not emulated: what is not understood is left as it is, and so counts.
"""

from __future__ import annotations

import re

from msgspec import Struct

__all__ = ["goes_on", "spoken"]

_SEARCHES = frozenset(("grep", "egrep", "fgrep", "zgrep", "rg", "ag", "ack"))
_SAYS = frozenset(
    ("echo", "printf", "log", "logger", "warn", "warning", "info", "error", "err", "die", "fail", "fatal", "msg",
     "message", "note", "say", "print", "puts", "debug", "notice")
)  # fmt: skip
_TAKES = frozenset(
    ("tee", "sysctl", "sh", "bash", "dash", "zsh", "ksh", "dd", "sponge", "kubectl", "oc", "ssh", "docker", "podman",
     "nsenter", "chroot", "xargs", "patch", "cat", "ansible", "lxc", "incus")
)  # fmt: skip
_RUNS_TEXT = frozenset(
    ("sh", "bash", "dash", "zsh", "ksh", "su", "ssh", "eval", "kubectl", "docker", "nsenter", "podman")
)
_BEFORE = frozenset(
    ("sudo", "doas", "env", "exec", "command", "builtin", "time", "nohup", "nice", "ionice", "if", "elif", "while",
     "until", "then", "else", "do", "!", "{", "(", "RUN", "-", "$", "#", "timeout", "setsid")
)  # fmt: skip
_SETS = frozenset(("sysctl", "tee"))
_END = re.compile(r"&&|\|\||;;|\|&|[;|&\n()]")
_REDIRECT = re.compile(r"(?<![0-9&>])(?:1)?>{1,2}\|?(?!&)\s*(?P<to>[^\s;|&)]+)")
_NOWHERE = re.compile(r"""["']?/dev/(?:null|stderr|stdout|tty|fd/[12])""")
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""", re.DOTALL)
_DEEPEST = 3


class _Command(Struct, frozen=True):
    start: int
    end: int
    piped: bool
    """Whether its output goes into the next command."""


def _commands(text: str) -> list[_Command]:
    """Cut a line at what ends a command, outside of quotes."""
    commands: list[_Command] = []
    start = at = 0
    while at < len(text):
        c = text[at]
        if c == "\\":
            at += 2
            continue
        if c in "\"'":
            at = _closing(text, at)
            continue
        end = _END.match(text, at)
        if end and not (c == "&" and at and text[at - 1] in "><") and not text.startswith("&>", at):
            commands.append(_Command(start, at, end[0] in ("|", "|&")))
            start = at = end.end()
            continue
        at += 1
    commands.append(_Command(start, len(text), piped=False))
    return commands


def _closing(text: str, at: int) -> int:
    """Return where the quote that opens at ``at`` has ended; a lone one, as in prose (don't), ends at once."""
    quote, end = text[at], at + 1
    while end < len(text):
        if text[end] == "\\" and quote == '"':
            end += 2
            continue
        if text[end] == quote:
            return end + 1
        end += 1
    return at + 1


def goes_on(text: str) -> bool:
    """Return whether a command that says or sets something has a quote that is still open where the text ends.

    Of other commands that is not asked: in prose and in other languages an apostrophe opens nothing.
    """
    start = at = 0
    while at < len(text):
        c = text[at]
        if c == "\\":
            at += 2
        elif c in "\"'":
            after = _closing(text, at)
            if after == at + 1:  # not closed
                return _name(text[start:at]) in _SAYS | _SETS
            at = after
        elif c == "#" and (not at or text[at - 1].isspace()):
            return False  # a comment
        elif end := _END.match(text, at):
            start = at = end.end()
        else:
            at += 1
    return False


def _words(text: str) -> list[re.Match[str]]:
    """The words of a command, without what only precedes it (``sudo``, ``if``, ``VAR=x``, make's ``@``)."""
    words = list(_WORD.finditer(text))
    while words:
        first = words[0][0]
        assigns = re.match(r"\w+=", first) and len(words) > 1
        if not (first.lstrip("@-") in _BEFORE | {""} or first.startswith("--") or assigns):
            break
        words.pop(0)
    return words


def _name(text: str) -> str:
    words = _words(text)
    return words[0][0].lstrip("@").rpartition("/")[2].strip("\"'") if words else ""


def spoken(text: str, depth: int = 0) -> str:
    """Return the text with blanks in place of what its commands only say or search for; offsets stay."""
    if not any(name in text for name in _SEARCHES | _SAYS):
        return text
    commands = _commands(text)
    out = list(text)
    for index, command in enumerate(commands):
        part = text[command.start : command.end]
        name = _name(part)
        taker = _name(text[commands[index + 1].start : commands[index + 1].end]) if command.piped else ""
        if name in _SEARCHES or (name in _SAYS and not _goes_somewhere(part, taker)):
            out[command.start : command.end] = " " * (command.end - command.start)
        elif name in _RUNS_TEXT and depth < _DEEPEST:
            for word in _words(part):
                if word[0][:1] in "\"'" and " " in word[0]:
                    inside = word[0][1:-1]
                    at = command.start + word.start() + 1
                    out[at : at + len(inside)] = spoken(inside, depth + 1)
    return "".join(out)


def _goes_somewhere(part: str, taker: str) -> bool:
    """Return whether what is said is written to a file, or given to a program that acts on it."""
    outside = re.sub(r""""(?:[^"\\]|\\.)*"|'[^']*'""", lambda m: "_" * len(m[0]), part)
    written = any(not _NOWHERE.match(part, match.start("to")) for match in _REDIRECT.finditer(outside))
    return written or taker in _TAKES
