"""The programs of a real Kubernetes node, made once and kept outside the clone.

etcd, containerd, runc and the CNI plugins are taken out of Debian's packages without installing them. The
five programs of Kubernetes are built from Debian's source package ``kubernetes`` with Debian's Go: no newer
server is packaged there. Three things of that build are not obvious:

* the vendored ``modern-go/reflect2`` 1.0.1 corrupts memory with Go 1.18 and later ("unexpected fault address"
  in ``mapiternext`` after minutes), so Debian's 1.0.2 takes its place;
* ``pkg/generated/openapi`` is not in the archive and is generated; the directories below ``vendor/k8s.io`` are
  links, which ``grep -R`` follows and ``grep -r`` does not;
* the version is set by the full path of the vendored package; a shorter one is ignored without a word.

Everything lies in ``~/.cache/finwait/kube-1.20.2`` (``FINWAIT_KUBE_CACHE`` overrides it): ``bin/`` and ``cni/``,
about 500 MB. The sources and Go's cache are removed after the build (``FINWAIT_KUBE_KEEP=1`` keeps them).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["BUILT", "PACKAGED", "VERSION", "Absent", "cache", "ensure", "missing"]

VERSION = "1.20.2"
BUILT = ("kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")
#: Path inside the package; the name in ``bin/`` is its last part.
PACKAGED = (
    "usr/bin/etcd",
    "usr/bin/containerd",
    "usr/bin/ctr",
    "usr/bin/containerd-shim-runc-v2",
    "usr/sbin/runc",
    "bin/busybox",
)
_PACKAGES = (
    "golang-1.19-go",
    "golang-1.19-src",
    "golang-github-modern-go-reflect2-dev",
    "etcd-server",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "busybox-static",
)
_SOURCES = "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} bookworm main\n"
_OPENAPI = (
    'grep --color=never -Rl "+k8s:openapi-gen=" --include=*.go vendor/k8s.io/ pkg/ cmd/'
    " | grep -v -E 'code-generator/|sample-apiserver/|kube-openapi|/testdata/|legacy-cloud|/examples?/|_examples'"
    " | xargs -n1 dirname | LC_ALL=C sort -u | sed 's|^|k8s.io/kubernetes/|' | paste -sd,"
)


class Absent(Exception):
    """The programs are not there and cannot be made here; the text says why."""


def cache() -> Path:
    """Return the folder that keeps the programs."""
    named = os.environ.get("FINWAIT_KUBE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "finwait" / f"kube-{VERSION}"


def missing() -> list[str]:
    """Return the names of the programs that the cache lacks."""
    names = [*BUILT, *(Path(path).name for path in PACKAGED)]
    lacking = [name for name in names if not (cache() / "bin" / name).is_file()]
    return lacking + [
        f"cni/{name}" for name in ("bridge", "portmap") if not (cache() / "cni" / name).is_file()
    ]


def ensure() -> Path:
    """Return the folder with all programs in it, making what is missing; raises ``Absent``."""
    if not missing():
        return cache()
    for tool in ("apt-get", "dpkg", "tar", "grep"):
        if shutil.which(tool) is None:
            raise Absent(f"{', '.join(missing())} absent, and {tool}, which would fetch them, is absent too")
    try:
        _unpack(cache() / "work")
        _build(cache() / "work")
    except subprocess.CalledProcessError as error:
        raise Absent(f"{error.cmd[0]} failed with {error.returncode}: {' '.join(error.cmd)[:200]}") from error
    if os.environ.get("FINWAIT_KUBE_KEEP") != "1":
        shutil.rmtree(cache() / "work", ignore_errors=True)
    return cache()


def _run(argv: list[str], cwd: Path, env: dict[str, str] | None = None) -> None:
    subprocess.run(["nice", "-n", "19", *argv], cwd=cwd, env=env, check=True, stdin=subprocess.DEVNULL)


def _unpack(work: Path) -> None:
    """Fetch the packages and the source with lists of our own, and lay them out below ``work``."""
    for name in ("lists/partial", "debs", "root", "source", "parts"):
        (work / name).mkdir(parents=True, exist_ok=True)
    if not list((work / "debs").glob("*.deb")):
        _run(["apt-get", "download", *_PACKAGES], work / "debs")
    for package in sorted((work / "debs").glob("*.deb")):
        _run(["dpkg", "-x", str(package), str(work / "root")], work)
    for folder in ("bin", "cni"):
        (cache() / folder).mkdir(exist_ok=True)
    for path in PACKAGED:
        shutil.copy2(work / "root" / path, cache() / "bin" / Path(path).name)
    for plugin in sorted((work / "root/usr/lib/cni").iterdir()):
        shutil.copy2(plugin, cache() / "cni" / plugin.name)
    tree = _tree(work)
    if not tree.exists():
        mirror = os.environ.get("FINWAIT_DEBIAN_MIRROR", "http://deb.debian.org/debian")
        (work / "sources.list").write_text(_SOURCES.format(mirror=mirror))
        own = ["-o", f"Dir::Etc::sourcelist={work}/sources.list", "-o", f"Dir::Etc::sourceparts={work}/parts"]
        own += ["-o", f"Dir::State::lists={work}/lists"]
        _run(["apt-get", *own, "update"], work)
        _run(["apt-get", *own, "source", "--download-only", "kubernetes"], work / "source")
        archive = next((work / "source").glob("kubernetes_*.orig.tar.gz"))
        tree.mkdir(parents=True)
        _run(["tar", "xzf", str(archive), "-C", str(tree), "--strip-components=1"], work)
    vendored = tree / "vendor/github.com/modern-go/reflect2"
    shutil.rmtree(vendored, ignore_errors=True)
    shutil.copytree(work / "root/usr/share/gocode/src/github.com/modern-go/reflect2", vendored)


def _tree(work: Path) -> Path:
    return work / "gopath/src/k8s.io/kubernetes"


def _build(work: Path) -> None:
    """Build the five programs; what is built already stays."""
    tree, goroot = _tree(work), work / "root/usr/lib/go-1.19"
    (work / "gotmp").mkdir(exist_ok=True)
    env = dict(os.environ, GOROOT=str(goroot), GOPATH=str(work / "gopath"), GOCACHE=str(work / "gocache"))
    env |= {"GO111MODULE": "off", "CGO_ENABLED": "0", "GOTMPDIR": str(work / "gotmp"), "HOME": str(work)}
    env |= {"GOFLAGS": os.environ.get("GOFLAGS", "-p=2")}
    go = str(goroot / "bin/go")
    if not (tree / "pkg/generated/openapi/zz_generated.openapi.go").exists():
        generator = work / "openapi-gen"
        _run([go, "build", "-o", str(generator), "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"], tree, env)
        found = subprocess.run(["sh", "-c", _OPENAPI], cwd=tree, check=True, capture_output=True, text=True)
        options = [
            "-p",
            "k8s.io/kubernetes/pkg/generated/openapi",
            "-O",
            "zz_generated.openapi",
            "-r",
            "/dev/null",
        ]
        options += ["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"]
        _run([str(generator), "--logtostderr", "-i", found.stdout.strip(), *options], tree, env)
    path = "k8s.io/kubernetes/vendor/k8s.io"
    major, minor, _ = VERSION.split(".")
    base = f"-X {path}/component-base/version."
    flags = f"-s -w {base}gitVersion=v{VERSION} {base}gitMajor={major} {base}gitMinor={minor}"
    flags += f" -X {path}/client-go/pkg/version.gitVersion=v{VERSION}"
    for name in BUILT:
        if not (cache() / "bin" / name).exists():
            new = work / f"{name}.new"
            _run([go, "build", "-ldflags", flags, "-o", str(new), f"./cmd/{name}"], tree, env)
            new.rename(cache() / "bin" / name)
            print(
                f"built {name}: {(cache() / 'bin' / name).stat().st_size} bytes", file=sys.stderr, flush=True
            )


if __name__ == "__main__":
    try:
        print(ensure())
    except Absent as absent:
        sys.exit(f"kube-e2e: {absent}")
