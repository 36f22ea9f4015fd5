"""The pages of the ring buffer and the files that describe them."""

from __future__ import annotations

import numpy as np
import pytest

from finwait.errors import DecodeError
from finwait.uapi import tracepoint as tp
from tests import ring_pages as rp

LITTLE = tp.parse_header_event(rp.HEADER_EVENT, tp.parse_header_page(rp.HEADER_PAGE, byteorder="little"))


def walk(*pages: bytes, layout: tp.PageLayout = LITTLE) -> tp.Records:
    starts = np.cumsum([0, *(len(p) for p in pages)])
    data = np.frombuffer(b"".join(pages), np.uint8)
    return tp.walk(data, starts[:-1], np.diff(starts), layout)


def test_the_header_files_of_linux_6_18_are_the_default_layout():
    assert tp.PageLayout() == LITTLE
    assert LITTLE.page_size == 4096


def test_a_format_file_gives_fields_arrays_and_words():
    form = tp.parse_format(rp.RESET)
    assert (form.name, form.id, form.size) == ("tcp_send_reset", 2280, 88)
    assert form.symbols["reason"] == {1: "NO_SOCKET", 14: "TCP_STATE"}
    assert form.fields["saddr"].count == 28
    assert form.fields["state"].signed
    assert not form.fields["skaddr"].signed


def test_a_data_loc_field_is_marked_and_a_trailing_array_has_no_count():
    text = (
        b"name: x\nID: 7\n" + rp.COMMON + b"\tfield:__data_loc char[] what;\toffset:8;\tsize:4;\tsigned:0;\n"
        b"\tfield:unsigned long caller[];\toffset:16;\tsize:0;\tsigned:0;\n"
    )
    form = tp.parse_format(text)
    assert form.fields["what"].dynamic
    assert form.fields["caller"].count == 0


@pytest.mark.parametrize(
    "text", [b"", b"name: x\n", b"name: x\nID: 3\nformat:\n", b"name: \xff\nID: 3\n", rp.SET_STATE[:30]]
)
def test_a_broken_format_file_says_so(text):
    with pytest.raises(DecodeError):
        tp.parse_format(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"size:8", b"size:3"),
        (b"timestamp", b"stamp"),
        (b"offset:16", b"offset:4"),
        (b"offset:16", b"offset:17"),
    ],
)
def test_a_broken_header_page_says_so(old, new):
    with pytest.raises(DecodeError):
        tp.parse_header_page(rp.HEADER_PAGE.replace(old, new), byteorder="little")


@pytest.mark.parametrize(
    ("old", "new"), [(b"5 bits", b"6 bits"), (b"29", b"28"), (b"== 30", b"== 31"), (b"32 bits", b"8 bits")]
)
def test_a_broken_header_event_says_so(old, new):
    with pytest.raises(DecodeError):
        tp.parse_header_event(rp.HEADER_EVENT.replace(old, new), LITTLE)


def test_times_add_up_over_deltas_extends_and_absolute_stamps():
    page = rp.PageWriter(LITTLE, start=1_000)
    page.data(rp.set_state(7, 2), 0)
    page.data(rp.set_state(2, 1), 500)
    page.data(rp.set_state(1, 4), 1 << 40)
    page.stamp(5 << 40)
    page.data(rp.set_state(4, 5), 7)
    found = walk(page.page())
    assert found.time.tolist() == [1_000, 1_500, 1_500 + (1 << 40), (5 << 40) + 7]


def test_an_absolute_stamp_keeps_the_high_bits_of_the_page():
    start = (3 << 59) | 100
    page = rp.PageWriter(LITTLE, start)
    page.stamp((3 << 59) | 5_000)
    page.data(rp.set_state(7, 2), 1)
    assert walk(page.page()).time.tolist() == [(3 << 59) | 5_001]


def test_an_absolute_stamp_below_the_time_so_far_has_wrapped():
    page = rp.PageWriter(LITTLE, (1 << 59) - 10)
    page.stamp((1 << 59) + 3)
    page.data(rp.set_state(7, 2), 0)
    assert walk(page.page()).time.tolist() == [(1 << 59) + 3]


def test_discarded_records_are_skipped_and_do_not_move_the_clock():
    page = rp.PageWriter(LITTLE, 10)
    page.data(rp.set_state(7, 2), 1)
    page.padding(40)
    page.data(rp.set_state(2, 1), 1)
    found = walk(page.page())
    assert found.time.tolist() == [11, 12]


def test_a_null_record_ends_its_page_and_no_other():
    first, second = rp.PageWriter(LITTLE, 10), rp.PageWriter(LITTLE, 20)
    first.data(rp.set_state(7, 2), 0)
    first.null()
    first.data(rp.set_state(2, 1), 0)  # never written by the kernel: must not be read
    second.data(rp.set_state(7, 10), 0)
    second.data(rp.set_state(10, 7), 0)
    found = walk(first.page(), second.page())
    assert found.page.tolist() == [0, 1, 1]


def test_a_record_longer_than_112_bytes_carries_its_length_in_a_word():
    page = rp.PageWriter(LITTLE, 10)
    page.data(bytes(200), 3)
    page.data(rp.set_state(7, 2), 1)
    found = walk(page.page())
    assert found.length.tolist() == [200, 72]
    assert found.time.tolist() == [13, 14]


def test_losses_are_counted_by_page_with_and_without_a_number():
    writers = [rp.PageWriter(LITTLE, k) for k in range(3)]
    for writer in writers:
        writer.data(rp.set_state(7, 2), 0)
    found = walk(writers[0].page(0), writers[1].page(123_456), writers[2].page(None))
    assert found.missed.tolist() == [0, 123_456, -1]
    assert len(found) == 3


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("commit_size", [4, 8])
def test_other_layouts_are_read_as_their_header_files_say(byteorder, commit_size):
    layout = tp.PageLayout(
        commit_size=commit_size, data=8 + commit_size, data_size=65536 - 8 - commit_size, byteorder=byteorder
    )
    order = "<" if byteorder == "little" else ">"
    page = rp.PageWriter(layout, 77)
    page.data(rp.set_state(1, 4, order=order, sport=54321, pid=-1), 5)
    page.data(rp.set_state(4, 5, order=order, sport=443), 1 << 30)
    found = walk(page.page(9), layout=layout)
    form = tp.parse_format(rp.SET_STATE)

    def get(name: str):
        return tp.column(found, form.fields[name], byteorder=byteorder)

    assert get("sport").tolist() == [54321, 443]
    assert get("oldstate").tolist() == [1, 4]
    assert get("common_pid").tolist() == [-1, 1]
    assert get("skaddr").tolist() == [0xFFFF888000001000] * 2
    assert get("saddr").tolist() == [[10, 0, 0, 1]] * 2
    assert found.time.tolist() == [82, 82 + (1 << 30)]
    assert found.missed.tolist() == [9]


def test_a_field_at_an_odd_place_is_gathered_all_the_same():
    page = rp.PageWriter(LITTLE, 1)
    page.data(rp.destroyed(0x1122334455667788), 0)
    form = tp.parse_format(rp.DESTROY)
    found = walk(page.page())
    assert tp.column(found, form.fields["sock_cookie"], byteorder="little").tolist() == [0x1122334455667788]
    assert tp.column(found, form.fields["saddr"], byteorder="little").tolist() == [[10, 0, 0, 1]]


def test_a_record_too_short_for_a_field_says_where():
    page = rp.PageWriter(LITTLE, 1)
    page.data(bytes(8), 0)
    form = tp.parse_format(rp.SET_STATE)
    with pytest.raises(DecodeError, match="ends at 20"):
        tp.column(walk(page.page()), form.fields["oldstate"], byteorder="little")


def test_a_commit_word_beyond_the_page_says_where():
    page = bytearray(rp.PageWriter(LITTLE, 1).page())
    page[8:12] = (4081).to_bytes(4, "little")
    with pytest.raises(DecodeError, match="at byte 8"):
        walk(bytes(page))


def test_a_record_beyond_the_commit_word_says_where():
    writer = rp.PageWriter(LITTLE, 1)
    writer.data(rp.set_state(7, 2), 0)
    page = bytearray(writer.page())
    page[8] -= 4
    with pytest.raises(DecodeError, match="at byte 16"):
        walk(bytes(page))


def test_no_pages_are_no_records():
    assert len(walk()) == 0
