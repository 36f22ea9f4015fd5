"""What a setting is for decides what is said of it, and its value is read as the kernel reads it."""

from __future__ import annotations

import json

import pytest

from finwait.remedy.audit import audit, finding
from finwait.remedy.audit.finding import Judge
from finwait.remedy.settings.catalogue import CATALOGUE
from finwait.remedy.settings.model import Scope
from finwait.shipped import knowledge
from finwait.uapi.sysctl import parse_number

GLOBAL = [setting.key for setting in CATALOGUE if setting.scope is not Scope.NETNS]
FORMS = {
    "docker": ("run.sh", "docker run --rm --sysctl {key}={value} image"),
    "docker=": ("run.sh", 'docker run --sysctl="{key}={value}" image'),
    "podman": ("run.sh", "sudo podman create \\\n  --sysctl {key}={value} \\\n  image"),
    "podman pod": ("notes.md", "```sh\npodman pod create --sysctl '{key}={value}'\n```"),
    "quadlet": ("web.container", "[Container]\nImage=x\nSysctl={key}={value}\n"),
    "compose list": ("compose.yml", "services:\n  web:\n    sysctls:\n      - {key}={value}\n"),
    "compose": ("compose.yml", "services:\n  web:\n    image: x\n    sysctls:\n      {key}: {value}\n"),
    "compose 1": ("docker-compose.yml", "web:\n  image: x\n  sysctls:\n    {key}: '{value}'\n"),
    "ansible": (
        "play.yml",
        (
            "- hosts: all\n  tasks:\n    - docker_container:\n        image: x\n"
            "        sysctls:\n          {key}: {value}\n"
        ),
    ),
    "command list": ("x.yml", "runcmd:\n  - [docker, run, --sysctl, {key}={value}, image]\n"),
    "nomad": (
        "job.hcl",
        'task "x" {\n  driver = "docker"\n  config {\n    sysctl = {\n      "{key}" = "{value}"\n    }\n  }\n}\n',
    ),
}
HOST = {
    "docker": ("run.sh", "docker run --network host --sysctl {key}={value} image"),
    "docker=": ("run.sh", "docker run --net=host --sysctl={key}={value} image"),
    "compose": (
        "compose.yml",
        "services:\n  web:\n    network_mode: host\n    sysctls:\n      - {key}={value}\n",
    ),
}
POD = (
    "apiVersion: v1\nkind: Pod\nspec:\n{host}  securityContext:\n    sysctls:\n"
    "      - name: {key}\n        value: '{value}'\n"
)
NODE = {
    "sysctl.conf": ("sysctl.conf", "{key} = {value}"),
    "gke": ("node.yaml", "linuxNodeConfig:\n  sysctls:\n    {key}: '{value}'\n"),
    "shell": ("run.sh", "sysctl -w {key}={value}"),
}


def of(name: str, text: str, key: str, value: object, host: str = "") -> list[tuple[str, str]]:
    for old, new in (("{key}", key), ("{value}", str(value)), ("{host}", host)):
        text = text.replace(old, new)
    report = audit(name, text.encode(), knowledge())
    return [(f.verdict, f.reason) for f in report.findings if f.claim.startswith(key.rpartition(".")[0])]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", GLOBAL)
def test_a_container_that_sets_what_is_the_machine_s_does_not_start(key: str, form: str) -> None:
    ((verdict, reason),) = of(*FORMS[form], key, 100_000)
    assert verdict == "false"
    assert "belongs to the whole machine" in reason
    assert "the container does not start" in reason


@pytest.mark.parametrize("key", GLOBAL)
def test_a_pod_and_a_container_get_the_same_verdict(key: str) -> None:
    ((verdict, reason),) = of("pod.yaml", POD, key, 100_000)
    assert (verdict, "the pod does not start" in reason) == ("false", True)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_a_namespace_s_own_is_judged_in_a_container_as_anywhere(form: str) -> None:
    key, value = "net.netfilter.nf_conntrack_tcp_timeout_close_wait", 10
    anywhere = of(*NODE["sysctl.conf"], key, value)
    assert anywhere[0][0] == "harmful"
    assert of(*FORMS[form], key, value) == anywhere


@pytest.mark.parametrize("form", HOST)
def test_with_the_host_s_network_a_container_may_set_none(form: str) -> None:
    ((verdict, reason),) = of(*HOST[form], "net.ipv4.tcp_keepalive_time", 300)
    assert (verdict, "the host's network" in reason) == ("false", True)


def test_with_host_network_a_pod_may_set_none() -> None:
    ((verdict, reason),) = of("pod.yaml", POD, "net.ipv4.tcp_keepalive_time", 300, "  hostNetwork: true\n")
    assert (verdict, "hostNetwork" in reason) == ("false", True)
    ((verdict, _),) = of("pod.yaml", POD, "net.ipv4.tcp_keepalive_time", 300, "  hostNetwork: false\n")
    assert verdict == "conditional"


@pytest.mark.parametrize("form", NODE)
@pytest.mark.parametrize("key", GLOBAL)
def test_what_a_node_sets_is_no_container_s(key: str, form: str) -> None:
    for _, reason in of(*NODE[form], key, 100_000):
        assert "does not start" not in reason


@pytest.mark.parametrize(
    ("text", "number"),
    [("0x10", 16), ("0X1f", 31), ("010", 8), ("0", 0), ("-1", -1), ("60", 60), ("00", 0), ("-0x10", -16)],
)
def test_a_value_is_read_as_the_kernel_reads_it(text: str, number: int) -> None:
    """Each was written to a sysctl of a network namespace, and read back as this."""
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["08", "+5", "0b11", "1_0", "1e3", "0x", "", " 7", "7s", "٣", "12 13", "x"])
def test_what_the_kernel_refuses_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("key", "written", "plain"),
    [
        ("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "0x3c", "60"),
        ("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "074", "60"),
        ("net.ipv4.tcp_fin_timeout", "0x10", "16"),
        ("net.ipv4.tcp_orphan_retries", "0400", "256"),
    ],
)
def test_hexadecimal_and_octal_values_are_judged_by_what_they_are(key: str, written: str, plain: str) -> None:
    for name, text in NODE.values():
        assert of(name, text, key, written) == of(name, text, key, plain) != []


def test_a_number_that_begins_with_0_and_is_no_octal_one_is_refused() -> None:
    ((verdict, reason),) = of(*NODE["sysctl.conf"], "net.ipv4.tcp_fin_timeout", "08")
    assert (verdict, "octal" in reason) == ("false", True)


LOOP = """
- sysctl:
    name: "{{ item.k }}"
    value: "{{ item.v }}"
  LOOP
"""


@pytest.mark.parametrize(
    ("loop", "computed"),
    [
        ("loop: [{k: net.ipv4.tcp_tw_recycle, v: 1}]", False),
        ("with_items: [{key: net.ipv4.tcp_tw_recycle, value: 1}, {key: vm.swappiness, value: 1}]", False),
        ("with_dict: {net.ipv4.tcp_tw_recycle: 1}", False),
        ('loop: "{{ settings }}"', True),
        ('loop: [{k: net.ipv4.tcp_tw_recycle, v: 1}, "{{ more }}"]', True),
        ("loop: [{a: net.ipv4.tcp_tw_recycle, b: 1}]", True),
    ],
)
def test_of_a_loop_whose_items_were_judged_nothing_is_left_to_judge(loop: str, computed: bool) -> None:
    report = audit("play.yml", LOOP.replace("LOOP", loop).encode(), knowledge())
    assert any("computed" in one.reason for one in report.unjudged) == computed
    if not computed:
        assert [f.claim for f in report.findings] == ["net.ipv4.tcp_tw_recycle = 1"]


def test_json_is_told_alike() -> None:
    text = json.dumps({"services": {"x": {"sysctls": {GLOBAL[0]: 5}}}})
    assert of("compose.json", text, GLOBAL[0], 5)[0][0] == "false"


def test_every_name_that_is_gone_is_spoken_of() -> None:
    assert all(Judge._spoken_of(name) for name in knowledge().names.gone)
    assert all(Judge._spoken_of(setting.key.replace(".", "/")) for setting in CATALOGUE)
    assert not Judge._spoken_of("net.ipv4.conf.all.rp_filter")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("net.ipv4.conf.eth{0}.rp_filter = 1", 0),
        ("net.ipv4.tcp_fin_timeout = 60", 10_000),
        ("net.ipv4.tcp_fin_timeout = {0}", 10_000),
        ("net.ipv4.tcp_made_up_{0} = 1", 10_000),
    ],
)
def test_a_file_of_very_many_lines_costs_no_more_than_its_length(
    line: str, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: what is costly is done so often at most, and the report has a bound, which is said."""
    suggested: list[str] = []
    judged: list[str] = []
    real = Judge._of_sysctl

    def judge(self: Judge, name: str, *rest: object) -> object:
        judged.append(name)
        return real(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Judge, "_of_sysctl", judge)

    def suggest(name: str, _: object) -> tuple[str, ...]:
        suggested.append(name)
        return ()

    monkeypatch.setattr(finding, "suggest", suggest)
    text = "".join(line.format(k) + "\n" for k in range(20_000))
    report = audit("x.conf", text.encode(), knowledge(), kind="sysctl")
    assert report.statements == 20_000
    assert len(report.findings) == said
    assert len(judged) <= said + 1
    assert len(suggested) <= 200
    assert [p.reason for p in report.problems] == (
        ["more than 10,000 findings: those from here on are not listed"] if said else []
    )
