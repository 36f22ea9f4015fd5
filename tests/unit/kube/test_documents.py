"""Names out of what kubectl printed, as commands use them, recordings keep them and redaction hides them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from finwait.cli import main
from finwait.errors import DecodeError
from finwait.kube.documents import names_of, read_names
from finwait.recording import Replay, open_recording, record
from finwait.recording.redact import redact
from tests.captures.make import HERE
from tests.kube import cluster

RECORDING = HERE / "linux-6.18/kube-proxy-userspace.finwait"


def uid() -> str:
    """The pod of the recording, as the API server spells it."""
    (pod,) = {work.pod_uid for work in _diagnosed().view.workload_names if work.pod_uid}
    return pod


def _diagnosed() -> Any:
    from finwait import session

    return session.diagnose(open_recording(str(RECORDING)))


def document(*more: dict[str, Any]) -> dict[str, Any]:
    pod = cluster.pod() | {"kind": "Pod"}
    pod["metadata"] = {**pod["metadata"], "uid": uid()}
    return {"apiVersion": "v1", "kind": "List", "items": [pod, *more]}


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    path = tmp_path / "printed.json"
    path.write_text(json.dumps(document()))
    return path


def test_a_command_takes_names_from_a_file(printed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "list",
        "--from",
        str(RECORDING),
        "--kube-names",
        str(printed),
        "-o",
        "json",
        "workload",
        "=",
        "shop/cart",
    ]
    assert main(words) == 3  # Services are not among them
    out, err = capsys.readouterr()
    items = json.loads(out)["items"]
    assert items
    assert {item["kubernetes"]["workload"] for item in items} == {"shop/cart"}
    assert "Service objects" in err + out
    assert main(["list", "--from", str(RECORDING), "workload", "=", "shop/cart"]) == 2
    assert "--kube-names" in capsys.readouterr().err


def test_names_of_a_while_ago_say_so(printed: Path) -> None:
    now = time.time()
    names, gaps = read_names(str(printed))
    assert "old" not in "".join(map(str, gaps))
    os.utime(printed, (now, now - 90 * 86_400))
    names, gaps = read_names(str(printed))
    assert "it is 90 d old" in str(gaps[-1])
    assert names.as_of["pods"] < now - 80 * 86_400


def test_one_object_alone_is_taken_as_well() -> None:
    pod = document()["items"][0]
    names, _ = names_of(json.dumps(pod).encode(), 5.0)
    assert [pod.path for pod in names.pods] == ["shop/cart-7d9f-x2x"]
    with pytest.raises(DecodeError):
        names_of(json.dumps(pod | {"kind": "Secret"}).encode(), 5.0)


def test_names_are_in_a_recording_and_its_redaction_hides_them(tmp_path: Path) -> None:
    item = cluster.service()
    item["metadata"]["uid"] = "s"
    names, gaps = names_of(json.dumps(document(item)).encode(), 5.0)
    path = str(tmp_path / "named.finwait")
    source = open_recording(str(RECORDING))
    record(source, path, cluster=lambda _: (names, gaps))
    (look,) = open_recording(path).looks
    assert [pod.path for pod in look.names.pods] == [pod.path for pod in names.pods]
    (hidden,) = redact([replace(look, names=names)])
    (service,) = hidden.names.services
    assert hidden.names.service_at(service.addresses[0], service.ports[0].port) == service.path
    text = repr(hidden.names)
    for word in ("shop", "cart", uid(), "10.96.0.10"):
        assert word not in text
    from finwait import session

    view = session.look(Replay([hidden]), session.Look()).view
    assert any(pod is not None for pod in view.row_names.pod), (
        "the pseudonym of its uid is that in the cgroup"
    )


@pytest.mark.parametrize(
    "data", [b"", b"5", b"[]", b'{"items":[5]}', b'{"kind":"List","items":[{"kind":"Secret"}]}', b"\xff"]
)
def test_what_is_no_such_document_is_an_error(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DecodeError):
        names_of(data, 0.0)
    path = tmp_path / "wrong"
    path.write_bytes(data)
    assert main(["list", "--from", str(RECORDING), "--kube-names", str(path)]) == 1
    assert "kubectl get pods,services,endpointslices" in capsys.readouterr().err
    assert main(["list", "--from", str(RECORDING), "--kube-names", str(tmp_path / "none")]) == 1


@given(st.binary(max_size=200))
def test_any_bytes_give_names_or_an_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        names_of(data, 0.0)
