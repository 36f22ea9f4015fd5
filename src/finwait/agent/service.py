"""The looking process: a loop that looks, and a Unix socket that answers.

The looker holds the rights (CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN, CAP_DAC_READ_SEARCH) and opens no network
socket. It answers `finwait.agent.protocol` on a Unix socket of mode 0660: pictures and rows of the history, nothing
that acts or makes it look. What faces a network (`finwait.agent.face`) is another process without any right, which has
one end of a socket pair.

One machine has one agent: a second one finds the lock in the state directory taken, or the socket answered, and
refuses. SIGTERM and SIGINT end it, also in the middle of a look; where its policy acts they wait for the next safe
point. SIGHUP makes it read configuration and policy, and look at everything anew. systemd is told when it is
ready, and that it is alive (sd_notify(3)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import selectors
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, Self

import msgspec
from msgspec import Struct

from finwait import files
from finwait.agent import answers, lean, protocol
from finwait.agent.client import SOCKET, status_command
from finwait.agent.config_file import interval_ms_of, share_of
from finwait.agent.configured import Configured
from finwait.agent.edge import Running
from finwait.agent.facing import FaceProcess, Pulse, ServeSocket, bound, say
from finwait.agent.loop import Looker
from finwait.agent.option_texts import KILL_SWITCH
from finwait.agent.store import LOCK, Store, store_path
from finwait.agent.story_keeper import StoryKeeper
from finwait.agent.textfile import write_textfile
from finwait.agent.tracing import RATE, TraceRecorder
from finwait.errors import FileRefused, FinwaitError, Gap, KernelError, UsageError
from finwait.kernel.interruption import Stop
from finwait.kernel.netns import NetNamespace
from finwait.relay.notice import notify

if TYPE_CHECKING:
    from finwait.agent.cluster_following import ClusterFollowing
    from finwait.agent.policing import Policing

__all__ = ["AgentOptions", "options_of", "run"]

_CLIENTS_MOST: Final = 32
_PATIENCE_S: Final = 5.0
"""For the rest of a question that was begun, and for an answer to be taken."""
_IDLE_S: Final = 60.0
_FAULT_PAUSE_S: Final = 600.0
_FACE_EVERY_S: Final = 0.2
"""Between two answers to the process that faces the network."""
_FACE_PAUSES: Final = 9.0
"""… and this many times the processor time that the answer took: its questions get a tenth of a processor at most."""
_FACE_EPISODES: Final = 1000
_SAID_EVERY_S: Final = 60.0


class AgentOptions(Struct, frozen=True):
    """What the command line and the configuration file say."""

    state: str | None = None
    socket: str = SOCKET
    listen: str = ""
    token: str = ""
    """What who reads the page must show; empty for nothing."""
    tls: tuple[str, str] | None = None
    """Certificate and key in PEM; None for no TLS."""
    serve_socket: str = ""
    """Where `finwait agent serve` asks; empty for nowhere."""
    share: float = 0.01
    interval_s: float = 15.0
    textfile: str = ""
    once: bool = False
    policy: str = ""
    """Path of the policy file; empty for none."""
    no_act: bool = False
    kill_switch: str = ""
    record_states: bool = True
    """Whether the flight recorder follows changes of state."""
    record_rate: float = RATE
    packets: Sequence[str] = ()
    """Network namespaces in which it sees headers of packets."""
    kubernetes: str = "off"
    """``auto``, ``off``, or the URL of an API server."""
    kube_token_file: str = ""
    kube_ca_file: str = ""
    node_name: str = ""
    kube_events: bool = False
    configured: Configured | None = None
    """What SIGHUP reads again; None for nothing."""


def options_of(configured: Configured) -> AgentOptions:
    """Return what command line and file say."""
    settings = configured.settings
    return AgentOptions(
        state=settings.state_dir or None,
        socket=settings.socket,
        listen=settings.listen,
        token=configured.secrets.token,
        tls=configured.secrets.tls,
        serve_socket=settings.serve_socket,
        share=share_of(settings.share),
        interval_s=interval_ms_of(settings.interval) / 1000,
        textfile=settings.textfile,
        once=settings.once,
        policy=settings.policy,
        no_act=settings.no_act,
        kill_switch=settings.kill_switch,
        record_states=settings.record_states,
        record_rate=settings.record_rate,
        packets=settings.packets,
        kubernetes=settings.kubernetes,
        kube_token_file=settings.kube_token_file,
        kube_ca_file=settings.kube_ca_file,
        node_name=settings.node_name,
        kube_events=settings.kube_events,
        configured=configured,
    )


# ── the socket ───────────────────────────────────────────────────────────────────────────────────────────


class AnswerSocket:
    """Answers questions about the last finished round, in threads; a context manager.

    Args:
        looker: whose.
        path: of the Unix socket; empty for none.
        configured: whose state is told, too.
    """

    def __init__(self, looker: Looker, path: str, configured: Configured | None = None) -> None:
        self._looker = looker
        self._configured = configured
        self._path = path
        self._slots = threading.BoundedSemaphore(_CLIENTS_MOST)
        self._listener: socket.socket | None = None
        self._encoded: tuple[protocol.RoundPicture | None, bool, bytes] = (None, True, b"")
        self._said_at = float("-inf")
        self._face_turn = threading.Lock()
        self._face_due = float("-inf")

    def __enter__(self) -> Self:
        """Bind the socket.

        Raises:
            KernelError: another agent answers there, or it cannot be bound.
            FileRefused: others could put a socket of their own in its place.
        """
        if self._path:
            self._listener = bound(self._path)
            threading.Thread(target=self._accept, name="finwait-answers", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError, FinwaitError):
                os.unlink(self._path)

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._client, args=(client,), name="finwait-client", daemon=True).start()

    def _client(self, client: socket.socket) -> None:
        try:
            self.serve(client, idle_s=_IDLE_S)
        finally:
            self._slots.release()

    def serve(self, client: socket.socket, *, idle_s: float | None, pulse: Pulse | None = None) -> None:
        """Answer one client until it goes; its socket is closed.

        Args:
            client: connected to who asks.
            idle_s: how long it may ask nothing; None for our own process that faces the network: it may do that as
                long as it likes, and its questions are answered five times a second at most, and at the price of a
                share of a processor: after a costly one it waits. Of several such processes, and of one that comes
                again, the questions count together.
            pulse: takes when it asks.
        """
        of_face = idle_s is None
        with client, contextlib.suppress(OSError, ValueError):
            for line in _lines(client, idle_s):
                if pulse is not None:
                    pulse.asked()
                if of_face:
                    with self._face_turn:
                        if not self._wait_for_face(client):
                            return
                        begun = time.thread_time()
                        data = self._answer_to(line, of_face=True)
                        spent = time.thread_time() - begun
                        self._face_due = time.monotonic() + max(_FACE_EVERY_S, _FACE_PAUSES * spent)
                else:
                    data = self._answer_to(line, of_face=False)
                # Our own other process may be slow on a busy machine; hanging up would tell it that we have ended.
                client.settimeout(12 * _PATIENCE_S if of_face else _PATIENCE_S)
                client.sendall(data)
                if pulse is not None:
                    pulse.answered()

    def _wait_for_face(self, client: socket.socket) -> bool:
        """Wait until questions of that process may be answered again; return whether it still waits for an answer."""
        while (pause_s := self._face_due - time.monotonic()) > 0:
            if _hung_up(client, pause_s):
                return False
        return True

    def _answer_to(self, line: bytes, *, of_face: bool) -> bytes:
        try:
            question = protocol.decode_question(line)
            if isinstance(question, protocol.AskPicture) and self._looker.picture is not None:
                return self._picture(self._looker.picture)
            if of_face and isinstance(question, protocol.AskAges | protocol.AskStories | protocol.AskNames):
                answer = protocol.AgentAnswer(error="not asked for here")
            elif of_face and isinstance(question, protocol.AskHistory) and question.limit > _FACE_EPISODES:
                answer = protocol.AgentAnswer(error=f"at most {_FACE_EPISODES} episodes are given here")
            else:
                answer = self._answer(question)
        except RecursionError:
            answer = protocol.AgentAnswer(refused="it is nested too deeply")
        except (ValueError, OverflowError) as error:
            answer = protocol.AgentAnswer(error=f"not a question: {error}"[:500])
        except FinwaitError as error:
            answer = protocol.AgentAnswer(error=str(error)[:500])
        except Exception as error:  # noqa: BLE001 - who faces the network would take us for ended
            self._say_once(f"a question could not be answered: {ascii(error)[:300]}")
            answer = protocol.AgentAnswer(error="the question failed")
        try:
            data = protocol.encode(answer)
        except ValueError as error:  # text that is no Unicode
            data = protocol.encode(
                protocol.AgentAnswer(error=f"the answer cannot be written: {ascii(error)[:200]}")
            )
        if len(data) > protocol.ANSWER_MOST:
            data = protocol.encode(protocol.AgentAnswer(error="the answer is too long; ask for less"))
        return data

    def _say_once(self, text: str) -> None:
        """Say what went wrong, once a minute."""
        if time.monotonic() - self._said_at >= _SAID_EVERY_S:
            self._said_at = time.monotonic()
            say(text)

    def _picture(self, picture: protocol.RoundPicture) -> bytes:
        """Return a picture as a line, made once for all who ask: what that takes is taken from the looking."""
        known, right, data = self._encoded
        now_right = self._configured is None or self._configured.right
        if known is not picture or right != now_right:
            answer = protocol.AgentAnswer(picture=_with_config(picture, self._configured))
            data = protocol.encode(answer)
            self._encoded = picture, now_right, data
        return data

    def _answer(self, question: protocol.Question) -> protocol.AgentAnswer:
        looker = self._looker
        if isinstance(question, protocol.AskPicture):
            if looker.picture is None:
                return protocol.AgentAnswer(error="the first look is not finished")
            return protocol.AgentAnswer(picture=_with_config(looker.picture, self._configured))
        if isinstance(question, protocol.AskStatus):
            if looker.status is None:
                return protocol.AgentAnswer(error="the first look is not finished")
            config = self._configured.status if self._configured is not None else None
            return protocol.AgentAnswer(status=msgspec.structs.replace(looker.status, config=config))
        return answers.answer(looker, question)


def _hung_up(client: socket.socket, seconds: float) -> bool:
    """Wait so long, or until a client is gone, or was let go; return whether it is."""
    waiting = select.poll()
    waiting.register(client, 0)  # of an end without the other one, poll(2) tells unasked
    return bool(waiting.poll(math.ceil(seconds * 1000)))


def _with_config(picture: protocol.RoundPicture, configured: Configured | None) -> protocol.RoundPicture:
    """Return a picture that also says whether the configuration that was read last is in force."""
    if configured is None or configured.right == picture.config_right:
        return picture
    return msgspec.structs.replace(picture, config_right=configured.right)


def _lines(client: socket.socket, idle_s: float | None) -> Iterator[bytes]:
    """Return the lines that a client sends; one that it does not finish in time ends it.

    Raises:
        OSError: it is gone, or took too long.
        ValueError: a line is too long.
    """
    data = b""
    deadline = 0.0
    while True:
        end = data.find(b"\n")
        if end >= 0:
            line, data = data[:end], data[end + 1 :]
            deadline = time.monotonic() + _PATIENCE_S
            yield line
            continue
        if len(data) > protocol.QUESTION_MOST:
            raise ValueError("too long")
        if data:
            client.settimeout(max(0.01, deadline - time.monotonic()))
        else:
            client.settimeout(idle_s)
        more = client.recv(1 << 16)
        if not more:
            return
        if not data:
            deadline = time.monotonic() + _PATIENCE_S
        data += more


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────


class _Ended(BaseException):
    """A signal told the looker to end, in the middle of a look."""


class _Signals:
    """What signals ask for; `wait` is woken by them."""

    def __init__(self) -> None:
        self.ending = False
        self.renewing = False
        self._in_look = False
        self._mark: Stop | None = None
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"x")
        if number == signal.SIGHUP:
            self.renewing = True
            return
        self.ending = True
        if self._mark is not None:
            self._mark.set()  # what acts ends at its next safe point
        elif self._in_look:
            self._in_look = False
            raise _Ended

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Let a signal cut short what is done inside."""
        self._in_look = True
        try:
            if self.ending:
                raise _Ended
            yield
        finally:
            self._in_look = False

    @contextlib.contextmanager
    def acting(self) -> Iterator[Stop]:
        """Let a signal cut nothing short, but set the mark that is given: something acts inside."""
        mark = self._mark = Stop()
        try:
            if self.ending:
                mark.set()
            yield mark
        finally:
            self._mark = None
            mark.close()
            notify("WATCHDOG=1")  # probes may take seconds, and come in portions

    def wait(self, seconds: float) -> None:
        """Wait, at most so long."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            if selector.select(max(0.0, seconds)):
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)


@contextlib.contextmanager
def _alone(directory: Path, path: str) -> Iterator[int]:
    """Hold the lock of the state directory; return the descriptor of its file, −1 where it cannot be made.

    Raises:
        KernelError: another agent holds it.
    """
    with files.folder(str(directory), make=True) as folder:
        if reason := folder.alone or folder.way:
            raise FileRefused(
                str(directory),
                f"only you may be able to write the history, but {reason}",
                hint="name another `--state-dir`",
            )
        try:
            fd = folder.open(LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.ENOSPC):
                raise
            yield -1  # without a place for the lock the socket alone tells a second agent
            return
    try:
        _lock(fd)
    except BlockingIOError:
        os.close(fd)
        raise KernelError(
            errno.EAGAIN,
            f"use the state directory `{directory}`",
            hint=f"another agent runs with it: `{status_command(path)}` asks it, if it has that `--socket`",
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    """Lock a file for us alone; `finwait history` holds it for a moment to see whether an agent does.

    Raises:
        BlockingIOError: another agent holds it.
    """
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class _NamingMachine(Running):
    """The running machine, which keeps what its network namespaces are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, tuple[str, ...]] = {}

    def namespaces(self) -> tuple[list[NetNamespace], list[Gap]]:
        """Find every network namespace."""
        spaces, gaps = super().namespaces()
        self.names = {ns.inode: ns.names for ns in spaces}
        return spaces, gaps


class _Remembering:
    """Writes down, beside the rounds, what a reader of the history must know of the looker: its pace and its gaps."""

    def __init__(self, path: Path, machine: _NamingMachine, interval_s: float) -> None:
        self._path = path
        self._machine = machine
        self._interval_s = interval_s
        self._store: Store | None = None
        self._written: tuple[dict[str, object], dict[int, tuple[str, ...]]] | None = None

    def open(self) -> Store:
        """Open the history.

        Raises:
            StoreError: it cannot be opened.
        """
        self._store = Store(self._path)
        self._written = None
        return self._store

    def write(self, looker: Looker) -> None:
        """Write what has changed; a failure is the store's to count."""
        if self._store is None or looker.history is None:
            return
        gaps = [[gap.where, gap.doing, gap.needs] for gap in looker.gaps]
        meta: dict[str, object] = {"interval_s": self._interval_s, "gaps": gaps}
        names = self._machine.names
        if (meta, names) == self._written:
            return
        before = self._written[1] if self._written is not None else {}
        changed = {inode: several for inode, several in names.items() if before.get(inode) != several}
        if self._store.remember({"looker": meta}, looker.boot, changed):
            self._written = meta, names


class _Faults:
    """Tells of faults of ours that the looking survives, at most every ten minutes."""

    def __init__(self) -> None:
        self._due = 0.0

    def tell(self, error: Exception) -> None:
        """Say what went wrong, and where."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _FAULT_PAUSE_S
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        say(f"a fault of finwait at {place}, looking goes on: {type(error).__name__}: {error}"[:500])


def run(options: AgentOptions) -> int:
    """Look until a signal ends it; return the exit status.

    Raises:
        FinwaitError: another agent runs, or something of the command line cannot be had.
    """
    lean.begin_small()
    path = store_path(options.state)
    signals = _Signals()
    status = 0
    machine = _NamingMachine()
    cluster = _cluster(options)
    policing = _policing(options, machine, signals, cluster)
    with _alone(path.parent, options.socket) as lock, contextlib.ExitStack() as stack:
        if cluster is not None:
            stack.enter_context(cluster)
        remembering = _Remembering(path, machine, options.interval_s)
        looker = Looker(
            machine,
            remembering.open,
            share=options.share,
            tick_s=options.interval_s,
            policing=policing,
            stories=_stories(options, stack),
            cluster=cluster,
            events=options.kube_events,
            fault=_Faults().tell,
        )
        answering = stack.enter_context(
            AnswerSocket(looker, "" if options.once else options.socket, options.configured)
        )
        face = None

        def serve(own_end: socket.socket, pulse: Pulse | None = None) -> None:
            answering.serve(own_end, idle_s=None, pulse=pulse)

        serving: list[FaceProcess | ServeSocket] = []
        if options.serve_socket and not options.once:
            serving.append(stack.enter_context(ServeSocket(serve, options.serve_socket)))
        if options.listen:
            face = FaceProcess(
                serve, options.listen, options.token, options.interval_s, lock, tls=options.tls
            )
            stack.callback(face.end)
            face.start()
            serving.append(face)
        try:
            if _rounds(looker, signals, options, face, serving, remembering, policing) and options.once:
                status = 1
        except _Ended:
            pass
        finally:
            notify("STOPPING=1")
            remembering.write(looker)
            looker.end()
        if options.once and not status and looker.picture is not None and looker.picture.gaps:
            status = 3
    return status


def _stories(options: AgentOptions, stack: contextlib.ExitStack) -> StoryKeeper:
    """Return what keeps stories, and begin to record; one look alone has none to tell."""
    if options.once or not (options.record_states or options.packets):
        return StoryKeeper()
    source = TraceRecorder(
        states=options.record_states,
        rate=options.record_rate,
        share=options.share,
        packets=options.packets,
    )
    stack.enter_context(source)
    return StoryKeeper(source)


def _cluster(options: AgentOptions) -> ClusterFollowing | None:
    """Return what follows the names of a cluster; None where none is to be followed.

    Raises:
        UsageError: it is not known which node this is.
    """
    kubernetes = options.kubernetes
    if kubernetes == "off" or (kubernetes == "auto" and not os.environ.get("KUBERNETES_SERVICE_HOST")):
        return None
    if kubernetes != "auto" and not (options.node_name or os.environ.get("NODE_NAME")):
        raise UsageError(
            "the names of a cluster need the name of this node",
            hint="`--node-name`, as `kubectl get nodes` lists it, or the variable NODE_NAME",
        )
    from finwait.agent.cluster_following import ClusterFollowing

    return ClusterFollowing(
        kubernetes,
        token_file=options.kube_token_file,
        ca_file=options.kube_ca_file,
        node=options.node_name,
        say=say,
    )


def _policing(
    options: AgentOptions, machine: Running, signals: _Signals, cluster: ClusterFollowing | None
) -> Policing | None:
    """Return what applies the policy; None where there is none.

    Raises:
        FinwaitError: the policy cannot be read, or is wrong.
    """
    if not options.policy:
        return None
    from finwait.agent.hands import RunningHands
    from finwait.agent.policing import Policing

    hands = RunningHands(
        options.policy,
        machine.looked_at,
        machine.boot(),
        kill_switch=options.kill_switch or KILL_SWITCH,
        acting=signals.acting,
        cluster=None if cluster is None else (lambda: cluster.names),
    )
    return Policing(hands, options.policy, machine.boot(), no_act=options.no_act, say=say)


def _rounds(
    looker: Looker,
    signals: _Signals,
    options: AgentOptions,
    face: FaceProcess | None,
    serving: Sequence[FaceProcess | ServeSocket],
    remembering: _Remembering,
    policing: Policing | None,
) -> bool:
    """Look until a signal ends it; return whether the text file could not be written last."""
    ready = False
    textfile_failed = False
    statement = ""
    while not signals.ending:
        if signals.renewing:
            signals.renewing = False
            options = _reloaded(options, face)
            if policing is not None:
                policing.reload(no_act=options.no_act, kill_switch=options.kill_switch or KILL_SWITCH)
            looker.renew()
        with signals.looking():
            rest = looker.round()
        remembering.write(looker)
        if not ready:
            ready = True
            lean.stay_small()
            notify("READY=1")
        notify("WATCHDOG=1")
        if options.textfile and looker.picture is not None:
            picture = _with_config(looker.picture, options.configured)
            unwritten = write_textfile(options.textfile, picture, quiet=textfile_failed)
            textfile_failed = unwritten is not None
            looker.note_gaps("textfile", () if unwritten is None else (unwritten,))
        now_said = looker.status.store_said if looker.status is not None else ""
        if now_said != statement:
            say(f"the history: {now_said or 'it is written again'}; looking goes on")
        statement = now_said
        if options.once and looker.finished:
            break
        for each in serving:
            each.check()
        looker.note_gaps("page", tuple(gap for each in serving for gap in each.gaps))
        signals.wait(min(rest, 1.0) if options.once else rest)
    return textfile_failed


def _reloaded(options: AgentOptions, face: FaceProcess | None) -> AgentOptions:
    """Read the configuration again; return what is in force."""
    if options.configured is None or not options.configured.reload(say):
        return options
    options = options_of(options.configured)
    if face is not None:
        face.change(options.token, options.tls)
    return options
