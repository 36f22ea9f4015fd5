"""Pasted bytes → lines as a terminal would have shown them, without what copying added.

Colours, cursor movements, overstrikes, Windows line ends and UTF-16 go; what stands before a line (a quotation mark,
a time stamp, the name of a container or unit) is taken off by `without_prefix`, and `command_of` reads a prompt with
the command behind it. Nothing in here decides what a line is.

Bounded: a line is cut at `LONGEST` characters, and a text has at most `MOST` bytes.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from finwait.errors import PasteError

__all__ = ["LONGEST", "MOST", "TypedCommand", "clean", "command_of", "perhaps_command", "without_prefix"]

MOST: Final = 512 << 20
"""Bytes of a text: a million lines of `ss -tanoeip` are 350 MB."""
LONGEST: Final = 1 << 15
"""Characters of a line; programs with thousands of holders make long ones."""


_ESCAPES = re.compile(
    "\x1b(?:\\[[0-?]{0,64}[ -/]{0,8}[@-~]|\\][^\x07\x1b\n]{0,4096}(?:\x07|\x1b\\\\)"
    "|[PX^_][^\x1b\n]{0,4096}\x1b\\\\|[()][0-9A-B]|[ -/]?[0-Z\\\\-~])"
)
_OVERSTRUCK = re.compile("[^\n]\x08")
_UNSEEN = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160), 65279, 8203, 8206, 8207))
_UNSEEN |= dict.fromkeys((*range(8234, 8239), *range(8294, 8298), 173))
_UNSEEN |= {0xA0: " ", 0x2007: " ", 0x202F: " ", 0x2028: "\n", 0x2029: "\n", 0x85: "\n"}
_PLAIN = bytes({*range(0x20, 0x7F), 9, 10})


def clean(data: bytes) -> list[str]:
    """Return the lines of a text.

    Raises:
        PasteError: it is larger than `MOST`.
    """
    if len(data) > MOST:
        raise PasteError(f"the text has more than {MOST >> 20} MiB")
    text = _decoded(data)
    if text.isascii() and not text.encode().translate(None, _PLAIN):
        return [line if len(line) <= LONGEST else line[:LONGEST] for line in text.split("\n")]
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x08" in text:
        text = _OVERSTRUCK.sub("", text)
    text = text.translate(_UNSEEN)
    return [line[:LONGEST] for line in text.split("\n")]


def _decoded(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    if b"\0" in data[:64] and data[1:2] == b"\0":
        return data.decode("utf-16-le", "replace")
    return data.decode("utf-8", "replace")


_STAMP = (
    r"(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
    r"|(?:[A-Z][a-z]{2} )?[A-Z][a-z]{2} {1,2}\d{1,2} \d\d:\d\d:\d\d(?:\.\d{1,9})?(?: \d{4})?"
    r"|\d\d:\d\d:\d\d(?:\.\d{1,9})?)"
)
_PREFIX = re.compile(
    rf"(?:[>|│] ?){{0,4}}"
    rf"(?:\[?{_STAMP}\]? ?:? ?(?:stdout [FP] |stderr [FP] )?)?"
    r"(?:[\w.-]{1,64} [\w./@-]{1,64}(?:\[\d{1,10}\])?: |\[[\w ./:-]{1,64}\] ?|[\w./-]{1,64} {1,8}\| )?"
)


def without_prefix(line: str) -> str:
    """Return a line without what a log, a container runtime or a mail put before it."""
    match = _PREFIX.match(line)
    return line[match.end() :] if match else line


class TypedCommand(Struct, frozen=True):
    """A command that stands in a text before what it printed."""

    name: str
    args: str
    host: str = ""
    """The machine in the prompt; empty where there is none."""
    elsewhere: str = ""
    """Where the command itself leads: a machine, a container, a network namespace."""


_NAMES = (
    "ss|netstat|lsof|nstat|conntrack|sysctl|cat|ls|docker|podman|crictl|nerdctl|kubectl|iptables-save|ip6tables-save"
    "|nft|tcpdump|dmesg|journalctl|date|hostname|uname"
)
_BEFORE = (
    r"(?:sudo(?: -[ugh] \S+| -\S+)*|watch(?: -\S+| \d\S*)*|nsenter(?: \S+){1,8}?|ip netns exec \S+|busybox|time|doas"
    r"|env|[A-Z_]{1,30}=\S{0,60}|timeout(?: -\S+)* \d\S*|ssh(?: -\S+)* \S+"
    r"|(?:kubectl|docker|podman|crictl|nerdctl) exec(?: \S+){1,10}?)"
)
_COMMAND = re.compile(
    rf"(?P<prompt>[^$#%>❯➜+\n]{{0,80}}[$#%>❯➜+] ?)?(?P<before>(?:{_BEFORE} +){{0,4}})(?:\S{{0,40}}/)?(?P<name>{_NAMES})"
    r"(?: +(?P<args>.*)| *)$"
)
_ELSEWHERE = re.compile(
    r"(?:^| )(?:ssh(?: -\S+)*|ip netns exec|(?:kubectl|docker|podman|crictl|nerdctl) exec(?: -[nc] \S+| -\S+)*) "
    r"([^\s-]\S{0,63})"
)
"""Another machine, container or network namespace, in which a command was run."""
_HOST = re.compile(r"[\w.-]{1,32}@([\w.-]{1,64})")


_PERHAPS = re.compile(rf"(?:^|[\s/;|&`('\"])(?:{_NAMES})(?:\s|$)|\bstate\b|^[^$#%>❯➜]{{0,80}}[$#%>❯➜] +\S")


def perhaps_command(line: str) -> bool:
    """Return whether a line may be one at which a command was typed, also one that is not understood."""
    return _PERHAPS.search(line[:400]) is not None


def command_of(line: str) -> TypedCommand | None:
    """Return the command that a line shows, typed at a prompt or alone; None where it shows none."""
    if len(line) > 400:
        return None
    match = _COMMAND.match(line.strip())
    if match is None:
        return None
    args = match["args"] or ""
    if match["prompt"] is None and not (
        args[:1] in ("-", "/") or match["name"] in ("date", "dmesg", "nstat", "ss", "netstat")
    ):
        return None
    if match["prompt"] is None and args and args[:1] not in "-/s":
        return None
    host = _HOST.search(match["prompt"] or "")
    elsewhere = _ELSEWHERE.search(match["before"])
    return TypedCommand(match["name"], args, host[1] if host else "", elsewhere[1] if elsewhere else "")
