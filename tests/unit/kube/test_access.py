"""Where requests go, and with what: the token never leaves for another place."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from finwait.errors import FileRefused, FinwaitError, UsageError
from finwait.kube.access import KubeAccess
from tests import certificates

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "6443", "NODE_NAME": "node-a"}


def test_a_pod_knows_its_api_server() -> None:
    access = KubeAccess.in_cluster(POD)
    assert (access.url, access.host, access.port, access.node) == (
        "https://10.96.0.1:6443",
        "10.96.0.1",
        6443,
        "node-a",
    )
    assert access.token_file == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert access.ca_file == "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    assert access.secure


def test_the_address_may_be_ipv6() -> None:
    access = KubeAccess.in_cluster(
        {**POD, "KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": ""}
    )
    assert (access.url, access.host, access.port) == ("https://[fd00::1]:443", "fd00::1", 443)


@pytest.mark.parametrize("missing", ["KUBERNETES_SERVICE_HOST", "NODE_NAME"])
def test_outside_a_pod_it_says_what_is_missing(missing: str) -> None:
    with pytest.raises(FinwaitError, match=missing) as caught:
        KubeAccess.in_cluster({name: value for name, value in POD.items() if name != missing})
    assert caught.value.hint


def test_a_path_in_front_of_the_api_is_kept() -> None:
    assert KubeAccess("https://rancher.example/k8s/clusters/c-1/").prefix == "/k8s/clusters/c-1"


@pytest.mark.parametrize(
    "url",
    [
        "", "10.0.0.1", "ftp://x", "https://", "https://user@host", "https://host?x=1", "https://host#x",
        "https://host:port", "https://host:99999", "https://ho st", "https://host/\r\nX: y", "https://hoßt", "https://[fd00::1",
        "http://10.0.0.1", "http://example.com",
    ],
)  # fmt: skip
def test_what_is_no_url_of_an_api_server_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        KubeAccess(url)


@pytest.mark.parametrize("node", ["a,spec.x=y", "a b", "-a", "a\n", "a" * 300, "ä"])
def test_what_is_no_name_of_a_node_selects_nothing(node: str) -> None:
    with pytest.raises(UsageError):
        KubeAccess("https://10.0.0.1", node=node)


def test_without_tls_there_is_this_machine_only_and_no_token(tmp_path: Path) -> None:
    for host in ("127.0.0.1:8001", "localhost", "[::1]:8001"):
        assert KubeAccess(f"http://{host}").context() is None
    with pytest.raises(UsageError, match="token"):
        KubeAccess("http://127.0.0.1:8001", token_file=str(tmp_path / "token"))


def test_the_token_is_read_at_each_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    access = KubeAccess("https://10.0.0.1", token_file=str(token))
    for text in ("one", "two\n"):
        token.write_text(text)
        assert access.headers()["Authorization"] == f"Bearer {text.strip()}"
    assert "Authorization" not in KubeAccess("https://10.0.0.1").headers()


@pytest.mark.parametrize("data", [b"", b"\n", b"a\r\nX-Evil: 1", b"a b", b"\xff", b"x" * 70_000])
def test_what_is_no_token_is_not_sent(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "token").write_bytes(data)
    with pytest.raises(FileRefused):
        KubeAccess("https://10.0.0.1", token_file=str(tmp_path / "token")).headers()


def test_the_ca_is_read_at_each_request(tmp_path: Path) -> None:
    certificate, _ = certificates.made(tmp_path, "api")
    access = KubeAccess("https://10.0.0.1", ca_file=str(certificate))
    context = access.context()
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    certificate.write_text("no certificate")
    with pytest.raises(FileRefused):
        access.context()
