"""A copy of the top of a user stack → the functions that were called, innermost first.

Theory of operation. The kernel walks frame pointers. A function that keeps none hides its *caller* from that walk,
and the C library's ``accept()`` and ``connect()`` keep none on most distributions: the very function that opened a
connection would be missing. So the walk is made again, with the registers and the copied stack. Where a table says
how to come to the caller (`finwait.uapi.eh_frame`) it is followed; where there is none (code made at run time, Go)
the frame pointer is. Where the copy ends, what the kernel walked goes on, if it is certain where in it we stand.

Only addresses of code are believed, and the stack pointer only grows: bytes that are no stack end the walk. Where
nothing says how a function comes to its caller, the frame pointer is followed all the same; but if that function keeps
none it is its caller's, and the caller is missing: the walk says at which places that can be (`Walk.doubtful`).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from finwait.uapi.eh_frame import BP, FrameRule
from finwait.uapi.perf_event import Registers

__all__ = ["BY_POINTER", "MOST_FRAMES", "Walk", "unwound"]

MOST_FRAMES: Final = 127
BY_POINTER: Final = FrameRule(BP, 16, -8, -16)
"""Of a function that keeps the frame pointer."""


_LARGEST_STACK: Final = 1 << 26


class Walk(Struct, frozen=True):
    """What a stack is found to be."""

    addresses: tuple[int, ...]
    """The instruction itself, then return addresses, innermost first."""
    doubtful: frozenset[int]
    """Places of addresses before which a caller may be missing."""
    cut: bool
    """Whether it goes on and nobody knows how: where the copy of the stack ends, below a signal handler, or where
    nothing says how a function comes to its caller."""
    tables: bool
    """Whether the caller of the innermost function is known by tables or by its code, not by the frame pointer."""


class _Stack:
    """Words of the copy, by address."""

    def __init__(self, begin: int, copied: bytes) -> None:
        self._begin = begin
        self._copied = copied

    def word(self, address: int) -> int | None:
        at = address - self._begin
        if at < 0 or at + 8 > len(self._copied):
            return None
        number: int = struct.unpack_from("<Q", self._copied, at)[0]
        return number


def _kernel_walk(stack: _Stack, bp: int, chain: tuple[int, ...]) -> dict[int, int]:
    """Return which frame pointer led the kernel to which entry of its chain, as far as the copy tells."""
    places: dict[int, int] = {}
    for place in range(1, len(chain)):
        if bp in places:
            break
        places[bp] = place
        if stack.word(bp + 8) not in (None, chain[place]):
            return {}  # it is not the walk that we think it is
        caller = stack.word(bp)
        if caller is None:
            break
        bp = caller
    return places


def unwound(
    registers: Registers,
    copied: bytes,
    chain: tuple[int, ...],
    rule_of: Callable[[int, bool], FrameRule | None],
    is_return: Callable[[int], bool],
) -> Walk:
    """Walk a stack.

    Args:
        registers: at that moment.
        copied: the stack from the stack pointer on.
        chain: what the kernel walked by frame pointers.
        rule_of: how to come from an instruction, or (True) a return address, to the caller; None where nothing says.
        is_return: whether an address is of code, behind a call.
    """
    stack = _Stack(registers.sp, copied)
    walked = _kernel_walk(stack, registers.bp, chain)
    frames = [registers.ip]
    doubtful: set[int] = set()
    cut = tables = False
    sp, bp = registers.sp, registers.bp
    while len(frames) < MOST_FRAMES:
        known = rule_of(frames[-1], len(frames) > 1)
        rule = known or BY_POINTER
        if rule.return_at is None:
            break
        frame = (bp if rule.register == BP else sp) + rule.offset
        address = stack.word(frame + rule.return_at)
        caller_bp = bp if rule.bp_at is None else stack.word(frame + rule.bp_at)
        if address is None or caller_bp is None:
            rest = chain[walked[bp] :] if rule == BY_POINTER and bp in walked else ()
            rest = tuple(itertools.takewhile(is_return, rest))
            certain = [known is not None, *(rule_of(caller, True) == BY_POINTER for caller in rest[:-1])]
            doubtful |= {len(frames) + place for place, sure in enumerate(certain[: len(rest)]) if not sure}
            frames += rest
            cut = not rest and 0 < frame - sp < _LARGEST_STACK
            break
        if frame <= sp or not is_return(address):
            cut = address != 0
            break
        if known is None:
            doubtful.add(len(frames))
        elif len(frames) == 1:
            tables = known != BY_POINTER
        frames.append(address)
        sp, bp = frame, caller_bp
    return Walk(tuple(frames[:MOST_FRAMES]), frozenset(doubtful), cut, tables)
