"""What Tab offers, asked of real shells: bash, zsh and fish say the same."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from docs import complete
from finwait.cli import COMMANDS
from finwait.diagnosis import catalogue
from finwait.lab.scenario import scenarios
from finwait.remedy.guards import ENTRY_GUARDS, GUARDS
from finwait.remedy.settings.catalogue import CATALOGUE
from finwait.report.columns import NAMES
from finwait.shipped import profile_names
from tests.docs.test_docs import COMMAND_TREE
from tests.kernel.needs import missing

FOLDER = Path(__file__).parents[2] / "share/completions"
DEADLINE_S = 60.0
PROMPT = "<READY>"


# ── shells that are typed at ─────────────────────────────────────────────────────────────────────────────


class Terminal:
    """A shell on a terminal, wide and high enough that no list is shown in pieces."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.count = 0

    def typed(self, text: str) -> str:
        """Type at a prompt, and return all that comes until the shell has carried out an `echo` behind it."""
        self.count += 1
        os.write(self.fd, f"{text}\x15echo END$(({self.count}+1000))\r".encode())
        return self.until(f"END{self.count + 1000}", PROMPT)

    def until(self, *marks: str) -> str:
        """Read until some marks have come, one after the other."""
        got = b""
        end = time.monotonic() + DEADLINE_S
        pattern = re.compile(b".*".join(re.escape(mark.encode()) for mark in marks), re.DOTALL)
        while not pattern.search(got):
            assert select.select([self.fd], [], [], max(0, end - time.monotonic()))[0], got.decode(
                errors="replace"
            )
            got += os.read(self.fd, 65536)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|[\r\x07]", "", got.decode(errors="replace")).replace(
            PROMPT, ""
        )


@contextmanager
def terminal(*command: str, begin: str) -> Iterator[Terminal]:
    """Run a shell on a terminal of its own; end it after."""
    fd, its_end = pty.openpty()
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=its_end, stdout=its_end, stderr=its_end, env=env, cwd="/"
    )
    os.close(its_end)
    try:
        termios.tcsetwinsize(fd, (2000, 300))
        shell = Terminal(fd)
        # Before it prompts, the terminal is not the shell's: what one types then, the kernel edits.
        os.write(fd, f"{begin}; PS1='<REA''DY>'\r".encode())
        shell.until(PROMPT)
        yield shell
    finally:
        process.kill()
        process.wait()
        os.close(fd)


ZSH = (
    f"fpath=({FOLDER}/zsh $fpath); autoload -Uz compinit; compinit -u -D; LISTMAX=100000; "
    "zstyle ':completion:*' verbose no; zstyle ':completion:*' list-separator ''; unsetopt list_types list_beep"
)
BASH = f"source {FOLDER}/bash/finwait; bind 'set show-all-if-ambiguous on' 'set completion-query-items -1'"
Ask = Callable[[str], set[str]]


def bash_asked(shell: Terminal, line: str) -> set[str]:
    """What bash's function replies, for words as bash splits them."""
    words = [w for w in re.split(r"\s+|(!?=)", line) if w]
    words += [""] if line.endswith(" ") else []
    quoted = " ".join("'" + w + "'" for w in words)
    text = shell.typed(
        f"COMP_WORDS=({quoted}) COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _finwait 2>/dev/null; "
        "printf '<%s>' \"${COMPREPLY[@]}\"\r"
    )
    return set(re.findall(r"<([^<>%]+)>", text.rpartition("COMPREPLY")[2]))


def zsh_asked(shell: Terminal, line: str) -> set[str]:
    """What zsh lists for a line (Ctrl-D lists, and completes nothing)."""
    text = shell.typed(f"{line}\x04")
    return set(text.partition("echo END")[0].split()) - set(line.split())


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def offered(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """What a shell offers for a line."""
    name = request.param
    if not shutil.which(name):
        missing(f"`{name}` is not installed")
    if name == "fish":
        yield fish_asked
    elif name == "bash":
        with terminal("bash", "--norc", "--noprofile", begin=BASH) as shell:
            yield lambda line: bash_asked(shell, line)
    else:
        with terminal("zsh", "-f", begin=ZSH) as shell:
            yield lambda line: zsh_asked(shell, line)


def fish_asked(line: str) -> set[str]:
    """What fish offers for a line."""
    run = f"source {FOLDER}/fish/finwait.fish; complete -C {line!r}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", run], capture_output=True, text=True, timeout=DEADLINE_S, cwd="/"
    )
    assert not done.stderr, done.stderr
    return {offer.partition("\t")[0] for offer in done.stdout.splitlines()}


def ends(words: set[str], before: str = "") -> set[str]:
    """Words as each shell shows them: with what stands before the last comma or sign, or without it."""
    return {re.split(r"[=,]", w.removesuffix("="))[-1] if before else w.removesuffix("=") for w in words}


# ── what they offer ──────────────────────────────────────────────────────────────────────────────────────


def test_the_bare_command_offers_the_commands(offered: Ask) -> None:
    assert offered("finwait ") == set(COMMANDS)
    assert "relay" in offered("finwait re")


def test_the_bare_command_takes_options_and_a_filter_as_diagnose_does(offered: Ask) -> None:
    assert {"--from", "--netns", "--idle"} <= offered("finwait --")
    assert {"fin-wait-1", "fin-wait-2"} <= offered("finwait state ")
    assert offered("finwait state fin-") == {"fin-wait-1", "fin-wait-2"}
    assert set(catalogue.NAMES) <= offered("finwait rule = ")
    assert offered("finwait --established ") == {"auto", "always", "never"}


def test_a_group_of_commands_offers_its_commands(offered: Ask) -> None:
    assert offered("finwait tune ") == {"show", "explain", "plan", "apply", "rollback"}
    assert {"list", "run", "prove"} <= offered("finwait lab ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("finwait explain ", catalogue.NAMES),
        ("finwait clear rule = ", catalogue.NAMES),
        ("finwait lab run ", scenarios()),
        ("finwait tune explain ", [s.key for s in CATALOGUE]),
        ("finwait tune show ", [s.key for s in CATALOGUE]),
        ("finwait tune plan ", profile_names()),
        ("finwait tune apply ", [s.key for s in CATALOGUE]),
        ("finwait list --columns ", NAMES),
        ("finwait list state ", ["established", "fin-wait-2", "connected", "all"]),
        ("finwait clear --override ", set(GUARDS) - {"listener"}),
        ("finwait conntrack --override ", ENTRY_GUARDS),
        ("finwait audit --fail-on ", ["harmful", "false", "none"]),
        ("finwait list ", ["state", "rule", "held", "not"]),
        ("finwait list timer = ", ["keepalive", "persist"]),
    ],
)
def test_names_are_offered_where_they_belong(offered: Ask, line: str, words: object) -> None:
    assert set(words) - ends(offered(line)) == set()  # type: ignore[call-overload]


def test_what_is_begun_is_finished(offered: Ask) -> None:
    assert ends(offered("finwait list --columns local,pe"), ",") == {"peer", "peer_pod", "peer_workload"}
    assert ends(offered("finwait list --sort expires"), ",") == {"expires_ms"}
    assert ends(offered("finwait list rule = relay-pair,fin-wait2-he"), ",") == {"fin-wait2-held"}
    assert ends(offered("finwait list --established=ne"), "=") == {"never"}
    assert ends(offered("finwait list rule=relay-p"), "=") == {"relay-pair"}
    assert offered("finwait lab run kube") == {"kube-proxy-userspace"}


def test_the_value_of_an_option_is_not_taken_for_an_argument(offered: Ask) -> None:
    assert offered("finwait lab run --idle 5m kube") == {"kube-proxy-userspace"}
    assert offered("finwait list --flood ") == set()
    assert offered("finwait list --from ./nothing-of-this-name") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_finishes_the_word_at_the_cursor(shell: str) -> None:
    if not shutil.which(shell):
        missing(f"`{shell}` is not installed")
    command = ("bash", "--norc", "--noprofile") if shell == "bash" else ("zsh", "-f")
    with terminal(*command, begin=BASH if shell == "bash" else ZSH) as typing:
        for begun, finished in (
            ("finwait lab run kube", "finwait lab run kube-proxy-userspace"),
            ("finwait list --established=ne", "finwait list --established=never"),
            ("finwait list rule=relay-p", "finwait list rule=relay-pair"),
            ("finwait list rule != relay-p", "finwait list rule != relay-pair"),
            ("finwait list --columns local,pe", "finwait list --columns local,peer"),
            ("finwait list --sort -expires", "finwait list --sort -expires_ms"),
            ("finwait tune plan net.ipv4.tcp_fin_t", "finwait tune plan net.ipv4.tcp_fin_timeout="),
        ):
            said = typing.typed(f"{begun}\t\x01echo '\x05'\r")  # Ctrl-A, echo, Ctrl-E
            assert f"{finished} \n" in said or f"{finished}\n" in said, (begun, said)


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_in_the_completions(shell: str) -> None:
    text = complete.text(shell, COMMAND_TREE)
    assert [c.name for c in COMMAND_TREE if c.words[-1] not in text] == []
    options = {o for c in COMMAND_TREE for some in c.options.values() for a in some for o in a.option_strings}
    assert {o for o in options if o not in text} == set()
    assert not re.search(r"@[A-Z]+@", text), "a table that was not filled in"


def test_for_every_value_it_is_decided_what_completes_it() -> None:
    """A new name of a value goes into KINDS of docs/complete.py, or into FREE if there is nothing to offer."""
    called = {
        complete.called(a): c.name
        for c in COMMAND_TREE
        for a in [*c.positionals, *(a for some in c.options.values() for a in some)]
        if a.nargs != 0 and a.choices is None
    }
    assert {
        name: command for name, command in called.items() if name not in {*complete.KINDS, *complete.FREE}
    } == {}
