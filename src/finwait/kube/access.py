"""Where an API server is, and how to prove who asks and who answers.

Token and CA are files that are read anew for each request, since the kubelet replaces them. The token is sent over TLS
only. Client certificates and kubeconfig files are left to ``kubectl``.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from finwait import files
from finwait.errors import FileRefused, FinwaitError, UsageError

__all__ = ["SERVICE_ACCOUNT", "KubeAccess"]

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the kubelet puts the files of a pod's own account."""
_TOKEN_MOST: Final = 64 << 10
_CA_MOST: Final = 1 << 20
_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}", re.ASCII)
_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class KubeAccess:
    """An API server, and what a request to it needs.

    Raises:
        UsageError: it is no URL to which requests are made, or no name of a node. ``http`` is for loopback only, and
            without a token.
    """

    url: str
    """``https://HOST[:PORT]``, with a path in front of the API's own where a proxy wants one."""
    token_file: str = ""
    """Holds the token; empty for none."""
    ca_file: str = ""
    """Holds the certificates, in PEM, that vouch for the API server; empty for those that the system trusts."""
    node: str = ""
    """The name of the node that this machine is; its pods are asked for and no others, and none where it is empty."""
    host: str = field(init=False)
    """Without brackets."""
    port: int = field(init=False)
    prefix: str = field(init=False)
    """The path in front of the API's own, without a slash at its end."""
    secure: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.node and not _NODE.fullmatch(self.node):
            raise UsageError(f"`{self.node[:200]}` is no name of a node")
        try:
            parts = urlsplit(self.url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            raise _refused(self.url, "it is no URL") from None
        host = parts.hostname or ""
        if parts.scheme not in _PORTS or not host:
            raise _refused(self.url, "it has to be `https://HOST[:PORT]`")
        if parts.username is not None or parts.query or parts.fragment or not self.url.isascii():
            raise _refused(self.url, "it names more than a host, a port and a path")
        if not self.url.isprintable() or " " in self.url:
            raise _refused(self.url, "it has a character that no URL has")
        if parts.scheme == "http" and not _is_loopback(host):
            raise _refused(self.url, "`http` is for this machine only; what is sent could be read on the way")
        if parts.scheme == "http" and self.token_file:
            raise _refused(self.url, "a token is sent over `https` only")
        for name, value in (
            ("host", host), ("port", port), ("prefix", parts.path.rstrip("/")), ("secure", parts.scheme == "https")
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @classmethod
    def in_cluster(
        cls, environment: Mapping[str, str] | None = None, folder: str = SERVICE_ACCOUNT
    ) -> KubeAccess:
        """Return the access of a pod, by the variables and files that the kubelet gives it.

        Args:
            environment: ``KUBERNETES_SERVICE_HOST``, ``KUBERNETES_SERVICE_PORT``, and ``NODE_NAME`` from the pod's
                manifest (``fieldRef: spec.nodeName``); by default that of this process.
            folder: where token and CA are.

        Raises:
            FinwaitError: this is no pod, or it is not told the name of its node.
        """
        environment = os.environ if environment is None else environment
        host = environment.get("KUBERNETES_SERVICE_HOST", "")
        if not host:
            error = FinwaitError("this is no pod: KUBERNETES_SERVICE_HOST is not set")
            error.hint = "name the API server by its URL"
            raise error
        node = environment.get("NODE_NAME", "")
        if not node:
            error = FinwaitError("the name of this node is unknown: NODE_NAME is not set")
            error.hint = "set it in the pod's manifest, `valueFrom: {fieldRef: {fieldPath: spec.nodeName}}`"
            raise error
        place = f"[{host}]" if ":" in host else host
        port = environment.get("KUBERNETES_SERVICE_PORT") or "443"
        return cls(f"https://{place}:{port}", f"{folder}/token", f"{folder}/ca.crt", node)

    def headers(self) -> dict[str, str]:
        """Return the headers of a request, with the token as it is in its file now.

        Raises:
            FileRefused: the file holds no token.
            OSError: it cannot be read.
        """
        headers = {"Accept": "application/json", "User-Agent": "finwait", "Connection": "close"}
        if self.token_file:
            token = files.read(self.token_file, _TOKEN_MOST).strip()
            if not token or not all(0x21 <= byte <= 0x7E for byte in token):
                raise FileRefused(self.token_file, "it holds no token")
            headers["Authorization"] = f"Bearer {token.decode('ascii')}"
        return headers

    def context(self) -> ssl.SSLContext | None:
        """Return what TLS needs, with the CA as it is in its file now; None for a URL without TLS.

        Raises:
            FileRefused: the file holds no certificate.
            OSError: it cannot be read.
        """
        if not self.secure:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self.ca_file:
            context.load_default_certs()
            return context
        try:
            context.load_verify_locations(cadata=files.read(self.ca_file, _CA_MOST).decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise FileRefused(self.ca_file, "it holds no certificate") from None
        return context


def _refused(url: str, reason: str) -> UsageError:
    return UsageError(f"`{url[:200]}` is no URL of an API server: {reason}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
