"""`finwait record` says what it could not see, as the commands that read the file will."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from finwait import session
from finwait.cli import main
from finwait.errors import Gap
from finwait.recording import Replay, open_recording, write
from finwait.uapi.observation import LookPlan, Observation

CAPTURE = Path(__file__).parents[2] / "captures" / "linux-6.18" / "fin-wait2-held.finwait"
EARLY = Gap("netns 4026532281", "enter it", "CAP_SYS_ADMIN")
LATE = Gap("127 processes", "list their descriptors", "CAP_SYS_PTRACE")


class Watched(Replay):
    """A machine of which the first look misses one thing and the later ones another."""

    gaps: tuple[tuple[Gap, ...], ...]

    def begin(self) -> Watched:
        return self

    def observe(self, plan: LookPlan) -> Observation:
        here = self.gaps[min(self._next, len(self.gaps) - 1)]
        return replace(super().observe(plan), gaps=here)


@pytest.mark.parametrize(
    ("gaps", "status", "told"),
    [
        (((EARLY,), (LATE,)), 3, (EARLY, LATE)),
        (((LATE,), (LATE,)), 3, (LATE,)),
        (((), ()), 0, ()),
    ],
)
@pytest.mark.parametrize("redact", [(), ("--redact",)])
def test_what_was_not_seen_is_told_and_is_the_status(
    gaps: tuple[tuple[Gap, ...], ...],
    status: int,
    told: tuple[Gap, ...],
    redact: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = Watched(open_recording(str(CAPTURE)).looks)
    machine.gaps = gaps
    monkeypatch.setattr(session, "live_machine", lambda: machine)
    path = str(tmp_path / "a.finwait")
    assert main(["record", "--interval", "10ms", *redact, path]) == status
    said = capsys.readouterr().err
    assert [gap for gap in (EARLY, LATE) if str(gap) in said] == list(told)
    assert said.count("not seen") == len(told)
    if gaps[-1]:  # who reads the file is told of its last look, with the same status
        assert main(["list", "--from", path]) == 3
        assert str(LATE) in capsys.readouterr().err


@pytest.fixture
def with_gaps(tmp_path: Path) -> str:
    looks = [replace(look, gaps=(LATE,)) for look in open_recording(str(CAPTURE)).looks]
    write(str(tmp_path / "b.finwait"), looks)
    return str(tmp_path / "b.finwait")


COMMANDS = [
    *(["diagnose", "-o", form] for form in ("text", "wide", "json", "jsonl", "csv")),
    *(["list", "-o", form] for form in ("text", "wide", "json", "jsonl", "csv")),
    *(["explain", "-o", form, "sport", "=", "38668"] for form in ("text", "json")),
    *(["netns", "-o", form] for form in ("text", "json")),
    *(["conntrack", "-o", form] for form in ("text", "json")),
    *(["clear", "--dry-run", "-o", form, "state", "fin-wait-2"] for form in ("text", "json")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_format_tells_what_was_not_seen_and_ends_with_3(
    command: list[str], with_gaps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([command[0], "--from", with_gaps, *command[1:]])
    done = capsys.readouterr()
    assert status in ((3, 4) if command[0] == "clear" else (3,)), done.err  # 4: a guard leaves them out
    assert LATE.where in done.out + done.err
    assert LATE.needs in done.out + done.err


def seen_whole() -> Observation:
    """Return a look to which nothing was denied."""
    look = open_recording(str(CAPTURE)).looks[0]
    return replace(look, gaps=(), descriptors=replace(look.descriptors, unreadable=()))


UNENTERED = Gap.of_namespace(4026532999, "enter it", "CAP_SYS_ADMIN", name="nosuch", unentered=True)
UNLISTED = LATE.but(doing="read their network namespaces", unlisted=True)


@pytest.mark.parametrize("words", ["netns = nosuch", "netns = 4026532999", "comm = nosuch", "pid = 4194300"])
@pytest.mark.parametrize("command", ["list", "diagnose", "explain", "check"])
def test_what_could_not_be_seen_is_not_said_to_be_absent(
    command: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by the namespace, the process or the name that a FILTER asks for: it may be just what was denied."""
    look = seen_whole()
    hidden = replace(look.descriptors, unreadable=(0,))
    denied = [replace(look, gaps=(UNENTERED,), descriptors=hidden)]
    if not words.startswith("pid"):
        denied += [replace(look, gaps=(UNENTERED,)), replace(look, gaps=(UNLISTED,))]
    for number, one in enumerate([look, *denied]):
        path = str(tmp_path / f"{number}.finwait")
        write(path, [one])
        status = main([command, "--from", path, *words.split()])
        told = capsys.readouterr()
        said = told.out + told.err
        absent = ("there is no" in said) or ("cannot match" in said)
        if number:
            assert (status, absent) == (3, False), said
            assert one.gaps[0].where in said
        else:
            assert (status, absent) == (3 if command == "check" else 1, True), said


def test_a_connection_is_not_said_to_be_absent_where_open_ones_were_not_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look = seen_whole()
    path = str(tmp_path / "a.finwait")
    first, *others = look.namespaces
    write(path, [replace(look, namespaces=(replace(first, established_skipped=9), *others), complete=False)])
    assert main(["explain", "--from", path, "sport", "=", ":9"]) == 3
    said = capsys.readouterr().err
    assert "no connection that was seen matches" in said
    assert "about 9 sockets" in said
    assert main(["explain", "--from", path, "state", "last-ack", "sport", "=", ":9"]) == 1
