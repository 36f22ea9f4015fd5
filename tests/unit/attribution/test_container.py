from __future__ import annotations

import pytest

from finwait.attribution.container import NOWHERE, RULES, Workload, workload_of_cgroups, workload_of_path
from finwait.uapi.proc import parse_cgroup

ID = "9f0c5c7e5d6b4b7b8ad0f2a44e0e4b0c7d9f5e3a1b2c3d4e5f60718293a4b5c6"
NODE = "1" * 64
UID = "0c5ed5a2-3b1f-4c49-9d6e-0a7c2e3f4b5d"
UID_ = UID.replace("-", "_")
HASH = "3f1a2b4c5d6e7f8091a2b3c4d5e6f708"

BURSTABLE = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod"

PATHS = {
    # kubelet with the systemd driver
    f"{BURSTABLE}{UID_}.slice/cri-containerd-{ID}.scope": (Workload("containerd", ID, UID, "burstable")),
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{ID}.scope": (
        Workload("cri-o", ID, UID, "besteffort")
    ),
    f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope": (
        Workload("containerd", ID, UID, "guaranteed")
    ),
    f"{BURSTABLE}{HASH}.slice/crio-{ID}.scope/container": (Workload("cri-o", ID, HASH, "burstable")),
    f"{BURSTABLE}{UID_}.slice/docker-{ID}.scope": (Workload("docker", ID, UID, "burstable")),
    f"{BURSTABLE}{UID_}.slice/crio-conmon-{ID}.scope": (
        Workload("", "", UID, "burstable", f"crio-conmon-{ID}.scope")
    ),
    f"{BURSTABLE}{UID_}.slice": (Workload("", "", UID, "burstable")),
    # containerd left on cgroupfs under a kubelet with the systemd driver
    f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}": (
        Workload("containerd", ID, UID, "burstable")
    ),
    # kubelet with the cgroupfs driver: the path does not tell the runtime
    f"/kubepods/burstable/pod{UID}/{ID}": Workload("", ID, UID, "burstable"),
    f"/kubepods/besteffort/pod{UID}/{ID}": Workload("", ID, UID, "besteffort"),
    f"/kubepods/pod{UID}/{ID}": Workload("", ID, UID, "guaranteed"),
    f"/kubepods/burstable/pod{HASH}/{ID}": Workload("", ID, HASH, "burstable"),
    f"/kubepods/burstable/pod{UID}/crio-{ID}": Workload("cri-o", ID, UID, "burstable"),
    f"/kubepods/burstable/pod{UID}/web": Workload("", "web", UID, "burstable"),
    f"/kubepods/burstable/pod{UID}": Workload("", "", UID, "burstable"),
    # nested: kind, k3s, Docker in Docker, a container that runs systemd
    f"/docker/{NODE}/kubelet/kubepods/burstable/pod{UID}/{ID}": Workload("", ID, UID, "burstable"),
    f"/system.slice/docker-{NODE}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
    f"/kubelet-kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope": (
        Workload("containerd", ID, UID, "besteffort")
    ),
    f"/system.slice/k3s.service/kubepods/besteffort/pod{UID}/{ID}": Workload("", ID, UID, "besteffort"),
    f"/kubepods/burstable/pod{UID}/{NODE}/docker/{ID}": Workload("docker", ID, UID, "burstable"),
    f"/docker/{ID}/system.slice/nginx.service": Workload("docker", ID, unit="nginx.service"),
    f"/docker/{NODE}/docker/{ID}": Workload("docker", ID),
    f"/../../pod{UID}/{ID}": Workload("", ID, UID),
    f"/../cri-containerd-{ID}.scope": Workload("containerd", ID),
    # runtimes by themselves
    f"/docker/{ID}": Workload("docker", ID),
    f"/system.slice/docker-{ID}.scope": Workload("docker", ID, unit="system.slice"),
    f"/machine.slice/libpod-{ID}.scope": Workload("podman", ID, unit="machine.slice"),
    f"/machine.slice/libpod-{ID}.scope/container": Workload("podman", ID, unit="machine.slice"),
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container": (
        Workload("podman", ID, unit="user@1000.service")
    ),
    f"/libpod_parent/libpod-{ID}": Workload("podman", ID),
    f"/system.slice/web.service/libpod-payload-{ID}": Workload("podman", ID, unit="web.service"),
    f"/ecs/{HASH}/{ID}": Workload("", ID),
    "/lxc/web1": Workload("lxc", "web1"),
    "/lxc.payload/web1": Workload("lxc", "web1"),
    "/lxc.payload.web1": Workload("lxc", "web1"),
    "/lxc.payload.web1/system.slice/cron.service": Workload("lxc", "web1", unit="cron.service"),
    "/machine.slice/machine-build\\x2dhost.scope": Workload("machined", "build-host", unit="machine.slice"),
    # no container
    "/system.slice/foo.service": Workload(unit="foo.service"),
    "/system.slice/system-getty.slice/getty@tty1.service": Workload(unit="getty@tty1.service"),
    "/user.slice/user-1000.slice/session-3.scope": Workload(unit="session-3.scope"),
    "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.service": Workload(unit="app-x.service"),
    "/user.slice/user-1000.slice": Workload(unit="user-1000.slice"),
    "/system.slice/delegating.service/kubepods-not-a-pod": Workload(unit="delegating.service"),
    "/init.scope": Workload(unit="init.scope"),
    "/": NOWHERE,
    "": NOWHERE,
    "/docker": NOWHERE,
    "/docker/buildx": NOWHERE,
    "/podcast": NOWHERE,
    "/process_api/" + HASH: NOWHERE,
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_tells_its_workload(path: str) -> None:
    assert workload_of_path(path) == PATHS[path]


def test_every_rule_is_needed_by_some_path() -> None:
    used: set[str] = set()
    for path in PATHS:
        above = ""
        for component in path.split("/"):
            for rule in RULES:
                if rule.name.fullmatch(component) and (not rule.below or rule.below.fullmatch(above)):
                    used.add(rule.source)
                    break
            above = component
    assert {rule.source for rule in RULES} - used == {"nerdctl, systemd driver"}
    assert workload_of_path(f"/user.slice/nerdctl-{ID}.scope").runtime == "containerd"


def test_the_hierarchy_that_tells_most_speaks() -> None:
    lines = parse_cgroup(
        f"12:pids:/kubepods/burstable/pod{UID}/{ID}\n"
        "1:name=systemd:/system.slice/containerd.service\n"
        "0::/\n".encode()
    )
    assert workload_of_cgroups(lines) == Workload("", ID, UID, "burstable")


def test_among_equals_cgroup_v2_speaks_and_then_systemd() -> None:
    both = b"3:cpu:/system.slice/c.service\n1:name=systemd:/system.slice/b.service\n"
    assert workload_of_cgroups(parse_cgroup(both)).unit == "b.service"
    assert workload_of_cgroups(parse_cgroup(both + b"0::/system.slice/a.service\n")).unit == "a.service"


def test_no_cgroup_lines_tell_nothing() -> None:
    assert workload_of_cgroups(()) == NOWHERE


def test_a_removed_cgroup_still_tells() -> None:
    lines = parse_cgroup(f"0::/system.slice/docker-{ID}.scope (deleted)\n".encode())
    assert lines[0].deleted
    assert workload_of_cgroups(lines).container_id == ID
