"""Names stay right, whatever the API server does; and where they are not, it is said."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from finwait.errors import Gap
from finwait.kube.access import KubeAccess
from finwait.kube.names import NameKeeper
from finwait.kube.objects import Resource, WatchEvent
from finwait.kube.watch import BackOff, KubePacing, Watcher
from tests import certificates
from tests.kube import api_server as api
from tests.kube import cluster
from tests.kube.api_server import ApiServer
from tests.kube.following import PATIENCE_S, PATIENT, QUICK, agree, fill, until, watcher_of, written

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PODS = b'{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[]}'


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        fill(running)
        yield running


def a_change(server: ApiServer) -> None:
    """Change something of every resource, and delete a pod."""
    server.put("pods", cluster.pod("new", ip="10.244.0.99"))
    server.delete("pods", "shop", "cart-7d9f-x2x")
    server.put("services", cluster.service(port=5433))
    server.put("namespaces", cluster.namespace("shop", **{"finwait.io/exclude": "true"}))


def the_gap(watcher: Watcher, *words: str) -> Gap:
    """Return a gap with some words, once there is one."""

    def matching() -> list[Gap]:
        return [gap for gap in watcher.gaps() if all(word in str(gap) for word in words)]

    until(matching, watcher.gaps)
    return matching()[0]


def test_names_are_those_of_the_objects_and_follow_them(server: ApiServer) -> None:
    with watcher_of(server) as watcher:
        assert watcher.settled(60)
        agree(watcher, server)
        assert {pod.name for pod in watcher.names().pods} == {"cart-7d9f-x2x", "db-0"}
        before = watcher.changed
        a_change(server)
        assert watcher.wait(60, before)
        agree(watcher, server)
        assert watcher.names().pod_called("shop/cart-7d9f-x2x") is not None
    assert set(watcher.names().as_of) == {"pods", "services", "endpointslices", "namespaces"}


def test_what_is_asked_spares_the_api_server(server: ApiServer) -> None:
    with watcher_of(server, replace(PATIENT, watch_s=(240, 360))) as watcher:
        agree(watcher, server)
        until(lambda: sum(asked.verb == "watch" for asked in server.asked) == 4)
        for asked in server.asked:
            if asked.verb == "list":
                assert asked.query["resourceVersion"] == "0"
                assert "limit" not in asked.query
            if asked.verb == "watch":
                assert asked.query["allowWatchBookmarks"] == "true"
                assert 240 <= int(asked.query["timeoutSeconds"]) <= 360
                assert int(asked.query["resourceVersion"]) >= 100
            if asked.resource == "pods":
                assert asked.query["fieldSelector"] == f"spec.nodeName={cluster.NODE}"
            assert "authorization" not in asked.headers
        until(lambda: watcher.requests.bookmarks > 8)
        assert watcher.requests.lists == 4


def test_a_watch_that_ends_is_followed_by_another_from_the_newest_version(server: ApiServer) -> None:
    with watcher_of(server, PATIENT) as watcher:
        agree(watcher, server)
        newest = server.put("services", cluster.service("later"))["metadata"]["resourceVersion"]
        agree(watcher, server)

        def again() -> list[api.Asked]:
            return [a for a in server.asked if a.verb == "watch" and a.query["resourceVersion"] == newest]

        until(again)
        assert watcher.requests.lists == 4
        assert watcher.requests.failed == 0


@pytest.mark.parametrize("versions", [("v1beta1",), ("v1",), ("v1beta1", "v1")])
def test_the_version_of_endpointslices_is_asked_for(versions: tuple[str, ...]) -> None:
    with ApiServer(discovery=versions) as server:
        fill(server)
        with watcher_of(server) as watcher:
            agree(watcher, server)
        assert {a.query["path"] for a in server.asked if a.verb == "list"} >= {
            f"/apis/discovery.k8s.io/{versions[-1]}/endpointslices"
        }


def test_a_cluster_that_is_upgraded_is_asked_again(server: ApiServer) -> None:
    server.discovery = ("v1beta1",)
    with watcher_of(server) as watcher:
        agree(watcher, server)
        server.discovery = ("v1",)
        server.end_watches()
        server.put("endpointslices", cluster.endpoint_slice("db-2", [("10.244.3.3", "db-3")]))
        agree(watcher, server)


def test_without_endpointslices_it_says_so_and_the_rest_is_known() -> None:
    with ApiServer(discovery=()) as server:
        fill(server)
        with watcher_of(server) as watcher:
            the_gap(watcher, "endpointslices", "discovery.k8s.io/v1")
            until(lambda: cluster.told(watcher.names())["pods"] == cluster.expected(server.stored())["pods"])
            assert "endpointslices" not in watcher.names().as_of
            server.discovery = ("v1",)
            agree(watcher, server)


def test_who_may_not_ask_for_the_group_tries_the_newest(server: ApiServer) -> None:
    server.forbidden = {("endpointslices", "group")}
    with watcher_of(server) as watcher:
        agree(watcher, server)


@pytest.mark.parametrize("as_status", [False, True])
def test_deletions_within_a_compacted_history_are_seen(server: ApiServer, as_status: bool) -> None:
    server.gone_as_status = as_status
    with watcher_of(server) as watcher:
        agree(watcher, server)
        server.fail("pods", "watch", *[api.with_status(500)] * 3)
        server.end_watches()
        a_change(server)
        server.compact()
        agree(watcher, server)
        assert watcher.requests.expired > 0
        gone = watcher.names().pod_called("shop/cart-7d9f-x2x")
        assert gone is not None
        assert gone.gone_s > 0


def test_a_history_that_never_lasts_is_asked_of_etcd_in_the_end(server: ApiServer) -> None:
    server.fail("pods", "watch", *[api.with_error_event(410)] * 6)
    with watcher_of(server) as watcher:
        until(lambda: any(a.resource == "pods" and "resourceVersion" not in a.query for a in server.asked))
        agree(watcher, server)


@pytest.mark.parametrize("silent", [False, True])
def test_an_older_state_of_etcd_is_noticed(server: ApiServer, silent: bool) -> None:
    server.future_is_gone = not silent
    with watcher_of(server) as watcher:
        agree(watcher, server)
        server.objects["pods"].pop(("shop", "db-0"))
        server.set_back()
        server.put("services", cluster.service("restored"))
        agree(watcher, server)


def test_a_stopped_server_keeps_names_and_it_is_said_since_when(server: ApiServer) -> None:
    with watcher_of(server) as watcher:
        agree(watcher, server)
        names = watcher.names()
        server.stop()
        gap = the_gap(watcher, "pods, services, endpointslices and namespaces", "refused")
        assert "they are known as of" in gap.doing
        assert gap.needs == "an API server that answers"
        assert cluster.told(watcher.names()) == cluster.told(names)
        failed = watcher.requests.failed
        until(lambda: watcher.requests.failed > failed + 8)
        assert watcher.gaps() == (gap,)  # since when does not move
        a_change(server)
        server.compact()
        server.start()
        agree(watcher, server)


def test_a_busy_cluster_is_not_followed_one_event_at_a_time(server: ApiServer) -> None:
    """An API server sends each event as a chunk of its own; gathering is for those that come together."""
    with watcher_of(server, replace(QUICK, gather_s=PATIENCE_S / 10)) as watcher:
        agree(watcher, server)
        for k in range(100):
            server.put("services", cluster.service(f"busy-{k}"))
        agree(watcher, server)


def test_a_server_that_is_killed_within_a_line(server: ApiServer) -> None:
    with watcher_of(server) as watcher:
        agree(watcher, server)
        for _ in range(3):
            server.cut()
            a_change(server)
            agree(watcher, server)


def test_copies_of_events_change_nothing(server: ApiServer) -> None:
    server.copies = 3
    with watcher_of(server) as watcher:
        agree(watcher, server)
        a_change(server)
        agree(watcher, server)
        assert len([pod for pod in watcher.names().pods if pod.gone_s]) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_what_is_refused_is_named_and_asked_again(server: ApiServer, status: int) -> None:
    server.refused_status = status
    server.forbidden = {("services", "list"), ("namespaces", "list"), ("pods", "watch")}
    with watcher_of(server) as watcher:
        needs = "the right to list and watch services" if status == 403 else "a token that it accepts"
        gap = the_gap(watcher, "services", f"status {status}", "never listed")
        assert needs in gap.needs
        assert "finwait.io/exclude" in the_gap(watcher, "namespaces", f"status {status}").doing
        assert "known as of" in the_gap(watcher, "pods", f"status {status}").doing
        assert watcher.requests.refused >= 3
        assert {pod.name for pod in watcher.names().pods} == {"cart-7d9f-x2x", "db-0"}
        assert watcher.settled(60)
        server.forbidden = set()
        agree(watcher, server)


def test_a_server_that_is_busy_is_given_the_time_that_it_asks_for(server: ApiServer) -> None:
    server.fail("pods", "list", api.with_status(429, Retry_After="1"), api.with_status(503, Retry_After="x"))
    with watcher_of(server, PATIENT) as watcher:
        agree(watcher, server)
        assert watcher.requests.failed == 2


FAULTS_OF_LISTS = {
    "a status": api.with_status(500),
    "a redirect": api.with_status(302, Location="http://127.0.0.1:1/"),
    "no HTTP": api.with_bytes(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "nothing": api.with_bytes(b""),
    "an endless head": api.with_flood(OK, b"X: y\r\n"),
    "an endless line of a head": api.with_flood(OK, b"X" * 4096),
    "endless interim answers": api.with_flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "half a head": api.with_half_a_head,
    "silence": api.with_silence,
    "a head by drops": api.with_drops(OK + b"X: "),
    "a body by drops": api.with_drops(OK + b"\r\n" + PODS),
    "too short a length": lambda reply: reply.whole(200, PODS, length=10),
    "too long a length": lambda reply: reply.whole(200, PODS, length=len(PODS) + 10),
    "a negative length": api.with_bytes(OK + b"Content-Length: -5\r\n\r\n[]"),
    "a length of letters": api.with_bytes(OK + b"Content-Length: many\r\n\r\n[]"),
    "chunks of letters": api.with_bytes(CHUNKED + b"zz\r\nxx"),
    "a negative chunk": api.with_bytes(CHUNKED + b"-5\r\n[]\r\n"),
    "half a chunk": api.with_bytes(CHUNKED + b"ff\r\n{"),
    "an empty object": api.with_bytes(OK + b"\r\n{}"),
    "another list": api.with_bytes(OK + b"\r\n" + PODS.replace(b"Pod", b"Secret")),
    "garbage": api.with_bytes(OK + b"\r\n\x00\xff\xfe{[["),
    "compressed": api.with_bytes(OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00"),
}
FAULTS_OF_WATCHES = {
    "a status": api.with_status(500),
    "a wrong request": api.with_status(400),
    "a redirect": api.with_status(307, Location="http://127.0.0.1:1/"),
    "an error": api.with_error_event(500),
    "silence": api.with_silence,
    "half a line and silence": api.with_half_a_line,
    "half a line and the end": api.with_stream(b'{"type":"ADDED","obj', end=True),
    "half a line and no end": api.with_stream(b'{"type":"ADDED","obj'),
    "a line by drops": api.with_drops(CHUNKED + b"5\r\n     \r\n" * 3),
    "a line without an end": api.with_flood(CHUNKED, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"),
    "blank lines without an end": api.with_flood(CHUNKED, b"2000\r\n" + b"\n" * 0x2000 + b"\r\n"),
    "garbage": api.with_stream(b"\x00\xff\xfe\n"),
    "an unknown event": api.with_stream(b'{"type":"X","object":{}}\n'),
    "an object without a uid": api.with_stream(
        b'{"type":"DELETED","object":{"metadata":{"name":"db-0","resourceVersion":"999"}}}\n'
    ),
    "an end at once": api.with_stream(end=True),
    "nothing": api.with_bytes(b""),
    "an older bookmark": api.with_stream(
        b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"3"}}}\n', end=True
    ),
}


@pytest.mark.parametrize("name", FAULTS_OF_LISTS)
def test_a_list_that_goes_wrong(server: ApiServer, name: str) -> None:
    fault = FAULTS_OF_LISTS[name]
    server.fail("pods", "list", fault, fault)
    server.fail("endpointslices", "group", fault)
    with watcher_of(server) as watcher:
        agree(watcher, server)
        assert watcher.requests.failed >= 3
        assert not server.faults.queued["pods", "list"]


@pytest.mark.parametrize("name", FAULTS_OF_WATCHES)
def test_a_watch_that_goes_wrong(server: ApiServer, name: str) -> None:
    with watcher_of(server) as watcher:
        agree(watcher, server)
        known = cluster.told(watcher.names())
        server.fail("pods", "watch", *[FAULTS_OF_WATCHES[name]] * 2)
        server.end_watches()
        until(lambda: not server.faults.queued["pods", "watch"])
        assert cluster.told(watcher.names()) == known
        a_change(server)
        agree(watcher, server)


def test_a_server_that_ends_each_watch_at_once_is_not_asked_without_a_pause(server: ApiServer) -> None:
    server.fail("pods", "watch", *[api.with_stream(end=True)] * 30)
    with watcher_of(server) as watcher:
        the_gap(watcher, "pods", "ends watches at once")
        agree(watcher, server)


def test_a_server_that_failed_often_is_trusted_when_it_says_something(server: ApiServer) -> None:
    patient = replace(PATIENT, watch_s=(3000, 3600), healthy_s=60.0)
    with watcher_of(server, patient) as watcher:
        agree(watcher, server)
        until(lambda: watcher.requests.watches == 4)
        server.fail("pods", "watch", *[api.with_stream(end=True)] * 4, api.with_half_a_line)
        server.end_watches()
        until(lambda: watcher.requests.watches == 4 + 3 + 5, lambda: watcher.requests)
        assert "ends watches at once" in str(watcher.gaps())  # an open watch alone is no word of it
        assert not server.faults.queued["pods", "watch"]


def test_a_version_that_the_server_calls_wrong_is_not_asked_for_again(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, last = server._watch, str(server.version)

    def picky(asked: api.Asked, reply: api.Reply) -> None:
        if asked.query["resourceVersion"] == last:
            reply.status(400)
        else:
            watch(asked, reply)

    monkeypatch.setattr(server, "_watch", picky)
    with watcher_of(server) as watcher:
        the_gap(watcher, "status 400")
        a_change(server)
        agree(watcher, server)


def test_an_object_that_cannot_be_read_holds_nothing_up(server: ApiServer) -> None:
    with watcher_of(server) as watcher:
        agree(watcher, server)
        odd = cluster.pod("odd")
        odd["status"]["podIP"] = 7
        server.put("pods", odd)
        the_gap(watcher, "read 1 of the pods")
        server.put("pods", cluster.pod("next", ip="10.244.0.44"))
        until(lambda: watcher.names().pod_called("shop/next"))
        server.delete("pods", "shop", "odd")
        agree(watcher, server)


def test_a_watch_may_last_longer_than_the_head_of_an_answer(server: ApiServer) -> None:
    with watcher_of(server, replace(PATIENT, head_s=2.0, watch_s=(3000, 3600))) as watcher:
        agree(watcher, server)
        until(lambda: watcher.requests.bookmarks > 200)  # 50 of each watch, every 50 ms
        assert watcher.requests.watches == 4


def test_redirects_do_not_carry_the_token_away(tmp_path: Path) -> None:
    certificate, key = certificates.made(tmp_path, "api")
    tls = str(certificate), str(key)
    token = written(tmp_path / "token", "secret")
    with ApiServer(tls=tls) as other, ApiServer(tls=tls, tokens={"secret"}) as server:
        fill(server)
        place = api.with_status(302, Location=f"{other.url}/api/v1/pods")
        server.fail("pods", "list", place, place)
        with watcher_of(server, token_file=token, ca_file=str(certificate)) as watcher:
            agree(watcher, server)
        assert other.asked == []


def test_no_proxy_is_asked_whatever_the_environment_says(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with watcher_of(server, PATIENT) as watcher:
        agree(watcher, server)
        assert watcher.requests.failed == 0


def test_a_token_that_is_replaced_is_used_from_then_on(tmp_path: Path) -> None:
    certificate, key = certificates.made(tmp_path, "api")
    path = tmp_path / "token"
    with ApiServer(tls=(str(certificate), str(key)), tokens={"old"}) as server:
        fill(server)
        with watcher_of(server, token_file=written(path, "old\n"), ca_file=str(certificate)) as watcher:
            agree(watcher, server)
            server.tokens = {"new"}
            server.end_watches()
            the_gap(watcher, "status 401", "a token that it accepts")
            written(path, "new\n")
            a_change(server)
            agree(watcher, server)
            path.unlink()
            server.end_watches()
            assert the_gap(watcher, str(path)).needs == "files with its CA and a token"
            assert watcher.names().pods
            written(path, "new")
            agree(watcher, server)


def test_a_new_token_ends_the_long_pause_after_an_old_one_was_refused(tmp_path: Path) -> None:
    certificate, key = certificates.made(tmp_path, "api")
    path = tmp_path / "token"
    pacing = replace(QUICK, first_s=3600.0, most_s=0.05, refused_most_s=3600.0, token_s=0.02)
    with ApiServer(tls=(str(certificate), str(key)), tokens={"new"}) as server:
        fill(server)
        written(path, "old\n")
        with watcher_of(server, pacing, token_file=str(path), ca_file=str(certificate)) as watcher:
            the_gap(watcher, "pods, services, endpointslices and namespaces", "status 401")
            refused = watcher.requests.refused
            path.unlink()  # that there is none for a moment is no new one
            written(path, "old\n")
            assert watcher.requests.refused == refused
            written(path, "new\n")
            agree(watcher, server)


def test_a_pod_follows_its_cluster_by_what_the_kubelet_gives_it(tmp_path: Path) -> None:
    certificate, key = certificates.made(tmp_path, "ca")
    written(tmp_path / "token", "secret")
    with ApiServer(tls=(str(certificate), str(key)), tokens={"secret"}) as server:
        fill(server)
        environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(server.port),
            "NODE_NAME": cluster.NODE,
        }
        with Watcher(KubeAccess.in_cluster(environment, str(tmp_path)), pacing=PATIENT) as watcher:
            agree(watcher, server)
            a_change(server)
            agree(watcher, server)
            assert watcher.requests.failed == watcher.requests.refused == 0


def test_who_is_not_vouched_for_gets_no_token(tmp_path: Path) -> None:
    certificate, key = certificates.made(tmp_path, "api")
    other, _ = certificates.made(tmp_path, "other")
    token = written(tmp_path / "token", "secret")
    with ApiServer(tls=(str(certificate), str(key))) as server:
        fill(server)
        ca = tmp_path / "ca.crt"
        with watcher_of(server, token_file=token, ca_file=written(ca, other.read_text())) as watcher:
            gap = the_gap(watcher, "certificate was not accepted")
            assert gap.needs == "a CA file that vouches for it"
            assert server.asked == []
            written(ca, certificate.read_text())
            agree(watcher, server)


def test_a_server_without_tls_is_no_api_server(tmp_path: Path, server: ApiServer) -> None:
    certificate, _ = certificates.made(tmp_path, "api")
    url = server.url.replace("http:", "https:")
    with Watcher(KubeAccess(url, ca_file=str(certificate), node=cluster.NODE), pacing=QUICK) as watcher:
        the_gap(watcher, "TLS failed")
    assert server.asked == []


@pytest.mark.parametrize("fault", [api.with_silence, api.with_half_a_line, api.with_half_a_head])
def test_threads_end_with_the_watcher_wherever_they_wait(server: ApiServer, fault: api.Fault) -> None:
    patient = KubePacing(start_s=0.0)
    server.fail("pods", "list", fault)
    server.fail("services", "watch", fault)
    server.fail("namespaces", "list", api.with_status(403), api.with_status(403), api.with_status(403))
    with watcher_of(server, patient) as watcher:
        until(lambda: watcher.requests.refused)
        until(lambda: len(server.asked) >= 6)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("finwait-kube")]
    with watcher_of(server, KubePacing(start_s=3600.0)):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("finwait-kube")]


def test_nothing_stays_open(server: ApiServer) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with watcher_of(server) as watcher:
        agree(watcher, server)
        server.fail("pods", "list", api.with_status(500), api.with_bytes(b"x"), api.with_silence)
        server.fail("pods", "watch", *[api.with_error_event(410)] * 4)
        server.cut()
        agree(watcher, server)
    server.stop()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_quiet_server_without_bookmarks_is_trusted_again_while_its_watch_is_open(server: ApiServer) -> None:
    server.bookmark_s = 3600.0  # as one that was started and has seen no change of a resource since
    pacing = replace(PATIENT, watch_s=(3600, 3600), healthy_s=0.2)
    down = api.with_status(503)
    server.fail("services", "list", *[down] * 6)
    with watcher_of(server, pacing) as watcher:
        until(lambda: watcher.requests.failed >= 6)
        agree(watcher, server)


def test_a_quiet_watch_in_which_nothing_came_is_followed_by_a_list(server: ApiServer) -> None:
    server.bookmark_s = 3600.0
    with watcher_of(server, replace(PATIENT, watch_s=(1, 1), healthy_s=0.1)) as watcher:
        agree(watcher, server)
        before = dict(watcher.names().as_of)
        until(lambda: all(at > before[name] for name, at in watcher.names().as_of.items()))
        assert watcher.requests.failed == watcher.requests.expired == 0


def test_a_server_that_sent_bookmarks_and_falls_silent_is_noticed(server: ApiServer) -> None:
    patient = replace(QUICK, watch_s=(3000, 3600), grace_s=30.0)
    with watcher_of(server, patient) as watcher:
        agree(watcher, server)
        until(lambda: watcher.requests.bookmarks > 4)
        server.fail("pods", "watch", api.with_half_a_line)
        server.end_watches()
        until(lambda: not server.faults.queued["pods", "watch"])
        a_change(server)
        agree(watcher, server)


def test_without_the_name_of_the_node_everything_else_is_known(server: ApiServer) -> None:
    with Watcher(KubeAccess(server.url), pacing=QUICK) as watcher:
        assert watcher.settled(60)
        until(lambda: cluster.told(watcher.names())["services"])
        (gap,) = watcher.gaps()
        assert gap.needs == "the name of the node (NODE_NAME)"
    assert not any(asked.resource == "pods" for asked in server.asked)


def test_an_api_server_may_have_an_address_of_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no ::1")
    with ApiServer(host="::1") as server:
        fill(server)
        with watcher_of(server) as watcher:
            agree(watcher, server)
        assert {asked.headers["host"] for asked in server.asked} == {f"[::1]:{server.port}"}


def test_each_address_of_a_name_is_tried(server: ApiServer) -> None:
    url = f"http://localhost:{server.port}"
    with Watcher(KubeAccess(url, node=cluster.NODE), pacing=QUICK) as watcher:
        agree(watcher, server)


def test_before_the_first_list_it_is_said_that_nothing_is_known(server: ApiServer) -> None:
    with watcher_of(server, KubePacing(start_s=3600.0)) as watcher:
        assert not watcher.settled(0.0)
        (gap,) = watcher.gaps()
        assert "could not list pods, services, endpointslices and namespaces yet" in str(gap)


def test_a_fault_of_our_own_loses_no_event(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    happened = NameKeeper.happened
    faults = [ZeroDivisionError("of our own")] * 2

    def failing(keeper: NameKeeper, resource: Resource, event: WatchEvent, now: float) -> None:
        if event.object is not None and faults:
            raise faults.pop()
        happened(keeper, resource, event, now)

    monkeypatch.setattr(NameKeeper, "happened", failing)
    with watcher_of(server) as watcher:
        agree(watcher, server)
        server.put("pods", cluster.pod("one", ip="10.244.0.21"))
        agree(watcher, server)
        server.delete("pods", "shop", "one")
        agree(watcher, server)
        assert not faults


def test_a_list_that_is_too_long_is_refused_and_not_kept(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finwait.kube.watch.LIST_MOST", 2000)
    with watcher_of(server) as watcher:
        agree(watcher, server)
        for k in range(20):
            server.put("services", cluster.service(f"s{k}", ip=f"10.96.1.{k}"))
        agree(watcher, server)  # by events
        server.compact()
        server.put("services", cluster.service("last"))
        server.fail("services", "watch", api.with_error_event(410))
        server.end_watches()
        the_gap(watcher, "services", "too long to be read")
        assert len(watcher.names().services) >= 21


def test_an_event_that_names_one_pod_more_is_enough(server: ApiServer) -> None:
    with watcher_of(server) as watcher:
        agree(watcher, server)
        lists = watcher.requests.lists
        for k in range(50):
            server.put("pods", cluster.pod(f"p{k}", ip=f"10.244.0.{k}"))
        agree(watcher, server)
        assert watcher.requests.lists == lists


def test_pauses_grow_up_to_a_bound_and_half_of_each_is_chance() -> None:
    longest = BackOff(1.0, 30.0, lambda: 1.0)
    assert [longest.pause() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert longest.pause(most=300.0) == 128
    longest.healthy()
    assert longest.pause(at_once=True) == 0
    assert longest.pause(at_once=True) == 2
    shortest = BackOff(1.0, 30.0, lambda: 0.0)
    assert [shortest.pause() for _ in range(3)] == [0.5, 1, 2]
    for _ in range(5000):
        assert shortest.pause() <= 30


def test_requests_of_a_list_hold_what_the_server_stores(server: ApiServer) -> None:
    """The server of the tests itself: what it lists is what it was given."""
    with watcher_of(server) as watcher:
        agree(watcher, server)
    assert json.loads(json.dumps(server.stored()))["services"][0]["metadata"]["name"] == "db"
