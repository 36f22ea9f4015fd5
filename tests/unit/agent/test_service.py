"""What the looker answers, to whom."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finwait.agent import client, facing, protocol, service
from finwait.agent.store import Store
from finwait.cli import main
from finwait.errors import FileRefused, FinwaitError, Gap, KernelError
from tests.unit.agent.test_metrics import PICTURE
from tests.unit.agent.test_store import ended, episode, moment


def asked(looker: Any, *lines: bytes, idle_s: float | None = 5.0) -> list[protocol.AgentAnswer]:
    """Return the answers to lines, of a client over a socket pair."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(
        target=service.AnswerSocket(looker, "").serve, args=(theirs,), kwargs={"idle_s": idle_s}
    )
    thread.start()
    with ours, ours.makefile("rb") as file:
        ours.sendall(b"".join(lines))
        answers = [protocol.decode_answer(file.readline()) for _ in lines]
    thread.join()
    return answers


@pytest.fixture
def looker(tmp_path: Path) -> Any:
    path = tmp_path / "state" / "history.sqlite"
    with Store(path) as store:
        store.round([ended(k, first=200 + k) for k in range(2, 6)], [episode(1)], moment(300))
    return SimpleNamespace(history=path, boot="b", picture=PICTURE, status=None)


@pytest.mark.parametrize(
    "line",
    [
        b'{"ask":"history","since_ns":9223372036854775808}\n',
        b'{"ask":"history","since_ns":-99999999999999999999}\n',
        b'{"ask":"ages","cookies":[18446744073709551616]}\n',
    ],
)
def test_a_number_that_is_too_large_is_refused_and_the_client_goes_on(looker: Any, line: bytes) -> None:
    first, second = asked(looker, line, b'{"ask":"picture"}\n')
    assert first.error is not None
    assert first.error.startswith("not a question")
    assert second.picture == PICTURE


def test_a_cut_of_the_history_is_told_and_what_is_open_can_be_asked_for(looker: Any) -> None:
    first, second, third = asked(
        looker,
        b'{"ask":"history","limit":2}\n',
        b'{"ask":"history","limit":2,"open":true}\n',
        b'{"ask":"history","limit":5}\n',
    )
    assert first.truncated
    assert [e["cookie"] for e in first.episodes or ()] == ["0x5", "0x4"]
    assert not second.truncated
    assert [e["cookie"] for e in second.episodes or ()] == ["0x1"]
    assert not third.truncated


def test_what_faces_the_network_is_told_a_bounded_history_and_no_ages(looker: Any) -> None:
    picture, history, more, ages, stories = asked(
        looker,
        b'{"ask":"picture"}\n',
        b'{"ask":"history","limit":1000}\n',
        b'{"ask":"history","limit":1001}\n',
        b'{"ask":"ages","cookies":[1]}\n',
        b'{"ask":"stories","connections":[]}\n',
        idle_s=None,
    )
    assert picture.picture == PICTURE
    assert len(history.episodes or ()) == 5
    assert more.episodes is None
    assert ages.episodes is None
    assert stories.stories is None
    assert stories.error == "not asked for here"


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have a clock that stands still but where somebody waits, and return the pauses."""
    pauses: list[float] = []
    clock = [1000.0]

    def hung_up(_: socket.socket, seconds: float) -> bool:
        pauses.append(round(seconds, 6))
        clock[0] += seconds
        return False

    monkeypatch.setattr(service, "_hung_up", hung_up)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return pauses


def test_a_costly_answer_is_followed_by_a_long_pause(
    looker: Any, paused: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = iter([0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr("time.thread_time", lambda: next(spent))
    asked(looker, *[b'{"ask":"picture"}\n'] * 3, idle_s=None)
    assert paused == [0.5 * service._FACE_PAUSES, service._FACE_EVERY_S]


def test_its_questions_are_answered_at_a_bounded_rate(looker: Any, paused: list[float]) -> None:
    asked(looker, *[b'{"ask":"picture"}\n'] * 4, idle_s=None)
    assert paused == [service._FACE_EVERY_S] * 3
    paused.clear()
    asked(looker, *[b'{"ask":"picture"}\n'] * 4)
    assert paused == []


def test_one_that_comes_again_pays_for_what_the_one_before_it_asked(
    looker: Any, paused: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = iter([0.0, 0.5, 0.5, 0.5])
    monkeypatch.setattr("time.thread_time", lambda: next(spent))
    answering = service.AnswerSocket(looker, "")
    for _ in range(2):
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=answering.serve, args=(theirs,), kwargs={"idle_s": None})
        thread.start()
        with ours, ours.makefile("rb") as file:
            ours.sendall(b'{"ask":"picture"}\n')
            file.readline()
        thread.join()
    assert paused == [0.5 * service._FACE_PAUSES]


def test_who_is_let_go_waits_no_longer_for_an_answer(looker: Any) -> None:
    answering = service.AnswerSocket(looker, "")
    answering._face_due = float(1 << 20) + time.monotonic()
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=answering.serve, args=(theirs,), kwargs={"idle_s": None})
    with ours:
        thread.start()
        ours.sendall(b'{"ask":"picture"}\n')
        theirs.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    assert not thread.is_alive()


def test_a_question_that_fails_ends_no_conversation(
    looker: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise IndexError("x")

    monkeypatch.setattr("finwait.agent.answers.answer", fails)
    first, second, third = asked(
        looker, b'{"ask":"gaps"}\n', b'{"ask":"gaps"}\n', b'{"ask":"picture"}\n', idle_s=None
    )
    assert first.error == second.error == "the question failed"
    assert third.picture == PICTURE
    assert capsys.readouterr().err == "finwait agent: a question could not be answered: IndexError('x')\n"


def test_a_picture_is_encoded_once(looker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    encode = protocol.encode

    def counting(value: Any) -> bytes:
        made.append(value)
        return encode(value)

    monkeypatch.setattr(protocol, "encode", counting)
    asked(looker, *[b'{"ask":"picture"}\n'] * 4)
    assert len(made) == 1


def test_a_text_file_that_cannot_be_written_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prometheus_client")

    noted: list[tuple[str, int]] = []

    class Quick:
        """A looker that has looked at once."""

        finished, status, history, boot = True, None, None, "b"
        picture = PICTURE

        def __init__(self, *_: object, **__: object) -> None: ...

        def round(self) -> float:
            return 0.0

        def end(self) -> None: ...

        def note_gaps(self, name: str, gaps: tuple[Gap, ...]) -> None:
            noted.append((name, len(gaps)))

    monkeypatch.setattr(service, "Looker", Quick)
    monkeypatch.setattr(service, "_NamingMachine", SimpleNamespace)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    options = service.AgentOptions(
        state=str(tmp_path / "state"), once=True, textfile=str(tmp_path / "nowhere")
    )
    try:
        assert service.run(options) == 1
    except FinwaitError as error:  # pragma: no cover
        pytest.fail(str(error))
    told = capsys.readouterr().err
    assert (
        f"`{tmp_path}/nowhere/finwait.prom` cannot be written, looking goes on: No such file or directory\n"
        in told
    )
    assert noted == [("textfile", 1)]


@pytest.mark.parametrize(
    ("kind", "number", "hint"),
    [
        ("file", errno.EEXIST, "a file that is no socket is there; remove it"),
        ("link", errno.EEXIST, "a symbolic link is there; remove it"),
        (
            "agent",
            errno.EADDRINUSE,
            "another agent answers there: `finwait agent status --socket PATH` asks it",
        ),
        ("long", errno.ENAMETOOLONG, "at most 107 bytes"),
    ],
)
def test_a_socket_that_cannot_be_bound_says_what_is_there(
    kind: str, number: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    path = "x" * 120 if kind == "long" else "agent.sock"
    with contextlib.ExitStack() as stack:
        if kind == "file":
            Path(path).write_text("x")
        elif kind == "link":
            Path(path).symlink_to("elsewhere")
        elif kind == "agent":
            stack.enter_context(service.AnswerSocket(SimpleNamespace(), path))  # type: ignore[arg-type]
        with pytest.raises(KernelError) as caught:
            facing.bound(path)
    assert caught.value.errno == number
    assert hint.replace("PATH", path) in caught.value.hint


def test_who_asks_at_a_path_that_no_socket_can_have_is_told_so() -> None:
    with pytest.raises(KernelError, match="ENAMETOOLONG"):
        client.ask(protocol.AskStatus(), "/tmp/" + "x" * 120)


def test_a_second_agent_is_told_how_to_ask_the_first_at_its_socket(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    first, second = (service._alone(tmp_path, "/tmp/a b.sock") for _ in range(2))
    with first, pytest.raises(KernelError) as caught, second:
        pass
    assert "`finwait agent status --socket '/tmp/a b.sock'` asks it" in caught.value.hint


def test_the_port_that_the_kernel_chose_is_told(capsys: pytest.CaptureFixture[str], looker: Any) -> None:
    answering = service.AnswerSocket(looker, "")
    face = facing.FaceProcess(lambda end, _: answering.serve(end, idle_s=None), "127.0.0.1:0", "", 15.0, -1)
    face.start()
    assert face._listener is not None
    port = face._listener.getsockname()[1]
    face.end()
    assert f"serving at http://127.0.0.1:{port}/" in capsys.readouterr().err


def test_a_process_that_serves_elsewhere_is_answered_at_a_socket_of_its_own_one_at_a_time(
    looker: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2777)  # as a pod's emptyDir
    path = str(folder / "serve.sock")
    answering = service.AnswerSocket(looker, "")

    def asking() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(30)
        sock.connect(path)
        sock.sendall(b'{"ask":"picture"}\n')
        return sock

    with facing.ServeSocket(lambda end, pulse: answering.serve(end, idle_s=None, pulse=pulse), path):
        status = Path(path).stat()
        assert status.st_mode & 0o777 == 0o660
        assert status.st_gid == folder.stat().st_gid
        with asking() as first, asking() as second:
            assert protocol.decode_answer(first.makefile("rb").readline()).picture == PICTURE
            first.sendall(b'{"ask":"ages","cookies":[1]}\n')
            assert protocol.decode_answer(first.makefile("rb").readline()).error == "not asked for here"
            second.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.recv(1)
            second.settimeout(30)
            first.shutdown(socket.SHUT_RDWR)
            assert protocol.decode_answer(second.makefile("rb").readline()).picture == PICTURE
    assert not Path(path).exists()


def test_the_agents_own_socket_is_in_no_folder_that_others_can_write_to(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2777)
    with pytest.raises(FileRefused, match="could answer in place of the agent"):
        facing.bound(str(folder / "agent.sock"))


@pytest.mark.parametrize("missing", ["--serve-socket", "--listen"])
def test_serving_elsewhere_needs_to_know_whom_to_ask_and_where_to_serve(
    missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--serve-socket": "/nonexistent/s", "--listen": "127.0.0.1:0"}
    del words[missing]
    assert main(["agent", "serve", *(word for pair in words.items() for word in pair)]) == 2
    assert f"needs `{missing}`" in capsys.readouterr().err
