"""Where the return address is by what comes next; a path that is not clear is not followed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.uapi.eh_frame import BP, SP, FrameRule
from finwait.uapi.leaving import follows_call, keeps_frame_pointer, leaving


def rule(code: str, at: int = 0) -> FrameRule | None:
    data = bytes.fromhex(code)
    return leaving(lambda address, size: data[address : address + size], at)


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("c3", FrameRule(SP, 8, -8)),
        ("483d00f0ffff 7708 c3", FrameRule(SP, 8, -8)),
        ("4889c7 e897090000 4883c418 c3", FrameRule(SP, 32, -8)),
        ("5d c3", FrameRule(SP, 16, -8, -16)),
        ("4883c408 5b 5d 415c c3", FrameRule(SP, 40, -8, -24)),
        ("c9 c3", FrameRule(BP, 16, -8, -16)),
        ("488d65f0 5b 415c 5d c3", FrameRule(BP, 16, -8, -16)),
        ("4889ec 5d c3", FrameRule(BP, 16, -8, -16)),
        ("488d642408 c3", FrameRule(SP, 16, -8)),
        ("4881c400010000 c20800", FrameRule(SP, 264, -8)),
        ("ff1500000000 8b442408 4883c418 c3", FrameRule(SP, 32, -8)),
        ("6a00 e800000000 4883c410 c3", FrameRule(SP, 16, -8)),
        ("0f05 89442408 660f1f440000 85c0 0f8800000000 4883c418 c3", FrameRule(SP, 32, -8)),
    ],
)
def test_what_is_popped_before_the_return_is_the_frame(code: str, answer: FrameRule) -> None:
    assert rule(code) == answer


@pytest.mark.parametrize(
    "code",
    [
        "",
        "eb00 c3",
        "7400 e800000000 c3",
        "e800000000 f30f1efa c3",
        "e800000000 0f1f4000 c3",
        "4829c4 c3",
        "4883e4f0 c3",
        "bd01000000 c9 c3",
        "bd01000000 c3",
        "5c c3",
        "0f0b",
        "c5f877 c3",
        "90" * 50 + "c3",
        "ffe0",
        "4883c4",
    ],
    ids=[
        "nothing",
        "a jump",
        "a call behind a branch",
        "another function behind a call",
        "padding behind a call",
        "a variable",
        "aligned",
        "the frame pointer is something else",
        "the caller's frame pointer is lost",
        "the stack pointer is popped",
        "no instruction",
        "vectors",
        "too long",
        "an indirect jump",
        "cut",
    ],
)
def test_what_is_not_clear_is_not_known(code: str) -> None:
    assert rule(code) is None


@pytest.mark.parametrize(
    "code", ["e800000000", "ffd0", "41ffd4", "ff1500000000", "ff5008", "ff542408", "ff90f0000000"]
)
def test_a_return_address_is_behind_a_call(code: str) -> None:
    assert follows_call((bytes(8) + bytes.fromhex(code))[-7:])


def test_other_code_is_not_behind_a_call() -> None:
    assert not any(follows_call(code) for code in (b"", b"\x90" * 7, b"\xff\xe0", b"\xff\x35\0\0\0\0"))


def test_a_function_that_keeps_the_frame_pointer_says_so_at_its_beginning() -> None:
    assert keeps_frame_pointer(bytes.fromhex("f30f1efa554889e5"))
    assert not keeps_frame_pointer(bytes.fromhex("4883ec10"))


@given(st.binary(max_size=120), st.integers(0, 20))
def test_any_bytes_give_a_rule_or_none(code: bytes, at: int) -> None:
    answer = leaving(lambda address, size: code[address : address + size], at)
    assert answer is None or answer.register in (BP, SP)
    assert follows_call(code[:7]) in (True, False)


def test_a_call_that_the_code_ends_within_is_none() -> None:
    assert not follows_call(b"\xff\x14")
    assert follows_call(b"\xff\xd0")
    assert follows_call(b"\x90\xff\x14\x25\x00\x00\x00\x00"[-7:])
