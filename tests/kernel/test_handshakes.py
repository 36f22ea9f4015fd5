"""When a handshake in SYN_RECV ends, as the kernel's row and its listener's options tell it."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import pytest

from finwait.lab.proofs.instruments import Place, row_of, until
from finwait.lab.topology import Lab, unmet
from tests.kernel.needs import missing
from tests.kernel.test_clear_command import Command

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def test_a_handshake_ends_by_the_setting_of_its_listener(tmp_path: Path) -> None:
    """Two listeners, one with a TCP_SYNCNT: what `list` says of both, and a recording of them."""
    with Lab() as lab, Place(lab, "handshakes", tcp_synack_retries=3) as place:
        place.ns.nft(
            "table inet silence {\n chain arriving {\n type filter hook input priority 0\n"
            " tcp flags & (syn | ack) == syn | ack drop\n }\n}"
        )
        plain, counted = place.listener(), place.listener()
        counted.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 7)
        for door in (plain, counted):
            client = place.fresh()
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(door.getsockname())
            ports = door.getsockname()[1], client.getsockname()[1]
            until(lambda ports=ports: row_of(place.ns, *ports) is not None, "the handshake is under way")  # type: ignore[misc]
            client.close()
        command, record = Command(lab, tmp_path), str(tmp_path / "handshakes.finwait")
        command(record, *command.where, command="record")
        assert Path(record).exists()
        selected = "state syn-recv and ends = retries"
        for source in (command.where, ["--from", record]):
            listed = json.loads(command(selected, *source, "-o", "json", command="list"))
            told = {one["sport"]: one["forecast"] for one in listed["items"]}
            assert told.keys() == {plain.getsockname()[1], counted.getsockname()[1]}
            few, many = (told[door.getsockname()[1]] for door in (plain, counted))
            assert few["ends"] == many["ends"] == "retries"
            assert few["at_most_s"] < 18  # 1 + 2 + 4 + 8 s
            assert 120 < many["at_least_s"] < many["at_most_s"]  # the timer of 128 s is cut to 120 s
            assert "tcp_synack_retries is 3" in few["why"]
            assert "TCP_SYNCNT of its listener is 7" in many["why"]
            assert "not read" not in few["why"] + many["why"]
