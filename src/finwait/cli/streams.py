"""The standard streams: fit to be written to, by whatever they were opened, until nothing is to be written any more."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

__all__ = ["acts_told", "progress", "standard_streams", "write_no_more"]

_PLAIN = {
    "×": "x", "⇄": "<->", "→": "->", "←": "<-", "…": "...", "≠": "!=", "≥": ">=", "≤": "<=", "·": "-", "−": "-",
    "–": "-", "µ": "u", "≈": "~",
}  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write what a locale has no character for in those that all have (an error handler of codecs)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


def standard_streams() -> bool:
    """Make the standard streams fit to be written to; return whether standard output is open.

    A closed one is opened on /dev/null, or the next descriptor that is opened would take its number. Those of
    PYTHONUNBUFFERED, usual in containers, get a buffer: without one Python writes once, and what a disk that is nearly
    full, or a pipe, did not take of that is lost without an error.
    """
    can_write = sys.stdout is not None
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the end
    sys.stdout, sys.stderr = _buffered(sys.stdout), _buffered(sys.stderr, lines=True)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower().replace("-", "") != "utf8":
        codecs.register_error("finwait", _plain)
        sys.stdout.reconfigure(errors="finwait")
        if isinstance(sys.stderr, io.TextIOWrapper):
            sys.stderr.reconfigure(errors="finwait")
    return can_write


def _buffered(stream: TextIO, *, lines: bool = False) -> TextIO:
    """Return a stream whose writes are finished or fail; ``lines``, or a terminal, lets each line out at once."""
    if not (isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.RawIOBase)):
        return stream
    raw = io.FileIO(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=lines or stream.isatty(),
    )


def write_no_more(stream: TextIO | None = None) -> None:
    """Let nothing be written to a stream at exit any more, which would be another status (120); None: to stdout."""
    stream = stream or sys.stdout
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def acts_told(summary: Callable[[], str]) -> Iterator[None]:
    """Write what came of acts; where that cannot be written, say on standard error how much was done.

    A reader that has gone (`| head -1`) is no error here, so that the status remains that of the acts.

    Raises:
        OSError: the output could not be written.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(
                f"finwait: not everything could be written: {summary()}; see `finwait journal`\n"
            )
        if not isinstance(error, BrokenPipeError):
            raise
        write_no_more()


def progress() -> Callable[[str], None] | None:
    """Return what says on a terminal's stderr what takes more than a second."""
    if not sys.stderr.isatty():
        return None
    begun = time.monotonic()

    def say(activity: str) -> None:
        if time.monotonic() - begun > 1:
            sys.stderr.write(f"finwait: {activity} …\n")

    return say
