"""Recordings: what is written is what is read, and a hostile file is an error and nothing else."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import finwait
from finwait.attribution.container import workload_of_path
from finwait.errors import FinwaitError, Gap, RecordingError
from finwait.recording import Replay, open_recording, read, redact, write
from finwait.recording import format as recording_format
from finwait.recording.format import writing
from finwait.recording.redact import Pseudonyms
from finwait.uapi import netlink as nl
from finwait.uapi.observation import Descriptors, Dump, Facts, Namespace, Observation, ProcessFiles
from finwait.uapi.proc import parse_stat
from tests.unit.attribution.test_container import HASH, ID, NODE, PATHS, UID, UID_

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
        (Gap("pid 1", "list its descriptors", "CAP_SYS_PTRACE", pid=1),),
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


def test_a_gap_of_an_earlier_version_says_in_words_alone_what_it_is_about(tmp_path: Path) -> None:
    said = ("netns 4026532281 (web)", "enter it"), ("pid 812", "list its descriptors"), ("9 processes", "x")
    one = replace(observation(), gaps=tuple(Gap(where, doing, "") for where, doing in said))
    path = str(tmp_path / "a.finwait")
    write(path, [one])
    gaps = read(path)[1][0].gaps
    assert [(g.netns, g.pid, g.unentered) for g in gaps] == [
        (4026532281, 0, True), (0, 812, False), (0, 0, False),
    ]  # fmt: skip


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="could not write"):
        write(str(tmp_path / "no" / "such" / "folder.finwait"), [observation()])
    full = tmp_path / "full.finwait"
    full.mkdir()  # cannot be replaced by a file
    with pytest.raises(RecordingError):
        write(str(full), [observation()])
    assert list(tmp_path.iterdir()) == [full]


@pytest.mark.parametrize("kind", ["pipe", "link", "link to nothing"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.finwait"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null" if kind == "link" else tmp_path / "nothing")
    before = path.lstat()
    with pytest.raises(RecordingError, match="left alone") as caught:
        write(str(path), [observation()])
    assert caught.value.hint
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("redacted", "mode"), [(False, 0o600), (True, 0o644)])
def test_only_its_owner_reads_what_is_not_redacted(tmp_path: Path, redacted: bool, mode: int) -> None:
    path = tmp_path / "a.finwait"
    write(str(path), [observation()], redacted=redacted)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.finwait"
    path.write_text("before")

    def interrupted() -> None:
        with writing(str(path), looks=2) as add:
            add(observation())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there_and_says_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
    path = tmp_path / "a.finwait"
    path.write_text("before")
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from msgspec.structs import replace\n"
        "from finwait.errors import RecordingError\n"
        "from finwait.recording import read, write\n"
        "(look, *_) = read(sys.argv[1])[1]\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write(sys.argv[2], [look])\n"
        "except RecordingError as error: print(error)\n"
    )
    source = tmp_path / "source.finwait"
    write(str(source), [replace(observation(), buffer=noise)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(path)], capture_output=True, text=True, check=False
    )
    assert "could not write" in done.stdout, done.stderr
    assert path.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [path, source]


@pytest.mark.parametrize("path", ["a\0b", "no/such/file", "/"])
def test_a_path_that_cannot_be_read_is_told(path: str) -> None:
    with pytest.raises(RecordingError, match="could not read"):
        read(path)


def test_a_recording_can_come_from_a_pipe() -> None:
    reading, writing_end = os.pipe()
    with os.fdopen(writing_end, "wb") as out:
        out.write(CAPTURE.read_bytes())
    try:
        assert read(f"/dev/fd/{reading}")[1][0].facts == read(str(CAPTURE))[1][0].facts
    finally:
        os.close(reading)


def test_bytes_that_shrink_too_well_are_stored_so_that_they_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.finwait"
    zeros = np.zeros(8 << 20, np.uint8)
    write(str(path), [replace(observation(), buffer=zeros)])
    assert not read(str(path))[1][0].buffer.any()


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
        (HEAD + member("manifest", b"{}") + member("end", b""), "has the wrong content"),
        (HEAD + member("manifest", b"[" * 100_000) + member("end", b""), "has the wrong content"),
        (HEAD + member("manifest", b"") + member("manifest", b"") + member("end", b""), "twice"),
        (HEAD + member("manifest", b"a" * 10, claim=1 << 60), "more than the sockets of any machine"),
        (HEAD + member("manifest", b"\0" * 1_000_000, claim=10), "holds more than"),
        (HEAD + member("look/0/buffer", bytes(96 << 20)), "implausible compression ratio"),
        (HEAD + member("manifest", b"", claim=1 << 30), "more than the sockets of any machine"),
        (HEAD + member("unknown", b"", claim=1 << 60), "cut off"),
        (HEAD + b"\x01x" + struct.pack("<QQ32s", 5, 1 << 60, b""), "cut off"),
        (HEAD + member("manifest", b"abc", claim=5), "does not contain the 5 bytes"),
        (HEAD + member("manifest", b"abc", packed=b"not zlib"), "does not decompress"),
        (HEAD + member("manifest", b"abc", packed=zlib.compress(b"abd")), "damaged"),
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


def test_datagrams_may_not_overlap(tmp_path: Path) -> None:
    path = str(tmp_path / "a.finwait")
    write(path, [_with_dump(observation(), Dump("tcp", (0, 8), (24, 16)))])
    with pytest.raises(RecordingError, match="overlap"):
        read(path)


def test_numbers_that_no_kernel_gives_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.finwait")
    one = observation()
    for changed in (
        replace(one, facts=replace(one.facts, clock_ticks=0)),
        replace(one, facts=replace(one.facts, boottime_ns=-1)),
        replace(one, namespaces=(replace(one.namespaces[0], inode=1 << 32),)),
        replace(one, namespaces=one.namespaces * 2),
        replace(one, processes={-1: ProcessFiles()}),
        replace(one, cgroups={1 << 64: "/"}),
    ):
        write(path, [changed])
        with pytest.raises(RecordingError, match=r"out of range|twice"):
            read(path)


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
    from finwait.kernel.observe import LookPlan

    replay = open_recording(str(CAPTURE))
    looks = [replay.observe(LookPlan()) for _ in range(4)]
    assert looks[1].facts == looks[2].facts == looks[3].facts
    assert looks[0].facts != looks[1].facts


def test_a_recording_says_the_same_however_often_and_by_whomever_it_is_asked() -> None:
    """All its looks are compared: of one alone a half-close that streams looks like one that hangs."""
    replay = open_recording(str(CAPTURE.with_name("fin-wait2-streaming.finwait")))
    first, second = finwait.diagnose(replay), finwait.diagnose(replay)
    told = [[(f.rule, f.severity, f.rows.tolist()) for f in one.findings] for one in (first, second)]
    assert told[0] == told[1]
    assert "fin-wait2-streaming" in {rule for rule, _, _ in told[0]}
    assert finwait.snapshot(replay).sockets.state.tolist() == first.view.sockets.state.tolist()


def test_a_recording_that_did_not_ask_sockets_without_a_row_leaves_a_gap_and_no_conclusion() -> None:
    looks = open_recording(str(CAPTURE.with_name("hidden-leak.finwait"))).looks
    asked = finwait.diagnose(Replay(looks))
    assert [f.count for f in asked.findings if f.rule == "hidden-leak"] == [5]
    before = finwait.diagnose(Replay([replace(look, lone_sockets={}) for look in looks]))
    assert not [f for f in before.findings if f.rule == "hidden-leak"]
    (gap,) = set(before.gaps) - set(asked.gaps)
    assert (gap.doing, gap.needs) == ("ask the TCP sockets that no dump contains for their state", "")


def test_what_is_no_argument_is_told_apart_from_what_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="there is no rule 'nope'; the rules are fin-wait2"):
        finwait.diagnose(open_recording(str(CAPTURE)), rules=["nope"])
    with pytest.raises(TypeError, match="open_recording"):
        finwait.diagnose(str(CAPTURE))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="foo"):
        finwait.snapshot(foo=1)


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


@pytest.mark.parametrize("path", PATHS)
def test_a_pseudonym_of_a_cgroup_tells_the_runtime_and_the_class_and_nothing_else(path: str) -> None:
    names = Pseudonyms(b"k")
    before, after = workload_of_path(path), workload_of_path(names.path(path))
    assert (after.runtime, after.qos) == (before.runtime, before.qos)
    for name in ("container_id", "pod_uid", "unit"):
        was, is_ = getattr(before, name), getattr(after, name)
        assert bool(is_) == bool(was)
        if name != "unit":
            assert not was or is_ != was
            assert len(is_) == len(was) or "name-" in is_
    for secret in (ID, NODE, UID, UID_, HASH, "web", "nginx", "1000", "build", "delegating"):
        assert secret not in names.path(path)
    if UID in path or UID_ in path:  # however a driver spells it
        assert after.pod_uid == names.hexadecimal(UID)


def test_nothing_that_identifies_is_left_in_a_redacted_look() -> None:
    one = observation()
    stat_line = b"5 (a b) S 1 " + b"7 " * 18 + b"140728609843873 140728609843949\n"
    one = replace(
        one,
        namespaces=(replace(one.namespaces[0], names=("host", "payments"), dumps=()),),
        processes={
            5: replace(one.processes[5], stat=stat_line, cgroup=b"1:name=acme:/web\n0::/acme.slice/web\n"),
            6: ProcessFiles(stat=b"no name in parentheses: secret"),
        },
    )
    (got,) = redact([one], key=os.urandom(32))
    text = repr(got)
    for secret in (
        "vm'",
        "1234-abcd",
        "a b",
        "payments",
        "/bin",
        "x.slice",
        "acme",
        "web",
        "14072860",
        "secret",
    ):
        assert secret not in text
    assert parse_stat(got.processes[5].stat or b"").start_ticks == 7


def test_that_a_program_was_deleted_is_still_told() -> None:
    one = observation()
    path = b"/opt/acme/serve (deleted)"
    (got,) = redact(
        [replace(one, namespaces=(), processes={5: replace(one.processes[5], exe=path)})], key=b"k"
    )
    exe = got.processes[5].exe or b""
    assert exe.endswith(b" (deleted)")
    assert b"acme" not in exe


def test_messages_that_nobody_decodes_are_blanked() -> None:
    data = nl.message(99, 0, b"secret!!") + nl.message(nl.NLMSG_DONE, 0, b"\0\0\0\0secret!!")
    buffer = np.frombuffer(data + b"secret!!", np.uint8)
    one = replace(_with_dump(observation(), Dump("tcp", (0,), (len(data),))), buffer=buffer)
    other = replace(_with_dump(observation(), Dump("later", (0,), (len(data),))), buffer=buffer)
    for look in redact([one, other]):
        assert b"secret" not in look.buffer.tobytes()


def test_many_members_together_are_bounded_while_they_are_unpacked(tmp_path: Path) -> None:
    """Each alone would pass; what they become together is what fills the memory."""
    path = tmp_path / "bomb.finwait"
    facts = b'{"a":"' + b"x" * (1 << 20) + b'"}'
    path.write_bytes(HEAD + b"".join(member(f"look/{k}/facts", facts) for k in range(64)))
    tracemalloc.start()
    try:
        with pytest.raises(RecordingError, match="implausible compression ratio"):
            recording_format.read(str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < recording_format.SLACK + recording_format.MAX_RATIO * path.stat().st_size


def test_a_member_that_lies_about_its_size_is_found_out_while_it_is_unpacked(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(256 << 20))
    name = b"look/0/buffer"
    head = struct.pack("<QQ32s", 1 << 30, 1 << 30, bytes(32))  # as if it hardly shrank
    path = tmp_path / "liar.finwait"
    path.write_bytes(HEAD + bytes([len(name)]) + name + head + packed + bytes(2 << 20))
    with pytest.raises(RecordingError, match="implausible compression ratio"):
        recording_format.read(str(path))
