"""A Python that finwait starts takes no module from the directory in which somebody stands."""

from __future__ import annotations

import ast
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finwait.agent import facing, service

SOURCE = Path(service.__file__).parents[1]


def test_a_module_in_the_working_directory_is_not_run_by_what_faces_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ipaddress", "codecs", "finwait", "msgspec"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'was-run')!r}, 'a').write({name!r})\nraise SystemExit(9)\n"
        )
    monkeypatch.chdir(tmp_path)
    looker: Any = SimpleNamespace(picture=None, status=None)
    answering = service.AnswerSocket(looker, "")
    face = facing.FaceProcess(lambda end, _: answering.serve(end, idle_s=None), "127.0.0.1:0", "", 15.0, -1)
    face.start()
    try:
        assert face._listener is not None
        with socket.create_connection(face._listener.getsockname(), timeout=60) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = client.recv(4096)
    finally:
        face.end()
    assert not (tmp_path / "was-run").exists()
    assert head.startswith(b"HTTP/1.1 503 ")


def test_every_python_that_is_started_leaves_the_working_directory_out() -> None:
    """``-P`` leaves it out of ``sys.path``, ``-I`` all of the user's; the relay repeats how it was started itself."""
    started = [
        (path.name, ast.unparse(node.elts[1]))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable"
    ]
    assert len(started) >= 4
    again = ("command.py", "*sys.orig_argv[1:]")
    assert [entry for entry in started if entry[1] not in ("'-P'", "'-I'") and entry != again] == []
