"""`finwait history`: it says what lasts, whatever came later, and that nobody looks any more."""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from finwait.agent import telling
from finwait.agent.episodes import Episode, Instant
from finwait.agent.store import Store
from finwait.cli import main
from finwait.kernel import procfs
from tests.unit.agent.test_store import episode

S = 1_000_000_000
HOUR = 3600 * S


class Past:
    """A history of this boot: what began so long ago."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        self.boot = procfs.facts().boot_id
        self.now = Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())

    def ago(self, ns: int) -> Instant:
        return Instant(self.now.boot_ns - ns, self.now.wall_ns - ns)

    def episode(self, cookie: int, ago_ns: int, *, over: bool = False) -> Episode:
        first = self.ago(ago_ns)
        e = replace(
            episode(cookie), boot=self.boot, first=first, last=first, latest_ns=first.boot_ns, netns=77
        )
        return replace(e, ended=self.now, how="closed") if over else e

    def write(
        self,
        episodes: list[Episode],
        *,
        looked_ago_ns: int = 0,
        said: dict[str, object] | None = None,
        names: dict[int, tuple[str, ...]] | None = None,
    ) -> None:
        at = self.ago(looked_ago_ns)
        last = {"boot": self.boot, "boot_ns": at.boot_ns, "wall_ns": at.wall_ns, "pid": 1, "started_ns": 1}
        with Store(self.folder / "history.sqlite") as store:
            assert store.round(
                [e for e in episodes if e.how], [e for e in episodes if not e.how], self.now,
                meta={"round": last},
            )  # fmt: skip
            looker = {"interval_s": 15.0, "gaps": []} if said is None else said
            assert store.remember(
                {"looker": looker}, self.boot, names if names is not None else {77: ("red",)}
            )

    def asked(self, *words: str) -> int:
        return main(["history", *words, "--state-dir", str(self.folder)])


_UP_NS = 30 * 24 * HOUR


@pytest.fixture
def past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Past:
    """The machine has been up for a month, however short it has been."""
    now_ns = time.clock_gettime_ns
    monkeypatch.setattr(
        time,
        "clock_gettime_ns",
        lambda clock: now_ns(clock) + (_UP_NS if clock == time.CLOCK_BOOTTIME else 0),
    )
    return Past(tmp_path)


def test_what_lasts_is_not_hidden_by_what_came_later(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    past.write([past.episode(1, 2 * HOUR), *(past.episode(100 + k, S, over=True) for k in range(30))])
    assert past.asked("--open", "--limit", "5", "age > 1h") == 0
    assert "10.0.0.1:40000" in capsys.readouterr().out
    assert past.asked("--limit", "5", "age > 1h") == 0
    assert "lasts" in capsys.readouterr().out


def test_a_cut_is_told_and_the_oldest_open_ones_come_first(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    past.write([past.episode(k, k * HOUR) for k in range(1, 6)])
    assert past.asked("--open", "--limit", "2", "-o", "json") == 3
    told = json.loads(capsys.readouterr().out)
    assert [item["cookie"] for item in told["items"]] == ["0x5", "0x4"]
    assert "more than 2 episodes" in told["gaps"][0]["doing"]
    assert past.asked("--open", "--limit", "2") == 3
    assert "more than 2 episodes" in capsys.readouterr().err.replace("\n    ", " ")
    assert past.asked("--open", "--limit", "5") == 0


def test_ages_end_with_the_last_look_and_it_is_told(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    known = replace(past.episode(1, 2 * HOUR), earliest_ns=past.ago(2 * HOUR).boot_ns)
    past.write([known], looked_ago_ns=HOUR)
    assert past.asked("--open", "-o", "json") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["items"][0]["age_s"]["at_least"] == 3600.0
    assert told["items"][0]["age_s"]["at_most"] >= 7200.0, "it may last"
    assert "no look is written down since" in told["gaps"][0]["doing"]
    assert past.asked("--open", "age > 90m") == 3
    captured = capsys.readouterr()
    assert captured.out == "no such connection in the history, as far as somebody looked\n"
    assert "no look is written down since" in captured.err.replace("\n    ", " ")
    assert past.asked("--open") == 3
    assert "not known" in capsys.readouterr().out


def test_what_the_agent_could_not_see_is_told(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    gap = ["pid 1", "list descriptors", "CAP_X"]
    past.write([past.episode(1, HOUR)], said={"interval_s": 15.0, "gaps": [gap]})
    assert past.asked("--open") == 3
    assert "pid 1: could not list descriptors (needs CAP_X)" in capsys.readouterr().err


def test_an_agent_that_ended_a_moment_ago_looks_no_more(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    past.write([past.episode(1, HOUR)])
    with (past.folder / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert past.asked("--open") == 0
    capsys.readouterr()
    assert past.asked("--open") == 3
    assert "nobody has looked since" in capsys.readouterr().err.replace("\n    ", " ")


def test_an_agent_that_runs_and_cannot_write_is_not_said_to_be_missing(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    past.write([past.episode(1, HOUR)], looked_ago_ns=HOUR // 2)
    with (past.folder / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert past.asked("--open", "-o", "json") == 3
        gap = json.loads(capsys.readouterr().out)["gaps"][0]
        assert "an agent runs, but has written nothing since" in gap["doing"]
        assert "30 min ago: it has just started, hangs, or cannot write" in gap["doing"]
        assert gap["needs"] == "what `finwait agent status` says of the history"
    assert past.asked("--open", "-o", "json") == 3
    gap = json.loads(capsys.readouterr().out)["gaps"][0]
    assert "nobody has looked since" in gap["doing"]
    assert gap["needs"] == "`finwait agent` running"


@pytest.mark.parametrize("whole", [True, False])
def test_of_a_damaged_history_it_is_said_who_moves_it_aside(
    past: Past, capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    past.write([past.episode(k, HOUR) for k in range(1, 200)])
    path = past.folder / "history.sqlite"
    with path.open("r+b") as file:
        file.seek(0 if whole else 4096)
        file.write(b"\xff" * (path.stat().st_size - (0 if whole else 4096)))
    assert past.asked("--open") == 1
    said = capsys.readouterr().err
    assert "hint: `finwait agent` moves a damaged history aside, and begins a new one" in said
    assert len(said.splitlines()) == 2


def test_a_namespace_is_found_by_its_name(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    past.write([past.episode(1, HOUR)])
    assert past.asked("netns = red") == 0
    assert "10.0.0.1:40000" in capsys.readouterr().out
    assert past.asked("netns = blue") == 0
    assert "no such connection" in capsys.readouterr().out


def test_a_name_that_is_not_kept_is_not_taken_for_another(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    past.write([past.episode(1, HOUR)], names={})
    assert past.asked("netns = red") == 3
    captured = capsys.readouterr()
    assert captured.out == "no such connection in the history, as far as somebody looked\n"
    assert "netns 77: could not tell its name" in captured.err
    assert past.asked("netns = 77") == 0


def test_parquet_has_the_columns_of_csv_with_types_and_nulls(
    past: Past, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    io = pytest.importorskip("arro3.io")
    past.write([past.episode(1, 2 * HOUR), past.episode(2, HOUR, over=True)])
    assert past.asked("-o", "parquet", "--limit", "5") == 0
    (tmp_path / "history.parquet").write_bytes(capfdbinary.readouterr().out)
    table = io.read_parquet(str(tmp_path / "history.parquet")).read_all()
    assert tuple(table.schema.names) == telling.COLUMNS
    cells = {name: table[name].to_pylist() for name in table.schema.names}
    assert [str(table.schema.field(name).type) for name in ("at_least_s", "netns", "cookie")] == [
        "arro3.core.DataType<Float64>\n", "arro3.core.DataType<Int64>\n", "arro3.core.DataType<Utf8>\n",
    ]  # fmt: skip
    assert cells["cookie"] == ["0x2", "0x1"]
    assert cells["how"] == ["closed", None]
    assert cells["at_least_s"][1] >= 7200
