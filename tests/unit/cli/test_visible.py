"""No name that a stranger chose reaches the terminal as a command to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from finwait.cli import main
from finwait.recording import read, write
from finwait.report.style import Style
from finwait.table import decode
from finwait.table.units import printable
from finwait.uapi import tcp

CAPTURE = next((Path(__file__).parents[2] / "captures").glob("*/fin-wait2-held.finwait"))
_SOCKETS = decode.sockets(read(str(CAPTURE))[1][-1])
COOKIE = hex(int(_SOCKETS.cookie[np.flatnonzero(_SOCKETS.state == tcp.FIN_WAIT2)[0]]))
CLEAR = "\x1b[2J\x1b]0;owned\x07\r\x9b2J"


def test_control_characters_are_written_as_escapes() -> None:
    assert printable(f"a{CLEAR}b", lines=True) == "a\\x1b[2J\\x1b]0;owned\\x07\\r\\x9b2Jb"
    assert printable("caf\udce9", lines=True) == "caf\\xe9"


def test_text_tabs_line_ends_and_our_colours_stay() -> None:
    for text in ("plain\ttext\n", "a,b\r\nc,d\r\n", "FIN_WAIT2 ≠ 0 — ж é"):
        assert printable(text, lines=True) == text
    for role in ("problem", "notice", "healthy", "bold", "dim"):
        painted = Style(color=True).paint("é text", role)
        shown = printable(painted, lines=True)
        assert shown.startswith("\x1b[")
        assert shown.endswith("é text\x1b[0m")


@pytest.mark.parametrize("sgr", ["\x1b[0m", "\x1b[1m", "\x1b[31;1m", "\x1b[33m", "\x1b[8m", "\x9b31m"])
def test_a_colour_that_is_not_ours_is_an_escape(sgr: str) -> None:
    """A program that calls itself so would write in our colours, or end them."""
    for lines in (False, True):
        assert printable(f"{sgr}healthy", lines=lines).isascii()
        assert printable(f"{sgr}healthy", lines=lines).isprintable()


@pytest.mark.parametrize(
    "point",
    [
        *range(0x20), *range(0x7F, 0xA0), 0x34F, 0x61C, 0x115F, 0x180E, *range(0x200B, 0x2010),
        *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0x2800, 0x3164, 0xD800, 0xFE0F, 0xFEFF, 0xFFF9, 0xE0001,
        0xE0100, 0xE000, 0xF0001,
    ],
)  # fmt: skip
def test_what_a_terminal_obeys_or_does_not_show_is_an_escape(point: int) -> None:
    assert printable(f"a{chr(point)}b").isascii()
    assert printable(f"a{chr(point)}b").isprintable()


@pytest.mark.parametrize(
    "words",
    [[], ["-o", "wide"], ["list"], ["list", "-o", "csv"], ["netns"], ["explain", COOKIE]],
)
def test_a_hostile_recording_says_nothing_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    path = str(tmp_path / "evil.finwait")
    looks = [
        replace(
            look,
            facts=replace(look.facts, hostname=CLEAR, kernel=CLEAR),
            namespaces=tuple(replace(ns, names=(CLEAR,)) for ns in look.namespaces),
            processes={
                pid: replace(
                    p, stat=(p.stat or b"").replace(b"(poller)", f"({CLEAR})".encode()), cmdline=b"\x1b[2J"
                )
                for pid, p in look.processes.items()
            },
            gaps=tuple(gap.but(where=CLEAR, doing=CLEAR) for gap in look.gaps),
        )
        for look in read(str(CAPTURE))[1]
    ]
    write(path, looks)
    assert main([*words, "--from", path]) in (0, 3)
    out, err = capsys.readouterr()
    assert len(out) > 100
    assert not {*"\x1b\x07\x9b"} & {*out, *err}


def test_bytes_that_do_not_decode_are_told_with_the_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "odd.finwait")
    looks = [replace(look, buffer=look.buffer * 0 + 7) for look in read(str(CAPTURE))[1]]
    write(path, looks)
    assert main(["--from", path]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"in the recording `{path}`" in err
    assert "hint: " in err
