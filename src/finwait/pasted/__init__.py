"""Pasted text as a machine: what people copy from a terminal, read in place of the kernel.

    recognise   which lines are the output of which tool (one module a tool: `ss`, `netstat`, `proc_net`, …)
    joined      the rows of several outputs, one a socket
    encode      rows as sock_diag would have sent them, with only what was told
    observation the looks that texts make
    read        files, and standard input

What a text does not tell is missing in the tables, and never a 0: no rule concludes anything from it.
"""

from __future__ import annotations

from finwait.errors import PasteError
from finwait.pasted.read import PastedMachine, is_recording, is_text, open_pasted, opened, read_texts
from finwait.pasted.recognise import time_of

__all__ = [
    "PasteError",
    "PastedMachine",
    "is_recording",
    "is_text",
    "open_pasted",
    "opened",
    "read_texts",
    "time_of",
]
