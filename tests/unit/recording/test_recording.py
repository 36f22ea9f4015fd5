"""Recordings: what is written is what is read, and a hostile file is an error and nothing else."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finwait.errors import FinwaitError, Gap, RecordingError
from finwait.recording import open_recording, read, redact, write
from finwait.recording.redact import Pseudonyms
from finwait.uapi.observation import Descriptors, Dump, Facts, Namespace, Observation, ProcessFiles

CAPTURE = next((Path(__file__).parents[2] / "captures").glob("*/kube-proxy-userspace.finwait"))


def observation() -> Observation:
    return Observation(
        Facts(kernel="6.18", hostname="vm", boot_id="1234-abcd", unix_ns=5, boottime_ns=7),
        np.arange(64, dtype=np.uint8),
        (
            Namespace(
                4026531840, ("host", "caf\udce9"), (1, 2), 2,
                (Dump("tcp", (0, 8), (8, 24)), Dump("conntrack", (24,), (24,), True)),
                {"sys/ipv4/tcp_fin_timeout": b"60\n"},
            ),
        ),
        Descriptors(
            np.array([5], np.uint32), np.array([6], np.uint32), np.array([7], np.uint64), (1,)
        ),
        {5: ProcessFiles(stat=b"5 (a b) S 1", cmdline=b"a\0b\0", exe=b"/bin/\xff", netns=4026531840)},
        {9: "/x.slice"},
        {7: "TCP"},
        {(5, 6): True},
        (Gap("pid 1", "list its descriptors", "CAP_SYS_PTRACE"),),
    )  # fmt: skip


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = str(tmp_path / "a.finwait")
    one = observation()
    write(path, [one, one], note="a note")
    manifest, looks = read(path)
    assert (manifest.looks, manifest.note, manifest.redacted) == (2, "a note", False)
    got = looks[1]
    assert got.buffer[:64].tolist() == one.buffer.tolist()
    assert got.facts == one.facts
    assert got.processes == one.processes
    assert (got.cgroups, got.socket_protocols, got.close_on_exec, got.gaps) == (
        one.cgroups, one.socket_protocols, one.close_on_exec, one.gaps,
    )  # fmt: skip
    assert got.namespaces[0].dumps == one.namespaces[0].dumps
    assert got.namespaces[0].names == ("host", "caf\\udce9")
    assert got.descriptors.pid.tolist() == [5]
    assert got.descriptors.unreadable == (1,)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="could not write"):
        write(str(tmp_path / "no" / "such" / "folder.finwait"), [observation()])
    full = tmp_path / "full.finwait"
    full.mkdir()  # cannot be replaced by a file
    with pytest.raises(RecordingError):
        write(str(full), [observation()])
    assert list(tmp_path.iterdir()) == [full]


def member(name: str, raw: bytes, *, claim: int | None = None, packed: bytes | None = None) -> bytes:
    body = zlib.compress(raw) if packed is None else packed
    head = struct.pack(
        "<QQ32s", len(raw) if claim is None else claim, len(body), hashlib.sha256(raw).digest()
    )
    return bytes([len(name)]) + name.encode() + head + body


HEAD = b"FINWAIT-RECORDING 1\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a recording"),
        (b"PK\x03\x04", "not a recording"),
        (b"FINWAIT-RECORDING 2\n", "version 2"),
        (HEAD, "cut off"),
        (HEAD + member("manifest", b"{}"), "cut off"),
        (HEAD + member("end", b""), "`manifest` is missing"),
        (HEAD + member("manifest", b"{}") + member("end", b""), "not what it should be"),
        (HEAD + member("manifest", b"[" * 100_000) + member("end", b""), "not what it should be"),
        (HEAD + member("a", b"") + member("a", b"") + member("end", b""), "twice"),
        (HEAD + member("x", b"a" * 10, claim=1 << 60), "more than any machine"),
        (HEAD + member("x", b"\0" * 1_000_000, claim=10), "holds more than"),
        (HEAD + member("x", b"abc", claim=5), "is not the 5 bytes"),
        (HEAD + member("x", b"abc", packed=b"not zlib"), "does not decompress"),
        (HEAD + member("x", b"abc", packed=zlib.compress(b"abd")), "damaged"),
        (HEAD + b"\x02\xff\xfe", "not ASCII"),
        (HEAD + member("manifest", b'{"finwait":"1","looks":2000000000}') + member("end", b""), "looks"),
    ],
)
def test_a_hostile_file_is_told_as_what_it_is(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "bad.finwait"
    path.write_bytes(data)
    with pytest.raises(RecordingError, match=says):
        read(str(path))


def test_a_member_of_a_later_version_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "new.finwait"
    write(str(path), [observation()])
    data = path.read_bytes()
    path.write_bytes(HEAD + member("packets", b"unknown") + data[len(HEAD) :])
    assert read(str(path))[0].looks == 1


@pytest.mark.parametrize(
    "dump",
    [Dump("tcp", (0,), (4096,)), Dump("tcp", (8,), (4,)), Dump("tcp", (2,), (8,)), Dump("tcp", (0, 4), (4,))],
)
def test_datagrams_must_lie_in_the_buffer(tmp_path: Path, dump: Dump) -> None:
    path = str(tmp_path / "a.finwait")
    write(path, [_with_dump(observation(), dump)])
    with pytest.raises(RecordingError, match=r"datagram|starts"):
        read(path)


def _with_dump(one: Observation, dump: Dump) -> Observation:
    return replace(one, namespaces=(replace(one.namespaces[0], dumps=(dump,)),))


def test_every_truncation_of_a_real_recording_is_an_error(tmp_path: Path) -> None:
    data = CAPTURE.read_bytes()
    path = tmp_path / "cut.finwait"
    for n in range(0, len(data), max(1, len(data) // 200)):
        path.write_bytes(data[:n])
        with pytest.raises(RecordingError):
            read(str(path))


def test_flipped_bytes_of_a_real_recording_are_an_error_or_do_not_matter(tmp_path: Path) -> None:
    data = bytearray(CAPTURE.read_bytes())
    path = tmp_path / "flipped.finwait"
    for n in range(0, len(data), max(1, len(data) // 300)):
        data[n] ^= 0x55
        path.write_bytes(data)
        try:
            read(str(path))
        except FinwaitError:
            pass
        finally:
            data[n] ^= 0x55


def test_the_last_look_is_given_again_when_there_are_no_more() -> None:
    from finwait.kernel.observe import Plan

    replay = open_recording(str(CAPTURE))
    looks = [replay.observe(Plan()) for _ in range(4)]
    assert looks[1].facts == looks[2].facts == looks[3].facts
    assert looks[0].facts != looks[1].facts


def test_pseudonyms_keep_subnets_and_special_addresses() -> None:
    names = Pseudonyms(b"k")
    a, b, c = (names.address(bytes(x)) for x in ([10, 1, 2, 3], [10, 1, 2, 4], [10, 9, 2, 3]))
    assert a[:3] == b[:3]
    assert a != b
    assert a[:1] == c[:1] == b"\x0a"
    assert a[1:3] != c[1:3]
    assert names.address(bytes([127, 0, 0, 1])) == bytes([127, 0, 0, 1])
    assert names.address(bytes(4)) == bytes(4)
    assert names.address(bytes(16)) == bytes(16)
    mapped = b"\0" * 10 + b"\xff\xff" + bytes([10, 1, 2, 3])
    assert names.address(mapped) == mapped[:12] + a


def test_pseudonyms_of_cgroups_keep_their_shape() -> None:
    names = Pseudonyms(b"k")
    pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b2c3d_1111_2222_3333_444455556666.slice"
    path = f"{pod}/cri-containerd-{'ab' * 32}.scope"
    got = names.path(path)
    assert got.startswith("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod")
    assert got.endswith(".scope")
    assert len(got) == len(path)
    assert "ab" * 32 not in got
    assert "0a1b2c3d" not in got


def test_nothing_that_identifies_is_left_in_a_redacted_look() -> None:
    one = observation()
    one = replace(one, namespaces=(replace(one.namespaces[0], names=("host", "payments"), dumps=()),))
    (got,) = redact([one], key=os.urandom(32))
    text = repr(got)
    for secret in ("vm'", "1234-abcd", "a b", "payments", "/bin", "x.slice"):
        assert secret not in text
