"""``perf-PID.map`` and ``/proc/PID/maps``: what a runtime says of its code, and where files are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from finwait.uapi.maps import parse_maps
from finwait.uapi.perf_map import parse_perf_map


def test_a_function_is_found_by_any_address_in_it() -> None:
    found = parse_perf_map(b"7f00 10 py::f:/srv/a.py\n0x7f10 0x8 py::g h:/srv/b c.py\n")
    assert [found.name(a) for a in (0x7EFF, 0x7F00, 0x7F0F, 0x7F10, 0x7F18)] == [
        "", "py::f:/srv/a.py", "py::f:/srv/a.py", "py::g h:/srv/b c.py", "",
    ]  # fmt: skip


def test_a_later_line_says_anew_what_an_earlier_one_said() -> None:
    assert parse_perf_map(b"10 8 old\n10 8 new\n").name(0x12) == "new"


def test_lines_that_are_none_are_left_out() -> None:
    found = parse_perf_map(b"\nzz 8 f\n10 8\n10 8 \x1b[2J\n-10 8 f\n20 8 good\n30 8 cut")
    assert len(found) == 2
    assert found.name(0x21) == "good"


MAPS = b"""\
55d0a000-55d0b000 r--p 00000000 fe:00 123                        /srv/a b
55d0b000-55d0c000 r-xp 00001000 fe:00 123                        /srv/a b
7f000000-7f001000 rwxp 00000000 00:00 0
7ffd0000-7ffd1000 r-xp 00000000 00:00 0                          [vdso]
7ffe00"""


def test_the_mapping_of_an_address_is_found() -> None:
    maps = parse_maps(MAPS)
    assert len(maps) == 4
    mapping = maps.at(0x55D0B123)
    assert mapping is not None
    assert (mapping.code, mapping.offset, mapping.inode, mapping.name) == (True, 0x1000, 123, b"/srv/a b")
    anonymous = maps.at(0x7F000000)
    assert anonymous is not None
    assert (anonymous.inode, anonymous.name) == (0, b"")
    assert maps.at(0x55D0C000) is maps.at(0) is None


@given(st.binary(max_size=200), st.integers(0, 1 << 64))
def test_any_bytes_are_a_map_of_something_or_nothing(data: bytes, address: int) -> None:
    assert parse_perf_map(data).name(address).isprintable()
    mapping = parse_maps(data).at(address)
    assert mapping is None or mapping.begin <= address < mapping.end
