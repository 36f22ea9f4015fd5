"""Server-sent events: one document a look, encoded once, for every reader that waits.

A reader that is slow gets the latest document and none of those between. A comment every 15 s tells proxies and readers
that the connection lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

__all__ = ["EventStream"]

_COMMENT_S: Final = 15.0
_BEGIN: Final = b"retry: 3000\n\n"


class EventStream:
    """Hands the latest document to readers.

    Attributes:
        readers: how many there are.
    """

    def __init__(self) -> None:
        self.readers = 0
        self._data = b""
        self._number = 0
        self._changed = asyncio.Event()

    def publish(self, name: str, data: bytes) -> None:
        """Give readers a document.

        Args:
            name: of the event.
            data: JSON on one line.
        """
        self._data = b"event: " + name.encode("ascii") + b"\ndata: " + data + b"\n\n"
        self._number += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def read(self) -> AsyncIterator[bytes]:
        """Give what a reader gets, beginning with the latest document."""
        self.readers += 1
        try:
            yield _BEGIN
            known = 0
            while True:
                if known != self._number:
                    known = self._number
                    yield self._data
                    continue
                changed = self._changed
                try:
                    async with asyncio.timeout(_COMMENT_S):
                        await changed.wait()
                except TimeoutError:
                    yield b": no look since\n\n"
        finally:
            self.readers -= 1
