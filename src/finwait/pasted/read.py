"""Texts from files and standard input, as a machine that answers what they say."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final

from finwait import files
from finwait.errors import FinwaitError, PasteError
from finwait.pasted import raw
from finwait.pasted.lines import MOST, clean
from finwait.pasted.observation import PastedText, TextReading, observations
from finwait.recording.format import MAGIC
from finwait.recording.replay import Replay, open_recording

__all__ = ["PastedMachine", "is_recording", "is_text", "open_pasted", "opened", "read_texts"]


_CAPTURES: Final = (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\x0a\x0d\x0d\x0a")
"""How captures begin: pcap in both byte orders, with nanoseconds, and pcapng."""


class PastedMachine(Replay):
    """The looks that pasted texts make."""

    pasted: Final = True

    def __init__(self, reading: TextReading) -> None:
        super().__init__(reading.looks)
        self.reading = reading

    def begin(self) -> PastedMachine:
        """Return the same texts, to be looked at from their first look on."""
        return PastedMachine(self.reading)


def is_recording(path: str) -> bool:
    """Return whether a file begins as a recording does; of a pipe that is not asked.

    Raises:
        FinwaitError: it is no file that may be read.
        OSError: it cannot be read.
    """
    if path == "-":
        return False
    with files.open_to_read(path, pipes=True) as file:
        if not file.seekable():
            return False
        return bool(file.read(len(MAGIC)) == MAGIC)


def is_text(path: str) -> bool:
    """Return whether a file is a text, if it can be read; what cannot be read is for others to say."""
    try:
        return not is_recording(path)
    except (OSError, FinwaitError):
        return False


def read_texts(paths: Sequence[str], at_ns: Sequence[int] = ()) -> TextReading:
    """Read texts.

    Args:
        paths: of files; ``-`` is standard input.
        at_ns: when each was made, in the order of the files; they tell themselves where it is 0 or missing.

    Raises:
        PasteError: one cannot be read, or is too large.
    """
    texts = []
    for k, path in enumerate(paths):
        try:
            if path == "-":
                data = sys.stdin.buffer.read(MOST + 1)
            else:
                with files.open_to_read(path, pipes=True) as file:
                    data = file.read(MOST + 1)
        except OSError as error:
            unread = PasteError(f"could not read `{path}`: {error.strerror}")
            unread.hint = "is the name correct, and may you read it?"
            raise unread from error
        if len(paths) == 1 and (look := raw.observation(data)) is not None:
            return TextReading((look,), {path: {}}, Counter(), (), ())
        if data.startswith(_CAPTURES):
            capture = PasteError(f"`{path}`: a capture of packets")
            capture.hint = "`finwait explain --pcap FILE` reads captures"
            raise capture
        texts.append(PastedText(path, clean(data), at_ns[k] if k < len(at_ns) else 0))
    # Hundreds of thousands of small values are made that all stay: looking for cycles among them takes a third longer.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return observations(texts)
    finally:
        if collecting:
            gc.enable()


def open_pasted(paths: Sequence[str], at_ns: Sequence[int] = ()) -> PastedMachine:
    """Open texts as a machine.

    Raises:
        PasteError: one cannot be read, or nothing in them is known.
    """
    reading = read_texts(paths, at_ns)
    if not reading.looks:
        error = PasteError(
            f"nothing in {' and '.join(f'`{path}`' for path in paths)} is the output of a tool that finwait knows"
        )
        error.hint = "`finwait read --show-lines FILE` shows how each line was read"
        raise error
    return PastedMachine(reading)


def opened(path: str) -> Replay:
    """Open a recording or a text as a machine, told apart by how it begins.

    Raises:
        FinwaitError: it cannot be read, or is neither.
    """
    try:
        recorded = is_recording(path)
    except (OSError, FinwaitError):
        recorded = True  # which says why it cannot be read
    if recorded:
        return open_recording(path)
    reading = read_texts([path])
    if not reading.looks:
        unknown = PasteError(
            f"`{path}`: neither a recording of finwait nor the output of a tool that it knows"
        )
        unknown.hint = "`finwait read --show-lines FILE` shows how each line was read"
        raise unknown
    return PastedMachine(reading)
