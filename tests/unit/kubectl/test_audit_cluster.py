"""``finwait audit --cluster`` and ``kubectl finwait audit``, with a kubectl of the tests' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finwait.cli import main as finwait
from finwait.kubectl.plugin import main as plugin

yaml = pytest.importorskip("yaml")

FAKE = """#!{python}
import json, os, sys
words = [w for w in sys.argv[1:]]
here = {here!r}
with open(os.path.join(here, "calls"), "a") as file:
    file.write(json.dumps(words) + "\\n")
words = [w for k, w in enumerate(words) if w != "--context" and words[k - 1] != "--context"]
objects = json.load(open(os.path.join(here, "objects.json")))
if words[0] == "api-resources":
    print("\\n".join(objects))
    sys.exit(os.path.exists(os.path.join(here, "broken")) and "unable to retrieve: metrics.k8s.io" or 0)
kind = words[1]
if objects.get(kind) is None:
    sys.exit("Error from server (Forbidden): " + kind + " is forbidden")
if "-A" in words:
    print(json.dumps({{"items": objects[kind]}}))
else:
    import yaml
    class Block(str): pass
    yaml.SafeDumper.add_representer(Block, lambda d, v: d.represent_scalar("tag:yaml.org,2002:str", v, style="|"))
    found = [o for o in objects[kind] if o["metadata"]["name"] == words[2]]
    found or sys.exit("Error from server (NotFound)")
    found[0]["data"] = {{k: Block(v) for k, v in found[0].get("data", {{}}).items()}}
    print(yaml.safe_dump(found[0]), end="")
"""
PROXY = """apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
conntrack:
  tcpCloseWaitTimeout: 60s
mode: iptables
"""
ALL = (
    "configmaps",
    "daemonsets.apps",
    "deployments.apps",
    "statefulsets.apps",
    "cronjobs.batch",
    "jobs.batch",
    "pods",
)


def item(name: str, namespace: str = "shop", **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, **more}


def pod_with(sysctl: str, value: str) -> dict[str, Any]:
    return {
        "securityContext": {"sysctls": [{"name": sysctl, "value": value}]},
        "containers": [{"name": "c", "image": "i"}],
    }


@pytest.fixture
def objects() -> dict[str, Any]:
    proxy = item("kube-proxy", "kube-system", apiVersion="v1", kind="ConfigMap", data={"config.conf": PROXY})
    proxy["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": json.dumps({"data": {"config.conf": PROXY}})
    }
    ingress = item(
        "ingress-nginx-controller", "ingress-nginx", apiVersion="v1", kind="ConfigMap",
        data={"proxy-stream-timeout": "24h", "stream-snippet": "proxy_half_close on;\n"},
    )  # fmt: skip
    cart = item("cart", spec={"template": {"spec": pod_with("net.ipv4.tcp_fin_timeout", "5")}})
    made = item("cart-1", spec=pod_with("net.ipv4.tcp_fin_timeout", "5"))
    made["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "controller": True}]
    static = item("edge-n1", spec=pod_with("net.ipv4.tcp_tw_recycle", "1"))
    static["metadata"]["ownerReferences"] = [{"kind": "Node", "controller": True}]
    return {
        **{kind: [] for kind in ALL},
        "configmaps": [proxy, ingress, item("ca", data={"ca.crt": "x"})],
        "deployments.apps": [cart],
        "pods": [made, static],
        "secrets": [item("token", data={"a": "net.ipv4.tcp_tw_recycle=1"})],
    }


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objects: dict[str, Any]) -> Path:
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable, here=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "objects.json").write_text(json.dumps(objects))
    return tmp_path


def audited(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    status = finwait(["audit", "--cluster", "-o", "json", *words])
    out, err = capsys.readouterr()
    return status, json.loads(out), err


def test_what_a_cluster_runs_is_judged_once_and_with_the_lines_that_kubectl_shows(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document, err = audited(capsys, "--context", "c1")
    assert status == 1
    by_file: dict[str, list[dict[str, Any]]] = {}
    for finding in document["findings"]:
        by_file.setdefault(finding["file"], []).append(finding)
    assert set(by_file) == {
        "kube-system/configmap/kube-proxy",
        "ingress-nginx/configmap/ingress-nginx-controller",
        "shop/deployment/cart",
        "shop/pod/edge-n1",
    }
    (proxy,) = by_file["kube-system/configmap/kube-proxy"]
    assert "tcpCloseWaitTimeout" in proxy["text"]
    shown = subprocess.run(
        ["kubectl", "get", "configmaps", "kube-proxy", "-o", "yaml"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert "tcpCloseWaitTimeout" in shown[proxy["line"] - 1]
    texts = {finding["text"] for finding in by_file["ingress-nginx/configmap/ingress-nginx-controller"]}
    assert texts == {"proxy-stream-timeout: 24h", "proxy_half_close on"}
    assert "read 5 objects" in err
    calls = [json.loads(line) for line in (cluster / "calls").read_text().splitlines()]
    assert all(words[1:3] == ["--context", "c1"] for words in calls[:-1])  # the last is this test's
    assert not any("secrets" in words for words in calls)


def test_what_may_not_be_listed_is_not_read_and_says_so(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "objects.json").write_text(json.dumps({kind: [] for kind in ALL} | {"pods": None}))
    status, document, err = audited(capsys)
    assert status == 3
    assert not document["findings"]
    assert "pods is forbidden" in err
    (cluster / "broken").touch()
    (cluster / "objects.json").write_text(json.dumps({kind: [] for kind in ALL}))
    status, _, err = audited(capsys)
    assert status == 3
    assert "metrics.k8s.io" in err
    (cluster / "objects.json").write_text(json.dumps(dict.fromkeys(ALL)))
    assert finwait(["audit", "--cluster"]) == 1
    assert "nothing of the cluster could be read" in capsys.readouterr().err


def test_objects_of_any_shape_do_no_harm(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd: list[Any] = [
        None,
        3,
        "x",
        [],
        {},
        {"metadata": None},
        {"metadata": {"ownerReferences": [1], "annotations": []}},
    ]
    (cluster / "objects.json").write_text(json.dumps({kind: [] for kind in ALL} | {"pods": odd}))
    assert audited(capsys)[0] == 0


def test_without_pyyaml_that_is_said_once_and_nothing_is_asked(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    status, document, err = audited(capsys)
    assert (status, document["findings"]) == (3, [])
    assert err.count("PyYAML") == 1
    assert not (cluster / "calls").exists()


@pytest.mark.usefixtures("cluster")
def test_the_plugin_asks_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert plugin(["audit", "--context", "c1", "-o", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert len({finding["file"] for finding in document["findings"]}) == 4


@pytest.mark.parametrize("words", [[], ["x.yaml", "--cluster"], ["x.yaml", "--context", "c"]])
def test_files_or_a_cluster(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert finwait(["audit", *words]) == 2
    assert "--cluster" in capsys.readouterr().err
