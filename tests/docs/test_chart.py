"""The Helm chart: as few rights as looking needs, what is optional is off, and every copy equals its source.

What the committed manifests say needs no Helm; what asks Helm is skipped where it is missing (`make chart` fetches it).
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from deploy.render import COPIES, chart_digest, manifest

from finwait import __version__
from finwait.agent.config_file import ConfigTable, interval_ms_of, read_config, share_of
from finwait.agent.policy_file import parse_policy
from finwait.kubectl.agents import SELECTOR, LabelledObject, pods_of_agents
from tests import chart
from tests.chart import CHART, MANIFEST, Objects, helm, rendered

DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
ROOT = Path(__file__).parents[2]
VERSIONS = [f"1.{minor}" for minor in range(28, 38)]
PLAIN = Objects(MANIFEST.read_text())

EVERYTHING: dict[str, Any] = {
    "namespace": {"create": True},
    "serve": {"tokenSecret": {"name": "finwait-token"}, "tlsSecret": {"name": "finwait-tls"}},
    "serviceMonitor": {"create": True, "labels": {"release": "p"}, "tlsConfig": {"insecureSkipVerify": True}},
    "prometheusRule": {"create": True, "labels": {"release": "p"}},
    "grafanaDashboard": {"create": True},
    "networkPolicy": {"create": True, "from": [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}]},
    "imagePullSecrets": [{"name": "pull"}],
    "image": {"repository": "example.org/finwait", "digest": "sha256:" + "0" * 64},
    "seLinuxOptions": {"type": "spc_t"},
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "commonLabels": {"team": "net"},
    "priorityClassName": "system-node-critical",
    "serviceAccount": {"annotations": {"e": "f"}},
    "service": {"annotations": {"g": "h"}},
}
MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "the node's network": {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
    "the node's network, scraped": {
        "hostNetwork": True,
        "serve": {"address": "10.0.0.7"},
        "serviceMonitor": {"create": True},
    },
    "no API": {"kubernetesApi": {"enabled": False}, "networkPolicy": {"create": True}},
    "no service account of its own": {"serviceAccount": {"create": False, "name": "mine"}},
    "no recorder": {"agent": {"recordStates": False}},
    "no events": {"kubernetesApi": {"events": False}},
    "names of digits": {
        "fullnameOverride": "on",
        "nameOverride": "123",
        "serviceAccount": {"name": "1"},
        "serve": {"tokenSecret": {"name": "123", "key": "1"}, "tlsSecret": {"name": "true"}},
        "priorityClassName": "1e3",
        "commonLabels": {"a": "1"},
        "podLabels": {"b": "true"},
    },
    "own names": {"fullnameOverride": "watcher", "nameOverride": "watch"},
    "a policy that acts": {"policy": {"allowActs": True}},
    "localhost profile": {"seccompProfile": {"type": "Localhost", "localhostProfile": "finwait.json"}},
    "AppArmor by default": {"appArmorProfile": ""},
    "updates by hand": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}},
}
CAPABILITIES = {"SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "DAC_READ_SEARCH"}
TO_BE_ANOTHER = {"SETUID", "SETGID"}
"""What follows the API server gives up all rights, its user too."""
RIGHTS = {
    ("", "pods", "list"), ("", "pods", "watch"), ("", "services", "list"), ("", "services", "watch"),
    ("", "namespaces", "list"), ("", "namespaces", "watch"),
    ("discovery.k8s.io", "endpointslices", "list"), ("discovery.k8s.io", "endpointslices", "watch"),
    ("", "events", "create"), ("", "events", "patch"),
}  # fmt: skip


def rights(objects: Objects) -> set[tuple[str, str, str]]:
    """Return what the roles allow: group, resource, verb."""
    assert not objects.of("Role")
    return {
        triple
        for role in objects.of("ClusterRole")
        for rule in role["rules"]
        for triple in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


def check_rights_of_the_pod(objects: Objects) -> None:
    """What every way to install it has in common."""
    pod, looker, server = objects.pod, objects.container("looker"), objects.container("server")
    assert len(pod["containers"]) == 2
    assert "initContainers" not in pod
    assert pod["hostPID"] is True
    assert "hostIPC" not in pod
    assert pod["automountServiceAccountToken"] is False
    for container in (looker, server):
        security = container["securityContext"]
        assert security["privileged"] is False
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        assert {"requests", "limits"} == set(container["resources"])
        assert "livenessProbe" in container
    follows = any(mount["name"] == "api" for mount in looker["volumeMounts"])
    held = set(looker["securityContext"]["capabilities"]["add"])
    assert held == CAPABILITIES | (TO_BE_ANOTHER if follows else set())
    assert looker["securityContext"]["runAsUser"] == 0
    assert "ports" not in looker, "what has rights opens no network socket"
    assert "add" not in server["securityContext"]["capabilities"]
    assert server["securityContext"]["runAsNonRoot"] is True
    assert server["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"]
    assert server["securityContext"]["runAsUser"] not in (0, 65532, 65534), "others run as these"
    assert "readinessProbe" in server

    mounts = {c["name"]: {m["name"]: m for m in c["volumeMounts"]} for c in pod["containers"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert set(volumes) == {name for of in mounts.values() for name in of}
    hosts = {v["hostPath"]["path"] for v in volumes.values() if "hostPath" in v}
    assert hosts <= {"/sys/fs/cgroup", "/var/lib/finwait", "/run/finwait"}
    assert mounts["looker"]["cgroup"]["readOnly"] is True
    assert not any("hostPath" in volumes[name] for name in mounts["server"])
    assert "api" not in mounts["server"], "what faces a network has no token of the API"
    assert not {"token", "tls"} & set(mounts["looker"])
    environment = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in looker["env"]}
    assert environment["NODE_NAME"] == "spec.nodeName"
    for volume in volumes.values():
        if "configMap" in volume or "secret" in volume:  # the folder itself can be written to by everybody
            for of in mounts.values():
                assert all("subPath" in m for m in of.values() if m["name"] == volume["name"])


def follows_and_tells(data: dict[str, str]) -> tuple[bool, bool]:
    """Return whether the agent of a ConfigMap follows the API server, and whether it writes Events."""
    table = read_config(data["finwait.toml"].encode(), "finwait.toml").typed(ConfigTable).agent
    return table.kubernetes != "off", table.kube_events


# ── without Helm ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_plain_manifests_give_the_pod_what_it_needs_and_nothing_more() -> None:
    check_rights_of_the_pod(PLAIN)
    assert PLAIN.pod["hostNetwork"] is False
    assert PLAIN.pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert PLAIN.pod["tolerations"] == [{"operator": "Exists"}]
    assert rights(PLAIN) == RIGHTS


def test_the_plain_manifests_are_of_this_chart_and_version() -> None:
    assert f"# {chart_digest()}\n" in MANIFEST.read_text(), "stale: `make manifests`"
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == __version__
    image = {c["image"] for c in PLAIN.pod["containers"]}
    assert image == {f"localhost/finwait:{__version__}"}


def test_the_plain_manifests_say_which_servers_know_their_fields() -> None:
    assert "appArmorProfile" in PLAIN.container("looker")["securityContext"]  # since 1.30
    assert "# For Kubernetes 1.30 and later." in MANIFEST.read_text()


@pytest.mark.parametrize("path", COPIES, ids=[path.name for path in COPIES])
def test_a_copy_in_the_chart_equals_its_source(path: Path) -> None:
    assert path.read_bytes() == COPIES[path].read_bytes(), "stale: `make manifests`"


def test_everything_optional_is_off() -> None:
    kinds = sorted(item["kind"] for item in PLAIN.all)
    assert kinds == [
        "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "Namespace", "Service", "ServiceAccount",
    ]  # fmt: skip


def test_the_configuration_is_right_and_nothing_acts() -> None:
    data = PLAIN.only("ConfigMap")["data"]
    table = read_config(data["finwait.toml"].encode(), "finwait.toml").tables["agent"]
    assert table["no_act"] is True
    assert follows_and_tells(data) == (True, True), "a right that nothing uses"
    assert parse_policy(data["policy.toml"].encode(), "policy.toml").mode == "observe"
    looker = {m["mountPath"]: m for m in PLAIN.container("looker")["volumeMounts"]}
    assert looker[table["policy"]]["subPath"] == "policy.toml"
    for key in ("state_dir", "socket", "serve_socket", "kill_switch"):
        mounted = [m for path, m in looker.items() if f"{table[key]}/".startswith(f"{path}/")]
        assert len(mounted) == 1, f"{key} is in no volume"
        assert "readOnly" not in mounted[0]
    arguments = PLAIN.container("server")["args"]
    assert f"--serve-socket={table['serve_socket']}" in arguments
    assert f"--interval={table['interval']}" in arguments


def test_labels_select_what_they_should() -> None:
    pod = PLAIN.only("DaemonSet")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        PLAIN.only("DaemonSet")["spec"]["selector"]["matchLabels"],
        PLAIN.only("Service")["spec"]["selector"],
    ):
        assert selector.items() <= pod.items()
    assert "app.kubernetes.io/version" not in PLAIN.only("DaemonSet")["spec"]["selector"]["matchLabels"]


@pytest.mark.parametrize("values", [None, {"nameOverride": "obs", "fullnameOverride": "watcher"}])
def test_the_plugin_finds_the_agents_whatever_their_name_is(values: dict[str, Any] | None) -> None:
    """By a label of its own, and by what else an agent has."""
    objects = PLAIN if values is None else rendered(values)
    daemon_set = objects.only("DaemonSet")
    key, _, value = SELECTOR.partition("=")
    template = daemon_set["spec"]["template"]
    for labels in (daemon_set["metadata"]["labels"], template["metadata"]["labels"]):
        assert labels[key] == value
    assert key not in daemon_set["spec"]["selector"]["matchLabels"]  # which cannot be changed by an upgrade
    daemon_set["metadata"]["uid"] = "u"
    owner = {"kind": "DaemonSet", "uid": "u", "controller": True}
    pod = {
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "finwait", "ownerReferences": [owner]},
        "spec": template["spec"] | {"nodeName": "n1"},
        "status": {"phase": "Running"},
    }
    found = pods_of_agents(msgspec.convert([daemon_set, pod], list[LabelledObject]))
    assert [agent.path for agent in found.one_a_node] == ["finwait/p"]


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return values as Helm merges them."""
    result = copy.deepcopy(values)
    for key, value in more.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return result


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_schema_takes_what_can_be_meant(values: dict[str, Any]) -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(merged(DEFAULTS, values), SCHEMA)


def keys(values: dict[str, Any], schema: dict[str, Any], way: str = "") -> set[str]:
    """Return the objects of the values whose schema takes unknown keys; and check that known ones are the same."""
    assert set(values) <= set(schema["properties"]), way
    wide = set()
    for key, value in values.items():
        below = schema["properties"][key]
        if isinstance(value, dict) and "properties" in below:
            assert below["additionalProperties"] is False, f"{way}.{key}"
            wide |= keys(value, below, f"{way}.{key}")
        elif isinstance(value, dict):
            wide.add(f"{way}.{key}".removeprefix("."))
    return wide


def test_the_schema_knows_every_value_and_refuses_unknown_keys() -> None:
    assert SCHEMA["additionalProperties"] is False
    assert keys(DEFAULTS, SCHEMA) == {
        "commonLabels", "serviceAccount.annotations", "podAnnotations", "podLabels", "nodeSelector", "affinity",
        "service.annotations", "serviceMonitor.labels", "serviceMonitor.tlsConfig", "prometheusRule.labels",
        "grafanaDashboard.labels", "grafanaDashboard.annotations", "updateStrategy.rollingUpdate",
    }  # fmt: skip


WRONG: dict[str, dict[str, Any]] = {
    "an unknown key": {"hostnetwork": True},
    "an unknown key below": {"agent": {"shares": "1%"}},
    "text for a switch": {"hostNetwork": "yes"},
    "a privileged port": {"serve": {"port": 80}},
    "a port as text": {"serve": {"port": "9944"}},
    "root": {"serve": {"user": 0}},
    "no share": {"agent": {"share": "much"}},
    "a relative path": {"agent": {"stateDir": "var"}},
    "a profile that is none": {"seccompProfile": {"type": "Off"}},
    "a profile without a name": {"seccompProfile": {"type": "Localhost"}},
    "a digest that is none": {"image": {"digest": "latest"}},
    "a label that is no text": {"podLabels": {"a": 1}},
    "two agents on one node at once": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}},
    "a list for a map": {"nodeSelector": ["linux"]},
    "more than there is": {"agent": {"share": "200%"}},
    "nothing of it": {"agent": {"share": "0%"}},
    "no pause": {"agent": {"interval": "0s"}},
    "a pause that is too long": {"agent": {"interval": "6m"}},
    "an address without brackets": {"serve": {"address": "::"}},
    "a name with a space": {"nameOverride": "Foo Bar"},
    "a name that no Service has": {"fullnameOverride": "Foo_Bar"},
    "a label of the selector": {"podLabels": {"app.kubernetes.io/name": "x"}},
    "a label of the chart": {"commonLabels": {"app.kubernetes.io/instance": "x"}},
    "the label of the agents": {"podLabels": {"finwait.io/agent": "false"}},
    "an address that no IPv4 has": {"serve": {"address": "999.1.1.1"}},
    "an address that no IPv6 has": {"serve": {"address": "[1.2.3.4]"}},
    "a quantity of dots": {"agent": {"resources": {"limits": {"memory": "."}}}},
    "a quantity with a suffix that is none": {"serve": {"resources": {"limits": {"memory": "1K"}}}},
    "a path that leads back": {"agent": {"stateDir": "/var/../etc"}},
    "a name with two dots": {"serve": {"tokenSecret": {"name": "a..b"}}},
    "a key that no Secret has": {"serve": {"tokenSecret": {"key": "a/b"}}},
    "a label's name with a space": {"podLabels": {"a b": "c"}},
    "a label's value with a space": {"commonLabels": {"a": "b c"}},
    "egress to everywhere": {"networkPolicy": {"apiPorts": []}},
}


@pytest.mark.parametrize(
    "text", ["0.01%", "0.05", "0.5%", "1%", "10", "99.5 %", "100%", "0.005%", "0%", "100.5%"]
)
def test_the_schema_takes_the_shares_that_the_agent_takes(text: str) -> None:
    right = jsonschema.Draft7Validator(SCHEMA["properties"]["agent"]["properties"]["share"]).is_valid(text)
    try:
        share_of(text)
    except ValueError:
        assert not right
    else:
        assert right


@pytest.mark.parametrize(
    "text", ["1s", "15s", "1.5s", "299 s", "300s", "300.5s", "5m", "1 m", "0s", "0.5s", "301s", "6m", "x"]
)
def test_the_schema_takes_the_intervals_that_the_agent_takes(text: str) -> None:
    right = jsonschema.Draft7Validator(SCHEMA["properties"]["agent"]["properties"]["interval"]).is_valid(text)
    try:
        interval_ms_of(text)
    except ValueError:
        assert not right
    else:
        assert right


def test_ports_that_are_taken_away_leave_no_egress_to_everywhere() -> None:
    values = copy.deepcopy(DEFAULTS)
    del values["networkPolicy"]["apiPorts"]  # as Helm does with null
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_the_schema_refuses_what_cannot_be_meant(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(DEFAULTS, values), SCHEMA)


def plain(place: str) -> bool:
    """Whether a value is a number, a switch or one of some words, which YAML reads as what it is."""
    schema = SCHEMA
    for key in place.split("."):
        schema = schema["properties"][key]
    return schema["type"] in ("integer", "boolean") or "enum" in schema


@pytest.mark.parametrize("path", sorted(CHART.glob("templates/*.yaml")), ids=lambda path: path.name)
def test_text_is_quoted_where_it_could_read_as_a_number_or_a_switch(path: Path) -> None:
    for action in re.findall(r"\{\{ (.*?) \}\}", path.read_text()):
        text, _, last = action.rpartition(" | ")
        if last == "quote" or last.startswith("nindent ") or (text and last == "sha256sum"):
            continue
        assert action in (
            ".",
            'ternary "unconfined" "runtime/default" (eq .Values.appArmorProfile "Unconfined")',
        ) or (action.startswith(".Values.") and plain(action.removeprefix(".Values."))), action


def test_the_place_of_the_kill_switch_is_said_as_the_values_have_it() -> None:
    assert "/var/lib/finwait/no-act" not in (CHART / "values.yaml").read_text()
    assert "{{ .Values.agent.stateDir" in (CHART / "templates/NOTES.txt").read_text()


def test_every_value_is_used_by_a_template() -> None:
    text = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())

    def leaves(values: dict[str, Any], way: str) -> list[str]:
        found = []
        for key, value in values.items():
            name = f"{way}.{key}"
            whole = re.search(rf"\.Values{re.escape(name)}(?![\w.])", text)
            if isinstance(value, dict) and value and not whole:
                found += leaves(value, name)
            elif not whole:
                found.append(name)
        return found

    assert leaves(DEFAULTS, "") == []


# ── with Helm ────────────────────────────────────────────────────────────────────────────────────────────


def test_helm_finds_nothing_to_say_about_the_chart() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("WARNING|ERROR", done.stdout)


def test_the_plain_manifests_are_what_helm_makes() -> None:
    helm("version")  # or a skip
    assert MANIFEST.read_text() == manifest("helm"), "stale: `make manifests`"


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_whatever_is_chosen_the_pod_gets_no_more_rights(values: dict[str, Any]) -> None:
    objects = rendered(values)
    check_rights_of_the_pod(objects)
    api = {**DEFAULTS["kubernetesApi"], **values.get("kubernetesApi", {})}
    allowed = set(RIGHTS if api["enabled"] else ())
    if not api["events"]:
        allowed -= {("", "events", "create"), ("", "events", "patch")}
    assert rights(objects) == allowed
    for binding in objects.of("ClusterRoleBinding"):
        assert binding["roleRef"]["name"] == objects.only("ClusterRole")["metadata"]["name"]
        assert binding["subjects"][0]["name"] == objects.pod["serviceAccountName"]
    assert any(v["name"] == "api" for v in objects.pod["volumes"]) is api["enabled"]
    assert all(
        item["metadata"].get("namespace") in ("finwait", None) and item["metadata"]["labels"]
        for item in objects.all
    )
    (data,) = (c["data"] for c in objects.of("ConfigMap") if "finwait.toml" in c["data"])
    table = read_config(data["finwait.toml"].encode(), "finwait.toml").tables["agent"]
    assert table["no_act"] is not values.get("policy", {}).get("allowActs", False)
    assert follows_and_tells(data) == (api["enabled"], api["enabled"] and api["events"])


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_what_the_values_say_reaches_the_agent(values: dict[str, Any]) -> None:
    """Each right that is granted is used, and what is switched off is not tried."""
    objects, whole = rendered(values), merged(DEFAULTS, values)
    (data,) = (c["data"] for c in objects.of("ConfigMap") if "finwait.toml" in c["data"])
    table = read_config(data["finwait.toml"].encode(), "finwait.toml").typed(ConfigTable).agent
    agent, api = whole["agent"], whole["kubernetesApi"]
    assert (table.share, table.interval) == (agent["share"], agent["interval"])
    assert (table.record_states, table.record_rate) == (agent["recordStates"], agent["recordRate"])
    assert table.no_act is not whole["policy"]["allowActs"]
    assert table.kubernetes == ("auto" if api["enabled"] else "off")
    assert table.kube_events is (api["enabled"] and api["events"])
    assert (("", "events", "create") in rights(objects)) is table.kube_events
    assert ("SETUID" in objects.container("looker")["securityContext"]["capabilities"]["add"]) is api[
        "enabled"
    ]


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_helm_refuses_what_the_schema_refuses(values: dict[str, Any]) -> None:
    done = helm("template", "finwait", str(CHART), values=values)
    assert done.returncode != 0
    assert "schema" in done.stderr


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"serve": {"address": "127.0.0.1"}}, "neither probes nor Prometheus"),
        ({"hostNetwork": True, "serviceMonitor": {"create": True}}, "needs serve.address"),
        ({"hostNetwork": True, "networkPolicy": {"create": True}}, "guards nothing"),
        ({"commonLabels": {"a": "b"}, "podLabels": {"a": "c"}}, "one of commonLabels"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_what_to_do(
    values: dict[str, Any], said: str
) -> None:
    done = helm("template", "finwait", str(CHART), values=values)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_path_is_taken_as_it_is() -> None:
    agent = {"stateDir": "/var/lib/a, b: {c}", "runDir": "/run/x, type: File"}
    volumes = rendered({"agent": agent}).pod["volumes"]
    hosts = {v["name"]: v["hostPath"] for v in volumes if "hostPath" in v}
    assert hosts["state"] == {"path": agent["stateDir"], "type": "DirectoryOrCreate"}
    assert hosts["run"] == {"path": agent["runDir"], "type": "DirectoryOrCreate"}


def test_a_release_whose_name_no_service_has_is_refused() -> None:
    for name in ("123", "a.b"):
        done = helm("template", name, str(CHART))
        assert done.returncode != 0
        assert "fullnameOverride" in done.stderr
        assert helm("template", name, str(CHART), values={"service": {"create": False}}).returncode == 0


def test_rules_and_dashboard_come_out_as_they_are() -> None:
    objects = rendered(EVERYTHING)
    rules = yaml.safe_load((CHART / "files/rules.yml").read_text())
    assert objects.only("PrometheusRule")["spec"] == rules
    (dashboard,) = (c for c in objects.of("ConfigMap") if "finwait.json" in c["data"])
    assert json.loads(dashboard["data"]["finwait.json"]) == json.loads(
        (CHART / "files/finwait.json").read_text()
    )
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_another_configuration_starts_other_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = rendered(values).only("DaemonSet")["spec"]["template"]
        text: str = template["metadata"]["annotations"]["checksum/config"]
        return text

    assert checksum({}) == checksum({"commonLabels": {"a": "b"}})
    others: list[dict[str, Any]] = [
        {"agent": {"share": "2%"}},
        {"policy": {"allowActs": True}},
        {"policy": {"toml": 'name = "x"'}},
    ]
    assert len({checksum({}), *map(checksum, others)}) == 4


def test_apparmor_is_said_in_the_way_that_the_server_knows() -> None:
    old, new = (rendered(None, "--kube-version", version) for version in ("1.29.0", "1.30.0"))
    annotation = "container.apparmor.security.beta.kubernetes.io/looker"
    template = old.only("DaemonSet")["spec"]["template"]
    assert template["metadata"]["annotations"][annotation] == "unconfined"
    assert "appArmorProfile" not in old.container("looker")["securityContext"]
    assert new.container("looker")["securityContext"]["appArmorProfile"] == {"type": "Unconfined"}
    assert annotation not in new.only("DaemonSet")["spec"]["template"]["metadata"]["annotations"]


def test_notes_say_what_to_type() -> None:
    words = ("install", "finwait", str(CHART), "--namespace", "finwait", "--dry-run=client")
    for values in ({}, EVERYTHING, MATRIX["the node's network"], MATRIX["a policy that acts"]):
        done = helm(*words, values=values)
        assert done.returncode == 0, done.stderr
        notes = done.stdout.partition("NOTES:\n")[2]
        assert "kubectl -n finwait rollout status ds/finwait" in notes
        assert "app.kubernetes.io/name=finwait,app.kubernetes.io/instance=finwait" in notes
        assert "exec $POD -- finwait" in notes
    acting = {"policy": {"allowActs": True}, "agent": {"stateDir": "/data/x/"}}
    assert "touch /data/x/no-act" in helm(*words, values=acting).stdout


VALIDATE = """
import json, sys
import kubernetes_validate
problems = []
for name, items in json.load(sys.stdin).items():
    for version in sys.argv[1:]:
        if version not in {".".join(v.split(".")[:2]) for v in kubernetes_validate.utils.all_versions()}:
            problems.append(f"no schemas of {version}")
        for item in items:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                if not item["apiVersion"].startswith("monitoring.coreos.com/"):
                    problems.append(f"{name} {version}: no schema of {item['kind']}")
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{name} {version} {item['kind']}: {list(error.path)}: {error.message}")
json.dump(problems, sys.stdout)
"""


def validated(documents: dict[str, list[dict[str, Any]]], *versions: str) -> list[str]:
    """Return what Kubernetes' own schemas find wrong in them."""
    program = chart.validator()
    words = [str(program), "-c", VALIDATE, *versions]
    done = subprocess.run(words, input=json.dumps(documents), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    problems: list[str] = json.loads(done.stdout)
    return problems


def test_kubernetes_schemas_take_all_that_is_made() -> None:
    documents = {
        f"{name}, {version}": rendered(values, "--kube-version", f"{version}.0").all
        for name, values in MATRIX.items()
        for version in ("1.28", "1.37")
    }
    for made in (
        "1.28",
        "1.37",
    ):  # the one that is made for an old server is for those up to the next way to say it
        versions = [v for v in VERSIONS if (int(v[2:]) < 30) == (made == "1.28")]
        of_this = {name: items for name, items in documents.items() if name.endswith(made)}
        assert validated(of_this, *versions) == []


def test_kubernetes_schemas_take_the_pod_for_one_look_which_has_the_same_rights() -> None:
    pod = Objects((ROOT / "examples/kubernetes/debug-pod.yaml").read_text())
    security = pod.only("Pod")["spec"]["containers"][0]["securityContext"]
    assert set(security["capabilities"]["add"]) == CAPABILITIES
    assert validated({"pod": pod.all}, *VERSIONS) == []


def test_kubernetes_schemas_would_refuse_a_wrong_one() -> None:
    wrong = copy.deepcopy(PLAIN.all)
    (item,) = (i for i in wrong if i["kind"] == "DaemonSet")
    item["spec"]["template"]["spec"]["hostPID"] = "yes"
    item["spec"]["template"]["spec"]["hostPid"] = True
    assert len(validated({"wrong": wrong}, "1.37")) == 1
