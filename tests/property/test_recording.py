"""Recordings of any content: what is written is read, and what strangers wrote is read or refused."""

from __future__ import annotations

import copy
import io
import ipaddress
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.recording import _BUFFER, _COLUMNS, _FACTS, _MANIFEST, file, look, sealed
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finwait import session
from finwait.errors import Gap, RecordingError
from finwait.recording import Replay, read, write
from finwait.recording import format as fmt
from finwait.recording.redact import Pseudonyms
from finwait.uapi.observation import Descriptors, Dump, Facts, Namespace, Observation, ProcessFiles

TEXT = st.text(max_size=20)
NAME = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
U31, U32, U63, U64 = (st.integers(0, 2**bits - 1) for bits in (31, 32, 63, 64))
BYTES = st.none() | st.binary(max_size=50)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    buffer = np.frombuffer(draw(st.binary(max_size=400)), np.uint8)
    cuts = sorted(draw(st.sets(st.integers(0, len(buffer) // 4), max_size=9)))
    places = [(4 * a, 4 * b) for a, b in pairwise(cuts)]
    inodes = draw(st.lists(U32, unique=True, max_size=3))
    spaces = []
    for k, inode in enumerate(inodes):
        mine = places[k :: len(inodes)]
        dump = Dump(draw(TEXT), tuple(a for a, _ in mine), tuple(b for _, b in mine), draw(st.booleans()))
        spaces.append(
            Namespace(
                inode, tuple(draw(st.lists(NAME, max_size=3))), tuple(draw(st.lists(U31, max_size=3))), draw(U31),
                (dump,), draw(st.dictionaries(TEXT, st.binary(max_size=30), max_size=3)), draw(U31),
            )
        )  # fmt: skip
    rows = draw(st.lists(st.tuples(U31, U31, U64), max_size=5))
    columns = [[row[k] for row in rows] for k in range(3)]
    return Observation(
        Facts(draw(TEXT), draw(NAME), draw(TEXT), draw(U63), draw(U63), draw(U63)),
        buffer,
        tuple(spaces),
        Descriptors(
            np.array(columns[0], np.uint32), np.array(columns[1], np.uint32), np.array(columns[2], np.uint64),
            tuple(draw(st.lists(U31, max_size=3))), draw(st.booleans()),
        ),
        draw(st.dictionaries(U31, st.builds(ProcessFiles, BYTES, BYTES, BYTES, BYTES, BYTES, st.none() | U32))),
        draw(st.dictionaries(U64, NAME, max_size=3)),
        draw(st.dictionaries(U64, TEXT, max_size=3)),
        draw(st.dictionaries(st.tuples(U31, U31), st.booleans(), max_size=3)),
        tuple(draw(st.lists(st.builds(Gap, NAME, TEXT, TEXT), max_size=3))),
        draw(st.booleans()),
    )  # fmt: skip


def plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@settings(max_examples=60)
@given(st.lists(observations(), min_size=1, max_size=3), st.booleans(), NAME)
def test_any_looks_are_read_as_they_were_written(looks: list[Observation], redacted: bool, note: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a.finwait"
        write(path, looks, redacted=redacted, note=note)
        manifest, got = read(path)
        assert [one.name for one in Path(folder).iterdir()] == ["a.finwait"]
    assert (manifest.looks, manifest.redacted, manifest.note) == (len(looks), redacted, plain(note))
    for one, two in zip(looks, got, strict=True):
        assert two.buffer[: len(one.buffer)].tobytes() == one.buffer.tobytes()
        assert not two.buffer[len(one.buffer) :].any()
        assert two.processes == one.processes
        assert two.close_on_exec == one.close_on_exec
        assert two.socket_protocols == one.socket_protocols
        assert two.cgroups == {number: plain(path) for number, path in one.cgroups.items()}
        assert [g.where for g in two.gaps] == [plain(g.where) for g in one.gaps]
        assert two.facts.hostname == plain(one.facts.hostname)
        assert [(n.inode, n.pids, n.dumps, n.files) for n in two.namespaces] == [
            (n.inode, n.pids, n.dumps, n.files) for n in one.namespaces
        ]
        for name in ("pid", "fd", "inode"):
            assert getattr(two.descriptors, name).tolist() == getattr(one.descriptors, name).tolist()
        assert two.descriptors.unreadable == one.descriptors.unreadable
        assert (two.descriptors.searched, two.complete) == (one.descriptors.searched, one.complete)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_recording_or_an_error_that_names_the_file(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".finwait") as out:
        out.write(data if data.startswith(b"F") else b"FINWAIT-RECORDING 1\n" + data)
        out.flush()
        with pytest.raises(RecordingError) as caught:
            read(out.name)
    assert out.name in str(caught.value)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [b"manifest", b"look/0/facts", b"look/0/buffer", b"look/0/descriptors", b"look/1/x"]
            ),
            st.sampled_from([_MANIFEST, _FACTS, _BUFFER, _COLUMNS]) | st.binary(max_size=40),
        ),
        max_size=6,
    )
)
def test_members_in_any_order_and_number_are_read_or_refused(members: list[tuple[bytes, bytes]]) -> None:
    file(sealed(members))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        found += places(one, (*path, key))
    return found


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return changed


FACTS = json.loads(_FACTS)
PLACES = places(FACTS)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(
        [-1, 0, 2**31, 2**32, 2**63, 2**64, 10**30, 1.5, 1e300, "", "/", "\x1b[2J", "é", "AAAA"]
    )
    | st.integers()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(st.sampled_from(PLACES), JSON)
def test_facts_with_anything_in_any_place_are_explained_or_refused(path: tuple[Any, ...], new: Any) -> None:
    file(look(_MANIFEST, json.dumps(put(FACTS, path, new)).encode(), _BUFFER, _COLUMNS))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, len(_BUFFER) - 1), st.integers(0, 255)), max_size=30))
def test_datagrams_with_anything_in_any_place_are_explained_or_refused(
    changes: list[tuple[int, int]],
) -> None:
    buffer = bytearray(_BUFFER)
    for at, value in changes:
        buffer[at] = value
    file(look(_MANIFEST, _FACTS, bytes(buffer), _COLUMNS))


@settings(max_examples=60)
@given(st.binary(max_size=160).map(lambda raw: raw[: len(raw) // 16 * 16]))
def test_descriptors_of_any_number_are_explained(columns: bytes) -> None:
    file(look(_MANIFEST, _FACTS, _BUFFER, columns))


def common(a: bytes, b: bytes) -> int:
    """How many leading bits are equal."""
    return 8 * len(a) - (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_length()


IPV4 = st.binary(min_size=4, max_size=4)
NEAR = st.tuples(IPV4, st.integers(0, 31)).map(
    lambda t: (t[0], (int.from_bytes(t[0], "big") ^ 1 << t[1]).to_bytes(4, "big"))
)


@given(NEAR | st.tuples(IPV4, IPV4), st.binary(min_size=4, max_size=4))
def test_pseudonyms_share_as_many_bits_as_the_addresses(pair: tuple[bytes, bytes], key: bytes) -> None:
    a, b = pair
    assume(all(raw[0] not in (0, 127) and raw != b"\xff" * 4 for raw in pair))
    names = Pseudonyms(key)
    assert common(names.address(a), names.address(b)) == common(a, b)
    assert names.address(b"\0" * 10 + b"\xff\xff" + a)[12:] == names.address(a)


@given(IPV4, st.binary(min_size=4, max_size=4))
def test_a_pseudonym_is_private_where_the_address_is(raw: bytes, key: bytes) -> None:
    assume(raw != b"\xff" * 4)
    inside = [
        ipaddress.ip_network(text)
        for text in (
            "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8",
            "224.0.0.0/4", "0.0.0.0/8",
        )
    ]  # fmt: skip
    before, after = ipaddress.ip_address(raw), ipaddress.ip_address(Pseudonyms(key).address(raw))
    assert [before in network for network in inside] == [after in network for network in inside]


@given(st.binary(min_size=16, max_size=16), st.integers(0, 127), st.binary(min_size=4, max_size=4))
def test_ipv6_pseudonyms_share_as_many_bits_too(raw: bytes, bit: int, key: bytes) -> None:
    other = (int.from_bytes(raw, "big") ^ 1 << bit).to_bytes(16, "big")
    assume(not any(one.startswith((b"\0\0", b"\xfe\x80")) for one in (raw, other)))
    names = Pseudonyms(key)
    assert common(names.address(raw), names.address(other)) == common(raw, other)
    local = b"\xfe\x80" + bytes(6) + raw[8:]
    assert names.address(local)[:8] == local[:8]


@given(st.lists(st.text(min_size=1, max_size=3), max_size=60, unique=True))
def test_one_pseudonym_never_stands_for_two_names(texts: list[str]) -> None:
    names = Pseudonyms(b"k")
    names._hash = lambda *_: bytes(2) + bytes(30)  # type: ignore[method-assign] # the worst hash there is
    made = [names.name(text) for text in texts[:8]]
    assert len(set(made)) == len(made)
    assert [names.name(text) for text in texts[:8]] == made


def test_what_is_changed_here_was_a_real_look() -> None:
    (only,) = fmt._read(io.BytesIO(look(_MANIFEST, _FACTS, _BUFFER, _COLUMNS)))[1]
    assert "nat-entry-gone" in {f.rule for f in session.diagnose(Replay([only])).findings}
