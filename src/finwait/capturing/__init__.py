"""Capturing chosen connections, and reading captures: what to capture, where, in which forms, until when.

Packets come from `finwait.kernel.capture`, states from single questions (`finwait.kernel.lookup`), both in
the namespaces of the chosen connections. A change of state becomes a comment on the next packet, so that a
reader of the file sees what the kernel made of the packets before.
"""

from finwait.capturing.chosen import CaptureTarget, choose, forms
from finwait.capturing.file import CaptureFile, FileRead, Writer, read_closings
from finwait.capturing.live import Recorder, follow

__all__ = [
    "CaptureFile",
    "CaptureTarget",
    "FileRead",
    "Recorder",
    "Writer",
    "choose",
    "follow",
    "forms",
    "read_closings",
]
