"""What commands make of pasted text: exit statuses, refusals, columns that are not told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from finwait.cli import main
from finwait.errors import PasteError
from finwait.pasted import open_pasted, ss
from finwait.pasted.lines import clean, command_of, without_prefix
from finwait.pasted.observation import PastedText, observations
from finwait.pasted.recognise import RECOGNISERS, time_of
from finwait.pasted.rows import SocketRows, endpoint
from finwait.pasted.ss import milliseconds
from finwait.table import decode
from finwait.uapi.inet_diag import SocketId
from tests.synthetic import socket_message

ROOT = Path(__file__).parents[3]
PASTES = ROOT / "tests/pastes"
PLAIN = str(PASTES / "fin-wait2-held-ss-plain.txt")
BOTH = str(PASTES / "hand-both-ends.txt")


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_nothing_recognised_is_status_1_and_says_how_to_see_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("dear colleague,\nit hangs\n")
    assert main(["read", str(text)]) == 1
    assert "--show-lines" in capsys.readouterr().err
    assert main(["read", "--show-lines", str(text)]) == 1
    assert "it hangs" in capsys.readouterr().out
    assert main(["list", "--from", str(text)]) == 1
    assert "neither a recording" in capsys.readouterr().err


def test_a_text_never_tells_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", PLAIN]) == 3
    told = capsys.readouterr().out
    assert "ss -tanoe state fin-wait-2" in told
    assert "does not say whether 24 of 24 connections" in told


@pytest.mark.parametrize("verb", [["clear", "--dry-run"], ["probe"], ["arm", "--keepalive", "5/5/5"]])
def test_what_acts_refuses_a_text(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb, "--from", PLAIN, "state fin-wait-2"]) == 2
    assert "text" in capsys.readouterr().err


@pytest.mark.parametrize("paste", [PLAIN, BOTH, str(PASTES / "hand-windows.txt")])
def test_json_of_a_text_is_as_its_schema_says(paste: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "-o", "json", paste]) == 3
    document = json.loads(capsys.readouterr().out)
    schema = json.loads((ROOT / "docs/reference/diagnosis.schema.json").read_text())
    jsonschema.validate(document, schema)


def test_what_is_not_told_is_null_and_no_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "-o", "json", "--from", PLAIN]) == 3
    rows = json.loads(capsys.readouterr().out)["items"]
    assert {row["inode"] for row in rows} == {row["cookie"] for row in rows} == {None}
    assert {row["owners"] for row in rows} == {None}
    assert {row["timer_name"] for row in rows} == {None}


@pytest.mark.parametrize(
    "command", ["list -o wide", "netns", "conntrack", "check", "explain 192.0.2.10:51234"]
)
def test_every_command_that_looks_reads_a_text(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finwait", *command.split(), "--from", BOTH],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 3)


def test_a_filter_by_what_is_not_told_selects_neither_way() -> None:
    for words in ("held", "orphan", "inode = 5", "uid = 0"):
        assert main(["list", "--from", PLAIN, *words.split()]) in (1, 3)


def test_an_inode_is_known_not_to_be_0_without_its_number() -> None:
    look = open_pasted([str(PASTES / "hand-kube-proxy.txt")]).looks[0]
    sockets = decode.sockets(look)
    assert sockets.inode[0] != 0
    assert not sockets.present("inode")[0]
    assert sockets.present("timer")[0]


def test_two_machines_share_no_inode() -> None:
    look = open_pasted([str(PASTES / "hand-rows-of-two-machines.txt")]).looks[0]
    sockets = decode.sockets(look)
    assert len(set(sockets.inode.tolist())) == len(sockets) == 2
    assert len(look.namespaces) == 2


def test_texts_in_several_files_have_the_times_that_are_given(tmp_path: Path) -> None:
    row = "FIN-WAIT-2 0 0 192.0.2.1:80 192.0.2.2:90 ino:7 sk:1\n"
    (tmp_path / "b").write_text(row)
    (tmp_path / "a").write_text(row)
    paths = [str(tmp_path / "b"), str(tmp_path / "a")]
    looks = open_pasted(paths, [2_000_000_000, 1_000_000_000]).looks
    assert [look.facts.unix_ns for look in looks] == [1_000_000_000, 2_000_000_000]


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("10.0.0.1:80", (0, 0xFFFF0A000001), 80), ("[::1]:22", (0, 1), 22), (":::22", (0, 0), 22), ("*:*", (0, 0), 0),
        ("10.0.0.1%eth0:ssh", (0, 0xFFFF0A000001), 22), ("::ffff:10.0.0.1:443", (0, 0xFFFF0A000001), 443),
    ],
)  # fmt: skip
def test_an_end_is_read_in_every_spelling(text: str, address: tuple[int, int], port: int) -> None:
    end = endpoint(text)
    assert end is not None
    assert (end.words, end.port) == (address, port)


@pytest.mark.parametrize(
    "text", ["", "x", "10.0.0.256:1", "10.0.0.1:70000", "host:http-x", "1.2.3.4", "[zz]:1"]
)
def test_what_is_no_end_is_none(text: str) -> None:
    assert endpoint(text) is None


@pytest.mark.parametrize(
    ("text", "ms"),
    [("33sec", 33_000), ("2min3sec", 123_000), ("220ms", 220), ("1.234ms", 1234), ("012ms", 12)],
)
def test_times_of_ss(text: str, ms: int) -> None:
    assert milliseconds(text) == ms


@pytest.mark.parametrize(
    ("line", "name", "host"),
    [
        ("root@web-1:~# ss -tan", "ss", "web-1"), ("$ netstat -tanp", "netstat", ""), ("ss -tanoe", "ss", ""),
        ("[root@db ~]# sudo ip netns exec x conntrack -L", "conntrack", "db"), ("C:\\>netstat -ano", "netstat", ""),
    ],
)  # fmt: skip
def test_a_command_is_read_with_its_prompt(line: str, name: str, host: str) -> None:
    command = command_of(line)
    assert command is not None
    assert (command.name, command.host) == (name, host)


@pytest.mark.parametrize("line", ["date of the incident", "cat pictures", "ss", "the netstat shows"])
def test_prose_is_no_command_with_a_host(line: str) -> None:
    command = command_of(line)
    assert command is None or not command.host


def test_times_are_read_as_date_prints_them() -> None:
    for text in ("Mon Nov 30 10:00:00 UTC 2026", "2026-11-30T10:00:00Z", "Mon 30 Nov 2026 10:00:00 AM UTC"):
        assert time_of(text) == 1_796_032_800 * 10**9, text
    assert time_of("2026-11-30T10:00:00+02:00") == (1_796_032_800 - 7200) * 10**9
    assert time_of("Mon Nov 31 10:00:00 UTC 2026") is None


def test_what_copying_added_is_taken_off() -> None:
    assert clean(b"\x1b[31mESTAB\x1b[0m\r\na\x08ab\x00") == ["ESTAB", "ab"]
    assert clean("\ufeffx\u202e\u200by".encode("utf-16")) == ["xy"]
    assert without_prefix("> Nov 30 22:10:11 node check[8]: tcp 0 0") == "tcp 0 0"


def test_each_recogniser_has_a_page() -> None:
    for module in RECOGNISERS:
        page = module.__doc__ or ""
        assert page.startswith(f"{module.NAME}: ")
        assert {"Understood", "Told", "Not told"} <= {line[:14].strip() for line in page.splitlines()}


def test_a_raw_dump_of_ss_is_read_as_the_kernel_sent_it(tmp_path: Path) -> None:
    one = socket_message(state=5, inode=900, identity=SocketId(80, 90, b"\1\1\1\1", b"\2\2\2\2", cookie=7))
    path = tmp_path / "dump"
    path.write_bytes(one * 200)
    sockets = decode.sockets(open_pasted([str(path)]).looks[0])
    assert len(sockets) == 200
    assert set(sockets.cookie.tolist()) == {7}
    assert sockets.present("inode").all()
    path.write_bytes(one * 2 + one[:50])
    with pytest.raises(PasteError, match="nothing in"):
        open_pasted([str(path)])


def test_a_capture_is_named_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(20))
    with pytest.raises(PasteError, match="capture"):
        open_pasted([str(path)])


def test_a_name_that_a_program_chose_is_no_column() -> None:
    row = 'FIN-WAIT-2 0 0 192.0.2.1:80 192.0.2.2:90 users:(("x ino:0 sk:9",pid=5,fd=6)) ino:77 sk:3'
    columns, _, _ = (ss.read([row], "-tanpe").rows or SocketRows()).columns()
    assert (columns["inode"][0], columns["cookie"][0]) == (77, 3)


def test_an_output_that_was_made_once_is_not_taken_for_two_moments() -> None:
    once = "ops@b:~$ ss -tanoe\nCLOSE-WAIT 1 0 192.0.2.2:90 192.0.2.1:80 ino:8 sk:2\n"
    twice = "ops@a:~$ ss -tanoe\nFIN-WAIT-2 0 0 192.0.2.1:80 192.0.2.2:90 ino:7 sk:1\n"
    reading = observations([PastedText("text", clean(f"{twice}{once}{twice}".encode()))])
    assert len(reading.looks) == 1
    assert len(observations([PastedText("text", clean((twice * 2).encode()))]).looks) == 2
