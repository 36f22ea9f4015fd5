"""One node of Kubernetes in the namespaces of this process.

Called inside a network, mount and process namespace of its own (``tests.kube_e2e.__main__`` makes them), so that
what is left behind ends with them. Three things lie outside of these: the run folder, cgroups and tracefs
instances; the caller looks after those.

/run and /var are covered: containerd, runc, CNI and the kubelet have places there that no option moves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.kube_e2e.images import PAUSE, write_pause

__all__ = ["ADDRESS", "CGROUP", "NODE", "Cluster", "Failed", "NotTried", "until"]

ADDRESS = "10.99.0.1"
NODE = "node-a"
CGROUP = "finwait-kube-e2e"
_LOCAL = "http://127.0.0.1:2379"
_TOKENS = """\
admin-token,admin,1,system:masters
kubelet-token,system:node:node-a,2,system:nodes
proxy-token,system:kube-proxy,3
"""
_CONTAINERD = """\
version = 2
root = "{run}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cache}/cni"
    conf_dir = "{run}/cni"
"""
_KUBELET = """\
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
failSwapOn: false
authentication: {{webhook: {{enabled: true}}, anonymous: {{enabled: false}}, x509: {{clientCAFile: {run}/pki/ca.crt}}}}
authorization: {{mode: Webhook}}
readOnlyPort: 0
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 50Mi}}
enforceNodeAllocatable: []
clusterDNS: ["10.96.0.10"]
clusterDomain: cluster.local
resolvConf: /dev/null
"""
_PROXY = """\
kind: KubeProxyConfiguration
apiVersion: kubeproxy.config.k8s.io/v1alpha1
mode: {mode}
clusterCIDR: 10.244.0.0/16
clientConnection: {{kubeconfig: {run}/proxy.kubeconfig}}
hostnameOverride: {node}
bindAddress: {address}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"""


_T = TypeVar("_T")


class Failed(Exception):
    """Something did not happen in time, or a program failed; the text says which."""


class NotTried(Exception):
    """Something cannot be tried on this machine; the text says why."""


def until(seconds: float, what: str, ask: Callable[[], _T | None]) -> _T:
    """Ask until there is an answer.

    Raises:
        Failed: there is none within the time; with the last error.
    """
    end, last = time.monotonic() + seconds, ""
    while True:
        try:
            answer = ask()
            if answer is not None and answer is not False:
                return answer
        except (Failed, OSError, ValueError, KeyError, IndexError, subprocess.SubprocessError) as error:
            last = f": {error}"
        if time.monotonic() > end:
            raise Failed(f"not within {seconds:.0f} s: {what}{last}")
        time.sleep(0.5)


class Cluster:
    """The programs of one node.

    Args:
        cache: where they are (`tests.kube_e2e.binaries`).
        run: a folder for everything that they write.
        tools: where kubectl and helm are.
        logs: a folder that is kept.
    """

    def __init__(self, cache: Path, run: Path, tools: Path, logs: Path) -> None:
        self.cache, self.run, self.tools, self.logs = cache, run, tools, logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._starts: dict[str, int] = {}
        self.sa_key = "sa"
        self.environment = {
            **os.environ,
            "PATH": f"{cache}/bin:{tools}:{os.environ['PATH']}",
            "KUBECONFIG": f"{run}/admin.kubeconfig",
            "HOME": str(run),
        }

    # -- the machine ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the network, the covered folders, the certificates and the configurations."""
        for name in ("etcd", "pki", "cni", "kubelet", "var/upper", "var/work"):
            (self.run / name).mkdir(parents=True, exist_ok=True)
        _do("mount", "-t", "tmpfs", "tmpfs", "/run")
        var = self.run / "var"
        _do(
            "mount",
            "-t",
            "overlay",
            "overlay",
            "-o",
            f"lowerdir=/var,upperdir={var}/upper,workdir={var}/work",
            "/var",
        )
        _do("ip", "link", "set", "lo", "up")
        _do("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0p")
        _do("ip", "addr", "add", f"{ADDRESS}/24", "dev", "eth0")
        for name in ("eth0", "eth0p"):
            _do("ip", "link", "set", name, "up")
        _do("ip", "route", "add", "default", "via", "10.99.0.254")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        for hierarchy in _hierarchies():
            (hierarchy / CGROUP).mkdir(exist_ok=True)
            for name in (
                "cpuset.cpus",
                "cpuset.mems",
            ):  # a new group of cpuset is empty, and takes no process
                if (hierarchy / name).exists() and (hierarchy / CGROUP / name).exists():
                    (hierarchy / CGROUP / name).write_text((hierarchy / name).read_text())
        self._certificates()
        self._configurations()

    def _certificates(self) -> None:
        pki = self.run / "pki"
        for name in ("sa", "sa2"):
            _do("openssl", "genrsa", "-out", str(pki / f"{name}.key"), "2048")
            _do(
                "openssl", "rsa", "-in", str(pki / f"{name}.key"), "-pubout", "-out", str(pki / f"{name}.pub")
            )
        new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
        _do(
            *new,
            "-x509",
            "-keyout",
            f"{pki}/ca.key",
            "-out",
            f"{pki}/ca.crt",
            "-days",
            "9",
            "-subj",
            "/CN=finwait-ca",
        )
        (pki / "server.ext").write_text(
            f"subjectAltName=IP:{ADDRESS},IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc\n"
        )
        (pki / "client.ext").write_text("extendedKeyUsage=clientAuth\n")
        for name, subject in (
            ("server", "/CN=kube-apiserver"),
            ("client", "/O=system:masters/CN=kube-apiserver"),
        ):
            _do(*new, "-keyout", f"{pki}/{name}.key", "-out", f"{pki}/{name}.csr", "-subj", subject)
            signing = ["openssl", "x509", "-req", "-in", f"{pki}/{name}.csr", "-CA", f"{pki}/ca.crt"]
            signing += ["-CAkey", f"{pki}/ca.key", "-CAcreateserial", "-days", "9"]
            _do(*signing, "-out", f"{pki}/{name}.crt", "-extfile", f"{pki}/{name}.ext")
        (pki / "tokens.csv").write_text(_TOKENS)

    def _configurations(self) -> None:
        for name in ("admin", "kubelet", "proxy"):
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "e2e",
                "clusters": [
                    {
                        "name": "e2e",
                        "cluster": {
                            "server": f"https://{ADDRESS}:6443",
                            "certificate-authority": f"{self.run}/pki/ca.crt",
                        },
                    }
                ],
                "users": [{"name": "e2e", "user": {"token": f"{name}-token"}}],
                "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
            }
            (self.run / f"{name}.kubeconfig").write_text(json.dumps(config))
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True}
        ipam = {
            "type": "host-local",
            "dataDir": f"{self.run}/ipam",
            "ranges": [[{"subnet": "10.244.0.0/24"}]],
        }
        bridge["ipam"] = {**ipam, "routes": [{"dst": "0.0.0.0/0"}]}
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}
        (self.run / "cni/10-pods.conflist").write_text(json.dumps(network))
        said = {"run": self.run, "cache": self.cache, "pause": PAUSE, "cgroup": CGROUP, "node": NODE}
        said |= {"address": ADDRESS}
        (self.run / "containerd.toml").write_text(_CONTAINERD.format(**said))
        (self.run / "kubelet.yaml").write_text(_KUBELET.format(**said))
        for mode in ("iptables", "userspace"):
            (self.run / f"proxy-{mode}.yaml").write_text(_PROXY.format(mode=mode, **said))

    # -- programs ---------------------------------------------------------------------------------------------------

    def start(self, name: str, *words: str) -> None:
        """Start a program; its log is kept, one for each start."""
        n = self._starts[name] = self._starts.get(name, 0) + 1
        with (self.logs / (f"{name}.log" if n == 1 else f"{name}-{n}.log")).open("wb") as log:
            self.running[name] = subprocess.Popen(
                [str(self.cache / "bin" / words[0]), *words[1:]],
                cwd=self.run, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, seconds: float = 20) -> None:
        """End a program."""
        process = self.running.pop(name, None)
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(seconds)

    def start_apiserver(self) -> None:
        """Start the API server, and wait until it answers."""
        pki = self.run / "pki"
        options = {
            "etcd-servers": _LOCAL, "secure-port": 6443, "bind-address": "0.0.0.0", "advertise-address": ADDRESS,
            "tls-cert-file": f"{pki}/server.crt", "tls-private-key-file": f"{pki}/server.key",
            "client-ca-file": f"{pki}/ca.crt", "token-auth-file": f"{pki}/tokens.csv",
            "service-account-key-file": f"{pki}/{self.sa_key}.pub",
            "service-account-signing-key-file": f"{pki}/{self.sa_key}.key",
            "service-account-issuer": "https://kubernetes.default.svc",
            "api-audiences": "https://kubernetes.default.svc",
            "service-cluster-ip-range": "10.96.0.0/16", "authorization-mode": "Node,RBAC",
            "kubelet-client-certificate": f"{pki}/client.crt", "kubelet-client-key": f"{pki}/client.key",
            "kubelet-preferred-address-types": "InternalIP", "allow-privileged": "true", "v": 1,
        }  # fmt: skip
        self.start(
            "kube-apiserver", "kube-apiserver", *(f"--{key}={value}" for key, value in options.items())
        )
        until(180, "the API server is ready", lambda: "ok" in self.kubectl("get", "--raw", "/readyz") or None)

    def start_kubelet(self) -> None:
        """Start the kubelet."""
        self.start(
            "kubelet", "kubelet", f"--config={self.run}/kubelet.yaml", f"--kubeconfig={self.run}/kubelet.kubeconfig",
            "--container-runtime=remote", "--container-runtime-endpoint=unix:///run/containerd.sock",
            f"--hostname-override={NODE}", f"--node-ip={ADDRESS}", f"--root-dir={self.run}/kubelet", "--v=1",
        )  # fmt: skip

    def start_proxy(self, mode: str = "iptables") -> None:
        """Start kube-proxy."""
        self.start("kube-proxy", "kube-proxy", f"--config={self.run}/proxy-{mode}.yaml")

    def start_controllers(self) -> None:
        """Start the controller manager and the scheduler."""
        admin = f"--kubeconfig={self.run}/admin.kubeconfig"
        self.start(
            "kube-controller-manager", "kube-controller-manager", admin, "--leader-elect=false",
            f"--service-account-private-key-file={self.run}/pki/{self.sa_key}.key",
            f"--root-ca-file={self.run}/pki/ca.crt", "--bind-address=127.0.0.1",
        )  # fmt: skip
        self.start(
            "kube-scheduler", "kube-scheduler", admin, "--leader-elect=false", "--bind-address=127.0.0.1"
        )

    def up(self, images: Sequence[Path]) -> None:
        """Bring the node up, with images in it.

        Raises:
            Failed: it did not come up in time.
        """
        self.start(
            "etcd", "etcd", "--data-dir=etcd", f"--listen-client-urls={_LOCAL}", f"--advertise-client-urls={_LOCAL}",
            "--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level=error",
        )  # fmt: skip
        self.start("containerd", "containerd", "-c", f"{self.run}/containerd.toml")
        self.start_apiserver()
        self.start_controllers()
        until(60, "containerd answers", lambda: self.ctr("version") or None)
        pause = self.run / "pause.tar"
        write_pause(self.cache / "bin/busybox", pause)
        for image in (pause, *images):
            self.ctr("images", "import", str(image))
        self.start_kubelet()
        self.start_proxy()
        ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        until(
            180, "the node is Ready", lambda: self.kubectl("get", "node", NODE, "-o", ready) == "True" or None
        )

    def down(self) -> None:
        """End pods and programs; what does not end so is left to the namespaces."""
        for name in ("kubelet", "kube-proxy", "kube-controller-manager", "kube-scheduler"):
            self.stop(name)
        for task in self._quiet(
            "ctr", "-a", "/run/containerd.sock", "-n", "k8s.io", "tasks", "ls", "-q"
        ).split():
            self._quiet(
                "ctr", "-a", "/run/containerd.sock", "-n", "k8s.io", "tasks", "kill", "-s", "KILL", task
            )
        for name in ("containerd", "kube-apiserver", "etcd"):
            self.stop(name)
        for pod_log in Path("/var/log/pods").rglob("*.log"):
            parts = pod_log.relative_to("/var/log/pods").parts
            shutil.copyfile(pod_log, self.logs / ("pod-" + "-".join(parts)))

    def _quiet(self, *words: str) -> str:
        try:
            return self.output(*words)
        except (Failed, OSError):
            return ""

    # -- asking -----------------------------------------------------------------------------------------------------

    def output(
        self, *words: str, stdin: str = "", allowed: Sequence[int] = (0,), seconds: float = 120
    ) -> str:
        """Return what a program prints.

        Raises:
            Failed: its status is another one, or it takes too long.
        """
        try:
            done = subprocess.run(
                words, env=self.environment, input=stdin, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"`{' '.join(words)[:200]}` did not end within {seconds:.0f} s") from None
        if done.returncode not in allowed:
            said = (done.stderr or done.stdout).strip()[-600:]
            raise Failed(f"`{' '.join(words)[:200]}` ended with {done.returncode}: {said}")
        return done.stdout

    def kubectl(self, *words: str, stdin: str = "", allowed: Sequence[int] = (0,)) -> str:
        """Return what kubectl prints."""
        return self.output(str(self.tools / "kubectl"), *words, stdin=stdin, allowed=allowed)

    def get(self, *words: str) -> Any:
        """Return an object, or a list of some."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def ctr(self, *words: str) -> str:
        """Return what containerd's client prints."""
        return self.output(str(self.cache / "bin/ctr"), "-a", "/run/containerd.sock", "-n", "k8s.io", *words)

    def etcd(self, path: str, body: dict[str, Any]) -> Any:
        """Return etcd's answer."""
        return json.loads(self.output("curl", "-sS", "--fail", "-d", json.dumps(body), f"{_LOCAL}{path}"))


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"`{' '.join(words)}` ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def _hierarchies() -> list[Path]:
    """Return the mount points of all cgroup hierarchies."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(line[1]) for line in lines if line[2] in ("cgroup", "cgroup2")]
