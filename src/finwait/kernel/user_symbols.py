"""The addresses of a process → functions, and how each comes to its caller, from the files that it has mapped.

A file is opened as it is mapped (``/proc/PID/map_files``), so that it is the right one after an upgrade too; where
that is not permitted, by its path in the process's own root, if the inode is the same. Names come from ``.symtab``,
else from ``.dynsym``; of code made at run time from ``/tmp/perf-PID.map`` in the process's root, trusted only if it
is a plain file of the process's user or of root, not older than the process, with one name and not through a link. How
to come to a caller stands in ``.eh_frame`` or ``.debug_frame``; of code that neither describes, the instructions that
come next are read (`finwait.uapi.leaving`), from the file or, where there is none, from the process's memory.

What an address meant when it was executed is told by `finwait.uapi.code_history`; where that is not known, nothing is
named.

All of it is somebody else's, and who chose it may wish us ill: files are read in pieces, when something is asked of
them, and never as a whole; what is kept of all of them together is bounded, and so is what is read because of one
process (`UserSymbols.refused` counts what was not). What does not decode names nothing.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Self

from msgspec import Struct

from finwait.errors import DecodeError
from finwait.kernel import procfs
from finwait.table.units import printable
from finwait.uapi import elf, leaving
from finwait.uapi.code_history import CodeHistory
from finwait.uapi.eh_frame import FrameRule, Index, TableHeader, frame_rule, parse_table_header, scan
from finwait.uapi.maps import Mapping, Maps, parse_maps
from finwait.uapi.perf_map import PerfMap, parse_perf_map
from finwait.uapi.proc import parse_status
from finwait.uapi.unwinding import BY_POINTER

__all__ = ["RUN_TIME_CODE", "Budget", "Moment", "Named", "UserSymbols", "read_maps"]

_MOST_MAPS: Final = 16 << 20
_MOST_TABLE: Final = 64 << 20
_MOST_DESCRIPTIONS: Final = 8 << 20
"""Bytes of ``.eh_frame`` that are scanned."""
_MOST_PERF_MAP: Final = 32 << 20
_MOST_FDE: Final = 1 << 16
_MOST_SEGMENTS: Final = 256
_MOST_SECTIONS: Final = 4096
_MOST_IMAGES: Final = 256
"""Files that are open at a time."""
_PIECE: Final = (1 << 20) // elf.SYMBOL_SIZE * elf.SYMBOL_SIZE
_PROLOGUE: Final = 64
_MOST_ANSWERS: Final = 20_000
"""Names and rules of one file that are remembered."""
_NEVER: Final = 1 << 62
"""More bytes than any budget has."""
_NO_FILES: Final = (b"/memfd:", b"/dev/zero", b"/SYSV")
"""How the names of mappings begin that have an inode and no file: code in them was made at run time."""


RUN_TIME_CODE: Final = "[run-time code]"
"""In place of a file, where code was made at run time and nobody names it."""


class Named(Struct, frozen=True):
    """A frame."""

    function: str
    """Name of the function; empty where nobody names it."""
    file: str
    """The mapped file, or `RUN_TIME_CODE`; empty of named code that no file is behind, and where nothing is known."""
    offset: int
    """In the file or the mapping, or the address itself."""


class Budget(Struct, frozen=True):
    """Bytes that may be spent on files that others chose."""

    kept: int = 128 << 20
    """In memory, of all tables together."""
    read_for_process: int = 256 << 20
    """Of tables, because of one process."""
    read: int = 2 << 30
    """Of tables, in all."""


def read_maps(pid: int, *, code: bool = False) -> Maps:
    """Return the address space of a process; empty when it is gone, or may not be read.

    Args:
        pid: of the process, or of one of its threads: a main thread that has ended has none any more.
        code: whether mappings that may not be executed are left out.
    """
    return parse_maps(procfs.read(f"/proc/{pid}/maps", _MOST_MAPS) or b"", code=code)


class _Ledger:
    """What was spent of a `Budget`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._read = 0
        self._read_for: dict[int, int] = {}
        self.process = 0
        """On whose account tables are read."""
        self.refused = 0

    def spend(self, size: int) -> bool:
        """Return whether so many bytes of a table may be read."""
        of_process = self._read_for.get(self.process, 0) + size
        if self._read + size > self._budget.read or of_process > self._budget.read_for_process:
            self.refused += 1
            return False
        self._read += size
        self._read_for[self.process] = of_process
        return True


class _Image:
    """A mapped ELF file: its functions and its unwinding tables, as far as they can be read.

    Tables are read when something is asked of them (`taken` says what they take), and may be given up again.
    """

    def __init__(self, fd: int, ledger: _Ledger) -> None:
        self._fd = fd
        self._ledger = ledger
        self._header: elf.ElfHeader | None = None
        self._segments: tuple[elf.ElfSegment, ...] = ()
        self._tables: list[tuple[elf.ElfSection, elf.ElfSection]] = []
        """Of symbols, each with its names; ``.symtab`` first."""
        self._table: TableHeader | None = None
        self._table_at = 0
        self._frames: list[tuple[elf.ElfSection, bool]] = []
        """Sections to scan, and whether each is ``.debug_frame``."""
        self._go = False
        self._symbols: dict[int, elf.Symbols] = {}
        self._indexes: dict[int, Index] = {}
        self._rules: dict[int, FrameRule | None] = {}
        self._names: dict[int, str] = {}
        with suppress(DecodeError, OSError):
            self._read_header()

    def _read_header(self) -> None:
        header = self._header = elf.parse_header(os.pread(self._fd, 64, 0))
        if header.segments <= _MOST_SEGMENTS:
            self._segments = elf.parse_segments(self._piece(header.segments_at, header.segments_size), header)
        for segment in self._segments:
            if segment.kind == elf.PT_GNU_EH_FRAME:
                with suppress(DecodeError):
                    begin = self._piece(segment.offset, TableHeader.SIZE)
                    self._table = parse_table_header(begin, segment.address, segment.size)
                    self._table_at = segment.offset + TableHeader.SIZE
        if not 0 < header.sections <= _MOST_SECTIONS or not self._ledger.spend(header.sections_size):
            return
        sections = elf.parse_sections(self._piece(header.sections_at, header.sections_size), header)
        names = sections[header.names] if header.names < len(sections) else None
        for kind in (elf.SHT_SYMTAB, elf.SHT_DYNSYM):
            table = next((section for section in sections if section.kind == kind), None)
            if table is not None and table.link < len(sections):
                self._tables.append((table, sections[table.link]))
        for section in sections if names is not None else ():
            if section.kind != elf.SHT_PROGBITS or names is None or section.name_at >= names.size:
                continue
            name = elf.name_in(self._piece(names.offset + section.name_at, 16))
            self._go |= name == ".gopclntab"
            if name in (".eh_frame", ".debug_frame") and section.plain:
                self._frames.append((section, name == ".debug_frame"))

    @property
    def taken(self) -> int:
        """What its tables take in memory, about."""
        tables = sum(symbols.taken for symbols in self._symbols.values())
        tables += sum(index.taken for index in self._indexes.values())
        return tables + 200 * (len(self._rules) + len(self._names)) + 4096

    def close(self) -> None:
        os.close(self._fd)

    def _piece(self, offset: int, size: int) -> bytes:
        """Return a piece of the file, or what there is of it."""
        if not 0 <= offset < 1 << 62:
            return b""
        parts = []
        with suppress(OSError):  # a file of a network or of a program may fail at any time
            while size > 0 and (part := os.pread(self._fd, size, offset)):
                parts.append(part)
                size -= len(part)
                offset += len(part)
        return b"".join(parts)

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        while size > 0 and (piece := self._piece(offset, min(size, _PIECE))):
            yield piece
            offset += _PIECE
            size -= _PIECE

    def _symbols_of(self, number: int) -> elf.Symbols:
        if number not in self._symbols:
            assert self._header is not None  # which the tables were found by
            table = self._tables[number][0]
            pieces = (
                self._pieces(table.offset, table.size) if self._affordable(table.size, _MOST_TABLE) else ()
            )
            self._symbols[number] = elf.parse_symbols(pieces, self._header)
        return self._symbols[number]

    def _affordable(self, size: int, most: int) -> bool:
        """Return whether a table of so many bytes may be read."""
        return self._ledger.spend(size if size <= most else _NEVER)

    def address(self, offset: int) -> int | None:
        """Return the address that a place in the file is meant for."""
        for segment in self._segments:
            if segment.kind == elf.PT_LOAD and segment.offset <= offset < segment.offset + segment.size:
                return offset - segment.offset + segment.address
        return None

    def _offset(self, address: int) -> int | None:
        for segment in self._segments:
            if segment.kind == elf.PT_LOAD and segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        return None

    def _find(self, address: int) -> tuple[elf.Function, int] | None:
        """Return the function at an address, and the table that it is in."""
        for number in range(len(self._tables)):
            if (function := self._symbols_of(number).at(address)) is not None:
                return function, number
        return None

    def name(self, offset: int) -> str:
        """Return the name of the function at a place in the file; empty where nobody says."""
        if len(self._names) > _MOST_ANSWERS:
            self._names.clear()
        if offset not in self._names:
            address = self.address(offset)
            numbered = None if address is None else self._find(address)
            self._names[offset] = "" if numbered is None else self._text(*numbered)
        return self._names[offset]

    def _text(self, function: elf.Function, number: int) -> str:
        strings = self._tables[number][1]
        return elf.plainest(
            elf.name_in(self._piece(strings.offset + at, min(elf.MOST_NAME, strings.size - at)))
            for at in function.names_at
            if at < strings.size
        )

    def rule(self, offset: int) -> FrameRule | None:
        """Return how to come to a caller, as tables say; None where none does.

        Args:
            offset: in the file, of an instruction.
        """
        if len(self._rules) > _MOST_ANSWERS:
            self._rules.clear()
        if offset not in self._rules:
            address = self.address(offset)
            self._rules[offset] = None if address is None else self._find_rule(address)
        return self._rules[offset]

    def _find_rule(self, address: int) -> FrameRule | None:
        if self._table is not None:
            described_at = self._table.find(address, lambda k: self._piece(self._table_at + 8 * k, 8))
            place = None if described_at is None else self._offset(described_at)
            if place is not None and described_at is not None:
                rule = self._described(place, described_at, address)
                if rule is not None:
                    return rule
        for number, (section, debug) in enumerate(self._frames):
            if self._table is not None and not debug:
                continue
            if (at := self._index(number).find(address)) is None:
                continue
            common = section.offset if debug else None
            rule = self._described(section.offset + at, section.address + at, address, common)
            if rule is not None:
                return rule
        return None

    def _index(self, number: int) -> Index:
        if number not in self._indexes:
            section, debug = self._frames[number]
            fits = self._affordable(section.size, _MOST_DESCRIPTIONS)
            data = self._piece(section.offset, section.size) if fits else b""
            self._indexes[number] = scan(data, section.address, debug=debug)
        return self._indexes[number]

    def _described(
        self, place: int, described_at: int, address: int, commons_at: int | None = None
    ) -> FrameRule | None:
        """Return what the description at a place in the file says of an address.

        Args:
            place: of the FDE.
            described_at: its address.
            address: of the instruction.
            commons_at: of ``.debug_frame`` where it begins: its pointers are counted from there.
        """
        description = self._entry(place)
        if len(description) < 4:
            return None
        back = int.from_bytes(description[:4], "little")
        common = self._entry(place + 4 - back if commons_at is None else commons_at + back)
        if common[:4] != (b"\0\0\0\0" if commons_at is None else b"\xff\xff\xff\xff"):
            return None
        return frame_rule(common[4:], description[4:], described_at + 8, address)

    def _entry(self, place: int) -> bytes:
        """Return an entry of .eh_frame behind its length; empty where it is longer than a function can be."""
        size = int.from_bytes(self._piece(place, 4), "little")
        return self._piece(place + 4, size) if 4 <= size <= _MOST_FDE else b""

    def code(self, offset: int, size: int) -> bytes:
        """Return bytes of code."""
        return self._piece(offset, size) if offset >= 0 else b""

    def function(self, offset: int) -> tuple[int, int] | None:
        """Return the places in the file where the function at a place begins and ends; None where nobody says."""
        address = self.address(offset)
        numbered = None if address is None else self._find(address)
        begin = None if numbered is None else self._offset(numbered[0].begin)
        if numbered is None or begin is None:
            return None
        return begin, begin + numbered[0].end - numbered[0].begin

    def keeps_pointer(self, offset: int) -> bool:
        """Return whether the function at a place is known to keep the frame pointer. All of Go do."""
        if self._go:
            return True
        bounds = self.function(offset)
        if bounds is None:
            return False
        return leaving.keeps_frame_pointer(self.code(bounds[0], min(_PROLOGUE, max(offset - bounds[0], 0))))


class _Process(Struct):
    """What is known of a process while its stacks are named."""

    maps: Maps
    images: dict[tuple[int, int], _Image | None]
    perf_map: PerfMap | None = None


class Moment:
    """What addresses of a process meant at one moment.

    Args:
        symbols: of all processes.
        pid: of the process.
        proc: the number under ``/proc``: that of the process, or of a thread of it that still runs.
        time_ns: the moment, CLOCK_MONOTONIC.
    """

    def __init__(self, symbols: UserSymbols, pid: int, proc: int, time_ns: int) -> None:
        self._symbols = symbols
        self._pid = pid
        self._proc = proc
        self._time_ns = time_ns
        self._process = symbols.process(pid, proc)

    @property
    def there(self) -> bool:
        """Whether the process is there, and may be looked into."""
        return len(self._process.maps) > 0

    @property
    def known(self) -> bool:
        """Whether all that was mapped since is known."""
        return self._symbols.history.known(self._pid, self._time_ns)

    def _mapping(self, address: int) -> tuple[Mapping, bool] | None:
        """Return the mapping of an address as it was, and whether it still is."""
        if not self.known:
            return None
        history = self._symbols.history
        if not history.changed(self._pid, address, self._time_ns):
            now = self._process.maps.at(address)
            if now is not None:
                return now, True
        then = history.before(self._pid, address, self._time_ns)
        return None if then is None else (then, False)

    def named(self, address: int, *, called: bool) -> Named:
        """Return what an address is called.

        Args:
            address: in the process.
            called: whether it is a return address, so that the call before it is meant.
        """
        at = address - called
        mapped = self._mapping(at)
        if mapped is None:
            return Named("", "", address)
        mapping, current = mapped
        if mapping.inode:
            image = self._image(mapping, current=current)
            offset = address - mapping.begin + mapping.offset
            name = image.name(offset - called) if image is not None else ""
            if name or (mapping.name.startswith(b"/") and not mapping.name.startswith(_NO_FILES)):
                return Named(printable(name), printable(os.fsdecode(mapping.name)), offset)
        if mapping.name.startswith(b"["):
            return Named("", printable(os.fsdecode(mapping.name)), address - mapping.begin)
        if current and (name := self._perf_map().name(at)):
            return Named(printable(name), "", address)
        return Named("", RUN_TIME_CODE, address - mapping.begin)

    def is_return(self, address: int) -> bool:
        """Return whether an address is one of code that a call returns to."""
        mapped = self._mapping(address - 1)
        if mapped is None:
            return False
        before = self._code(*mapped, address - 7, 7)
        return not before or leaving.follows_call(before)

    def rule(self, address: int, *, called: bool) -> FrameRule | None:
        """Return how to come to a caller; None where nothing says.

        Args:
            address: an instruction, or a return address.
            called: whether it is a return address: the call before it is in the function.
        """
        at = address - called
        mapped = self._mapping(at)
        if mapped is None:
            return None
        mapping, current = mapped
        image = self._image(mapping, current=current) if mapping.inode else None
        offset = at - mapping.begin + mapping.offset
        end = mapping.end
        if image is not None:
            rule = image.rule(offset)
            if rule is not None:
                return rule
            if (bounds := image.function(offset)) is not None:
                end = min(end, mapping.begin - mapping.offset + bounds[1])
        rule = leaving.leaving(
            lambda place, size: self._code(mapping, current, place, min(size, end - place)), address
        )
        if rule is not None:
            return rule
        if image is None:  # made at run time: who makes code for others to walk keeps the frame pointer
            return (
                BY_POINTER
                if not mapping.name.startswith(b"/") or mapping.name.startswith(_NO_FILES)
                else None
            )
        return BY_POINTER if image.keeps_pointer(offset) else None

    def _code(self, mapping: Mapping, current: bool, address: int, size: int) -> bytes:
        """Return bytes of code: from the file, else from the process."""
        if size <= 0:
            return b""
        if mapping.inode and (image := self._image(mapping, current=current)) is not None:
            return image.code(address - mapping.begin + mapping.offset, size)
        if not current:
            return b""
        try:
            with open(f"/proc/{self._proc}/mem", "rb", buffering=0) as memory:
                return os.pread(memory.fileno(), size, address)
        except (OSError, OverflowError):
            return b""

    def _image(self, mapping: Mapping, *, current: bool) -> _Image | None:
        images = self._process.images
        key = mapping.begin, mapping.inode
        if key not in images:
            images[key] = self._symbols.image(self._pid, self._proc, mapping, current=current)
        image = images[key]
        if image is not None and not self._symbols.holds(image):  # given up meanwhile
            image = images[key] = self._symbols.image(self._pid, self._proc, mapping, current=current)
        return image

    def _perf_map(self) -> PerfMap:
        if self._process.perf_map is None:
            self._process.perf_map = parse_perf_map(_read_perf_map(self._proc))
        return self._process.perf_map


class UserSymbols:
    """Names of the frames of processes.

    A context manager: files stay open in between. Ask of one process after the other: of the last one alone the
    address space and the perf map are kept.

    Args:
        history: what was mapped when.
        budget: what may be spent.
    """

    def __init__(self, history: CodeHistory | None = None, budget: Budget | None = None) -> None:
        self.history = CodeHistory() if history is None else history
        self._budget = Budget() if budget is None else budget
        self._ledger = _Ledger(self._budget)
        self._images: OrderedDict[tuple[int, int], _Image] = OrderedDict()
        self._last: tuple[int, int] = (0, 0)
        self._process: _Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for image in self._images.values():
            image.close()
        self._images.clear()
        self._process = None

    @property
    def refused(self) -> int:
        """How often a table was not read because the budget was spent."""
        return self._ledger.refused

    @property
    def taken(self) -> int:
        """What tables take in memory now, about."""
        return sum(image.taken for image in self._images.values())

    def moment(self, pid: int, tid: int, time_ns: int) -> Moment:
        """Return what addresses meant at a moment.

        Args:
            pid: of the process.
            tid: of a thread of it, which is asked where the main thread has ended.
            time_ns: CLOCK_MONOTONIC.
        """
        self._ledger.process = pid
        return Moment(self, pid, proc_of(pid, tid), time_ns)

    def process(self, pid: int, proc: int) -> _Process:
        """Return what is known of a process; its maps as they were when they were first asked for."""
        if self._process is None or self._last != (pid, proc):
            self._last = pid, proc
            self._process = _Process(read_maps(proc, code=True), {})
        return self._process

    def holds(self, image: _Image) -> bool:
        """Return whether an image was not given up, and is now the last one to be."""
        for key, kept in reversed(self._images.items()):
            if kept is image:
                self._images.move_to_end(key)
                return True
        return False

    def image(self, pid: int, proc: int, mapping: Mapping, *, current: bool) -> _Image | None:
        """Return the file behind a mapping; None where it cannot be opened, or is another one by now."""
        self._ledger.process = pid
        fd = _open_mapped(proc, mapping, current=current)
        if fd < 0:
            return None
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino
        if key in self._images:
            os.close(fd)
            self._images.move_to_end(key)
            return self._images[key]
        while self._images and (len(self._images) >= _MOST_IMAGES or self.taken > self._budget.kept):
            self._images.popitem(last=False)[1].close()
        self._images[key] = _Image(fd, self._ledger)
        return self._images[key]


def proc_of(pid: int, tid: int) -> int:
    """Return the number under ``/proc`` that shows a process: a main thread that has ended shows nothing."""
    for number in (pid, tid):
        if os.path.exists(f"/proc/{number}/exe"):
            return number
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            if os.path.exists(f"/proc/{thread}/exe"):
                return int(thread)
    return pid


def _open_mapped(pid: int, mapping: Mapping, *, current: bool) -> int:
    """Open the file behind a mapping; −1 where that cannot be done, or it is another one by now.

    Args:
        pid: the number under ``/proc``.
        mapping: of code.
        current: whether it is still mapped there.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        if not current:
            raise FileNotFoundError
        fd = os.open(f"/proc/{pid}/map_files/{mapping.begin:x}-{mapping.end:x}", flags)
    except OSError:
        try:
            fd = os.open(f"/proc/{pid}/root{os.fsdecode(mapping.name)}", flags | os.O_NOFOLLOW)
        except (OSError, ValueError):
            return -1
        if os.fstat(fd).st_ino != mapping.inode:
            os.close(fd)
            return -1
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return -1
    return fd


_CLOCKS_DIFFER_S: Final = 0.5
"""A file's time is that of the last tick, and a process's is counted in ticks."""


def _began(pid: int) -> float:
    """Return when a process began, in the time of files; what is older is not its own.

    Raises:
        OSError: it is gone.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _read_perf_map(pid: int) -> bytes:
    """Return ``/tmp/perf-PID.map`` of a process; empty where there is none that is to be trusted."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            data = file.read()
        process = parse_status(data)
        inner = process.ns_pids[-1] if process.ns_pids else pid
        # No component behind the process's root may be a link: it would lead into ours.
        folder = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            temporary = os.open(
                "tmp", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
        finally:
            os.close(folder)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            fd = os.open(f"perf-{inner}.map", flags, dir_fd=temporary)
        finally:
            os.close(temporary)
    except (OSError, DecodeError):
        return b""
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        trusted = (
            stat.S_ISREG(status.st_mode)
            and status.st_uid in (0, process.uid, process.euid)
            and status.st_nlink == 1
            and status.st_mtime >= _began(pid) - _CLOCKS_DIFFER_S
        )
        return file.read(_MOST_PERF_MAP) if trusted and status.st_size <= _MOST_PERF_MAP else b""
