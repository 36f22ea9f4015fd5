"""Which lines of a text are what: sections, each of one recogniser and one command's output.

A line belongs to the recogniser that it was for the line before if that still knows it, else to the first that does.
What no recogniser knows belongs to none, and is shown by `finwait read --show-lines`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType
from typing import Final

from msgspec import Struct, field

from finwait.pasted import (
    conntrack,
    firewall,
    foreign,
    kernel_log,
    lsof,
    netstat,
    nstat,
    proc_net,
    processes,
    proxies,
    ss,
    sysctl,
    tcpdump,
)
from finwait.pasted.lines import TypedCommand, command_of, perhaps_command, without_prefix
from finwait.pasted.rows import TextPart

__all__ = ["RECOGNISERS", "TextSection", "read_section", "sections", "time_of"]

RECOGNISERS: Final[tuple[ModuleType, ...]] = (
    ss, netstat, proc_net, lsof, conntrack, foreign, nstat, sysctl, processes, tcpdump, kernel_log, firewall, proxies,
)  # fmt: skip
"""In the order in which they are asked."""

_STARTS: Final[tuple[tuple[ModuleType, Callable[[str], bool]], ...]] = tuple(
    (module, module.starts) for module in RECOGNISERS
)


class TextSection(Struct):
    """Lines that one command printed, and what is known of when and where."""

    module: ModuleType
    args: str = ""
    host: str = ""
    unix_ns: int = 0
    typed: bool = False
    """Whether the command line is there."""
    lines: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of the lines, from 1 on."""
    has_rows: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells outputs apart: where it comes again, it was made at another moment."""
        part: str = self.module.part_of(self.lines) if hasattr(self.module, "part_of") else ""
        return self.name, self.args, part

    @property
    def name(self) -> str:
        """The recogniser's."""
        name: str = self.module.NAME
        return name


_HEADS: Final = ("State", "Netid", "Recv-Q", "Active", "Proto", "sl")
"""First words of headers: where rows came before, another output begins."""


class _Reader:
    """Goes through the lines of a text."""

    def __init__(self) -> None:
        self.sections: list[TextSection] = []
        self.labels: dict[int, str] = {}
        self._now: TextSection | None = None
        self._command: TypedCommand | None = None
        self._host = self._at = ""
        self._unix_ns = 0
        self.unknown = 0
        """Lines that look like rows, and that nothing knows."""

    def line(self, number: int, line: str) -> None:
        """Take the next line."""
        now = self._now
        if now is not None and now.module is ss and now.lines and line[:1] == "\t":
            now.lines.append(line)
            now.numbers.append(number)
            return
        if not line or line.isspace():
            return
        if "\t" in line and line[:1] not in "\t ":
            line = line.replace("\t", " ")  # as a table of a wiki or a spreadsheet has between columns
        if self._known(number, line):
            return
        if (command := command_of(line)) is not None:
            self._take_command(number, command)
            return
        if (unix_ns := time_of(line)) is not None:
            self._unix_ns, self._now = unix_ns, None
            self.labels[number] = "time"
            return
        bare = without_prefix(line)
        if bare != line and self._known(number, bare):
            return
        self._rest(number, line)

    def _known(self, number: int, line: str) -> bool:
        now = self._now
        if now is not None and now.module.starts(line):
            module: ModuleType | None = now.module
        else:
            module = next((module for module, starts in _STARTS if starts(line)), None)
        if module is None:
            return False
        head = line.split(None, 1)[0] in _HEADS
        if now is None or now.module is not module or (head and now.has_rows):
            now = self._begin(module)
        now.lines.append(line)
        now.numbers.append(number)
        now.has_rows |= not head
        return True

    def _begin(self, module: ModuleType) -> TextSection:
        args = self._command.args if self._command is not None else ""
        self._now = TextSection(module, args, self._host, self._unix_ns, self._command is not None)
        self.sections.append(self._now)
        return self._now

    def _take_command(self, number: int, command: TypedCommand) -> None:
        self._command, self._now = command, None
        self._at = command.host or self._at
        self._host = command.elsewhere or self._at
        self.labels[number] = f"command: {command.name}"

    def _rest(self, number: int, line: str) -> None:
        now, command = self._now, self._command
        in_row = now is not None and now.module is ss and bool(now.lines)
        if now is not None and in_row and (ss.continues(line) or _WRAPPED.fullmatch(line.strip())):
            now.lines.append(line)
            now.numbers.append(number)
        elif command is not None and command.name == "cat" and "/proc/sys/" in command.args and now is None:
            self._begin(sysctl).lines.append(line)
            self.sections[-1].numbers.append(number)
        else:
            if perhaps_command(line):  # what follows is its, and not of the state that the last one asked for
                self._now, self._command = None, None
            if len(_END.findall(line[:1000])) > 1:
                self.unknown += 1


_WRAPPED = re.compile(
    r"\d{1,5}|[\d,=:\w\"(]{0,40}\)[),]{0,3}|\d{1,5} +(?:users:|timer:|ino:|uid:|sk:|cgroup:).*"
)
"""What is left of a row that a terminal wrapped within a word."""
_END = re.compile(
    r"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]*::?[0-9a-fA-F:]*|\*):(?:\d{1,5}|[\w-]{2,20}|\*)(?!\S)"
)
"""An address with a port."""


def sections(lines: list[str]) -> tuple[list[TextSection], dict[int, str], int]:
    """Return the sections of a text, what each of its lines was read as, by number, and how many rows nothing knows."""
    reader = _Reader()
    for number, line in enumerate(lines, 1):
        reader.line(number, line)
    labels = dict(reader.labels)
    for section in reader.sections:
        labels |= dict.fromkeys(section.numbers, section.name)
    return reader.sections, labels, reader.unknown


def read_section(section: TextSection) -> TextPart:
    """Return what a section says."""
    part: TextPart = section.module.read(section.lines, section.args)
    part.host = section.host
    return part


_DATE = re.compile(
    r"\s*(?:[A-Z][a-z]{2}\s+)?([A-Z][a-z]{2})\s+(\d{1,2})\s+(\d\d):(\d\d):(\d\d)\s*(AM|PM)?\s+(?:[A-Z]{2,5}\s+)?(\d{4})\s*$"
)
_DATE_DAY_FIRST = re.compile(
    r"\s*(?:[A-Z][a-z]{2},?\s+)?(\d{1,2})\s+([A-Z][a-z]{2})\s+(\d{4})\s+(\d\d):(\d\d):(\d\d)\s*(AM|PM)?\s*(?:[A-Z]{2,5}|[+-]\d{4})?\s*$"
)
_ISO = re.compile(r"\s*(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))?\s*(Z|UTC|[+-]\d\d:?\d\d)?\s*$")
_MONTHS: Final = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def time_of(line: str) -> int | None:
    """Return the time that a line shows, as `date` prints it, in nanoseconds; zones by letters count as UTC."""
    try:
        if match := _ISO.match(line):
            zone = (match[4] or "+0000").replace("UTC", "+0000").replace("Z", "+0000").replace(":", "")
            when = datetime.strptime(f"{match[1]} {match[2]} {zone}", "%Y-%m-%d %H:%M:%S %z")
            return int(when.timestamp()) * 10**9 + int((match[3] or "0").ljust(9, "0"))
        if match := _DATE.match(line):
            month, day, hour, minute, second, half, year = match.groups()
        elif match := _DATE_DAY_FIRST.match(line):
            day, month, year, hour, minute, second, half = match.groups()
        else:
            return None
        if month not in _MONTHS:
            return None
        hours = int(hour) % 12 + 12 * (half == "PM") if half else int(hour)
        when = datetime(
            int(year), _MONTHS.index(month) + 1, int(day), hours, int(minute), int(second), tzinfo=UTC
        )
        return int(when.timestamp()) * 10**9
    except (ValueError, OverflowError):
        return None
