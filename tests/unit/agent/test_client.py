"""Asking an agent: whatever answers, an age is taken only from what has one."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from finwait.agent import client
from finwait.agent.protocol import AgentAnswer, NamesOfCluster, StoryOf, encode
from finwait.errors import KernelError
from finwait.uapi import tcp
from finwait.uapi.cluster import NO_NAMES, ClusterNames, Endpoint, Pod

GOOD: dict[str, Any] = {
    "netns": 7, "cookie": "0x1f", "state": "FIN_WAIT2", "age_s": {"at_least": 61.5, "at_most": None},
}  # fmt: skip


@contextmanager
def answering(folder: Path, *answers: bytes) -> Iterator[str]:
    """A socket that answers each connection's question with one of some lines, in turn."""
    path = str(folder / "agent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection, suppress(OSError):  # who asks may have gone
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        thread.join(5)


def episodes(*items: object) -> bytes:
    return msgspec.json.encode({"episodes": items}) + b"\n"


def test_ages_are_told_by_namespace_cookie_and_state(tmp_path: Path) -> None:
    shut = GOOD | {"state": "CLOSE_WAIT", "age_s": {"at_least": 1, "at_most": 2.5}}
    with answering(tmp_path, episodes(GOOD, shut)) as path:
        assert client.ages([31], path) == {
            (7, 31, tcp.FIN_WAIT2): (61_500, -1),
            (7, 31, tcp.CLOSE_WAIT): (1000, 2500),
        }


@pytest.mark.parametrize(
    "strange",
    [
        {"netns": 7},
        GOOD | {"state": "ASLEEP"},
        GOOD | {"age_s": None},
        GOOD | {"age_s": {"at_least": "long", "at_most": None}},
        GOOD | {"cookie": 31},
    ],
)
def test_what_has_no_age_is_left_out(tmp_path: Path, strange: dict[str, Any]) -> None:
    with answering(tmp_path, episodes(strange, GOOD)) as path:
        assert list(client.ages([31], path)) == [(7, 31, tcp.FIN_WAIT2)]


def test_an_answer_that_is_none_is_an_error(tmp_path: Path) -> None:
    with answering(tmp_path, b'{"episodes": 5}\n') as path, pytest.raises(ValueError, match="array"):
        client.ages([31], path)


def test_many_are_asked_for_in_parts_and_no_more_than_a_report_needs(tmp_path: Path) -> None:
    parts = -(-client._COOKIES_MOST // client._AT_ONCE)
    with answering(tmp_path, *[episodes(GOOD)] * parts) as path:
        assert len(client.ages(range(10 * client._COOKIES_MOST), path)) == 1


def test_another_user_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = struct.pack("3i", 1, os.getuid() + 1, 1)
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: ours)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with answering(tmp_path, b"") as path, pytest.raises(KernelError, match="ask the agent"):
        client.ages([31], path)


def told(names: ClusterNames, end: int = 0) -> bytes:
    return encode(AgentAnswer(names=NamesOfCluster(names=names, next=end, gaps=[])))


NAMED = ClusterNames(pods=(Pod("u1", "shop", "db-0"),), as_of={"pods": 1.0, "services": 1.0})
ENDS = tuple(Endpoint("shop/db", f"10.0.0.{k}", 80) for k in range(3))


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([encode(AgentAnswer(error="the question failed"))], "the question failed"),
        ([encode(AgentAnswer(refused="no"))], "it says: no"),
        ([b"no answer\n"], "malformed"),
        ([told(NAMED, 1), encode(AgentAnswer(error="too long"))], "too long"),
        ([told(NAMED, 1), told(NAMED, 1)], "no end"),
        ([told(NAMED, 1), told(replace(NAMED, as_of={"pods": 2.0}))] * 3, "changed"),
    ],
)
def test_an_agent_that_tells_no_names_is_a_gap_wherever_it_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[bytes], says: str
) -> None:
    with answering(tmp_path, *answers) as path:
        monkeypatch.setattr(client, "SOCKET", path)
        asking = client.naming(None)
        assert asking is not None
        names, (gap,) = asking(["10.0.0.1"])
    assert names == NO_NAMES
    assert says in gap.doing


def test_an_agent_that_does_not_answer_in_time_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "agent.sock")
    monkeypatch.setattr(client, "SOCKET", path)
    monkeypatch.setattr(client, "_PATIENCE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        asking = client.naming(None)
        assert asking is not None
        names, (gap,) = asking(["10.0.0.1"])
    assert (names, "learn names" in gap.doing) == (NO_NAMES, True)
    assert asking(["10.0.0.1"]) == (NO_NAMES, ()), "it has ended: none runs"


def test_an_agent_that_follows_no_cluster_is_no_gap(tmp_path: Path) -> None:
    with answering(tmp_path, encode(AgentAnswer())) as path:
        assert client.names(["10.0.0.1"], path) == (NO_NAMES, ())


def test_names_come_in_pieces_that_are_of_one_moment(tmp_path: Path) -> None:
    first, rest = replace(NAMED, endpoints=ENDS[:1]), replace(NAMED, pods=(), endpoints=ENDS[1:])
    newer = {"pods": 2.0, "services": 2.0}
    answers = [first, replace(rest, as_of=newer), replace(first, as_of=newer), replace(rest, as_of=newer)]
    with answering(tmp_path, *(told(names, 2 * (k % 2 == 0)) for k, names in enumerate(answers))) as path:
        names, gaps = client.names(["10.0.0.1"], path)
    assert (names, gaps) == (replace(NAMED, endpoints=ENDS, as_of=newer), ())


def test_of_more_addresses_than_are_asked_for_no_service_is_not_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_ADDRESSES_MOST", 2)
    with answering(tmp_path, told(NAMED)) as path:
        names, (gap,) = client.names(["10.0.0.1", "10.0.0.2", "10.0.0.3"], path)
    assert names.as_of.keys() == {"pods"}
    assert "more than 2 addresses" in gap.doing


@pytest.mark.parametrize(
    ("answer", "says"),
    [(encode(AgentAnswer(error="no history")), "no history"), (b"nonsense\n", "malformed")],
)
def test_an_agent_that_tells_no_ages_or_stories_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, says: str
) -> None:
    story = StoryOf(netns=1, cookie=2, state=tcp.FIN_WAIT2, words=[0, 0, 0, 0], sport=1, dport=2)
    with answering(tmp_path, answer, answer) as path:
        monkeypatch.setattr(client, "SOCKET", path)
        asking = client.asking(None)
        assert asking is not None
        ages, (gap,) = asking([31])
        assert (ages, says in gap.doing) == ({}, True)
        told, (gap,) = client.stories([story], None)
        assert (told, says in gap.doing) == (None, True)
    assert asking([31]) == ({}, ()), "none runs"
    assert client.stories([story], None) == (None, ())
    with pytest.raises(KernelError):
        client.stories([story], path)
