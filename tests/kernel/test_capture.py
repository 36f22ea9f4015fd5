"""Capturing real closings in real namespaces, and telling them from the file."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finwait import capturing
from finwait.cli import main
from finwait.diagnosis.closing import Kind
from finwait.diagnosis.closings import Closings
from finwait.errors import FileRefused, KernelError
from finwait.kernel import netns
from finwait.kernel.capture import Capture, space_of
from finwait.kernel.lookup import Question, ask
from finwait.table.sockets import pack_address
from finwait.uapi import pcap
from finwait.uapi.segment import Segment, parse_segment
from finwait.uapi.socket_filter import Tuple

pytestmark = pytest.mark.kernel


def _missing(what: str) -> None:
    if os.environ.get("FINWAIT_KERNEL_TESTS") == "1":
        pytest.fail(what)
    pytest.skip(what)


def frames_of(path: Path) -> list[pcap.Frame]:
    return list(pcap.PacketReader(io.BytesIO(path.read_bytes())))


class Pair:
    def __init__(self, host: str) -> None:
        script = Path(__file__).with_name("closing_pair.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            assert self.process.wait(10) == 77
            _missing("no network namespace to be had")
        inode, client, server = line.split()
        self.client: str = client
        self.server: str = server
        self.netns = int(inode)

    def do(self, step: str) -> None:
        self.process.stdin.write(step + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        assert self.process.stdout.readline().startswith("did")  # type: ignore[union-attr]

    def tuple(self) -> Tuple:
        (a, p), (b, q) = (end.rsplit(":", 1) for end in (self.client, self.server))
        return pack_address(a.strip("[]")), int(p), pack_address(b.strip("[]")), int(q)

    def end(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.stdout.close()  # type: ignore[union-attr]
        self.process.wait(10)


@contextmanager
def pair(host: str = "127.0.0.1") -> Iterator[Pair]:
    running = Pair(host)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(autouse=True)
def capturing_is_possible() -> None:
    try:
        with Capture(space_of(netns.own_netns()), [(((0, 1), 1, (0, 1), 1), 0)]):
            pass
    except KernelError as error:
        _missing(f"no capturing here: {error}")


def collect(captures: Capture, wanted: int) -> list[Segment]:
    segments: list[Segment] = []
    deadline = time.monotonic() + 20
    while len(segments) < wanted:
        captures.wait(0.1)
        for packet in captures.drain():
            found = parse_segment(pcap.Frame(packet.time_ns, 276, packet.data, packet.length))
            assert isinstance(found, Segment)
            segments.append(found)
        assert time.monotonic() < deadline, segments
    return segments


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_half_close_in_another_namespace_is_captured_and_told(host):
    with pair(host) as pair_, Capture(space_of(pair_.netns), [(pair_.tuple(), 0)]) as capture:
        assert capture.interfaces == {1: "lo"}
        pair_.do("shutdown")
        book = Closings()
        book.state([pair_.tuple()], "ESTABLISHED", 0)
        for one in collect(capture, 2):
            book.feed(one)
        (closing,) = book.told()
        ends = {*closing.a.states, *closing.b.states}
        assert ends == {"FIN_WAIT2", "CLOSE_WAIT"}
        assert [one.what for one in closing.missing] == [Kind.FIN]
        assert capture.dropped() == 0


def test_only_the_chosen_connection_is_captured():
    with pair() as one, pair() as other:
        a, p, b, _ = one.tuple()
        with Capture(space_of(one.netns), [((a, p, b, 1), 0)]) as nothing:
            with Capture(space_of(one.netns), [(one.tuple(), 0)]) as capture:
                other.do("shutdown")
                one.do("shutdown")
                collect(capture, 2)
            assert list(nothing.drain()) == []


def spaces_of_our_threads() -> set[int]:
    found = set()
    for tid in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.stat(f"/proc/self/task/{tid}/ns/net").st_ino)
    return found


def test_the_thread_that_entered_the_namespace_ends():
    before = netns.own_netns()
    with pair() as pair_, Capture(space_of(pair_.netns), [(pair_.tuple(), 0)]):
        assert netns.own_netns() == before
        # A thread that has been joined may be seen in /proc for a moment longer.
        deadline = time.monotonic() + 10
        while spaces_of_our_threads() != {before}:
            assert time.monotonic() < deadline


def test_single_questions_find_both_ends_and_no_listener():
    with pair() as pair_:
        a, p, b, q = pair_.tuple()
        space = space_of(pair_.netns)
        tuples = [(a, b, p, q), (b, a, q, p), (b, a, q, 1), (a, b, 1, 2)]
        sockets, gaps = ask([Question(*one) for one in tuples], [space])
        assert gaps == []
        assert sorted(zip(sockets["sport"].tolist(), sockets["dport"].tolist(), strict=True)) == sorted(
            [(p, q), (q, p)]
        )
        assert set(sockets["state"].tolist()) == {1}
        assert set(sockets["netns"].tolist()) == {pair_.netns}


def test_the_command_writes_pcapng_with_states_and_draws_the_closing(tmp_path, capsys):
    path = tmp_path / "x.pcapng"
    with pair() as pair_:
        import threading

        def act() -> None:
            deadline = time.monotonic() + 20
            # The head of the file is handed to the kernel in the first round, when the capture runs.
            while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
                time.sleep(0.02)
            pair_.do("shutdown")
            time.sleep(0.6)  # so that the state in between is looked at; nothing is asserted on the time
            pair_.do("data 3000")
            pair_.do("close-server")

        worker = threading.Thread(target=act)
        worker.start()
        status = main(
            ["capture", pair_.client, pair_.server, "--until-closed", "--for", "30s", "-w", str(path)]
        )
        worker.join()
        assert status in (0, 3)  # 3: this machine hides a process from us
    printed = capsys.readouterr()
    assert "Closed in order" in printed.out
    assert "3000 bytes" in printed.out
    frames = frames_of(path)
    assert "is ESTABLISHED" in frames[0].comment
    assert b"and is TIME_WAIT" in path.read_bytes()
    assert {f.interface for f in frames if f.data} == {"lo"}
    assert main(["explain", "--pcap", str(path)]) == 0
    assert capsys.readouterr().out == printed.out  # the file says all that the drawing was made from
    packed = tmp_path / "x.pcapng.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert main(["explain", "--pcap", str(packed), pair_.client]) == 0
    assert "Closed in order" in capsys.readouterr().out
    if shutil.which("tshark"):
        shown = subprocess.run(
            ["tshark", "-r", str(path), "-Y", "tcp.flags.fin==1"], capture_output=True, text=True
        )
        assert shown.returncode == 0
        assert len(shown.stdout.splitlines()) == 2


def test_a_cut_file_is_told_as_far_as_it_goes(tmp_path, capsys):
    with pair() as pair_, Capture(space_of(pair_.netns), [(pair_.tuple(), 0)]) as capture:
        pair_.do("reset")
        writer = capturing.Writer(str(tmp_path / "y.pcapng"))
        deadline = time.monotonic() + 20
        wrote = 0
        while not wrote:
            capture.wait(0.1)
            for packet in capture.drain():
                writer.packet("", capture.interfaces, packet)
                wrote += 1
            assert time.monotonic() < deadline
        writer.close()
    data = (tmp_path / "y.pcapng").read_bytes()
    (tmp_path / "z.pcapng").write_bytes(data + data[:50])
    assert main(["explain", "--pcap", str(tmp_path / "z.pcapng")]) == 3
    printed = capsys.readouterr()
    assert "reset the connection" in printed.out
    assert "could not read on" in " ".join(printed.err.split())


def test_nothing_that_matches_is_an_error_with_a_hint(capsys):
    assert main(["capture", "127.0.0.1:1", "127.0.0.1:2"]) == 1
    assert "hint:" in capsys.readouterr().err


def packet(number: int) -> object:
    from finwait.kernel.capture import Packet

    return Packet(number, bytes(1000), 1000, 1, outgoing=True)


def test_a_ring_of_files_keeps_the_last(tmp_path):
    writer = capturing.Writer(str(tmp_path / "r.pcapng"), limit=5000, files=2)
    for number in range(40):
        writer.packet("netns 7", {1: "lo"}, packet(number))  # type: ignore[arg-type]
    writer.close()
    left = sorted(p.name for p in tmp_path.iterdir())
    assert [os.path.basename(p) for p in writer.paths] == left
    assert len(left) == 2
    last = [f.time_ns for f in frames_of(tmp_path / left[1])]
    assert last[-1] == 39


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("limit", [0, 5000], ids=["one file", "ring"])
@pytest.mark.usefixtures("no_umask")
def test_files_are_private_whatever_the_umask(tmp_path, limit):
    writer = capturing.Writer(str(tmp_path / "x.pcapng"), limit=limit, files=2)
    for number in range(20):
        writer.packet("netns 7", {1: "lo"}, packet(number))  # type: ignore[arg-type]
    writer.close()
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}


def test_a_link_is_not_followed_and_not_replaced(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "x.pcapng").symlink_to("kept")
    with pytest.raises(FileRefused, match="symbolic link"):
        capturing.Writer(str(tmp_path / "x.pcapng")).open()
    assert (tmp_path / "kept").read_text() == "kept"
    assert (tmp_path / "x.pcapng").is_symlink()


def test_a_file_with_two_names_keeps_the_content_of_the_other(tmp_path):
    (tmp_path / "kept").write_text("kept")
    os.link(tmp_path / "kept", tmp_path / "x.pcapng")
    writer = capturing.Writer(str(tmp_path / "x.pcapng"))
    writer.open()
    writer.close()
    assert (tmp_path / "kept").read_text() == "kept"
    assert (tmp_path / "x.pcapng").stat().st_size


def test_what_is_no_regular_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileRefused, match="not a regular file"):
        capturing.Writer(str(tmp_path / "pipe")).open()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe"]


def test_a_full_disk_is_said_and_ends_nothing(tmp_path):
    """A limit on the size of files stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = capturing.Writer(str(tmp_path / "x.pcapng"))
    writer.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for number in range(40):
            writer.packet("netns 7", {1: "lo"}, packet(number))  # type: ignore[arg-type]
        writer.flush()
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert writer.failed == os.strerror(errno.EFBIG)
