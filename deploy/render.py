"""Write what is made of something else in ``deploy/``: the chart's copies, and the plain manifests of the chart.

The alert rules and the dashboard stand once, in ``deploy/prometheus`` and ``deploy/grafana``; a chart can only read
files of its own. ``deploy/kubernetes/finwait.yaml`` is what Helm makes of the chart's defaults, for who has none. Its
first lines name the state of the chart, so that a stale one is seen without Helm.

    python deploy/render.py HELM          write
    python deploy/render.py HELM --check  say what differs
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["CHART", "COPIES", "MANIFEST", "chart_digest", "manifest"]

DEPLOY: Final = Path(__file__).parent
CHART: Final = DEPLOY / "helm/finwait"
MANIFEST: Final = DEPLOY / "kubernetes/finwait.yaml"
COPIES: Final = {
    CHART / "files/rules.yml": DEPLOY / "prometheus/rules.yml",
    CHART / "files/finwait.json": DEPLOY / "grafana/finwait.json",
}
NAMESPACE: Final = "finwait"
HEADER: Final = """\
# finwait on every node, without Helm: kubectl apply -f finwait.yaml
# Before that, replace localhost/finwait by the place of your image, and read docs/how-to/install-on-kubernetes.md.
# For Kubernetes 1.30 and later. Before that remove the line with appArmorProfile, or install with Helm.
# Made by `make manifests` from the chart with the digest
# {digest}
"""


def chart_digest() -> str:
    """Return a digest of all that the plain manifests are made of."""
    digest = hashlib.sha256()
    for path in sorted(CHART.rglob("*")):
        if path.is_file() and path.name != "NOTES.txt" and "files" not in path.relative_to(CHART).parts:
            digest.update(f"{path.relative_to(CHART)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def manifest(helm: str) -> str:
    """Return what Helm makes of the chart's defaults, with a namespace.

    Raises:
        CalledProcessError: Helm refused.
    """
    words = [
        helm,
        "template",
        "finwait",
        str(CHART),
        "--namespace",
        NAMESPACE,
        "--set",
        "namespace.create=true",
    ]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    documents = [re.sub(r"^# Source: .*\n", "", part).strip() for part in done.stdout.split("---\n")]
    text = "\n---\n".join(part for part in documents if part)
    text = text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl")
    return HEADER.format(digest=chart_digest()) + text + "\n"


def main(argv: list[str]) -> int:
    """Write, or with ``--check`` say what differs (status 1)."""
    helm, *more = argv
    texts = {path: source.read_text() for path, source in COPIES.items()}
    texts[MANIFEST] = manifest(helm)
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if more == ["--check"]:
            print(f"{path.relative_to(DEPLOY.parent)} is stale: `make manifests`")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path])
    return 1 if stale and more == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
