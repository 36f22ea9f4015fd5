"""The looker and the process that follows a cluster: what it may do when it fails, and that it has no right."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finwait.agent import cluster_follower
from finwait.agent.cluster_following import ClusterFollowing
from finwait.agent.cluster_told import UNCONFINED, FollowRequest
from finwait.agent.confined import NOBODY
from finwait.errors import FinwaitError
from tests.kube import cluster
from tests.kube.api_server import ApiServer

FALSE = """
import json, os, signal, sys, time
from finwait.agent.cluster_told import NamesMessage, encode_message
from finwait.uapi.cluster import Pod

def tell(*pods):
    os.write(1, encode_message(NamesMessage(node="n1", pods=pods, as_of={"pods": time.time()})))

BEGUN = os.path.exists("MARK")
open("MARK", "a").close()
if not BEGUN:
    tell(Pod("u1", "shop", "cart-1", "n1", "Deployment", "cart"))
    time.sleep(0.2)
"""
"""How each false process begins: the first one tells of a pod."""
ENDINGS = {
    "garbage": 'os.write(1, b"\\0\\0\\0\\5hello")',
    "a name that is none": 'tell(Pod("u1", "shop", "a/b", "n1"))',
    "too much": 'os.write(1, b"\\xff\\xff\\xff\\xff")',
    "half a message": 'os.write(1, b"\\0\\0\\1\\0abc"); os._exit(0)',
    "nothing": "os._exit(3)",
    "a signal": "os.kill(os.getpid(), signal.SIGKILL)",
}


def until(holds: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


def false(folder: Path, monkeypatch: pytest.MonkeyPatch, end: str, begin: str = FALSE) -> str:
    """Return the name of a module that is started in place of the follower."""
    (folder / "false_follower.py").write_text(begin.replace("MARK", str(folder / "mark")) + end + "\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "false_follower"


@pytest.mark.parametrize("end", ENDINGS)
def test_one_that_says_nonsense_or_dies_is_started_again_and_names_stay(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = false(tmp_path, monkeypatch, ENDINGS[end])
    said: list[str] = []
    with ClusterFollowing(
        "http://127.0.0.1:1", node="n1", module=module, first_pause_s=0.05, say=said.append
    ) as following:
        until(lambda: following.status.restarts >= 2)
        pod = following.names.pod("u1")
        assert pod is not None
        assert pod.workload == "shop/cart"
        assert following.age_s is not None
        gaps = " ".join(map(str, following.gaps))
        assert "names are as of" in gaps
        assert following.status.said
        assert following.cpu_s > 0
    assert any("starting it again" in line for line in said)


def test_one_that_could_not_give_up_its_rights_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = false(tmp_path, monkeypatch, f"os._exit({UNCONFINED})", begin="import os\n")
    with ClusterFollowing("http://127.0.0.1:1", node="n1", module=module) as following:
        until(lambda: any(gap.needs == "CAP_SETUID and CAP_SETGID" for gap in following.gaps))
        assert "could not give up its rights" in following.status.said


def test_pauses_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = false(tmp_path, monkeypatch, "os._exit(1)")
    said: list[str] = []
    with ClusterFollowing(
        "http://127.0.0.1:1", node="n1", module=module, first_pause_s=1.0, say=said.append
    ) as following:
        pauses: list[float] = []
        monkeypatch.setattr(following._ending, "wait", pauses.append)
        until(lambda: max(pauses, default=0.0) >= 8)
    assert [pause for pause in pauses if pause >= 1][:4] == [1.0, 2.0, 4.0, 8.0]


def test_one_that_does_not_want_to_end_is_ended_within_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = false(tmp_path, monkeypatch, "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    with ClusterFollowing("http://127.0.0.1:1", node="n1", module=module) as following:
        until(lambda: following.names.pods)
        process = following._process
        assert process is not None
        begun = time.monotonic()
    assert process.returncode is not None
    assert time.monotonic() - begun < 10, "two seconds on a machine that has nothing else to do"


def test_it_inherits_a_pipe_each_way_and_what_it_needs_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    monkeypatch.setenv("NODE_NAME", "n1")
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    end = (
        f'json.dump([sorted(os.listdir("/proc/self/fd")), sorted(os.environ), os.getsid(0) == os.getpid()], '
        f'open("{out}.new", "w")); os.rename("{out}.new", "{out}"); time.sleep(60)'
    )
    module = false(tmp_path, monkeypatch, end)
    try:
        with ClusterFollowing("http://127.0.0.1:1", module=module):
            until(out.exists)
    finally:
        os.close(kept)
    descriptors, environment, own_session = json.loads(out.read_text())
    assert [int(fd) for fd in descriptors if int(fd) > 2] in ([3], [3, 4]), (
        "those of the listing, and of the answer"
    )
    assert "NODE_NAME" in environment
    assert "SECRET_OF_THE_AGENT" not in environment
    assert own_session


def test_names_arrive_stay_and_are_renewed(api: ApiServer) -> None:
    api.put("pods", cluster.pod())
    api.put("namespaces", cluster.namespace())
    with ClusterFollowing(api.url, node=cluster.NODE, pace_s=0.1) as following:
        until(lambda: len(following.names.as_of) == 4)
        assert [pod.workload for pod in following.names.pods] == ["shop/cart"]
        until(lambda: not following.gaps)
        services = following.names.services
        api.put("pods", cluster.pod("other-1", owner=None))
        until(lambda: len(following.names.pods) == 2)
        assert following.names.services is services, "what did not change is not told again"
        api.stop()
        until(lambda: "known as of" in str(following.gaps))
        assert len(following.names.pods) == 2
        api.delete("pods", "shop", "other-1")
        api.start()
        until(lambda: not following.gaps)
        until(lambda: [pod.name for pod in following.names.pods if pod.gone_s] == ["other-1"])
        status = following.status
        assert (status.state, status.pods, status.url) == ("following", 1, api.url)


def test_an_api_server_that_cannot_be_is_a_gap_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_NAME", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with ClusterFollowing("auto") as following:
        until(lambda: any("NODE_NAME" in str(gap) for gap in following.gaps))
        assert following.status.restarts == 0
        assert not following.names.as_of


def test_a_token_that_nobody_may_read_is_a_gap_that_says_how(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 20)
    token.chmod(0o600)
    access = cluster_follower.access_of(
        FollowRequest(kubernetes="https://127.0.0.1:1", parent=1, token_file=str(token), node="n1"), {}
    )
    if os.geteuid() == 0:
        pid = os.fork()
        if not pid:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            (gap,) = cluster_follower.unreadable(access)
            os._exit(0 if "0644" in gap.needs and "65534" in gap.doing else 1)
        assert os.waitpid(pid, 0)[1] == 0
    else:
        assert cluster_follower.unreadable(access) == ()
    (missing,) = cluster_follower.unreadable(
        cluster_follower.access_of(
            FollowRequest(kubernetes="https://127.0.0.1:1", parent=1, token_file="/nosuch", node="n1"), {}
        )
    )
    assert missing.where == "`/nosuch`"


@pytest.mark.parametrize(
    ("mode", "group", "taken"),
    [
        (0o644, 1234, 0),
        (0o640, 1234, 1234),
        (0o640, 0, 0),
        (0o600, 1234, 0),
    ],
)
def test_the_group_of_a_token_is_taken_where_it_is_of_use(
    mode: int, group: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, 0, group, 20, 0, 0, 0))
    monkeypatch.setattr(os, "stat", lambda _: status)
    assert cluster_follower.group_of("/token") == taken


def test_which_api_server_and_which_files() -> None:
    inside = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443", "NODE_NAME": "n2"}
    access = cluster_follower.access_of(FollowRequest(kubernetes="auto", parent=1), inside)
    assert (access.url, access.node) == ("https://10.0.0.1:443", "n2")
    assert access.token_file.endswith("/token")
    access = cluster_follower.access_of(
        FollowRequest(kubernetes="auto", parent=1, node="n1", token_file="/t", ca_file="/c"), inside
    )
    assert (access.node, access.token_file, access.ca_file) == ("n1", "/t", "/c")
    plain = cluster_follower.access_of(
        FollowRequest(kubernetes="http://127.0.0.1:8001", parent=1, node="n1"), {}
    )
    assert (plain.token_file, plain.ca_file) == ("", "")
    with pytest.raises(FinwaitError):
        cluster_follower.access_of(FollowRequest(kubernetes="auto", parent=1), {})
