"""``kubectl finwait`` with a kubectl of the tests' own, which answers from files, hangs, fails and writes for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from finwait.cli import main as finwait
from finwait.errors import UsageError
from finwait.kube.kubectl import Done
from finwait.kubectl.agents import Agents, answer_of
from finwait.kubectl.answers import KINDS
from finwait.kubectl.merging import NodeAnswer, gaps_of, table
from finwait.kubectl.plugin import main
from finwait.kubectl.selection import filter_words, label_words, pod_of
from finwait.selecting import parse_filter
from tests.captures.make import HERE

CAPTURE = HERE / "linux-5.10/accept-queue-full.finwait"

FAKE = """#!{python}
import json, os, sys, time
words = sys.argv[1:]
here = {here!r}
with open(os.path.join(here, "calls"), "a") as file:
    file.write(json.dumps(words) + "\\n")
if words[0] == "get" and "daemonsets.apps,pods" in words:
    assert words[-4:-2] == ["-l", "finwait.io/agent=true"], words
    text = open(os.path.join(here, "pods.json")).read()
    if "-n" in words and text.startswith("{{"):
        place = words[words.index("-n") + 1]
        items = json.loads(text)["items"]
        text = json.dumps({{"items": [item for item in items if item["metadata"]["namespace"] == place]}})
    print(text)
elif words[0] == "get" and "nodes" in words:
    path = os.path.join(here, "nodes.json")
    if not os.path.exists(path):
        sys.exit("Error from server (Forbidden): nodes is forbidden")
    print(open(path).read())
elif words[0] == "get" and words[2].startswith("finwait-look-"):
    print(open(os.path.join(here, "look.json")).read())
elif words[0] == "get":
    print(json.dumps({{"metadata": {{"name": "x"}}, "spec": {{"nodeName": "n1"}}}}))
elif words[0] == "config":
    if os.path.exists(os.path.join(here, "no-context")):
        sys.exit("error: current-context must exist in order to minify")
    print("shop", end="")
elif words[0] in ("run", "delete") and os.path.exists(os.path.join(here, "no-" + words[0])):
    sys.exit("Error from server (Forbidden): no " + words[0])
elif words[0] in ("exec", "logs"):
    node = words[words.index("-n") + 2] if words[0] == "exec" else "debug"
    path = os.path.join(here, node)
    if not os.path.exists(path):
        time.sleep(600)
    if "record" in words:
        sys.stdout.buffer.write(open(path, "rb").read())
        sys.exit(3 if "--redact" in words else 0)
    text = open(path).read()
    if "finwait" in words and words[words.index("finwait") + 1] == "list":
        text = text.replace('"Diagnosis"', '"ConnectionList"')
    if text == "status 1":
        print(open(os.path.join(here, "finwait-n1")).read())
        sys.exit(1)
    if text == "fail":
        sys.exit("error: unable to upgrade connection\\ncommand terminated with exit code 1")
    if text == "mistake":
        sys.exit("finwait: error: a FILTER lacks something\\n  state all and\\nhint: see finwait(8)\\n"
                 "command terminated with exit code 2")
    if text == "flood":
        while True:
            os.write(1, b"x" * 65536)
    print(text)
    sys.exit(3)
"""


def answer(**more: Any) -> dict[str, Any]:
    socket = {
        "state": "FIN_WAIT2", "inode": 7, "src": "10.1.0.5", "sport": 40000, "dst": "fd00::1", "dport": 80, "owners": [
            {"pid": 7, "comm": "evil\x1b[31m"}
        ],
        "age_s": {"at_least": 3600.0, "at_most": None}, "kubernetes": {"workload": "shop/cart", "pod": "shop/cart-1"},
    }  # fmt: skip
    finding = {
        "rule": "fin-wait2-held", "primary": True, "severity": "problem", "count": 3,
        "move": {"whose": "peer", "act": "close()"}, "sockets": [socket],
    }  # fmt: skip
    healthy = finding | {"severity": "healthy", "rule": "time-wait"}
    base = {
        "apiVersion": "finwait/v1",
        "kind": "Diagnosis",
        "findings": [finding, healthy],
        "unjudged": [],
        "items": [socket],
        "gaps": [],
    }
    return base | more


SPEC = {"hostPID": True, "containers": [{"name": "looker"}, {"name": "server"}]}


def daemon_set(namespace: str = "observe", uid: str = "d1", **spec: Any) -> dict[str, Any]:
    return {
        "kind": "DaemonSet",
        "metadata": {"name": "finwait", "namespace": namespace, "uid": uid},
        "spec": {"template": {"spec": SPEC | spec}},
    }


def pod(
    node: str,
    phase: str = "Running",
    *,
    namespace: str = "observe",
    owner: str | None = "d1",
    name: str = "",
    **spec: Any,
) -> dict[str, Any]:
    owners = [{"kind": "DaemonSet", "name": "finwait", "uid": owner, "controller": True}] if owner else None
    return {
        "kind": "Pod",
        "metadata": {
            "name": name or f"finwait-{node}",
            "namespace": namespace,
            "ownerReferences": owners,
        },
        "spec": {"nodeName": node} | SPEC | spec,
        "status": {"phase": phase},
    }


def stored(cluster: Path, *objects: dict[str, Any]) -> None:
    (cluster / "pods.json").write_text(json.dumps({"items": objects}))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable, here=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    stored(tmp_path, daemon_set(), pod("n1"), pod("n2"), pod("n4", "Pending"))
    (tmp_path / "nodes.json").write_text(
        json.dumps({"items": [{"metadata": {"name": name}} for name in ("n1", "n2", "n3", "n4")]})
    )
    for node in ("n1", "n2"):
        (tmp_path / f"finwait-{node}").write_text(json.dumps(answer()))
    return tmp_path


def calls(cluster: Path, verb: str) -> list[list[str]]:
    lines = [json.loads(line) for line in (cluster / "calls").read_text().splitlines()]
    return [words for words in lines if words[0] == verb]


def test_one_table_of_all_nodes_and_those_without_an_agent_are_gaps(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 3
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert head.split()[:3] == ["NODE", "SEVERITY", "#"]
    assert [row.split()[0] for row in rows] == ["n1", "n2"]
    assert all("shop/cart" in row and "60 min" in row and "peer: close()" in row for row in rows)
    assert "node n3" in err
    assert "node n4" in err
    (first, second) = calls(cluster, "exec")
    assert sorted(words[words.index("-c") + 1] for words in (first, second)) == ["looker", "looker"]
    assert first[-1] == 'namespace = "shop"'  # the context's


def test_what_is_asked_and_as_what(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cluster / "nodes.json").write_text(
        json.dumps({"items": [{"metadata": {"name": "n1"}}, {"metadata": {"name": "n2"}}]})
    )
    assert (
        main(["list", "-A", "-l", "app=cart,!old", "--context", "c1", "-o", "json", "age", ">", "10m"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert [item["node"] for item in document["items"]] == ["n1", "n2"]
    assert document["kind"] == "ClusterConnectionList"
    words = calls(cluster, "exec")[0]
    assert words[1:3] == ["--context", "c1"]
    assert words[words.index("finwait") :] == [
        "finwait", "list", "-o", "json", "--", '( label = "app=cart" and label != "old" ) and ( age > 10m )',
    ]  # fmt: skip
    assert main(["list", "-n", "other", "--node", "n2"]) == 0
    assert calls(cluster, "exec")[-1][-1] == 'namespace = "other"'
    assert "evil" in (out := capsys.readouterr().out)
    assert "\x1b" not in out
    assert "[fd00::1]:80" in out


FINDING = answer()["findings"][0]
WRONG_PARTS: tuple[dict[str, Any], ...] = (
    {"apiVersion": "finwait/v2"},
    {"kind": "Audit"},
    {"kind": 1},
    {"findings": None},
    {"findings": {"a": FINDING}},
    {"findings": [FINDING | {"primary": 1}]},
    {"findings": [{key: value for key, value in FINDING.items() if key != "primary"}]},
    {"findings": [FINDING | {"severity": "none"}]},
    {"findings": [FINDING | {"count": "3"}]},
    {"findings": [FINDING | {"count": -3}]},
    {"findings": [FINDING | {"sockets": [answer()["items"][0] | {"sport": 70_000}]}]},
    {"findings": [FINDING | {"sockets": [answer()["items"][0] | {"age_s": {"at_least": -5}}]}]},
    {"findings": [FINDING | {"sockets": [{"state": []}]}]},
    {"findings": [], "gaps": "x"},
    {"findings": [], "gaps": [{"where": 1}]},
    {"findings": [], "unjudged": None},
)
NO_ANSWERS = (
    "no JSON",
    "{}",
    '{"apiVersion": "finwait/v1"}',
    *(json.dumps(answer(**change)) for change in WRONG_PARTS),
    json.dumps({key: value for key, value in answer(findings=[]).items() if key != "gaps"}),
    json.dumps(answer(findings=[], kind="ConnectionList")),
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("fail", "unable to upgrade connection"),
        ("mistake", "a FILTER lacks something; state all and; hint: see finwait(8); command"),
        ("status 1", "kubectl ended with status 1"),
        *((text, "did not print what this version reads") for text in NO_ANSWERS),
    ],
)
def test_a_node_that_says_nothing_is_a_gap(
    cluster: Path, capsys: pytest.CaptureFixture[str], said: str, reason: str
) -> None:
    (cluster / "finwait-n2").write_text(said)
    assert main(["-A"]) == 3
    out, err = capsys.readouterr()
    assert "n1" in out
    assert "node n2: could not ask its agent" in err
    assert reason in err


@pytest.mark.parametrize("said", [*NO_ANSWERS, "status 1"])
def test_what_is_no_answer_is_never_an_all_clear(
    cluster: Path, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    (cluster / "finwait-n1").write_text(json.dumps(answer(findings=[])))
    (cluster / "finwait-n2").write_text(said)
    assert main(["-A", "--node", "n2"]) == 1
    assert "node n2: could not ask its agent" in capsys.readouterr().err


@pytest.mark.parametrize("items", [None, {}, [1], [{"state": "FIN_WAIT2"}]])
def test_a_list_of_no_connections_is_no_list(
    cluster: Path, capsys: pytest.CaptureFixture[str], items: Any
) -> None:
    (cluster / "finwait-n2").write_text(json.dumps(answer(items=items)))
    assert main(["list", "-A", "--node", "n2"]) == 1
    assert "did not print what this version reads" in capsys.readouterr().err


def test_what_a_filter_could_not_judge_there_is_a_gap(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "finwait-n2").write_text(json.dumps(answer(findings=[], unjudged=[FINDING])))
    assert main(["-A", "--node", "n2"]) == 3
    assert "could not judge 3 connections by the FILTER" in capsys.readouterr().err


@pytest.mark.parametrize(
    "recording", sorted((HERE / "linux-6.18").glob("*held*.finwait")), ids=lambda p: p.stem
)
def test_what_this_version_prints_is_an_answer(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, kind in KINDS.items():
        finwait([command, "--from", str(recording), "-o", "json"])
        done = Done(0, capsys.readouterr().out.encode(), "")
        assert answer_of("n", kind, done).failure == ""


def test_a_node_that_hangs_keeps_nobody_waiting(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cluster / "finwait-n2").unlink()
    assert main(["-A", "--timeout", "1"]) == 3
    out, err = capsys.readouterr()
    assert "n1" in out
    assert "no answer within 1 s" in err


def test_a_node_that_writes_for_ever_takes_no_memory(
    cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finwait.kube.kubectl._ANSWER_MOST", 1 << 20)
    (cluster / "finwait-n2").write_text("flood")
    assert main(["-A"]) == 3
    assert "longer than 1 MiB" in capsys.readouterr().err


def test_nobody_answers(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for node in ("n1", "n2"):
        (cluster / f"finwait-{node}").write_text("fail")
    assert main(["-A"]) == 1
    assert "0 nodes" in capsys.readouterr().out  # never "nothing is stuck" alone
    (cluster / "pods.json").write_text('{"items": []}')
    assert main(["-A"]) == 1
    assert "no agent runs" in capsys.readouterr().err
    (cluster / "pods.json").write_text("nonsense")
    assert main(["-A"]) == 1
    assert "did not print what it should" in capsys.readouterr().err


def test_without_the_right_to_list_nodes_that_is_said(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "nodes.json").unlink()
    assert main(["-A"]) == 3
    assert "the right to list nodes" in capsys.readouterr().err


def test_a_look_on_a_node_without_an_agent_leaves_no_pod(
    cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (cluster / "debug").write_text(json.dumps(answer()))
    looked(cluster, "Succeeded", {"terminated": {"exitCode": 0}})
    monkeypatch.setattr("finwait.kubectl.agents.Agents.run", ends_well(Agents.run))
    assert main(["debug", "n3", "--image", "finwait:1"]) == 0
    assert "fin-wait2-held" in capsys.readouterr().out
    (made,) = calls(cluster, "run")
    (gone,) = calls(cluster, "delete")
    name = made[1]
    assert name.startswith("finwait-look-")
    assert gone[1:5] == ["pod", name, "-n", "shop"]
    spec = json.loads(made[made.index("--overrides") + 1])["spec"]
    assert spec["nodeName"] == "n3"
    assert spec["containers"][0]["command"] == ["finwait", "diagnose", "-o", "json", "--"]
    assert not [words for words in calls(cluster, "get") if words[1:3] == ["pods", "-o"]], (
        "no other pod is looked at"
    )


def looked(cluster: Path, phase: str, state: dict[str, Any]) -> None:
    status = {"phase": phase, "containerStatuses": [{"state": state}]}
    (cluster / "look.json").write_text(json.dumps({"metadata": {"name": "x"}, "status": status}))


def ends_well(run: Any) -> Any:
    """Return `Kubectl.run` whose logs end with status 0, as kubectl's do: the tests' program ends with 3."""

    def ran(self: Agents, *words: str) -> Done:
        done: Done = run(self, *words)
        return replace(done, status=0) if words[0] == "logs" else done

    return ran


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("no-run", "no run"),
        ("image", "did not end within 1 s: ImagePullBackOff"),
        ("failed", "did not print what this version reads"),
        ("no-delete", "could not remove it"),
    ],
)
def test_whatever_goes_wrong_the_pod_of_a_look_is_removed_or_named(
    cluster: Path,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finwait.kubectl.agents.Agents.run", ends_well(Agents.run))
    (cluster / "debug").write_text("Traceback" if trouble == "failed" else json.dumps(answer(findings=[])))
    looked(cluster, "Succeeded", {"terminated": {"exitCode": 0}})
    if trouble == "image":
        looked(cluster, "Pending", {"waiting": {"reason": "ImagePullBackOff"}})
    if trouble.startswith("no-"):
        (cluster / trouble).touch()
    status = main(["debug", "n3", "--image", "x", "--timeout", "1" if trouble == "image" else "30"])
    assert status == (3 if trouble == "no-delete" else 1)
    err = capsys.readouterr().err
    assert said in err
    (gone,) = calls(cluster, "delete")
    assert gone[2] == calls(cluster, "run")[0][1]
    assert trouble != "no-delete" or f"pod shop/{gone[2]}" in err


def test_without_a_namespace_nothing_is_asked(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cluster / "no-context").touch()
    for words in ([], ["list"], ["debug", "n3", "--image", "x"], ["clear", "--node", "n1", "age > 1h"]):
        assert main(words) == 1
        err = capsys.readouterr().err
        assert "could not learn the namespace of your context: error: current-context" in err
        assert "-n NS" in err
    assert not calls(cluster, "exec") + calls(cluster, "run")
    assert main(["-n", "shop"]) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-A"], "nothing is stuck on 1 node that answered\n"),
        (
            [],
            "nothing in namespace shop is stuck on 1 node that answered; `kubectl finwait -A` asks about everything\n",
        ),
        (
            ["-n", "x", "-l", "a=b", "age > 1h"],
            "nothing in namespace x of pods with a=b that matches `age > 1h` is",
        ),
    ],
)
def test_an_all_clear_says_of_what(
    cluster: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (cluster / "finwait-n1").write_text(json.dumps(answer(findings=[])))
    assert main(["--node", "n1", *words]) == 0
    assert capsys.readouterr().out.startswith(said)


def test_a_filter_stands_by_itself(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Within parentheses of ours, this would leave the namespace."""
    words = "state = fin-wait-2 ) or ( state = close-wait"
    for command in (["list", "-n", "shop"], ["clear", "--node", "n1", "-n", "shop"], ["explain", "pod/x"]):
        assert main([*command, words]) == 2
        capsys.readouterr()
    assert not (cluster / "calls").exists() or not calls(cluster, "exec")


def test_a_row_is_of_the_node_that_was_asked(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = answer()["items"][0] | {"node": "n1"}
    (cluster / "finwait-n2").write_text(json.dumps(answer(items=[item])))
    assert main(["list", "-A", "--node", "n2", "-o", "json"]) == 0
    assert [item["node"] for item in json.loads(capsys.readouterr().out)["items"]] == ["n2"]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "x", "1e300"])
def test_a_time_that_nobody_can_wait_for_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--timeout", seconds], ["-w", seconds], ["page", "--node", "n", "--port", "99999"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert "usage" in capsys.readouterr().err


def test_a_watch_outlives_a_look_that_fails(
    cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []

    def sleep(_: float) -> None:
        rounds.append(1)
        if len(rounds) == 1:
            stored(cluster, daemon_set(), pod("n1"))
        if len(rounds) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("finwait.kubectl.plugin.time", SimpleNamespace(sleep=sleep))
    (cluster / "pods.json").write_text("nonsense")
    assert main(["-A", "-w", "1"]) == 130
    out, err = capsys.readouterr()
    assert "did not print what it should" in err
    assert "fin-wait2-held" in out


@pytest.mark.parametrize(("scheme", "port"), [("HTTPS", 9955), ("HTTP", 9944)])
def test_the_page_is_where_the_pod_serves_it(cluster: Path, scheme: str, port: int) -> None:
    server = {
        "name": "server",
        "ports": [{"name": "metrics", "containerPort": port}],
        "readinessProbe": {"httpGet": {"scheme": scheme}},
    }
    stored(cluster, daemon_set(), pod("n1", containers=[{"name": "looker"}, server]))
    run = "import sys; from finwait.kubectl.plugin import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", run, "page", "--node", "n1", "--port", "8000"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert f"{scheme.lower()}://127.0.0.1:8000/" in done.stderr
    (forward,) = calls(cluster, "port-forward")
    assert forward[-1] == f"8000:{port}"


@pytest.mark.parametrize(
    ("argv", "remote"),
    [
        (["explain", "pod/cart-1"], ["diagnose", "--detail", "--", 'pod = "shop/cart-1"']),
        (
            ["explain", "cart-1", "-n", "x", "state", "fin-wait-2"],
            ["diagnose", "--detail", "--", '( pod = "x/cart-1" ) and ( state fin-wait-2 )'],
        ),
        (
            ["clear", "--node", "n1", "-A", "rule", "=", "fin-wait2-held"],
            ["clear", "--dry-run", "--", "rule", "=", "fin-wait2-held"],
        ),
        (
            ["clear", "--node", "n1", "--yes", "age > 1h"],
            ["clear", "--yes", "--", '( namespace = "shop" ) and ( age > 1h )'],
        ),
        (["top", "--node", "n1"], ["top", "--agent"]),
    ],
)
def test_what_acts_goes_to_one_node_as_it_is_typed(cluster: Path, argv: list[str], remote: list[str]) -> None:
    program = "import sys; from finwait.kubectl.plugin import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", program, *argv], check=False, capture_output=True, timeout=60)
    (words,) = calls(cluster, "exec")
    assert words[words.index("finwait") + 1 :] == remote
    assert ("-t" in words) == (argv[0] == "top")


def test_wrong_arguments(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-l", "app in (a, b)"]) == 2
    assert "key=value" in capsys.readouterr().err
    assert main(["-A", "age > 1h ) or ( state all"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:3] == ["  age > 1h ) or ( state all", "           ^"]
    assert main(["explain", "deploy/x"]) == 2
    assert not (cluster / "calls").exists() or not calls(cluster, "exec")
    with pytest.raises(SystemExit):
        main(["clear", "-A", "rule = x"])  # on which node?
    with pytest.raises(SystemExit):
        main(["list", "-A", "--frobnicate"])
    assert main(["clear", "--node", "n1", "-A"]) == 2
    assert main(["clear", "--node", "n1", "-A", "--", "--yes"]) == 2  # no FILTER, and no option of the node's


def test_without_kubectl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["-A"]) == 1
    assert "no `kubectl`" in capsys.readouterr().err


@pytest.mark.parametrize("selector", ["app=cart", "app!=cart", "!app", "a.b/c", "a=b,c=d", "k="])
def test_a_selector_is_a_filter_that_can_be_read(selector: str) -> None:
    parse_filter([" and ".join(label_words(selector))])


@pytest.mark.parametrize("selector", ["", "a b", "a=b c", 'a="b"', "a in (b)", "!a=b", "a=b)or(c", "-a"])
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(UsageError):
        label_words(selector)


def test_names_that_are_none_are_refused() -> None:
    for text in ("a b", "../x", 'x"', "pod/", "svc/x", "X"):
        with pytest.raises(UsageError):
            pod_of(text)
    with pytest.raises(UsageError):
        filter_words('a" or "', "", ())
    assert filter_words("", "", ("age", ">", "1h")) == ["age", ">", "1h"]


@pytest.mark.parametrize(
    "document", [{"findings": 5}, {"findings": [5, {"primary": True}]}, {"gaps": [1, {}]}, {"items": {}}]
)
def test_what_another_machine_says_may_have_any_shape(document: dict[str, Any]) -> None:
    for listed in (False, True):
        list(table([NodeAnswer("n", document)], listed=listed))
    gaps_of([NodeAnswer("n", document)])


# ── which pods are agents ────────────────────────────────────────────────────────────────────────────────

NO_AGENTS = {
    "of nobody": pod("n1", namespace="aaa", name="x", owner=None),
    "of nobody, in the agents' namespace": pod("n1", name="aaa", owner=None),
    "that names the DaemonSet of another namespace": pod("n1", namespace="aaa", name="x"),
    "of a DaemonSet that nobody knows": pod("n1", name="aaa", owner="d9"),
    "that cannot see the node": pod("n1", name="aaa", hostPID=False),
    "without the container that looks": pod("n1", name="aaa", containers=[{"name": "x"}]),
}


@pytest.mark.parametrize("other", NO_AGENTS.values(), ids=NO_AGENTS)
def test_a_pod_that_has_the_label_only_is_never_asked(
    cluster: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any]
) -> None:
    stored(cluster, other, daemon_set(), pod("n1"), pod("n2"))
    (cluster / other["metadata"]["name"]).write_text(json.dumps(answer(findings=[], items=[])))
    assert main(["-A"]) == 3
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()[1:]] == ["n1", "n2"]
    asked = {(words[words.index("-n") + 1], words[words.index("-n") + 2]) for words in calls(cluster, "exec")}
    assert asked == {("observe", "finwait-n1"), ("observe", "finwait-n2")}


@pytest.mark.parametrize("other", NO_AGENTS.values(), ids=NO_AGENTS)
def test_alone_it_is_no_agent_either(
    cluster: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any]
) -> None:
    stored(cluster, other, daemon_set())
    assert main(["-A"]) == 1
    assert "no agent runs in this cluster" in capsys.readouterr().err
    for command in (["clear", "--yes", "-A", "age > 1h"], ["top"], ["page"], ["list", "-A"]):
        assert main([command[0], "--node", "n1", *command[1:]]) == 1
        assert "no agent runs on node `n1`" in capsys.readouterr().err
    assert not calls(cluster, "exec")


@pytest.mark.parametrize("other", NO_AGENTS.values(), ids=NO_AGENTS)
def test_what_acts_asks_which_namespace_is_meant_where_another_pod_has_the_label(
    cluster: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any]
) -> None:
    stored(cluster, other, daemon_set(), pod("n1"), pod("n2"))
    for command in (["clear", "--yes", "-A", "age > 1h"], ["top"], ["page"], ["explain", "pod/cart-1"]):
        where = ["--node", "n1"] if command[0] != "explain" else []
        assert main([command[0], *where, *command[1:]]) == 1
        err = capsys.readouterr().err
        assert f"{other['metadata']['namespace']}/{other['metadata']['name']}" in err
        assert "--agents observe" in err
    assert not calls(cluster, "exec")
    run = "import sys; from finwait.kubectl.plugin import main; sys.exit(main(sys.argv[1:]))"
    words = ["clear", "--node", "n1", "-A", "--agents", "observe", "age > 1h"]
    subprocess.run([sys.executable, "-c", run, *words], check=False, capture_output=True, timeout=60)
    (words,) = calls(cluster, "exec")
    assert words[words.index("-n") + 2] == "finwait-n1"


def test_agents_of_several_namespaces_are_those_that_the_user_names(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = pod("n1", namespace="aaa", name="x", owner="d2")
    stored(cluster, daemon_set("aaa", "d2"), theirs, daemon_set(), pod("n1"), pod("n2"))
    (cluster / "x").write_text(json.dumps(answer(findings=[])))
    for command in (["-A"], ["list", "-A", "--node", "n1"], ["clear", "--node", "n1", "-A", "age > 1h"]):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert "aaa/finwait, observe/finwait" in err
        assert "--agents NS" in err
    assert not (cluster / "calls").exists() or not calls(cluster, "exec")
    assert main(["-A", "--agents", "observe"]) == 3
    assert {words[words.index("-n") + 2] for words in calls(cluster, "exec")} == {"finwait-n1", "finwait-n2"}


def test_two_agents_on_a_node_are_told_and_neither_is_asked(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaving = pod("n2", name="leaving")
    leaving["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z"
    second = daemon_set(uid="d2")
    stored(cluster, daemon_set(), second, pod("n1"), pod("n1", name="b", owner="d2"), pod("n2"), leaving)
    assert main(["-A"]) == 3
    out, err = capsys.readouterr()
    assert [row.split()[0] for row in out.splitlines()[1:]] == ["n2"]
    assert "several are there: observe/b, observe/finwait-n1" in err
    assert main(["clear", "--node", "n1", "-A", "age > 1h"]) == 1
    assert "several agents run on node `n1`" in capsys.readouterr().err


def test_without_the_right_to_see_all_namespaces_the_hint_says_what_to_type(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "pods.json").unlink()
    assert main(["-A"]) == 1
    assert "--agents NS" in capsys.readouterr().err


def test_a_node_is_recorded_into_a_file_here(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = CAPTURE.read_bytes()
    (cluster / "finwait-n2").write_bytes(whole)
    file = cluster / "n2.finwait"
    assert main(["record", "--node", "n2", str(file)]) in (0, 3)
    assert file.read_bytes() == whole
    assert f"`finwait --from {file}`" in capsys.readouterr().err
    (words,) = calls(cluster, "exec")
    assert words[words.index("--") + 1 :] == ["finwait", "record", "-"]
    assert main(["record", "--node", "n2", "--redact", str(file)]) == 3  # as the agent's finwait ended
    assert calls(cluster, "exec")[-1][-3:] == ["record", "--redact", "-"]


@pytest.mark.parametrize("part", [b"", b"x", "half"])
def test_a_recording_that_did_not_come_whole_replaces_nothing(
    cluster: Path, capsys: pytest.CaptureFixture[str], part: bytes | str
) -> None:
    whole = CAPTURE.read_bytes()
    (cluster / "finwait-n2").write_bytes(whole[:-20] if isinstance(part, str) else part)
    file = cluster / "n2.finwait"
    file.write_text("before")
    assert main(["record", "--node", "n2", str(file)]) == 1
    assert file.read_text() == "before"
    assert "error" in capsys.readouterr().err
    assert [path.name for path in cluster.glob(".*partial")] == []
