"""The page over a looker of values, in a process of its own: a test tells it what to say next by lines of JSON.

``{"groups": 1000}``, ``{"gone": true}``, ``{"page": {…}}``: what is not named stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from typing import Any

import msgspec

from finwait.agent import protocol
from finwait.agent.face import Face
from finwait.report.agent_page import AgentPage
from finwait.web.api import Access
from tests.unit.agent.test_metrics import PICTURE
from tests.unit.web.documents import HOSTILE, answer_to, counts, group, page


class Told:
    """What the looker says."""

    def __init__(self) -> None:
        self.rounds = 0
        self.groups = 12
        self.more: dict[str, Any] = {}
        self.hostile = False

    def shown(self) -> AgentPage:
        now = time.time_ns()
        made = page(self.groups, at_ns=now, look_at_ns=now, rounds=self.rounds)
        items = made.groups
        if self.hostile:
            items = [
                group(
                    0,
                    workload=HOSTILE,
                    title=HOSTILE,
                    holders=[HOSTILE],
                    command=f"finwait clear comm = '{HOSTILE}'",
                ),
                *items[1:],
            ]
        items = sorted(items, key=lambda g: (g.severity != "problem", -g.oldest_s))
        return msgspec.structs.replace(made, groups=items, **self.more)

    def answer(self, question: protocol.Question, picture: protocol.RoundPicture) -> protocol.AgentAnswer:
        if isinstance(question, protocol.AskCounts):
            return protocol.AgentAnswer(counts=counts(now_s=int(time.time())))
        shown = self.shown()
        if isinstance(question, protocol.AskPage) and question.filter and "(" not in question.filter:
            few = [g for g in shown.groups if g.rule in question.filter]
            shown = msgspec.structs.replace(
                shown, groups=few, filter=question.filter, stuck=sum(g.count for g in few), rounds=self.rounds
            )
        return answer_to(question, msgspec.structs.replace(picture, rounds=self.rounds), shown)


async def looker(channel: socket.socket, told: Any) -> None:
    reader, writer = await asyncio.open_connection(sock=channel)
    try:
        while line := await reader.readline():
            writer.write(protocol.encode(told.answer(protocol.decode_question(line), PICTURE)))
    finally:
        writer.close()


async def main(port: int, token: str, told: Any = None) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    told = told or Told()
    print(listener.getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    ours, theirs = socket.socketpair()
    looking = asyncio.create_task(looker(theirs, told))
    face = Face(ours, 2.0, Access(token=token))
    face._every_s = 0.05
    serving = asyncio.create_task(face.serve(listener))
    with contextlib.suppress(asyncio.CancelledError):
        while line := await commands.readline():
            change = json.loads(line)
            told.rounds += 1
            told.groups = change.get("groups", told.groups)
            told.hostile = change.get("hostile", told.hostile)
            told.more = change.get("page", told.more)
            if change.get("gone"):
                looking.cancel()
            print("done", flush=True)
    serving.cancel()
    looking.cancel()
    await asyncio.gather(serving, looking, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
