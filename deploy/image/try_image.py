"""Run what is in an image as the chart's pod would, without a container runtime.

    unshare --mount --net --propagation private python deploy/image/try_image.py IMAGE.oci.tar

The image's files become a read-only root; processes of the machine stay visible (hostPID), the network is a new one,
and the looker keeps the chart's four capabilities of root's. What this cannot show: seccomp, AppArmor, cgroups of its
own, and that a runtime takes the image.
"""

from __future__ import annotations

import ctypes
import http.client
import io
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["CAPABILITIES", "main", "unpack"]

CAPABILITIES: Final = {"DAC_READ_SEARCH": 2, "NET_ADMIN": 12, "SYS_PTRACE": 19, "SYS_ADMIN": 21}
"""Those of the chart's looker, and their numbers (include/uapi/linux/capability.h)."""
USER: Final = 59944
_CONFIG: Final = """\
[agent]
state_dir = "/var/lib/finwait"
socket = "/run/finwait/agent.sock"
serve_socket = "/run/finwait-serve/serve.sock"
share = "50%"
interval = "2s"
record_states = false
no_act = true
"""
_SECRETS: Final = {"token-file": "token", "tls-cert": "tls.crt", "tls-key": "tls.key"}
_TOKEN: Final = "0123456789abcdef"
_PATIENCE_S: Final = 90.0
_libc = ctypes.CDLL(None, use_errno=True)


def unpack(image: Path, root: Path) -> dict[str, object]:
    """Unpack the layers of an image into a folder; return its configuration.

    Raises:
        ValueError: a blob is not what its name says.
    """
    import hashlib

    with tarfile.open(image) as archive:

        def blob(digest: str) -> bytes:
            member = archive.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert member is not None
            data = member.read()
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                raise ValueError(f"{digest} is another one")
            return data

        index = archive.extractfile("index.json")
        assert index is not None
        (described,) = json.load(index)["manifests"]
        manifest = json.loads(blob(described["digest"]))
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=io.BytesIO(blob(layer["digest"])), mode="r:gz") as tar:
                tar.extractall(root, filter="tar")
        config: dict[str, object] = json.loads(blob(manifest["config"]["digest"]))["config"]
        return config


def _do(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)


def _mount(root: Path, work: Path) -> None:
    """Make the volumes of the pod, and the root read-only."""
    shared = work / "serve"
    shared.mkdir()
    os.chown(shared, 0, USER)
    shared.chmod(0o2777)  # as an emptyDir with fsGroup
    (work / "finwait.toml").write_text(_CONFIG)
    secrets = work / "secrets"  # files of Secrets, as a kubelet makes them with fsGroup and mode 0440
    secrets.mkdir()
    (secrets / "token").write_text(_TOKEN)
    words = (
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    )
    pair: tuple[str | Path, ...] = (
        "-subj",
        "/CN=try",
        "-keyout",
        secrets / "tls.key",
        "-out",
        secrets / "tls.crt",
    )
    _do("openssl", *words, *pair)
    for path in secrets.iterdir():
        os.chown(path, 0, USER)
        path.chmod(0o440)
        (root / "etc/finwait" / path.name).touch()
    (root / "etc/finwait/finwait.toml").touch()
    for name in ("sys/fs/cgroup", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("dev/null", "dev/urandom"):
        (root / name).touch()
    _do("mount", "--bind", root, root)
    volumes: list[tuple[Path | str, str, str]] = [
        ("/proc", "proc", "rbind"),
        ("/dev/null", "dev/null", "bind"),
        ("/dev/urandom", "dev/urandom", "bind"),
        ("/sys/fs/cgroup", "sys/fs/cgroup", "rbind"),
        (shared, "run/finwait-serve", "bind"),
        (work / "finwait.toml", "etc/finwait/finwait.toml", "bind"),
        *((path, f"etc/finwait/{path.name}", "bind") for path in secrets.iterdir()),
    ]
    for source, place, option in volumes:
        _do("mount", f"--{option}", source, root / place)
    for place in ("var/lib/finwait", "run/finwait", "tmp"):
        _do("mount", "-t", "tmpfs", "-o", "mode=755", "none", root / place)
    _do("mount", "-o", "remount,bind,ro", root)


def _confined(root: Path, words: list[str], *, server: bool) -> subprocess.Popen[str]:
    """Start a program of the image as one of the two containers."""
    kept = () if server else tuple(CAPABILITIES.values())

    def enter() -> None:
        os.chroot(root)
        os.chdir("/")
        os.umask(0o022)
        for number in range(64):
            if number not in kept:
                _libc.prctl(24, ctypes.c_ulong(number), 0, 0, 0)  # PR_CAPBSET_DROP
        if server:
            os.setgroups([USER])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
        _libc.prctl(38, ctypes.c_ulong(1), 0, 0, 0)  # PR_SET_NO_NEW_PRIVS

    return subprocess.Popen(
        words, preexec_fn=enter,  # noqa: PLW1509 - there are no threads
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={"PATH": "/usr/local/bin:/usr/bin", "LANG": "C.UTF-8", "NODE_NAME": "node"},
    )  # fmt: skip


def _say(text: str) -> None:
    print(text, flush=True)


def _check(root: Path, *words: str, statuses: tuple[int, ...] = (0,), holds: str = "") -> str:
    """Run a program to its end; say what it is and what came out."""
    begun = time.monotonic()
    process = _confined(root, list(words), server=False)
    output, _ = process.communicate(timeout=_PATIENCE_S)
    said = output.strip().splitlines()
    _say(
        f"{' '.join(words)}: status {process.returncode}, {time.monotonic() - begun:.1f} s: {said[0] if said else ''}"
    )
    if process.returncode not in statuses or not re.search(holds, output):
        raise SystemExit(f"not what was expected:\n{output}")
    return output


def _get(path: str, token: str = "") -> tuple[int, str]:
    try:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", 9944, timeout=5, context=context)
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""


@contextmanager
def _pod(root: Path) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    serve = ["finwait", "agent", "serve", "--serve-socket=/run/finwait-serve/serve.sock", "--listen=*:9944"]
    serve += [f"--{name}=/etc/finwait/{file}" for name, file in _SECRETS.items()]
    server = _confined(root, serve, server=True)
    looker = _confined(root, ["finwait", "agent"], server=False)
    try:
        yield looker, server
    finally:
        for process in (looker, server):
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=_PATIENCE_S)
            for line in output.strip().splitlines()[:5]:
                _say(f"  said: {line}")


def _until(what: str, status: int) -> None:
    begun = time.monotonic()
    while _get("/healthz")[0] != status:
        if time.monotonic() - begun > _PATIENCE_S:
            raise SystemExit(f"never: {what}")
        time.sleep(0.2)
    _say(f"{what}: after {time.monotonic() - begun:.1f} s")


def main(argv: list[str]) -> int:
    """Try everything; the first thing that is not as it should be ends it with status 1."""
    image = Path(argv[0]).resolve()
    if os.stat("/proc/self/ns/mnt").st_ino == os.stat(f"/proc/{os.getppid()}/ns/mnt").st_ino:
        raise SystemExit("mounts would be made on the machine: `unshare --mount --net --propagation private`")
    work = Path(tempfile.mkdtemp(prefix="finwait-try-"))
    _do(
        "mount", "-t", "tmpfs", "-o", "mode=755", "none", work
    )  # it ends with the namespace, and nothing is removed
    root = work / "root"
    root.mkdir()
    try:
        config = unpack(image, root)
        if config["Entrypoint"] != ["/usr/bin/finwait"]:
            raise SystemExit(f"the entry point is {config['Entrypoint']}")
        programs = {p.name: p for p in root.rglob("*") if p.is_file() and os.access(p, os.X_OK)}
        shells = [
            programs[n] for n in ("sh", "bash", "dash", "busybox", "dpkg", "apt", "perl") if n in programs
        ]
        if shells:
            raise SystemExit(f"a shell or a package manager is in it: {shells}")
        _mount(root, work)
        _do("ip", "link", "set", "lo", "up")
        _check(root, "/usr/bin/finwait", "--version", holds=r"^finwait \d")
        _check(root, "/usr/bin/finwait", "list", "--no-headers", "state", "all", statuses=(0, 3))
        modules = "ssl,sqlite3,lzma,bz2,zlib,uuid,ctypes,numpy,numpy.linalg,msgspec,yaml,textual.app,prometheus_client"
        _check(root, "/usr/bin/python3.11", "-I", "-c", f"import {modules}")
        dynamic = f"/usr/lib/python3.11/lib-dynload/{'*.so'}"
        loads = (
            "import glob,importlib,sys\n"
            f"for p in glob.glob({dynamic!r}): importlib.import_module(p.split('/')[-1].split('.')[0])"
        )
        _check(root, "/usr/bin/python3.11", "-I", "-c", loads)
        _check(root, "/usr/bin/finwait", "agent", "--check", holds="right")
        _check(root, "/usr/bin/finwait", "agent", "--once", "--textfile", "/tmp", statuses=(0, 3))
        with _pod(root) as (looker, _server):
            _until("the pod is ready", 200)
            told = [_get(path, token)[0] for path in ("/", "/api/v1/about") for token in ("", _TOKEN)]
            if told != [200, 200, 401, 200]:
                raise SystemExit(f"page and API without and with the token: {told}")
            series = re.findall(r'^finwait_sockets{state="(\w+)"} (\d+)', _get("/metrics")[1], re.MULTILINE)
            _say("sockets of the machine: " + ", ".join(f"{state} {n}" for state, n in series if n != "0"))
            memory = [
                int(line.split()[1]) for p in (looker, _server)
                for line in Path(f"/proc/{p.pid}/status").read_text().splitlines() if line.startswith("VmRSS")
            ]  # fmt: skip
            _say(f"memory: looker {memory[0] // 1024} MB, server {memory[1] // 1024} MB")
            _say(_check(root, "/usr/bin/finwait", "agent", "status", statuses=(0, 3)))
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(work)], check=False)
        with suppress(OSError):
            work.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
