"""A context of TLS, made of bytes: who serves runs as nobody and cannot open a key.

OpenSSL wants a path all the same, and gets that of a memory file (memfd_create(2)).
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator

__all__ = ["tls_context"]


def tls_context(certificate: bytes, key: bytes) -> ssl.SSLContext:
    """Return a context for a server, from TLS 1.2 on.

    Args:
        certificate: in PEM, the server's own first, then those that lead to the root.
        key: its private key in PEM, not encrypted.

    Raises:
        ssl.SSLError: they are none, or do not belong together.
        ValueError: the key is encrypted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    with _memory_file(certificate) as certificate_path, _memory_file(key) as key_path:
        context.load_cert_chain(certificate_path, key_path, password=_no_password)
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; nobody is here to type a password")


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[str]:
    """Give a path to bytes, which are nowhere on a disk."""
    fd = os.memfd_create("finwait-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
