"""The protocol: typed, bounded, and nothing in it that acts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.agent import protocol
from tests.unit.agent.test_metrics import PICTURE

STORY = b'{"ask":"stories","connections":[{"netns":%s,"cookie":%s,"state":5,"words":[1,2,3,4],"sport":1,"dport":2}]}'


@pytest.mark.parametrize(
    "question",
    [
        protocol.AskPicture(),
        protocol.AskStatus(),
        protocol.AskHistory(since_ns=5, limit=7),
        protocol.AskAges(cookies=[1, 2**63]),
        protocol.AskPage(filter="state close-wait", known=7),
        protocol.AskGroup(id="0" * 16),
        protocol.AskCounts(since_s=5, by="workload"),
        protocol.AskSettings(),
        protocol.AskJournal(limit=500),
        protocol.AskGaps(),
        protocol.AskStories(
            connections=[
                protocol.StoryOf(
                    netns=1, cookie=2**64 - 1, state=5, words=[0, 2**64 - 1, 0, 1], sport=1, dport=2
                )
            ]
        ),
    ],
)
def test_a_question_comes_back(question: protocol.Question) -> None:
    assert protocol.decode_question(protocol.encode(question)) == question


def test_an_answer_comes_back() -> None:
    answer = protocol.AgentAnswer(picture=PICTURE)
    assert protocol.decode_answer(protocol.encode(answer)) == answer


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b'{"ask":"clear"}',
        b'{"ask":"picture","more":1}',
        b'{"ask":"history","limit":0}',
        b'{"ask":"history","limit":10001}',
        b'{"ask":"history","filter":"' + b"x" * 2001 + b'"}',
        b'{"ask":"page","filter":"' + b"x" * 2001 + b'"}',
        b'{"ask":"group","id":"' + b"0" * 65 + b'"}',
        b'{"ask":"counts","since_s":0,"by":"pid"}',
        b'{"ask":"counts","since_s":-1}',
        b'{"ask":"journal","limit":501}',
        b'{"ask":"ages","cookies":[-1]}',
        b'{"ask":"stories"}',
        b'{"ask":"stories","connections":[{}]}',
        b'{"ask":"stories","connections":[{"netns":1,"cookie":1,"state":5,"words":[1],"sport":1,"dport":2}]}',
        b'{"ask":"stories","connections":[{"netns":1,"cookie":1,"state":13,"words":[1,2,3,4],"sport":1,"dport":2}]}',
        STORY % (b"4294967296", b"1"),
        STORY % (b"1", b"18446744073709551616"),
        b'{"ask":"ages","cookies":[' + b"1," * 4000 + b"1]}",
        b"[" * 20_000,
        b'{"ask":"picture"}' + b" " * protocol.QUESTION_MOST,
    ],
)
def test_what_is_no_question_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        protocol.decode_question(line)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_question_or_refused(line: bytes) -> None:
    try:
        protocol.decode_question(line)
    except ValueError:
        return
    assert line.strip().startswith(b"{")


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_refused(line: bytes) -> None:
    try:
        protocol.decode_answer(line)
    except ValueError:
        return
    assert line.strip().startswith(b"{")
