"""Whatever is pasted is read without an error; and less text never says what more text denies."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait import session
from finwait.pasted.lines import LONGEST, clean
from finwait.pasted.observation import PastedText, observations
from finwait.pasted.read import PastedMachine
from finwait.session import Diagnosis
from finwait.uapi import tcp

CORPUS = [path.read_text() for path in sorted(Path(__file__).parents[1].glob("pastes/*.txt"))]
LINES = sorted({line for text in CORPUS for line in text.split("\n")})
PIECES = [
    "ESTAB", "FIN-WAIT-2", "tcp", "0", "1", "10.0.0.1:80", "[::1]:22", "*:*", "timer:(on,1.2ms,3)", "ino:7", "sk:f",
    'users:(("a",pid=1,fd=2))', "-", "1/x", "src=1.2.3.4", "net.ipv4.tcp_fin_timeout = 60", "\x1b[31m", "\r", "\t",
    "99999999999999999999", "State", "Recv-Q", "Proto", "sl", "# ss -tan", "> ", "(ESTABLISHED)", "->", "IPv4", "TCP",
]  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join),
    st.lists(st.sampled_from(LINES), max_size=12).map("\n".join),
    st.lists(
        st.tuples(st.sampled_from(LINES), st.integers(0, 200), st.sampled_from(PIECES)).map(
            lambda cut: cut[0][: cut[1]] + cut[2]
        ),
        max_size=12,
    ).map("\n".join),
)


def diagnosed(text: str) -> Diagnosis | None:
    reading = observations([PastedText("text", clean(text.encode("utf-8", "surrogatepass")))])
    return session.diagnose(PastedMachine(reading)) if reading.looks else None


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_any_text_is_read(text: str) -> None:
    diagnosis = diagnosed(text)
    if diagnosis is not None:
        assert diagnosis.gaps, "no text tells everything"


@given(st.binary(max_size=300))
def test_any_bytes_are_lines(data: bytes) -> None:
    assert all(len(line) <= LONGEST and "\x1b" not in line for line in clean(data))


STATES = ("FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "LAST-ACK", "CLOSING", "TIME-WAIT", "SYN-SENT", "ESTAB")
ROW = st.fixed_dictionaries(
    {
        "state": st.sampled_from(STATES),
        "held": st.booleans(),
        "rqueue": st.sampled_from((0, 1, 900)),
        "wqueue": st.sampled_from((0, 1)),
        "timer": st.sampled_from(
            ("", "timer:(on,1.2ms,4)", "timer:(keepalive,30sec,0)", "timer:(timewait,20sec,0)")
        ),
        "owner": st.booleans(),
    }
)


def written(rows: list[dict[str, object]], *, owners: bool, timers: bool, inodes: bool) -> str:
    """Return rows as ss prints them, with -p, -o and -e or without."""
    lines = [f"# ss -tan{'p' * owners}{'o' * timers}{'e' * inodes}"]
    for k, row in enumerate(rows):
        words = [row["state"], row["rqueue"], row["wqueue"], "192.0.2.1:40000", f"192.0.2.2:{1000 + k}"]
        if owners and row["held"] and row["owner"]:
            words.append(f'users:(("x",pid={50 + k},fd=5))')
        if timers and row["timer"]:
            words.append(row["timer"])
        if inodes:
            words += [f"ino:{7000 + k if row['held'] else 0}", f"sk:{k + 1:x}"]
        lines.append(" ".join(map(str, words)))
    return "\n".join(lines) + "\n"


def real(row: dict[str, object]) -> dict[str, object]:
    """Return what a kernel can say: minisockets are held by nobody, and only they have the timewait timer."""
    state, timer = row["state"], str(row["timer"])
    if state == "TIME-WAIT":
        return row | {"held": False, "timer": "timer:(timewait,20sec,0)"}
    if "timewait" in timer:
        return row | ({"held": False} if state == "FIN-WAIT-2" else {"timer": ""})
    return row | {"held": True} if state == "SYN-SENT" else row


def causes(text: str) -> dict[int, str]:
    """Return the primary cause of each row, by its remote port; `open` of open ones that are not judged."""
    diagnosis = diagnosed(text)
    assert diagnosis is not None
    view = diagnosis.view
    result = {}
    for row, port in enumerate(view.sockets.dport.tolist()):
        if view.undecided[row] and view.sockets.state[row] == tcp.ESTABLISHED:
            result[port] = "open"
    for finding in diagnosis.findings:
        if finding.primary:
            result |= dict.fromkeys(view.sockets.dport[finding.rows].tolist(), finding.rule)
    return result


@given(st.lists(ROW.map(real), min_size=1, max_size=6), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_less_text_never_says_what_more_text_denies(
    rows: list[dict[str, object]], owners: bool, timers: bool, inodes: bool
) -> None:
    more = causes(written(rows, owners=True, timers=True, inodes=True))
    less = causes(written(rows, owners=owners, timers=timers, inodes=inodes))
    for port in more.keys() | less.keys():
        allowed = (more.get(port), "not-told", "open")
        assert less.get(port) in allowed, (rows[port - 1000], more.get(port), less.get(port))
        # What does not finish closing is never left without a word.
        assert port in less or port not in more


@pytest.mark.parametrize(
    "text",
    [
        "ESTAB 0 0 " + "1" * 200_000,
        "(" * 200_000,
        'users:(("' * 30_000,
        "\n".join("ESTAB 0 0 10.0.0.1:80 10.0.0.2:90 users:((" + '"a",' * 400 for _ in range(200)),
        "\x1b[" * 100_000,
        "> " * 100_000,
        "tcp " + "src= " * 50_000,
        ("2026-11-30T10:00:00Z " * 50 + "\n") * 2_000,
        "[" * 3_000 + "\n" + '"GET ' * 10_000,
    ],
    ids=range(9),
)
def test_a_hostile_text_takes_no_long_time(text: str) -> None:
    begun = time.process_time()
    diagnosed(text)
    assert time.process_time() - begun < 5
