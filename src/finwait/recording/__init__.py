"""Recordings: what one or more looks read, in a file, so that every command can read it in place of the kernel.

    record()           look at a machine and write a file
    open_recording()   a file as a machine that answers what the running kernel answered

A recording is the bug report: with ``redact`` it can be attached to a public one.
"""

from __future__ import annotations

from finwait.recording.format import STANDARD, read, received, write
from finwait.recording.redact import Pseudonyms, redact, redact_look
from finwait.recording.replay import Replay, open_recording
from finwait.recording.writer import Recorded, observed, record

__all__ = [
    "STANDARD",
    "Pseudonyms",
    "Recorded",
    "Replay",
    "observed",
    "open_recording",
    "read",
    "received",
    "record",
    "redact",
    "redact_look",
    "write",
]
