"""Page and API of a real agent that watches a real leak: over TCP, a Unix socket, with a token, and beyond loopback."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from finwait.web.openapi import openapi
from tests.e2e.browser import Browser, chromium
from tests.kernel.test_agent import ADDRESS, WAIT, Scene, scene, tell, until

__all__ = ["scene"]

pytest.importorskip("prometheus_client")
pytestmark = [pytest.mark.kernel, pytest.mark.slow]

TOKEN = "a-token-of-many-characters"


def api(scene: Scene, path: str, token: str = "") -> tuple[int, dict[str, Any]]:
    """Ask over the Unix socket that the agent of `through_a_socket` listens on."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(WAIT)
            self.sock.connect(str(scene.folder / "page.sock"))

    connection = Connection("localhost")
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body.startswith(b"{") else {"text": body.decode()}
    except (OSError, http.client.HTTPException) as error:
        return 0, {"error": str(error)}
    finally:
        connection.close()


def listening(scene: Scene, *more: str) -> Any:
    """Start an agent that serves the page on a Unix socket."""
    return scene.agent("--listen", f"unix:{scene.folder / 'page.sock'}", *more)


DESCRIPTION = openapi()


def checked(scene: Scene, path: str, name: str) -> dict[str, Any]:
    status, document = api(scene, path)
    assert status == 200, document
    schema = {"$ref": f"#/components/schemas/{name}", "components": DESCRIPTION["components"]}
    jsonschema.validate(document, schema)
    return document


def test_a_leak_is_explained_with_both_ends_and_what_ends_it(scene: Scene) -> None:
    program = scene.leaking()
    tell(program, "5")
    agent = listening(scene)
    until("it serves", lambda: api(scene, "/healthz")[0] == 200)
    assert stat.S_IMODE(os.stat(scene.folder / "page.sock").st_mode) == 0o660

    def explained() -> bool:
        picture = api(scene, "/api/v1/picture")[1].get("picture", {})
        return picture.get("stuck") == 5 and not picture["undiagnosed"] and picture["groups"][0]["title"]

    until("the leak has a cause", explained)
    picture = checked(scene, "/api/v1/picture", "PictureDocument")["picture"]
    (group,) = picture["groups"]
    assert group["count"] == 5
    assert group["states"] == {"CLOSE_WAIT": 5, "FIN_WAIT2": 5}
    assert group["command"].startswith("finwait clear ")
    detail = checked(scene, f"/api/v1/group/{group['id']}", "GroupDocument")["item"]
    assert detail["cause"]["evidence"]
    assert detail["cause"]["does_not"]
    assert len(detail["ends"]) == 10
    assert all(end["other_end"]["state"] for end in detail["ends"])
    assert (
        checked(scene, "/api/v1/picture?filter=state%20last-ack", "PictureDocument")["picture"]["stuck"] == 0
    )
    ports = {end["local"].rpartition(":")[2] for end in detail["ends"]}
    port = min(ports)
    few = checked(scene, f"/api/v1/history?filter=sport%20%3D%20{port}", "EpisodesDocument")["items"]
    assert {item["sport"] for item in few} == {int(port)}
    for path, name in (
        ("groups", "GroupsDocument"), ("counts?since=1h", "CountsDocument"), ("settings", "SettingsDocument"),
        ("journal", "ActsDocument"), ("gaps", "GapsDocument"), ("about", "AboutDocument"),
    ):  # fmt: skip
        checked(scene, f"/api/v1/{path}", name)
    assert checked(scene, "/api/v1/settings", "SettingsDocument")["items"]

    # The name of a group outlives the agent, and the other process, too.
    os.kill(scene.inner(agent), signal.SIGTERM)
    assert agent.wait(WAIT) == 0
    assert not (scene.folder / "page.sock").exists()
    listening(scene)
    until("it has the same name", lambda: api(scene, f"/api/v1/group/{group['id']}")[0] == 200)


def test_readers_of_events_get_looks_and_hold_nothing_up(scene: Scene) -> None:
    agent = listening(scene)
    until("it serves", lambda: api(scene, "/api/v1/picture")[0] == 200)
    kept = []
    for _ in range(50):  # they never read
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(scene.folder / "page.sock"))
        sock.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        kept.append(sock)
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(WAIT)
        reader.connect(str(scene.folder / "page.sock"))
        reader.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        file = reader.makefile("rb")
        rounds: list[int] = []
        while len(rounds) < 2:
            line = file.readline()
            assert line, "it goes on"
            if line.startswith(b"data: "):
                rounds.append(json.loads(line[6:])["picture"]["rounds"])
        assert rounds[0] < rounds[1]
        assert api(scene, "/healthz")[0] == 200
        begun = time.monotonic()
        os.kill(scene.inner(agent), signal.SIGTERM)
        assert agent.wait(WAIT) == 0
        while file.readline():
            pass
        assert time.monotonic() - begun < WAIT
    for sock in kept:
        sock.close()


def test_a_token_is_asked_for_and_is_on_no_command_line(scene: Scene) -> None:
    token = scene.folder / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o644)
    done = scene.do(*scene.finwait("agent", "--token-file", str(token), "--once"), check=False)
    assert done.returncode == 1
    assert "everybody can read the token" in done.stderr
    token.chmod(0o600)
    agent = listening(scene, "--token-file", str(token))
    until("it serves", lambda: api(scene, "/healthz")[0] == 200)
    assert api(scene, "/api/v1/picture")[0] == 401
    assert api(scene, "/api/v1/picture", token="another-token-of-many")[0] == 401
    until("it is read", lambda: api(scene, "/api/v1/picture", token=TOKEN)[0] == 200)
    assert api(scene, "/metrics")[0] == 200
    assert api(scene, "/")[0] == 200
    looker = scene.inner(agent)
    for pid in (looker, *Path(f"/proc/{looker}/task/{looker}/children").read_text().split()):
        assert TOKEN.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert TOKEN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_beyond_loopback_the_page_needs_a_token(scene: Scene) -> None:
    agent = scene.agent("--listen", ADDRESS.replace("127.0.0.1", "0.0.0.0"))
    until("it serves", lambda: scene.get("/healthz")[0] == 200)
    assert scene.get("/metrics")[0] == 200
    assert [scene.get(path)[0] for path in ("/", "/page/page.js", "/api/v1/picture", "/api/v1/events")] == [
        403
    ] * 4
    os.kill(scene.inner(agent), signal.SIGTERM)
    _, said = agent.communicate(timeout=WAIT)
    assert "the page needs `--token-file` there" in said


def test_the_page_is_served_on_loopback_and_who_reads_it_is_said(scene: Scene) -> None:
    agent = scene.agent("--listen", ADDRESS)
    until("it serves", lambda: scene.get("/healthz")[0] == 200)
    status, body = scene.get("/")
    assert status == 200
    assert '<script type="module" src="/page/page.js">' in body
    assert scene.get("/api/v1/picture", host="evil.example")[0] == 421
    os.kill(scene.inner(agent), signal.SIGTERM)
    _, said = agent.communicate(timeout=WAIT)
    assert "every user of this machine can read the page" in said


@pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian's package chromium)")
def test_an_open_page_follows_a_leak_an_agent_that_is_killed_and_the_next_one(scene: Scene) -> None:
    program = scene.leaking()
    tell(program, "3")
    agent = scene.agent("--listen", ADDRESS)
    until("it serves", lambda: scene.get("/healthz")[0] == 200)
    live = "document.querySelector('#live-text').innerText"
    with Browser(scene.within()) as browser:
        browser.size(1280, 800)
        browser.open(f"http://{ADDRESS}/")
        patiently(browser, "headline.innerText.startsWith('3 connections do not finish closing')")
        patiently(browser, "document.querySelector('.row .why').innerText.includes('peer closed')")
        browser.key("Enter")
        patiently(
            browser, "document.querySelector('.detail .command code')?.innerText.startsWith('finwait clear ')"
        )
        assert len(browser.js("[...document.querySelectorAll('.pair')].map((e) => e.innerText)")) == 6
        tell(program, "2")
        patiently(browser, "headline.innerText.startsWith('5 connections')")
        assert "group=" in browser.js("location.search"), "what is open stays open"
        address = browser.js("location.href")

        os.kill(scene.inner(agent), signal.SIGKILL)
        agent.wait(WAIT)
        patiently(browser, f"{live}.includes('the agent has ended')")
        assert browser.js("headline.innerText").startswith(
            "5 connections did not finish closing at the last look"
        )
        scene.agent("--listen", ADDRESS)
        patiently(
            browser, f"{live}.startsWith('look ') && headline.innerText.startsWith('5 connections do not')"
        )
        assert browser.js("location.href") == address
        patiently(browser, "document.querySelectorAll('.pair').length === 10")
        browser.key("2")
        patiently(browser, "document.querySelectorAll('.episodes tbody tr').length === 10")
        assert browser.complaints == []
        assert {
            r for r in browser.requests if not r.startswith((f"http://{ADDRESS}/", "data:", "about:"))
        } == set()


def patiently(browser: Browser, expression: str) -> None:
    browser.until(expression, WAIT)
