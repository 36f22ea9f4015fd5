"""The stacks of calls with the names of their functions, and why some could not be named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from finwait.diagnosis.leaks import CallStack, Still, TracedCall, UnwoundBy, own_frames
from finwait.errors import Gap
from finwait.kernel.user_symbols import RUN_TIME_CODE, Moment, UserSymbols
from finwait.uapi.stacks import StackFrame
from finwait.uapi.unwinding import Walk, unwound

__all__ = ["named_stacks"]

_MOST_FRAMES: Final = 200_000
"""Different frames that are named; each takes some hundred bytes."""


class _Naming:
    """Names stacks, and counts why they could not be named."""

    def __init__(self, symbols: UserSymbols) -> None:
        self._symbols = symbols
        self._frames: dict[StackFrame, StackFrame] = {}
        self.replaced = 0
        self.gone = 0
        self.nothing = 0
        self.unsure = 0
        self.many = 0

    def of(self, call: TracedCall) -> CallStack:
        """Return the stack of a call."""
        if call.replaced:
            self.replaced += 1
            return CallStack()
        moment = self._symbols.moment(call.pid, call.sample.tid, call.sample.time_ns)
        if not moment.there:
            self.gone += 1
            return CallStack()
        if not moment.known:
            self.unsure += 1
            return CallStack()
        if len(self._frames) > _MOST_FRAMES:
            self.many += 1
            return CallStack()
        walk = _walked(call, moment)
        self.nothing += not walk.addresses
        named = [moment.named(address, called=k > 0) for k, address in enumerate(walk.addresses)]
        stack = own_frames(
            ((name.function, name.file, name.offset) for name in named), walk.doubtful, cut=walk.cut
        )
        frames = tuple(self._frames.setdefault(frame, frame) for frame in stack.frames)
        unknown = any(not name.file and not name.function for name in named)
        made = tuple(
            address for address, name in zip(walk.addresses, named, strict=True) if name.file == RUN_TIME_CODE
        )
        how: UnwoundBy = "tables" if walk.tables else "frame pointers"
        return replace(stack, frames=frames, pid=call.pid if unknown else 0, unwound_by=how, run_time=made)

    def gaps(self) -> Iterator[Gap]:
        """Yield what could not be named, and why."""
        reasons = (
            (self.replaced, "name the code: the process runs another program since"),
            (self.gone, "name the code: the process ended, or its maps may not be read"),
            (self.unsure, "name the code: what the process had mapped is not known, for records were lost"),
            (self.many, f"name the code: there are more than {_MOST_FRAMES} different frames"),
            (self.nothing, "read the stack: the kernel gave none"),
        )
        for count, doing in reasons:
            if count:
                yield Gap(f"{count} call{'' if count == 1 else 's'}", doing, "")
        if tables := self._symbols.refused:
            doing = "read them for names and callers: they are too large, or too many"
            yield Gap(f"{tables} table{'' if tables == 1 else 's'} of mapped files", doing, "")


def named_stacks(
    still: Iterable[Still], symbols: UserSymbols
) -> tuple[dict[TracedCall, CallStack], list[Gap]]:
    """Return the stack of each call with its functions, and where there were none to be had."""
    calls = [call for entry in still for call in (entry.opening, entry.half_close) if call is not None]
    naming = _Naming(symbols)
    named: dict[TracedCall, CallStack] = {}
    for call in sorted(calls, key=lambda call: call.pid):  # of one process after the other
        if call not in named:
            named[call] = naming.of(call)
    return named, list(naming.gaps())


def _walked(call: TracedCall, moment: Moment) -> Walk:
    sample = call.sample
    if sample.registers is None:
        doubtful = frozenset({1}) if len(sample.chain) > 1 else frozenset[int]()
        return Walk(sample.chain, doubtful, False, False)
    return unwound(
        sample.registers,
        call.stack,
        sample.chain,
        lambda address, called: moment.rule(address, called=called),
        moment.is_return,
    )
