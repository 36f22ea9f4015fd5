"""A TCP relay that closes correctly: as a service, as a library, and as a machine for any loop.

* ``finwait relay run`` (`finwait.relay.command`) puts it in front of a service.
* `relay` joins two asyncio streams or sockets in a program of your own.
* `finwait.relay.machine` is the state machine alone, without sockets or clock.

`finwait.relay.machine` begins with the theory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finwait.relay.streams import relay

__all__ = ["relay"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # PEP 562: what is asked for decides
    """Load `relay` when it is first used: the machine alone needs no asyncio."""
    if name == "relay":
        from finwait.relay.streams import relay

        return relay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
