"""Whatever the bytes: records, or a DecodeError that says where."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.errors import DecodeError
from finwait.uapi import tracepoint as tp
from tests import ring_pages as rp

SMALL = tp.PageLayout(data_size=240)
BIG_ENDIAN = tp.PageLayout(commit_size=4, data=12, data_size=244, byteorder="big")
FORM = tp.parse_format(rp.SET_STATE)


@given(st.binary(max_size=256 * 3), st.sampled_from([SMALL, BIG_ENDIAN]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_records_or_a_decode_error(data, layout):
    n = -(-len(data) // 256)
    starts = np.arange(n) * 256
    lengths = np.minimum(256, len(data) - starts)
    stopped = None
    try:
        found = tp.walk(np.frombuffer(data, np.uint8), starts, lengths, layout)
    except DecodeError as error:
        stopped = error.offset
    if stopped is not None:
        assert 0 <= stopped <= len(data)
        return
    assert (found.offset + found.length <= len(data)).all()
    assert (np.diff(found.page) >= 0).all()


@given(st.binary(max_size=600), st.sampled_from(["format", "header_page", "header_event"]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_description_is_understood_or_a_decode_error(noise, kind, mixed):
    good = {"format": rp.SET_STATE, "header_page": rp.HEADER_PAGE, "header_event": rp.HEADER_EVENT}[kind]
    at = len(noise) % len(good)
    data = good[:at] + noise + good[at + len(noise) // 2 :] if mixed else noise
    stopped = 0
    try:
        if kind == "format":
            tp.parse_format(data)
        elif kind == "header_page":
            tp.parse_header_page(data, byteorder="little")
        else:
            tp.parse_header_event(data, SMALL)
    except DecodeError as error:
        stopped = error.offset
    assert 0 <= stopped <= len(data)


RECORD = st.tuples(
    st.sampled_from(["data", "data", "data", "long", "padding", "stamp"]),
    st.integers(0, 1 << 45),
    st.integers(1, 12),
    st.integers(1, 12),
)


@given(st.lists(RECORD, max_size=40), st.integers(0, 1 << 58), st.sampled_from(["little", "big"]))
@settings(max_examples=200, deadline=None)
def test_what_was_written_is_what_is_read(script, start, byteorder):
    layout = tp.PageLayout(byteorder=byteorder)
    order = "<" if byteorder == "little" else ">"
    pages: list[bytes] = []
    expected: list[tuple[int, int, int]] = []
    page = rp.PageWriter(layout, start)
    for kind, delta, old, new in script:
        if page.room() < 300:
            pages.append(page.page())
            page = rp.PageWriter(layout, page.now)
        if kind == "padding":
            page.padding(8 + 4 * old)
        elif kind == "stamp":
            page.stamp(page.now + delta)
        else:
            payload = rp.set_state(old, new, order=order)
            page.data(payload + bytes(100 if kind == "long" else 0), delta)
            expected.append((page.now, old, new))
    pages.append(page.page())
    starts = np.arange(len(pages)) * layout.page_size
    found = tp.walk(
        np.frombuffer(b"".join(pages), np.uint8), starts, np.full(len(pages), layout.page_size), layout
    )
    old_state = tp.column(found, FORM.fields["oldstate"], byteorder=byteorder)
    new_state = tp.column(found, FORM.fields["newstate"], byteorder=byteorder)
    read = list(zip(found.time.tolist(), old_state.tolist(), new_state.tolist(), strict=True))
    assert read == expected
