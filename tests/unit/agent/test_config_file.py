"""finwait.toml: every option of the command line, which of two values holds, and what a reload changes."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from finwait.agent import configured as configured_module
from finwait.agent import facing, service, telling
from finwait.agent.config_file import AgentConfigError, json_schema, keys, option_of, read_config, settings_of
from finwait.agent.configured import NO_CONFIG, Configured
from finwait.agent.option_texts import TEXTS
from finwait.cli import build_parser
from finwait.errors import FinwaitError
from tests import certificates
from tests.unit.agent.test_metrics import PICTURE

EXAMPLE = Path(__file__).parents[3] / "examples/agent/finwait.toml"
OF_THE_CALL = {
    "--config": "names the file",
    "--check": "says what to do once",
    "--help": "says what to do once",
}
"""Options that a file cannot have, and why."""


def agent_parser() -> argparse.ArgumentParser:
    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    made: argparse.ArgumentParser = commands.choices["agent"]
    return made


def test_every_option_of_the_command_line_is_in_the_schema_and_the_reverse() -> None:
    told = {
        option: action
        for action in agent_parser()._actions
        for option in [next((name for name in action.option_strings if name.startswith("--")), "")]
        if option and option not in OF_THE_CALL
    }
    properties = json_schema()["$defs"]["AgentTable"]["properties"]
    assert {option_of(f"agent.{name}") for name in properties} == set(told)
    assert set(properties) == set(TEXTS) == {key.path.removeprefix("agent.") for key in keys()}
    for name, schema in properties.items():
        action = told[option_of(name)]
        kinds = {"record_rate": "integer", "packets": "array"}
        assert schema["type"] == ("boolean" if action.nargs == 0 else kinds.get(name, "string"))
        assert action.default in (None, False)  # else the file would never be asked
        assert (action.help or "").replace("%%", "%").lower() == schema["description"].rstrip(".").lower()


def wrong(text: str) -> AgentConfigError:
    with pytest.raises(AgentConfigError) as caught:
        read_config(text.encode(), "f.toml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[agent]\nlisten_ = ''", "f.toml:2: this key does not exist here (`agent.listen_`)", "did you mean `listen`?"),
        ("listen = 'x'", "f.toml:1: this key does not exist here", "`listen` belongs to `[agent]`"),
        ("[agent]\n\nno_act = 1", "f.toml:3: expected `bool`", "it must be true or false"),
        ("[agent]\nshare = '500%'", "f.toml:2: `500%` is not a share", "docs/reference/agent.md"),
        ("[agent]\nshare = 1", "f.toml:2: expected `str`", "it must be text in quotes"),
        ("[agent]\ninterval = '1h'", "f.toml:2: `1h` is too short or too long", ""),
        ("[agent]\npolicy = 'policy.toml'", "f.toml:2: `policy.toml` is not an absolute path", ""),
        ('[agent]\nsocket = "/a\\u0000"', "f.toml:2: a path cannot contain a NUL", ""),
        ("[agent]\npackets = ['..']", "f.toml:2: ", ""),
        ("[agent]\npackets = 'web'", "f.toml:2: expected `array`", ""),
        ("[agent]\nkill_switch = ''", "f.toml:2: there is always a kill switch", "leave the key out"),
        ("[agent]\nrecord_rate = 0", "f.toml:2: ", ""),
        ("[agnt]", "f.toml:1: this key does not exist here (`agnt`)", "did you mean `agent`?"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_what_would_be_right(text: str, said: str, hint: str) -> None:
    error = wrong(text)
    assert said in str(error)
    assert hint in error.hint


def test_the_command_line_wins_then_the_file_then_the_default_and_each_is_known() -> None:
    document = read_config(b"[agent]\nshare = '2%'\ninterval = '5s'\nno_act = true\n", "f.toml")
    settings = settings_of(document, {"share": "3%"}, {})
    assert (settings.share, settings.interval, settings.no_act, settings.listen) == ("3%", "5s", True, "")
    sources = [settings.sources[key] for key in ("share", "interval", "no_act", "listen")]
    assert sources == ["command line", "f.toml:3", "f.toml:4", "default"]


def test_the_schema_takes_the_example_and_refuses_what_the_reader_refuses() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(EXAMPLE.read_text()), schema)
    read_config(EXAMPLE.read_bytes(), "example")
    for text in ("[agent]\nx = 1", "[agent]\nshare = 'much'", "[agent]\nno_act = 'yes'", "x = 1"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(text), schema)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "finwait.toml"
    path.write_text("[agent]\ntextfile = '/var'\n")
    path.chmod(0o644)
    return path


def test_a_new_file_is_taken_and_what_needs_a_restart_stays_and_is_said(config: Path) -> None:
    configured, told = Configured(str(config), {}), list[str]()
    config.write_text("[agent]\ntextfile = '/var/y'\nshare = '2%'\nlisten = '127.0.0.1:1'\n")
    assert configured.reload(told.append)
    assert (configured.settings.textfile, configured.settings.share) == ("/var/y", "1%")
    assert configured.status.restart == ["--listen", "--share"]
    assert told == ["the configuration was read again; what needs a restart: --listen, --share"]
    config.write_text("[agent]\ntextfile = '/var/z'\n")
    assert configured.reload(told.append)
    assert configured.status.restart == []
    assert len(told) == 1


@pytest.mark.parametrize(
    "text",
    ["[agent]\nx = 1", "[agent", "[agent]\nlisten = 'nowhere'", "[agent]\ntoken_file = '/nonexistent/token'"],
)
def test_a_new_file_that_is_wrong_changes_nothing_and_is_said_everywhere(config: Path, text: str) -> None:
    configured, told = Configured(str(config), {}), list[str]()
    before = configured.settings
    config.write_text(text)
    assert not configured.reload(told.append)
    assert configured.settings == before
    assert told[0].startswith("the new configuration is not used, the old one stays: ")
    assert told[0][:400] in "".join(telling._config_lines(configured.status))
    looker: Any = SimpleNamespace(picture=PICTURE)
    answering = service.AnswerSocket(looker, "", configured)
    assert b'"config_right":false' in answering._answer_to(b'{"ask":"picture"}', of_face=True)
    config.write_text("[agent]\ntextfile = '/var'\n")
    assert configured.reload(told.append)
    assert configured.status.said == ""
    assert b'"config_right":true' in answering._answer_to(b'{"ask":"picture"}', of_face=True)


def test_a_file_that_others_can_write_or_that_is_not_there_is_refused(config: Path, tmp_path: Path) -> None:
    config.chmod(0o666)
    with pytest.raises(FinwaitError, match="others can write to it"):
        Configured(str(config), {})
    with pytest.raises(FinwaitError, match="No such file"):
        Configured(str(tmp_path / "nothing"), {})
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FinwaitError, match="a FIFO"):
        Configured(str(tmp_path / "fifo"), {})
    assert Configured(NO_CONFIG, {}).file == ""


def finwait(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finwait", *words], capture_output=True, text=True, timeout=120
    )


def test_check_says_what_would_be_in_force_and_where_it_comes_from(config: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('mode = "dry-run"\n')
    policy.chmod(0o644)
    done = finwait("agent", "--check", "--config", str(config), "--policy", str(policy), "--interval", "5s")
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["textfile", "/var", f"{config}:2"] in rows
    assert ["interval", "5s", "command", "line"] in rows
    assert ["share", "1%", "default"] in rows
    assert f"`{policy}` is right: policy `default`, mode dry-run, rules: none" in done.stdout


@pytest.mark.parametrize("which", ["config", "policy"])
def test_check_ends_with_1_where_one_of_them_is_wrong(config: Path, tmp_path: Path, which: str) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("")
    (config if which == "config" else policy).write_text("\nx = 1\n")
    policy.chmod(0o644)
    done = finwait("agent", "--check", "--config", str(config), "--policy", str(policy))
    assert done.returncode == 1
    assert f"{config if which == 'config' else policy}:2: this key does not exist here" in done.stderr
    assert "hint: " in done.stderr


def test_a_process_that_does_not_take_what_is_changed_is_started_again() -> None:
    class Hung:
        killed = False
        returncode = None
        pid = os.getpid()  # no child of ours

        def __init__(self) -> None:
            read, write = os.pipe2(os.O_NONBLOCK)
            self.read, self.stdin = os.fdopen(read, "rb"), os.fdopen(write, "wb", buffering=0)
            while True:
                try:
                    os.write(write, b"x" * 65536)
                except BlockingIOError:
                    return

        def poll(self) -> None:
            return None

        def send_signal(self, number: int) -> None:
            self.killed = number == signal.SIGKILL

    face = facing.FaceProcess(lambda *_: None, "127.0.0.1:0", "", 15.0, -1)
    hung: Any = Hung()
    face._process, face._listener = hung, SimpleNamespace(family=1)  # type: ignore[assignment]
    face.change("t" * 20)
    assert hung.killed
    hung.stdin.close()
    hung.read.close()


def test_half_of_what_tls_needs_is_refused() -> None:
    for typed, said in (
        ({"tls_cert": "/c", "listen": "127.0.0.1:1"}, "`--tls-key` is missing"),
        ({"tls_key": "/k", "listen": "127.0.0.1:1"}, "`--tls-cert` is missing"),
        ({"tls_cert": "/c", "tls_key": "/k"}, "TLS is for what is served at an address"),
        ({"tls_cert": "/c", "tls_key": "/k", "listen": "unix:/x"}, "TLS is for what is served at an address"),
    ):
        with pytest.raises(AgentConfigError, match=said):
            settings_of(None, typed, {})


def test_a_certificate_is_read_again_and_one_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    certificate, key = certificates.made(tmp_path, "one")
    typed = {"listen": "127.0.0.1:1", "tls_cert": str(certificate), "tls_key": str(key)}
    configured, told = Configured(NO_CONFIG, typed), list[str]()
    first = configured.secrets.tls
    assert first == (certificate.read_text(), key.read_text())
    key.chmod(0o644)
    assert not configured.reload(told.append)
    assert "everybody can read the key" in told[-1]
    key.chmod(0o600)
    new_certificate, new_key = certificates.made(tmp_path, "two")
    new_certificate.rename(certificate)
    assert not configured.reload(told.append)  # between the two: a key that belongs to another certificate
    assert f"`{certificate}` and `{key}` cannot be used" in told[-1]
    assert configured.secrets.tls == first
    new_key.rename(key)
    assert configured.reload(told.append)
    assert configured.secrets.tls == (certificate.read_text(), key.read_text()) != first


def test_whether_there_is_tls_needs_a_restart(config: Path, tmp_path: Path) -> None:
    certificate, key = certificates.made(tmp_path, "one")
    plain = '[agent]\nlisten = "127.0.0.1:1"\n'
    config.write_text(plain + f'tls_cert = "{certificate}"\ntls_key = "{key}"\n')
    configured = Configured(str(config), {})
    config.write_text(plain)
    assert configured.reload(lambda _: None)
    assert configured.status.restart == ["--tls-cert"]
    assert configured.secrets.tls is not None
    assert configured.settings.tls_key == str(key)


@pytest.mark.parametrize(
    ("listen", "token", "tls", "said"),
    [
        ("0.0.0.0:0", "t" * 20, None, "can read the token and all that is served there"),
        ("0.0.0.0:0", "", None, "can read all that is served there"),
        ("127.0.0.1:0", "t" * 20, None, ""),
        ("0.0.0.0:0", "t" * 20, ("c", "k"), ""),
    ],
)
def test_an_address_that_others_reach_without_tls_is_said(
    listen: str, token: str, tls: tuple[str, str] | None, said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(facing.FaceProcess, "check", lambda _: None)
    face = facing.FaceProcess(lambda *_: None, listen, token, 15.0, -1, tls=tls)
    face.start()
    face.end()
    told = capsys.readouterr().err
    assert said in told
    assert bool(said) == ("no TLS at " in told)
    assert f"serving at {'https' if tls else 'http'}://" in told


def test_a_file_that_is_gone_when_it_is_read_again_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it forbade would be allowed: the page without a token, acts without `no_act`."""
    path = tmp_path / "finwait.toml"
    path.write_text("[agent]\nno_act = true\n")
    monkeypatch.setattr(configured_module, "CONFIG", str(path))
    read = Configured(None, {})
    path.unlink()
    said: list[str] = []
    assert not read.reload(said.append)
    assert read.settings.no_act
    assert (read.right, "is gone" in read.status.said, len(said)) == (False, True, 1)


def test_check_refuses_places_in_which_the_agent_would_not_start(tmp_path: Path) -> None:
    everybodys = tmp_path / "open"
    everybodys.mkdir()
    everybodys.chmod(0o777)
    for option, path in (
        ("--state-dir", everybodys / "state"),
        ("--socket", everybodys / "a.sock"),
        ("--textfile", tmp_path / "nosuch"),
    ):
        done = finwait("agent", "--check", "--config", "none", option, str(path))
        assert done.returncode == 1, option
        assert str(path.parent if option != "--textfile" else path) in done.stderr


def test_an_option_before_the_command_is_the_command_s(tmp_path: Path) -> None:
    done = finwait("agent", "--socket", str(tmp_path / "x.sock"), "status")
    assert f"`{tmp_path}/x.sock`" in done.stderr
