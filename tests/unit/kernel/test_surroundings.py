"""Firewall rules are listed only where that loads nothing into the kernel."""

from __future__ import annotations

import pytest

from finwait.kernel import procfs, surroundings

ASKED = "table ip nat {}"


@pytest.mark.parametrize(
    ("modules", "built_in", "said"),
    [
        (None, None, ASKED),  # a kernel without modules has it built in, or nothing can be loaded
        (b"nf_tables 1 0 - Live\n", None, ASKED),
        (b"ext4 1 0 - Live\n", b"kernel/net/netfilter/nf_tables.ko\n", ASKED),
        (b"ext4 1 0 - Live\n", b"kernel/fs/ext4.ko\n", ""),
        (b"ext4 1 0 - Live\n", None, None),
    ],
)
def test_nft_is_asked_where_nf_tables_is_there_already(
    modules: bytes | None, built_in: bytes | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"/proc/modules": modules}
    monkeypatch.setattr(procfs, "read", lambda path: files.get(path, built_in))
    monkeypatch.setattr(surroundings, "_output", lambda *_, **__: ASKED)
    assert surroundings._nft() == said
