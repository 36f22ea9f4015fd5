"""Walking a copied stack: by tables, by frame pointers, and on with what the kernel walked."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from finwait.uapi.eh_frame import SP, FrameRule
from finwait.uapi.perf_event import Registers
from finwait.uapi.unwinding import BY_POINTER, MOST_FRAMES, unwound

LIBC, OPENER, SERVER, MAIN, START = (n << 12 for n in range(1, 6))
FRAMELESS = FrameRule(SP, 8, -8)
SP0 = 0x7000


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def rules(address: int, _called: bool) -> FrameRule | None:
    if address >> 12 << 12 == LIBC:
        return FRAMELESS
    return FrameRule(SP, 0, None) if address >> 12 << 12 == START else None


def is_code(address: int) -> bool:
    return LIBC <= address < START + 4096


# accept() of the C library at the top: the return address into the opener lies at the stack pointer, and the frame
# pointer is the opener's, whose own frame leads to the server's caller.
STACK = words(OPENER + 5, 0, SP0 + 32, 0, SP0 + 56, SERVER + 5, 0, 0, MAIN + 5)
REGISTERS = Registers(LIBC + 9, SP0, SP0 + 32)
CHAIN = (LIBC + 9, SERVER + 5, MAIN + 5, START + 5)


def walked(registers: Registers, copied: bytes, chain: tuple[int, ...]) -> tuple[int, ...]:
    return unwound(registers, copied, chain, rules, is_code).addresses


def test_where_nothing_says_how_a_function_comes_to_its_caller_one_may_be_missing() -> None:
    """A wrapper without tables that keeps no frame pointer: the frame pointer is the opener's."""
    walk = unwound(REGISTERS, STACK, CHAIN, lambda *_: None, is_code)
    assert walk.addresses[1] == SERVER + 5
    assert 1 in walk.doubtful
    assert not walk.tables
    known = unwound(REGISTERS, STACK + words(0) * 4, CHAIN, rules, is_code)
    assert 1 not in known.doubtful
    assert known.tables


def test_what_the_kernel_walked_beyond_the_copy_is_certain_where_functions_keep_the_frame_pointer() -> None:
    def keeping(address: int, called: bool) -> FrameRule | None:
        return rules(address, called) or (BY_POINTER if address >> 12 << 12 != SERVER else None)

    walk = unwound(REGISTERS, STACK[:48], CHAIN, keeping, is_code)
    assert walk.addresses == (LIBC + 9, OPENER + 5, SERVER + 5, MAIN + 5, START + 5)
    assert walk.doubtful == {3}


def test_a_stack_that_goes_on_beyond_the_copy_is_cut() -> None:
    large = FrameRule(SP, 0x4000, -8)
    assert unwound(REGISTERS, STACK, (LIBC + 9,), lambda *_: large, is_code).cut
    assert not unwound(Registers(START, SP0, SP0), STACK, (START,), rules, is_code).cut
    assert not unwound(Registers(LIBC + 9, SP0, 0), STACK, (LIBC + 9,), lambda *_: None, is_code).cut


def test_what_the_kernel_walked_ends_at_what_is_no_code() -> None:
    walk = unwound(REGISTERS, b"", (LIBC + 9, 0x99, MAIN + 5), lambda *_: None, is_code)
    assert walk.addresses == (LIBC + 9,)


def test_the_caller_that_the_kernel_cannot_see_is_found() -> None:
    assert OPENER + 5 not in CHAIN
    stack = STACK + words(0) * 4
    frames = walked(Registers(LIBC + 9, SP0, SP0 + 32), stack, CHAIN)
    assert frames[:3] == (LIBC + 9, OPENER + 5, SERVER + 5)


def test_where_the_copy_ends_the_walk_of_the_kernel_goes_on() -> None:
    frames = walked(REGISTERS, STACK[:48], CHAIN)
    assert frames == (LIBC + 9, OPENER + 5, SERVER + 5, MAIN + 5, START + 5)


def test_it_does_not_go_on_where_the_kernel_walked_something_else() -> None:
    other = (LIBC + 9, MAIN + 7, MAIN + 5, START + 5)
    frames = walked(REGISTERS, STACK[:48], other)
    assert frames == (LIBC + 9, OPENER + 5, SERVER + 5)


def test_without_a_copy_the_walk_of_the_kernel_is_all_there_is() -> None:
    assert unwound(REGISTERS, b"", CHAIN, lambda *_: None, is_code).addresses == CHAIN


def test_what_is_no_code_ends_the_walk() -> None:
    assert walked(REGISTERS, words(0x99) + STACK[8:], CHAIN) == (LIBC + 9,)


def test_a_frame_pointer_that_leads_down_or_in_a_circle_ends_the_walk() -> None:
    circle = words(OPENER + 5, 0, SP0 + 16, OPENER + 5)
    frames = walked(Registers(LIBC + 9, SP0, SP0 + 16), circle, (LIBC + 9,))
    assert frames == (LIBC + 9, OPENER + 5, OPENER + 5)


def test_the_outermost_function_ends_the_walk() -> None:
    assert walked(Registers(START, SP0, SP0), STACK, (START,)) == (START,)


@given(
    st.binary(max_size=400),
    st.lists(st.integers(0, 1 << 64), max_size=20),
    st.integers(0, 1 << 12),
    st.integers(0, 1 << 12),
    st.sampled_from(
        [None, FRAMELESS, FrameRule(SP, 16, -8, -16), FrameRule(6, -8, -8, -16), FrameRule(SP, 0, None)]
    ),
)
def test_any_bytes_give_frames(
    copied: bytes, chain: list[int], sp: int, bp: int, rule: FrameRule | None
) -> None:
    walk = unwound(
        Registers(7, sp, bp), copied, tuple(chain), lambda *_: rule, lambda address: address % 2 == 0
    )
    frames = walk.addresses
    assert all(0 < place < len(frames) for place in walk.doubtful if len(frames) < MOST_FRAMES)
    assert frames[0] == 7
    assert 1 <= len(frames) <= MOST_FRAMES
