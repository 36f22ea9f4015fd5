"""Applications for gunicorn and uvicorn that hang in the first request, as one does that waits for its database."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any


def wsgi(_environ: dict[str, Any], _start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Hang."""
    time.sleep(1e6)
    return []


async def asgi(
    scope: dict[str, Any], _receive: Callable[[], Awaitable[Any]], _send: Callable[[Any], Awaitable[None]]
) -> None:
    """Block the event loop, which an `async def` must not do; beyond the start of the server."""
    if scope["type"] != "http":
        return
    time.sleep(1e6)
