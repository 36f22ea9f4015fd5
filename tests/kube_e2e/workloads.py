"""What runs in the cluster: a server that never closes, and clients that close their half."""

from __future__ import annotations

from typing import Any

__all__ = ["SHOP", "deployment", "namespace", "objects", "secret", "service"]

SHOP = "shop"
_SERVER = """
import socket
listener, kept = socket.create_server(("0.0.0.0", 8080)), []
while True:
    kept.append(listener.accept())
"""
_CLIENT = """
import os, socket, time
kept = []
while True:
    if len(kept) < int(os.environ["MOST"]):
        try:
            one = socket.create_connection((os.environ["CART_SERVICE_HOST"], 80), 3)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            one.sendall(b"GET /cart HTTP/1.0\\r\\n\\r\\n")
            one.shutdown(socket.SHUT_WR)
            kept.append(one)
        except OSError as error:
            print(error, flush=True)
    time.sleep(1)
"""


def namespace(name: str = SHOP) -> dict[str, Any]:
    """Return a namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def secret(place: str, name: str, token: str) -> dict[str, Any]:
    """Return a Secret with a token."""
    about = {"namespace": place, "name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": about, "stringData": {"token": token}}


def deployment(name: str, image: str, program: str, replicas: int, **variables: str) -> dict[str, Any]:
    """Return a Deployment of a Python program; it gets no token."""
    labels = {"app": name}
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python3", "-u", "-c", program],
        "env": [{"name": key, "value": value} for key, value in variables.items()],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": SHOP, "name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def service(name: str = "cart", port: int = 80, target: int = 8080) -> dict[str, Any]:
    """Return a Service."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": SHOP, "name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": port, "targetPort": target}]},
    }


def objects(image: str) -> list[dict[str, Any]]:
    """Return the shop: ``web`` asks ``cart`` through its Service; neither ever closes."""
    return [
        namespace(),
        service(),
        deployment("cart", image, _SERVER, 2),
        deployment("web", image, _CLIENT, 1, MOST="40"),
    ]
