"""The history: what is written is read again, and no fault of the disk stops the looking."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from finwait.agent.episode_rows import MIGRATIONS, VERSION
from finwait.agent.episodes import Cause, Episode, Instant, Other
from finwait.agent.leak import WindowEnd
from finwait.agent.store import Store, StoreError, store_path
from finwait.errors import FileRefused
from finwait.uapi import tcp

S = 1_000_000_000
WALL = 1_700_000_000 * S
CAUSE = Cause("fin-wait2-held", "problem", "certain", "holder", "web.service", "web(7)", 7, 5)


def moment(seconds: float) -> Instant:
    return Instant(int(seconds * S), WALL + int(seconds * S))


def episode(cookie: int, *, first: float = 100, **more: object) -> Episode:
    e = Episode(
        boot="b", cookie=cookie, state=tcp.FIN_WAIT2, netns=1, local="10.0.0.1:40000", peer="10.0.0.2:80",
        first=moment(first), last=moment(first + 15), latest_ns=int(first * S) - S, earliest_ns=-1, cause=CAUSE,
        words=(0, 0xFFFF0A000001, 2**64 - 1, 0xFFFF0A000002, 40000, 80, 3),
    )  # fmt: skip
    return replace(e, **more)


def ended(cookie: int, *, first: float = 100, end: float = 200, **more: object) -> Episode:
    return episode(cookie, first=first, ended=moment(end), how="closed", **more)


class Clock:
    """Seconds that the test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def make(**more: object) -> Store:
        stores.append(Store(path, **more))  # type: ignore[arg-type]
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def test_what_is_written_is_read_again(opened: Callable[..., Store]) -> None:
    store = opened()
    full = episode(
        2**63 + 5, held=True, earliest_ns=5, other=Other(9, 2, "db(8)", ("1.1.1.1:1", "[2001:db8::1]:2"))
    )
    over = ended(3)
    assert store.round([over], [full], moment(200))
    assert store.episodes() == [full, over]
    assert store.open_episodes() == [full]
    assert opened(read_only=True).ages("b", [full.cookie, 77]) == {(full.cookie, tcp.FIN_WAIT2): full}


def test_writing_twice_is_writing_once_and_the_end_closes_the_row(opened: Callable[..., Store]) -> None:
    store = opened()
    for _ in range(2):
        store.round([], [episode(1)], moment(120))
    store.round([ended(1)], [], moment(200))
    store.round([ended(1)], [], moment(201))
    assert store.episodes() == [ended(1)]


def test_the_same_connection_may_have_two_episodes_one_after_the_other(opened: Callable[..., Store]) -> None:
    store = opened()
    store.round([ended(1)], [episode(1, first=300)], moment(320))
    assert [e.first for e in store.episodes()] == [moment(300), moment(100)]


def test_an_episode_that_follows_ends_one_whose_end_was_never_written(opened: Callable[..., Store]) -> None:
    store = opened()
    store.round([], [episode(1)], moment(120))
    assert store.round([], [episode(1, first=300)], moment(320))
    assert [(e.first, e.how) for e in store.episodes()] == [(moment(300), None), (moment(100), "unknown")]


def test_only_the_owner_can_read_it_and_no_link_is_followed(path: Path, opened: Callable[..., Store]) -> None:
    opened().round([], [episode(1)], moment(120))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    elsewhere = path.parent / "elsewhere.sqlite"
    os.rename(path, elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(FileRefused):
        opened()


def test_what_others_could_have_written_is_refused(path: Path, opened: Callable[..., Store]) -> None:
    opened().close()
    path.chmod(0o666)
    with pytest.raises(FileRefused, match="others can write"):
        opened()


def test_a_reader_and_the_writer_do_not_wait_for_each_other(opened: Callable[..., Store]) -> None:
    store, reader = opened(), opened(read_only=True)
    for k in range(5):
        store.round([], [episode(k)], moment(120))
        assert len(reader.episodes()) == k + 1


def test_a_read_only_file_system_is_said_with_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("finwait.agent.store.state_files.check", refuse)
    with pytest.raises(StoreError) as caught:
        Store(path)
    assert caught.value.hint == "the file system is mounted read-only: name another `--state-dir`"


def test_a_damaged_file_is_set_aside_and_a_new_one_begun(path: Path, opened: Callable[..., Store]) -> None:
    store = opened()
    store.round([ended(k) for k in range(2000)], [], moment(200))
    store.close()
    with path.open("r+b") as file:
        for page in range(4, path.stat().st_size // 4096, 2):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    again = opened()
    assert again.set_aside is not None
    assert again.set_aside.name.startswith("history.sqlite.corrupt-")
    assert again.episodes() == []
    assert again.round([], [episode(1)], moment(120))


def test_a_file_that_is_no_database_is_set_aside(path: Path, opened: Callable[..., Store]) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"not a database\n" * 1000)
    path.chmod(0o600)
    store = opened()
    assert store.set_aside is not None
    assert store.set_aside.read_bytes().startswith(b"not a database")
    assert store.round([], [episode(1)], moment(120))


def test_an_empty_file_is_no_history_yet(path: Path, opened: Callable[..., Store]) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    with pytest.raises(StoreError):
        opened(read_only=True)
    assert opened().round([], [episode(1)], moment(120))


def test_one_of_a_newer_version_is_left_alone(path: Path, opened: Callable[..., Store]) -> None:
    opened().close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    with pytest.raises(StoreError, match="version"):
        opened()
    assert not list(path.parent.glob("*.corrupt*"))


def test_each_version_is_made_of_the_one_before_it(path: Path, opened: Callable[..., Store]) -> None:
    assert len(MIGRATIONS) == VERSION
    for version in range(VERSION):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        db = sqlite3.connect(path)
        for k in range(version):
            db.executescript(MIGRATIONS[k])
        db.execute(f"PRAGMA user_version={version}")
        db.close()
        store = opened()
        assert store.round([], [episode(1)], moment(120))
        store.close()


def test_a_full_disk_costs_history_and_nothing_else(opened: Callable[..., Store]) -> None:
    clock = Clock()
    store = opened(most_bytes=40 * 4096, clock=clock)
    failed = 0
    for k in range(200):
        clock.now += 61
        failed += not store.round(
            [ended(100 * k + n, first=k, end=200 + k) for n in range(10)], [], moment(200 + k)
        )
    assert failed
    assert store.errors == failed
    kept = store.episodes()
    assert kept
    assert store.size <= 40 * 4096 + 8 * 4096 * 40
    newest = max(e.first.boot_ns for e in kept)
    assert newest >= 195 * S, "the latest is kept, the oldest goes"
    clock.now += 61
    store.round([], [], moment(500), meta={"x": 1})
    assert store.said in ("", "database or disk is full")


def test_after_a_failure_it_waits_a_minute_and_then_writes_what_came_since(
    opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    store = opened(clock=clock)
    whole = Store._write
    tries: list[int] = []

    def full(*_: object) -> None:
        tries.append(1)
        raise sqlite3.OperationalError("database or disk is full\nof this machine")

    monkeypatch.setattr(Store, "_write", full)
    assert not store.round([ended(1)], [], moment(200))
    assert not store.round([ended(2)], [], moment(201))
    assert len(tries) == 1
    assert store.said == "database or disk is full of this machine", "in one line"
    monkeypatch.setattr(Store, "_write", whole)
    clock.now += 61
    assert store.round([ended(3)], [], moment(262))
    assert {e.cookie for e in store.episodes()} == {1, 2, 3}
    assert (store.errors, store.said) == (1, "")


def test_what_is_too_old_goes(opened: Callable[..., Store]) -> None:
    clock = Clock()
    store = opened(clock=clock)
    store.round([ended(1, end=200)], [episode(2)], moment(200), rollups=[(("r", "problem", "w"), 3, 9)])
    clock.now += 601
    late = moment(200 + 15 * 86400)
    store.round([], [], late, meta={"x": 1})
    assert [e.cookie for e in store.episodes()] == [2]
    assert store.rollups("minutes", 0) == []
    assert len(store.rollups("quarters", 0)) == 1


def test_a_minute_keeps_its_highest_number_and_a_clock_that_goes_back_does_no_harm(
    opened: Callable[..., Store],
) -> None:
    store = opened()
    key = ("r", "problem", "w")
    for seconds, n in ((0, 3), (30, 2), (41, 7), (60, 1), (5, 4)):
        assert store.round([], [], moment(seconds), rollups=[(key, n, n)])
    at = WALL // S // 60 * 60  # 20 s before second 0
    assert [(row[0], row[4]) for row in store.rollups("minutes", 0)] == [(at, 4), (at + 60, 7)]


def test_marks_of_this_boot_come_back_in_order(opened: Callable[..., Store]) -> None:
    store = opened()
    marks = {300: (WindowEnd(300.0, 1, 1, 0), WindowEnd(600.0, 2, 2, 0))}
    store.put_marks("b", {("r", "problem", "w"): marks})
    assert store.marks("b") == {("r", "problem", "w"): [(300, m) for m in marks[300]]}
    assert store.marks("c") == {}


def test_a_file_that_cannot_be_written_is_an_error_of_opening(path: Path) -> None:
    blocked = path.parent
    blocked.mkdir(mode=0o700)
    (blocked / "history.sqlite").mkdir()
    with pytest.raises(FileRefused):
        Store(path)


def test_the_state_directory_is_where_the_journal_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path))
    assert store_path() == tmp_path / "history.sqlite"
    assert store_path("/elsewhere") == Path("/elsewhere/history.sqlite")


def test_a_history_that_is_removed_while_it_is_open_is_begun_anew_and_loses_nothing(
    opened: Callable[..., Store], path: Path
) -> None:
    clock = Clock()
    store = opened(clock=clock)
    assert store.round([], [episode(1)], moment(100))
    for name in (path.name, path.name + "-wal", path.name + "-shm"):
        (path.parent / name).unlink(missing_ok=True)
    clock.now = 61
    assert store.round([ended(2)], [], moment(300))
    assert store.errors == 1
    assert "was removed while it was open" in store.said
    assert {e.cookie for e in Store(path, read_only=True).episodes()} == {1, 2}
    clock.now = 130
    assert store.round([ended(3)], [], moment(400))
    assert store.errors == 1


def test_names_are_kept_as_long_as_episodes_of_their_boot(opened: Callable[..., Store]) -> None:
    store = opened()
    assert store.remember({"looker": {"gaps": []}}, "b", {1: ("red",), 2: ()})
    assert store.remember({}, "b", {1: ("blue", "host")})
    assert store.names() == {("b", 1): ("blue", "host"), ("b", 2): ()}
    assert store.meta("looker") == {"gaps": []}


def test_of_what_was_there_when_the_agent_began_the_oldest_comes_first(opened: Callable[..., Store]) -> None:
    store = opened()
    old = [episode(cookie, latest_ns=began * S) for cookie, began in ((1, 90), (2, 10), (3, 50))]
    assert store.round([], old, moment(120))
    (rows,) = store.batches(open_of="b")
    assert [e.cookie for e in rows] == [2, 3, 1]


def test_a_moment_beyond_what_can_be_stored_is_no_error(opened: Callable[..., Store]) -> None:
    assert opened().episodes(1 << 70) == []
    assert list(opened().batches(1 << 70)) == []


# ── a file of somebody else, a clock that is wrong, damage while it is open ──────────────────────────────


@pytest.mark.parametrize("version", [0, 1, 7])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_of_another_program_stays_as_it_is(path: Path, version: int, read_only: bool) -> None:
    path.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            f"CREATE TABLE mydata (x); INSERT INTO mydata VALUES (1); PRAGMA user_version={version}"
        )
    path.chmod(0o600)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="a database of another program") as caught:
        Store(path, read_only=read_only)
    assert caught.value.errno == errno.EINVAL
    assert "move it away" in caught.value.hint
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_what_the_first_versions_wrote_is_known_by_its_tables_and_marked(
    opened: Callable[..., Store], path: Path
) -> None:
    opened().close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA application_id=0")
    assert opened(read_only=True).episodes() == []
    store = opened()
    assert store.round([ended(1)], [], moment(200))
    store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] != 0


DAY = 86_400.0


class Watch:
    """A store, and days that pass in steps of an hour."""

    def __init__(self, opened: Callable[..., Store]) -> None:
        self.make, self.clock = opened, Clock()
        self.boot_s, self.off_s = 1000.0, 0.0
        self.store = opened(clock=self.clock)

    @property
    def now(self) -> Instant:
        return Instant(int(self.boot_s * S), WALL + int((self.boot_s + self.off_s) * S))

    def restart(self) -> None:
        self.store.close()
        self.store = self.make(clock=self.clock)

    def run(self, days: float) -> None:
        for _ in range(int(days * 24)):
            self.clock.now += 3600
            self.boot_s += 3600
            self.store.round([], [], self.now)

    def end(self, cookie: int) -> None:
        assert self.store.round([replace(episode(cookie), ended=self.now, how="closed")], [], self.now)

    def kept(self) -> list[int]:
        return sorted(e.cookie for e in self.store.episodes())


def test_a_start_with_a_wrong_clock_deletes_nothing(opened: Callable[..., Store]) -> None:
    watch = Watch(opened)
    watch.run(1.5)
    watch.end(1)
    watch.off_s = 20 * DAY  # a battery is empty, or somebody mistook the year
    watch.restart()
    watch.run(0.5)
    assert watch.kept() == [1]
    watch.off_s = 0
    watch.run(5)
    assert watch.kept() == [1]
    watch.run(15)
    assert watch.kept() == []


def test_a_clock_that_is_set_while_it_looks_deletes_nothing(opened: Callable[..., Store]) -> None:
    watch = Watch(opened)
    watch.run(1.5)
    watch.end(1)
    for off in (20, -300, 4000):
        watch.off_s = off * DAY
        watch.run(0.9)
        assert watch.kept() == [1]


def test_a_machine_that_is_started_each_day_still_forgets(opened: Callable[..., Store]) -> None:
    watch = Watch(opened)
    watch.end(1)
    for _ in range(16):
        watch.run(0.4)
        watch.off_s += 0.6 * DAY + watch.boot_s - 10
        watch.boot_s = 10
        watch.restart()
    assert watch.kept() == []


def harmed(kind: str, path: Path) -> None:
    wal = Path(f"{path}-wal")
    if kind == "log removed":
        wal.unlink()
    elif kind == "log emptied":
        os.truncate(wal, 0)
    elif kind == "overwritten":
        with path.open("r+b") as file:
            file.write(os.urandom(path.stat().st_size))
    elif kind == "emptied":
        os.truncate(path, 0)
    else:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(bytes(path.stat().st_size - 4096))


@pytest.mark.parametrize("kind", ["log removed", "log emptied", "overwritten", "emptied", "pages zeroed"])
@pytest.mark.parametrize("settled", [False, True])
def test_damage_while_it_is_open_is_noticed_within_a_minute_and_a_new_file_begun(
    kind: str, settled: bool, opened: Callable[..., Store], path: Path
) -> None:
    clock = Clock()
    store = opened(clock=clock)
    assert store.round([ended(k) for k in range(2, 60)], [episode(1)], moment(200), meta={"round": 1})
    if settled:
        store._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    harmed(kind, path)
    for k in range(5):  # what lasts is written again by who keeps it
        clock.now += 61
        assert store.round([ended(100 + k)], [episode(1)], moment(300 + 61 * k), meta={"round": 2 + k})
    with Store(path, read_only=True) as read:
        assert [e.cookie for e in read.open_episodes()] == [1]
        kept = {e.cookie for e in read.episodes()}
        assert read.meta("round") == 6
    assert kept >= {101, 102, 103, 104}
    if store.renewed:
        assert "damaged while it was open" in store.said
        assert store.errors == store.renewed == 1
        assert store.set_aside is not None
        assert store.set_aside.exists()
    else:  # all was in the log, from which the file was made whole
        assert kept >= set(range(1, 60))


def test_damage_in_a_large_file_that_no_question_meets_is_noticed(
    opened: Callable[..., Store], path: Path
) -> None:
    clock = Clock()
    store = opened(clock=clock)
    assert store.round([ended(k) for k in range(2, 3000)], [episode(1)], moment(200), meta={"round": 1})
    store._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096 * 60)
        file.write(bytes(4096 * 40))
    for _ in range(3):
        clock.now += 61
        store.round([], [], moment(300), meta={"round": 2})
    assert store.renewed == 1


def test_what_passes_is_no_damage(opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    store = opened(clock=clock)
    assert store.round([], [episode(1)], moment(200), meta={"round": 1})
    connect, limits = sqlite3.connect, resource.getrlimit(resource.RLIMIT_NOFILE)

    def without_descriptors(*words: object, **more: object) -> sqlite3.Connection:
        fewest = os.open("/dev/null", os.O_RDONLY)
        os.close(fewest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fewest, limits[1]))
        return connect(*words, **more)  # type: ignore[call-overload]

    clock.now += 61
    try:
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", without_descriptors)
            assert store.round([], [episode(1)], moment(261), meta={"round": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (store.renewed, store.said) == (0, "")


def test_what_cannot_be_opened_says_what_sqlite_says(
    opened: Callable[..., Store], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        with closing(sqlite3.connect(":memory:")) as db:
            db.executescript("PRAGMA max_page_count=1; CREATE TABLE x (y)")

    monkeypatch.setattr(Store, "_prepare", full)
    with pytest.raises(StoreError, match=f"{path}`: database or disk is full") as caught:
        opened()
    assert caught.value.errno == errno.ENOSPC


def test_a_store_that_could_not_be_opened_again_counts_and_raises_nothing(
    opened: Callable[..., Store], path: Path
) -> None:
    clock = Clock()
    store = opened(clock=clock)
    path.unlink()
    path.symlink_to("elsewhere")
    clock.now += 61
    assert not store.round([], [episode(1)], moment(200))
    assert store.failing
    clock.now += 61
    store.put_marks("b", {("r", "s", "w"): {300: [WindowEnd(1.0, 1, 1, 0)]}})
    clock.now += 61
    assert not store.remember({"x": 1}, "b", {})
    assert store.errors == 3
