"""The agent with real sockets, in namespaces of its own: a leak, kill -9, a second agent, the face, signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import certificates
from tests.kernel import needs
from tests.kernel.terminal import Terminal
from tests.output import mistakes

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ADDRESS = "127.0.0.1:9944"
WAIT = 60.0


class Scene:
    """A network and pid namespace, an agent in it, and a program that leaks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = str(folder / "agent.sock")
        self.processes: list[subprocess.Popen[str]] = []
        self.outer: subprocess.Popen[bytes]
        command = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "sleep", "infinity"]
        self.outer = subprocess.Popen(command)
        self.init = self._init()
        self.do("ip", "link", "set", "lo", "up")
        if Path("/run/netns").is_dir():  # the named namespaces of others are none of this scene's
            self.do("mount", "-t", "tmpfs", "none", "/run/netns")

    def _init(self) -> int:
        path = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children")
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            for word in path.read_text().split():
                if Path(f"/proc/{word}/comm").read_text().strip() == "sleep":
                    return int(word)
            time.sleep(0.01)
        raise AssertionError("no namespace")

    def within(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.init), "-n", "-p", "-m", *command]

    def do(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.within(*command), capture_output=True, text=True, timeout=WAIT)
        assert not check or done.returncode in (0, 3), done.stderr
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.within(*command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def agent(self, *more: str, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        words = ("--share", "50%", "--interval", "2s", "--state-dir", str(self.folder / "state"))
        return self.start(*by, *self.finwait("agent", *words, "--socket", self.socket, *more))

    def finwait(self, *words: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "finwait", *words)

    def inner(self, process: subprocess.Popen[str]) -> int:
        """The pid, seen from here, of what nsenter has started."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0]) if children else process.pid

    def leaking(self) -> subprocess.Popen[str]:
        program = self.start(sys.executable, str(Path(__file__).with_name("leaking_program.py")))
        assert program.stdout is not None
        assert program.stdout.readline()
        return program

    def get(self, path: str, host: str = ADDRESS) -> tuple[int, str]:
        script = (
            "import http.client,sys\n"
            f"c = http.client.HTTPConnection('127.0.0.1', 9944, timeout=5); c.request('GET', {path!r}, headers="
            f"{{'Host': {host!r}}})\nr = c.getresponse(); print(r.status); print(r.read().decode())"
        )
        done = self.do(sys.executable, "-c", script, check=False)
        if done.returncode:
            return 0, done.stderr
        status, _, body = done.stdout.partition("\n")
        return int(status), body

    def metric(self, name: str) -> float:
        """The sum over the series of a metric; −1 where it is not there."""
        status, body = self.get("/metrics")
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", body, re.MULTILINE)
        return sum(map(float, values)) if status == 200 and values else -1.0

    def history(self, *words: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.history_document(*words)["items"]
        return items

    def history_document(self, *words: str) -> dict[str, Any]:
        done = self.do(
            *self.finwait("history", "--state-dir", str(self.folder / "state"), "-o", "json", *words),
            check=False,
        )
        document: dict[str, Any] = json.loads(done.stdout)
        assert mistakes(document, "EpisodeList") == []
        assert done.returncode == (3 if document["gaps"] else 0)
        return document

    def status(self) -> dict[str, Any] | None:
        done = self.do(*self.finwait("agent", "status", "--socket", self.socket, "-o", "json"), check=False)
        answer: dict[str, Any] | None = json.loads(done.stdout) if done.stdout else None
        assert answer is None or mistakes(answer, "AgentStatus") == []
        return answer

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.kill(self.inner(process), signal.SIGKILL)
                process.kill()
        os.kill(self.init, signal.SIGKILL)  # the pid namespace ends with it, and all that is in it
        for process in self.processes:
            process.communicate()
        self.outer.wait()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    needs.root_and("unshare", "nsenter", "ip")
    made = Scene(tmp_path)
    try:
        yield made
    finally:
        made.end()


def tell(program: subprocess.Popen[str], line: str) -> None:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(line + "\n")
    program.stdin.flush()
    assert program.stdout.readline() == "done\n"


def until(what: str, holds: Any, seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.3)


def test_a_leak_is_measured_its_age_outlives_kill_9_and_the_end_is_told(scene: Scene) -> None:
    pytest.importorskip("prometheus_client")
    program = scene.leaking()
    tell(program, "5")
    agent = scene.agent("--listen", ADDRESS)
    until("the leak is in the metrics", lambda: scene.metric("finwait_stuck_connections") == 5)
    assert scene.metric("finwait_sockets") >= 10
    until("it has a cause", lambda: scene.metric("finwait_undiagnosed_connections") == 0)
    before = {item["cookie"]: item for item in scene.history()}
    assert len(before) == 10, "each end is an episode"
    assert {item["holder"].partition("(")[0] for item in before.values()} == {Path(sys.executable).name[:15]}

    # A second agent refuses, whichever of the two it would share.
    second = scene.agent()
    _, said = second.communicate(timeout=WAIT)
    assert second.returncode == 1
    assert "another agent" in said
    third = scene.do(
        *scene.finwait(
            "agent", "--state-dir", str(scene.folder / "else"), "--socket", scene.socket, "--once"
        ),
        check=False,
    )
    assert third.returncode in (0, 3), "one that answers at no socket may look beside it"

    os.kill(scene.inner(agent), signal.SIGKILL)
    agent.wait(WAIT)
    until("the face says that the looker is gone", lambda: scene.get("/healthz")[0] == 503)
    assert "the looker has ended" in scene.get("/healthz")[1]
    assert scene.metric("finwait_stuck_connections") == 5, "what was seen last is served on"
    alone = scene.history_document("--open", "netns != nosuch")
    assert len(alone["items"]) == 10, "the history can be read without an agent"
    assert any("nobody has looked since" in gap["doing"] for gap in alone["gaps"])
    assert not any("tell its name" in gap["doing"] for gap in alone["gaps"]), "names are kept"

    again = scene.agent("--listen", ADDRESS)  # the process that was left behind gives the address up
    until("it is served again", lambda: scene.get("/healthz")[0] == 200)
    until("it is taken up", lambda: (scene.status() or {}).get("open") == 10)
    assert not any("nobody has looked" in gap["doing"] for gap in scene.history_document()["gaps"])
    after = {item["cookie"]: item for item in scene.history()}
    assert after.keys() == before.keys()
    for cookie, item in after.items():
        assert item["first_seen"] == before[cookie]["first_seen"]
        assert item["age_s"]["at_least"] >= before[cookie]["age_s"]["at_least"]

    tell(program, "close")
    until("every end is told", lambda: all(item["how"] for item in scene.history()))
    hows = {(item["state"], item["how"]) for item in scene.history()}
    assert {how for _, how in hows} <= {"closed", "vanished"}
    os.kill(scene.inner(again), signal.SIGTERM)
    _, said = again.communicate(timeout=WAIT)
    assert again.returncode == 0, said
    assert not os.path.exists(scene.socket)
    assert len(scene.history()) >= 10


def test_a_socket_that_is_connected_again_on_the_same_addresses_begins_another_episode(scene: Scene) -> None:
    program = scene.leaking()
    tell(program, "1")
    scene.agent()

    def clients(*words: str) -> list[dict[str, Any]]:
        return [item for item in scene.history(*words) if item["state"] == "FIN_WAIT2"]

    until("both ends are followed", lambda: (scene.status() or {}).get("open") == 2)
    (before,) = clients("--open")
    again = time.monotonic()
    tell(program, "again")
    until("the new one is followed, too", lambda: len(clients()) == 2)
    after, ended = clients()
    assert [e["cookie"] for e in (after, ended)] == [before["cookie"]] * 2, "the socket is the same"
    assert (after["src"], after["sport"]) == (before["src"], before["sport"])
    assert after["ended"] is None
    assert ended["how"] in ("reset", "vanished"), (
        "connect() to nowhere resets it, which is seen where tracefs is"
    )
    assert after["age_s"]["at_least"] <= time.monotonic() - again + 0.1
    assert ended["first_seen"] == before["first_seen"]
    assert ended["last_seen"] >= before["last_seen"]
    # Of what lasts the age is told to now, of what has ended to the last look, 2 s before at most.
    assert ended["age_s"]["at_least"] >= before["age_s"]["at_least"] - 2
    until("the other end is the new one", lambda: (scene.status() or {}).get("open") == 2)


def test_a_report_tells_ages_that_an_agent_has_seen(scene: Scene) -> None:
    program = scene.leaking()
    tell(program, "1")
    scene.agent()
    until("both ends are followed", lambda: (scene.status() or {}).get("open") == 2)
    before = {item["cookie"]: item["age_s"]["at_least"] for item in scene.history()}
    assert min(before.values()) >= 10
    talked = time.monotonic()
    tell(program, "talk")  # the kernel has no older trace of the half-close than the last ACK

    def ages(path: str) -> dict[str, float]:
        done = scene.do(*scene.finwait("-o", "json", "--agent-socket", path, "--not-holder", "1"))
        findings = json.loads(done.stdout)["findings"]
        sockets = [socket for finding in findings for socket in finding["sockets"] if finding["primary"]]
        return {s["cookie"]: s["age_s"]["at_least"] for s in sockets if s["state"] == "FIN_WAIT2"}

    (young,) = ages("none").values()
    assert young <= time.monotonic() - talked + 0.1
    ((cookie, old),) = ages(scene.socket).items()
    assert old >= before[cookie]
    tell(program, "talk")  # before long the kernel's clocks would tell as much
    assert (
        ", followed by the agent"
        in scene.do(*scene.finwait("--detail", "--agent-socket", scene.socket, "--not-holder", "1")).stdout
    )
    for name in ("nosuch", "folder/agent.sock"):
        refused = scene.do(*scene.finwait("--agent-socket", str(scene.folder / name)), check=False)
        assert (refused.returncode, "ask the agent" in refused.stderr) == (1, True)


def test_an_agent_that_may_not_kill_ends_the_process_that_faces_the_network(scene: Scene) -> None:
    """It has another user; the unit that is shipped has CAP_KILL, others may not."""
    if shutil.which("setpriv") is None:
        needs.missing("setpriv is not installed")
    agent = scene.agent("--listen", ADDRESS, by=("setpriv", "--bounding-set=-kill", "--inh-caps=-kill"))
    until("it serves", lambda: scene.get("/healthz")[0] == 200)
    looker = scene.inner(agent)
    children = f"/proc/{looker}/task/{looker}/children"
    faces = [int(pid) for pid in Path(children).read_text().split()]
    os.kill(looker, signal.SIGTERM)
    assert agent.wait(60) == 0
    until("nothing serves any more", lambda: not any(Path(f"/proc/{pid}").exists() for pid in faces), 60)


def test_root_that_may_not_become_another_user_serves_nothing(scene: Scene) -> None:
    pytest.importorskip("prometheus_client")
    needs.root_and("setpriv")
    bound = ("setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-setuid,-setgid")
    agent = scene.agent("--listen", ADDRESS, by=bound)
    until("it looks", lambda: bool(scene.status()))
    assert scene.get("/healthz")[0] == 0
    until("it says so", lambda: "serve it" in json.dumps(scene.status()), 60)
    os.kill(scene.inner(agent), signal.SIGTERM)
    assert agent.stderr is not None
    assert "needs CAP_SETUID and CAP_SETGID" in agent.stderr.read()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users reach; those above pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="finwait-serve-") as name:
        yield Path(name)


def test_two_containers_the_one_that_serves_has_no_right_and_outlives_the_one_that_looks(
    scene: Scene, shared: Path
) -> None:
    pytest.importorskip("prometheus_client")
    needs.root_and("setpriv")
    os.chown(shared, 0, 65532)  # as a pod's emptyDir with fsGroup
    shared.chmod(0o2777)
    path = str(shared / "serve.sock")
    # It may read this checkout until it gives that up, too.
    read = ("--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search")
    user = ("setpriv", "--reuid", "65532", "--regid", "65532", "--clear-groups", *read)
    server = scene.start(
        *user, *scene.finwait("agent", "serve", "--serve-socket", path, "--listen", "0.0.0.0:9944")
    )
    until("it serves before there is an agent", lambda: scene.get("/healthz")[0] == 503)
    agent = scene.agent("--serve-socket", path)
    until("it has found the agent", lambda: scene.get("/healthz")[0] == 200)
    assert scene.get("/")[0] == 403  # no token, and not on loopback
    tell(scene.leaking(), "5")
    until("the metrics count", lambda: scene.metric("finwait_stuck_connections") == 5)
    held = dict(
        line.split(":", 1) for line in Path(f"/proc/{scene.inner(server)}/status").read_text().splitlines()
    )
    assert held["Uid"].split() == ["65532"] * 4
    assert {int(held[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    os.kill(scene.inner(agent), signal.SIGKILL)
    until("it says that the agent is gone", lambda: scene.get("/healthz")[0] == 503)
    scene.agent("--serve-socket", path)
    until("it has found the next one", lambda: scene.get("/healthz")[0] == 200)
    os.kill(scene.inner(server), signal.SIGTERM)
    server.wait(WAIT)


def test_the_process_that_faces_the_network_has_no_right(scene: Scene) -> None:
    pytest.importorskip("prometheus_client")
    agent = scene.agent("--listen", ADDRESS)
    until("it serves", lambda: scene.get("/healthz")[0] == 200)
    face = Path(f"/proc/{scene.inner(agent)}/task/{scene.inner(agent)}/children").read_text().split()[0]
    fields = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{face}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    (user,) = set(fields["Uid"].split())
    assert 61184 <= int(user) <= 65519, "nothing else runs as that"
    assert fields["NoNewPrivs"] == "1"
    assert fields["Groups"].strip() == ""
    # Where it had a part in a terminal it could type (TIOCSTI, before Linux 6.2), and somebody's shell would read it.
    assert os.getsid(int(face)) == int(face)
    assert os.readlink(f"/proc/{face}/fd/1") == "/dev/null"
    assert os.readlink(f"/proc/{face}/fd/2").startswith("pipe:")
    assert scene.get("/metrics", host="evil.example")[0] == 421
    assert scene.get("/elsewhere")[0] == 404
    looker = f"/proc/{scene.inner(agent)}/net/tcp"
    assert sum(":26D8 " in line and " 0A " in line for line in Path(looker).read_text().splitlines()) == 1

    # Half a request, and more connections than it takes, keep nobody else from being answered.
    script = (
        "import socket,time\nkept = []\n"
        "for _ in range(200):\n    s = socket.create_connection(('127.0.0.1', 9944))\n"
        "    s.send(b'GET /met'); kept.append(s)\n"
        "print('held', flush=True)\n"
        "time.sleep(30)\n"
    )
    slow = scene.start(sys.executable, "-c", script)
    assert slow.stdout is not None
    assert slow.stdout.readline() == "held\n"
    until("it answers all the same", lambda: scene.get("/healthz")[0] == 200)

    os.kill(int(face), signal.SIGKILL)
    until("it is started again", lambda: scene.get("/healthz")[0] == 200)


def test_only_what_the_protocol_has_is_answered(scene: Scene) -> None:
    scene.agent()
    until("it answers", lambda: scene.status() is not None)
    assert os.stat(scene.socket).st_mode & 0o777 == 0o660
    for question, expected in (
        (b'{"ask":"status"}\n', '"status":{'),
        (b'{"ask":"picture"}\n', '"picture":{'),
        (b'{"ask":"history"}\n', '"episodes":['),
        (b'{"ask":"ages","cookies":[1]}\n', '"episodes":['),
        (b'{"ask":"clear"}\n', '"error":"not a question'),
        (b"\xff\xfe\n", '"error":"not a question'),
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(WAIT)
            sock.connect(scene.socket)
            sock.sendall(question)
            assert expected in sock.makefile().readline()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT)
        sock.connect(scene.socket)
        with pytest.raises(ConnectionError):  # a line without an end ends the connection
            sock.sendall(b"[" * 50_000_000)


def test_a_signal_ends_it_in_the_middle_of_a_look_and_namespaces_may_churn(scene: Scene) -> None:
    agent = scene.agent()
    until("it answers", lambda: scene.status() is not None)
    once = "ip netns add fw$k && ip netns exec fw$k ip link set lo up; ip netns del fw$k"
    scene.do("sh", "-c", f"mkdir -p /run/netns; for k in $(seq 1 60); do {once}; done", check=False)
    until("it still looks", lambda: ((scene.status() or {}).get("unseen_s") or 99) < 10)
    status = scene.status()
    assert status is not None
    assert status["store_errors"] == 0
    os.kill(scene.inner(agent), signal.SIGHUP)
    begun = time.monotonic()
    os.kill(scene.inner(agent), signal.SIGTERM)
    _, said = agent.communicate(timeout=WAIT)
    assert (agent.returncode, said) == (0, "")
    assert time.monotonic() - begun < WAIT


def test_one_look_writes_the_history_and_the_file_for_node_exporter(scene: Scene) -> None:
    pytest.importorskip("prometheus_client")
    program = scene.leaking()
    tell(program, "3")
    time.sleep(0)
    folder = scene.folder / "textfile"
    folder.mkdir(mode=0o755)
    done = scene.do(
        *scene.finwait(
            "agent", "--once", "--state-dir", str(scene.folder / "state"), "--textfile", str(folder)
        )
    )
    assert done.returncode == 3, "not every process can be seen from a pid namespace"
    assert [p.name for p in folder.iterdir()] == ["finwait.prom"]
    text = (folder / "finwait.prom").read_text()
    assert (folder / "finwait.prom").stat().st_mode & 0o777 == 0o644
    assert 'finwait_sockets{state="FIN_WAIT2"} 3.0\n' in text
    assert not re.search(r"^finwait_\S+ \S+ \d+$", text, re.MULTILINE), (
        "no timestamps: node_exporter refuses them"
    )


def test_systemd_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(scene.folder / "notify"))
        told.settimeout(WAIT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(scene.folder / "notify"))
        agent = scene.agent()
        assert told.recv(100) == b"READY=1"
        assert told.recv(100) == b"WATCHDOG=1"
        os.kill(scene.inner(agent), signal.SIGTERM)
        until("it says that it ends", lambda: told.recv(100) == b"STOPPING=1")


def test_a_configuration_is_read_again_and_a_wrong_one_changes_nothing(scene: Scene) -> None:
    pytest.importorskip("prometheus_client")
    config, token = scene.folder / "finwait.toml", scene.folder / "token"
    text = f'[agent]\nlisten = "127.0.0.1:9944"\ntoken_file = "{token}"\n'
    for path, first in ((config, text), (token, "a" * 20)):
        path.write_text(first)
        path.chmod(0o600)
    agent = scene.agent("--config", str(config))
    right = "finwait_config_last_reload_successful"
    until("the first look", lambda: scene.metric(right) == 1)

    def about(offered: str) -> int:
        bearer = f"-H Authorization:\\ Bearer\\ {offered}"
        url = "http://127.0.0.1:9944/api/v1/about"
        done = scene.do("sh", "-c", f"curl -s -o /dev/null -w '%{{http_code}}' {bearer} {url}", check=False)
        return int(done.stdout or 0)

    assert (about("a" * 20), about("b" * 20)) == (200, 401)
    token.write_text("b" * 20)
    config.write_text(text.replace("listen", "lisen"))
    os.kill(scene.inner(agent), signal.SIGHUP)
    until("it says that the file is wrong", lambda: scene.metric(right) == 0)
    status = scene.status()
    assert status is not None
    assert f"{config}:2: this key does not exist here (`agent.lisen`)" in status["config"]["said"]
    assert about("a" * 20) == 200  # all of it stays as it was
    config.write_text(text + "once = true\n")
    os.kill(scene.inner(agent), signal.SIGHUP)
    until("it is right again", lambda: scene.metric(right) == 1)
    until("the new token is taken", lambda: (about("b" * 20), about("a" * 20)) == (200, 401))
    status = scene.status()
    assert status is not None
    assert status["config"] == {"file": str(config), "said": "", "restart": ["--once"]}
    os.kill(scene.inner(agent), signal.SIGTERM)
    assert "what needs a restart: --once" in agent.communicate(timeout=WAIT)[1]


def test_the_page_is_served_with_tls_and_a_new_certificate_drops_no_stream(scene: Scene) -> None:
    pytest.importorskip("prometheus_client")
    certificate, key = certificates.made(scene.folder, "first")
    address = ("--listen", "127.0.0.1:9944", "--tls-cert", str(certificate), "--tls-key", str(key))
    agent = scene.agent(*address)
    trusted = scene.folder / "trusted.crt"

    def https(path: str) -> str:
        words = ("curl", "-sS", "-m", "10", "--cacert", str(trusted), f"https://localhost:9944{path}")
        return scene.do(*words, check=False).stdout

    trusted.write_bytes(certificate.read_bytes())
    until("the first look", lambda: "finwait_build_info" in https("/metrics"))
    assert "HTTPS" in scene.get("/metrics")[1]
    stream = scene.start("curl", "-sN", "--cacert", str(certificate), "https://localhost:9944/api/v1/events")
    assert stream.stdout is not None
    assert stream.stdout.readline()
    new_certificate, new_key = certificates.made(scene.folder, "second")
    new_certificate.rename(certificate)
    new_key.rename(key)
    os.kill(scene.inner(agent), signal.SIGHUP)
    until("the old certificate is not shown any more", lambda: https("/metrics") == "")
    trusted.write_bytes(certificate.read_bytes())
    assert "finwait_build_info" in https("/metrics")
    for _ in range(4):  # looks that come after the change
        assert stream.stdout.readline()
    assert stream.poll() is None
    os.kill(scene.inner(agent), signal.SIGTERM)
    assert "could not" not in agent.communicate(timeout=WAIT)[1]


def test_top_shows_what_the_agent_saw_and_outlives_it(scene: Scene) -> None:
    pytest.importorskip("textual")
    pytest.importorskip("prometheus_client")
    program = scene.leaking()
    tell(program, "5")
    agent = scene.agent("--listen", "127.0.0.1:9944")
    until("the leak is seen", lambda: scene.metric("finwait_stuck_connections") >= 5)
    words = scene.finwait("top", "--agent", "--agent-socket", scene.socket, "--refresh", "500ms")
    terminal = Terminal(*scene.within(*words))
    try:
        terminal.until(b"from the agent, ")
        terminal.until(b"stuck")
        terminal.until(b"sorted by harm")
        os.kill(scene.inner(agent), signal.SIGKILL)
        agent.wait(WAIT)
        terminal.until(b"no answer: ")
        terminal.seen = b""
        scene.agent("--listen", "127.0.0.1:9944")
        terminal.until(b"sorted by harm")
        terminal.key("q")
        assert terminal.ended() == 0
    finally:
        terminal.close()
