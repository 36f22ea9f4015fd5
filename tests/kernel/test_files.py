"""Files in folders that somebody else may write to: an attacker with a user id of his own, before us and beside us."""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finwait import files
from finwait.errors import FileRefused
from tests.kernel import needs

pytestmark = pytest.mark.kernel
MALLORY = 65534


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as /tmp is: anybody's to write to, and sticky."""
    needs.root_and()
    # pytest's folders are 0700; mallory must reach this one.
    for above in (tmp_path, *tmp_path.parents):
        if above == Path("/"):
            break
        above.chmod(above.stat().st_mode | 0o011)
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def victim(shared: Path) -> Path:
    """A file of root's, outside of the shared folder."""
    file = shared.parent / "victim"
    file.write_text("secret")
    file.chmod(0o644)
    return file


def untouched(victim: Path) -> bool:
    status = victim.stat()
    return victim.read_text() == "secret" and (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o644)


def put_link(at: Path, to: Path | str) -> None:
    """Put a link there, as mallory."""
    at.symlink_to(to)
    os.chown(at, MALLORY, MALLORY, follow_symlinks=False)


def replace(path: Path) -> None:
    """Write a file as `record` does: made beside the path, published when whole."""
    new = files.new_file(str(path))
    try:
        os.write(new.fd, b"ours")
        new.publish()
    finally:
        os.close(new.fd)
        new.discard()


def append(path: Path) -> None:
    """Write a file as the access log is written."""
    fd = files.append_to(str(path), 0o640)
    try:
        os.write(fd, b"ours")
    finally:
        os.close(fd)


both = pytest.mark.parametrize("write", [replace, append])


@both
def test_a_new_file_has_its_mode_whatever_the_umask(shared: Path, write: Callable[[Path], None]) -> None:
    before = os.umask(0)
    try:
        write(shared / "new")
    finally:
        os.umask(before)
    assert (shared / "new").read_text() == "ours"
    assert stat.S_IMODE((shared / "new").stat().st_mode) in (0o600, 0o640)
    assert [p.name for p in shared.iterdir()] == ["new"]


@both
@pytest.mark.parametrize("owner", [0, MALLORY])
def test_the_last_component_is_never_followed(
    shared: Path, victim: Path, write: Callable[[Path], None], owner: int
) -> None:
    put_link(shared / "out", victim)
    os.chown(shared / "out", owner, owner, follow_symlinks=False)
    with pytest.raises(FileRefused, match="a symbolic link"):
        write(shared / "out")
    assert untouched(victim)
    assert (shared / "out").is_symlink()


@both
def test_a_link_to_nothing_makes_nothing(shared: Path, write: Callable[[Path], None]) -> None:
    put_link(shared / "out", shared.parent / "made")
    with pytest.raises(FileRefused, match="a symbolic link"):
        write(shared / "out")
    assert not (shared.parent / "made").exists()


@both
def test_a_folder_behind_the_link_of_another_is_not_entered(
    shared: Path, victim: Path, write: Callable[[Path], None]
) -> None:
    put_link(shared / "folder", victim.parent)
    with pytest.raises(FileRefused, match=r"shared/folder` was left alone: it is a symbolic link"):
        write(shared / "folder" / "victim")
    with pytest.raises(FileRefused):
        write(shared / "folder" / "new")
    assert untouched(victim)
    assert not (victim.parent / "new").exists()


@both
def test_a_link_of_root_on_the_way_is_followed(shared: Path, write: Callable[[Path], None]) -> None:
    (shared.parent / "real").mkdir()
    (shared / "way").symlink_to("../real")
    write(shared / "way" / "new")
    assert (shared.parent / "real" / "new").read_text() == "ours"


@both
def test_a_hard_link_to_a_file_of_ours_is_left_alone(
    shared: Path, victim: Path, write: Callable[[Path], None]
) -> None:
    os.link(victim, shared / "out")  # mallory can where fs.protected_hardlinks is 0
    with pytest.raises(FileRefused, match="2 names"):
        write(shared / "out")
    assert untouched(victim)
    assert (shared / "out").samefile(victim)


@both
def test_the_file_of_another_is_left_alone(shared: Path, write: Callable[[Path], None]) -> None:
    (shared / "out").write_text("theirs")
    os.chown(shared / "out", MALLORY, MALLORY)
    with pytest.raises(FileRefused, match="belongs to"):
        write(shared / "out")
    assert (shared / "out").read_text() == "theirs"


@both
@pytest.mark.parametrize("kind", ["FIFO", "device", "directory", "socket"])
def test_what_is_no_file_is_neither_opened_nor_replaced(
    shared: Path, write: Callable[[Path], None], kind: str
) -> None:
    out = shared / "out"
    if kind == "directory":
        out.mkdir()
    else:
        form = {"FIFO": stat.S_IFIFO, "device": stat.S_IFCHR, "socket": stat.S_IFSOCK}[kind]
        os.mknod(out, form | 0o666, os.makedev(1, 3))
    before = out.stat()
    with pytest.raises(FileRefused, match=f"a {kind}"):
        write(out)  # a FIFO would be waited for
    assert out.stat() == before


@both
def test_in_a_folder_that_is_ours_alone_a_file_may_belong_to_anybody(
    shared: Path, write: Callable[[Path], None]
) -> None:
    ours = shared.parent / "ours"
    ours.mkdir()
    (ours / "log").write_text("")
    os.chown(ours / "log", MALLORY, MALLORY)  # as logrotate's `create` makes it
    write(ours / "log")
    assert (ours / "log").read_text() == "ours"


@contextlib.contextmanager
def mallory(shared: Path, victim: Path, folder: str) -> Iterator[None]:
    """Put links, files, FIFOs and folders at two names, again and again, as another user, until the block ends."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setresgid(MALLORY, MALLORY, MALLORY)
            os.setresuid(MALLORY, MALLORY, MALLORY)
            swap(shared / "out", victim, shared / folder, random.Random(7))
        os._exit(0)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the attacker must live until the end"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def swap(out: Path, victim: Path, folder: Path, dice: random.Random) -> None:
    puts: list[Callable[[], None]] = [
        lambda: out.symlink_to(victim),
        lambda: os.link(victim, out),  # refused where fs.protected_hardlinks is 1
        out.touch,
        lambda: os.mkfifo(out),
        lambda: folder.symlink_to(victim.parent),
        folder.mkdir,
        lambda: (folder / "victim").symlink_to(victim),
    ]
    while True:
        with contextlib.suppress(OSError):
            dice.choice(puts)()
        with contextlib.suppress(OSError):
            dice.choice(puts)()
        with contextlib.suppress(OSError):
            out.unlink()
        with contextlib.suppress(OSError):
            (folder / "victim").unlink()
        with contextlib.suppress(OSError):
            folder.unlink() if folder.is_symlink() else folder.rmdir()


@both
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_races_are_lost_by_the_attacker(
    shared: Path, victim: Path, write: Callable[[Path], None], mode: int
) -> None:
    shared.chmod(mode)
    came_of_it = set()
    with mallory(shared, victim, "folder"):
        for k in range(20_000):
            for path in (shared / "out", shared / "folder" / "victim"):
                try:
                    write(path)
                    came_of_it.add("written")
                except (FileRefused, OSError) as error:
                    came_of_it.add(type(error).__name__)
            if k >= 1000 and {"FileRefused", "written"} <= came_of_it:
                break
    assert {"FileRefused", "written"} <= came_of_it
    assert untouched(victim)


def test_a_folder_in_a_shared_one_is_alone_once_it_is_ours(shared: Path) -> None:
    with files.folder(str(shared / "a" / "b"), make=True) as made:
        assert (made.alone, made.way) == ("", "")
    assert stat.S_IMODE((shared / "a").stat().st_mode) == 0o700
    assert files.stranger(str(shared / "a" / "b")) == ""


@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [
        (0o777, 0, "others can write to the folder"),
        (0o1777, 0, "others can write to the folder"),
        (0o775, 0, ""),  # the group root has no other member
        (0o700, MALLORY, "belongs to"),
    ],
)
def test_who_else_can_write_to_a_folder(shared: Path, mode: int, owner: int, why: str) -> None:
    state = shared / "state"
    state.mkdir()
    state.chmod(mode)
    os.chown(state, owner, 0)
    assert why in files.stranger(str(state))
    assert bool(files.stranger(str(state))) == bool(why)


def test_a_group_of_others_can_write(shared: Path) -> None:
    state = shared / "state"
    state.mkdir()
    os.chown(state, 0, MALLORY)
    state.chmod(0o775)
    assert "others can write" in files.stranger(str(state))


def test_a_folder_that_others_can_rename_is_not_alone(shared: Path) -> None:
    (shared / "above").mkdir()
    (shared / "above" / "state").mkdir(mode=0o700)
    (shared / "above").chmod(0o777)
    with files.folder(str(shared / "above" / "state")) as found:
        assert found.alone == ""
        assert "shared/above" in found.way
    assert "shared/above" in files.stranger(str(shared / "above" / "state"))


def test_a_way_through_a_link_that_others_can_replace_is_not_alone(shared: Path) -> None:
    (shared.parent / "state").mkdir(mode=0o700)
    shared.chmod(0o777)
    (shared / "way").symlink_to(shared.parent / "state")
    assert "shared" in files.stranger(str(shared / "way"))


def test_links_that_lead_in_a_circle_end(shared: Path) -> None:
    (shared / "a").symlink_to("b")
    (shared / "b").symlink_to(shared / "a")
    with pytest.raises(OSError, match="Too many levels"):
        files.folder(str(shared / "a"))


def test_only_what_we_know_is_removed(shared: Path, victim: Path) -> None:
    (shared / "one").touch()
    status = (shared / "one").stat()
    known = status.st_dev, status.st_ino
    (shared / "one").rename(shared / "two")
    put_link(shared / "one", victim)
    assert not files.remove(str(shared / "one"), known)
    assert (shared / "one").is_symlink()
    assert files.remove(str(shared / "two"), known)
    assert not files.remove(str(shared / "two"), known)


def test_reading_is_bounded_and_never_waits(shared: Path) -> None:
    file = shared / "file"
    file.write_bytes(b"1234")
    assert files.read(str(file), 4) == b"1234"
    with pytest.raises(FileRefused, match="larger than"):
        files.read(str(file), 3)
    os.mkfifo(shared / "fifo")
    (shared / "to-fifo").symlink_to("fifo")
    for name, kind in (
        ("fifo", "a FIFO"),
        ("to-fifo", "a FIFO"),
        (".", "a directory"),
        ("/dev/zero", "a device"),
    ):
        with pytest.raises(FileRefused, match=kind):
            files.read(str(shared / name), 4)


def test_only_a_pipe_that_is_open_already_is_read(shared: Path) -> None:
    os.mkfifo(shared / "fifo")
    with pytest.raises(FileRefused, match="a FIFO"):
        files.read(str(shared / "fifo"), 4, pipes=True)
    out, into = os.pipe()
    try:
        os.write(into, b"1234")
        os.close(into)
        with pytest.raises(FileRefused, match="a FIFO"):
            files.read(f"/dev/fd/{out}", 4)
        assert files.read(f"/dev/fd/{out}", 4, pipes=True) == b"1234"
    finally:
        os.close(out)


@pytest.mark.parametrize("own", ["", "read it"])
def test_what_is_acted_upon_is_read_by_no_link_of_another(shared: Path, victim: Path, own: str) -> None:
    """Whatever fs.protected_symlinks says: the link would choose among the files of ours."""
    put_link(shared / "file", victim)
    put_link(shared / "folder", victim.parent)
    (shared / "ours").symlink_to(victim)
    (shared / "further").symlink_to(shared / "file")
    (shared / "inside").symlink_to("folder/victim")
    for path in ("file", "folder/victim", "further", "inside", "./file", "../shared/folder/./victim"):
        with pytest.raises(FileRefused, match="symbolic link of nobody's") as refused:
            files.read(str(shared / path), 100, own_way=True, own=own)
        assert refused.value.hint == "name the file that it leads to"
    for path in ("ours", "../victim", "ours/../../victim"):
        if path != "ours/../../victim":
            assert files.read(str(shared / path), 100, own_way=True, own=own) == b"secret"
        else:
            with pytest.raises(NotADirectoryError):
                files.read(f"{shared}/{path}", 100, own_way=True, own=own)
    for path, error in (("", IsADirectoryError), ("none", FileNotFoundError), ("none/x", FileNotFoundError)):
        with pytest.raises((error, FileRefused)):
            files.read(f"{shared}/{path}", 100, own_way=True, own=own)
    here = os.getcwd()
    os.chdir(shared.parent)
    try:
        assert files.read("victim", 100, own_way=True, own=own) == b"secret"
        with pytest.raises(FileRefused, match="symbolic link"):
            files.read("shared/file", 100, own_way=True, own=own)
    finally:
        os.chdir(here)


def test_a_descriptor_of_ours_is_read_where_no_link_is_followed(victim: Path) -> None:
    with victim.open("rb") as file:
        assert files.read(f"/dev/fd/{file.fileno()}", 100, pipes=True, own_way=True, own="x") == b"secret"
    out, into = os.pipe()
    try:
        os.write(into, b"1234")
        os.close(into)
        assert files.read(f"/dev/fd/{out}", 4, pipes=True, own_way=True, own="x") == b"1234"
    finally:
        os.close(out)


def test_nothing_is_made_where_others_could_replace_it(shared: Path) -> None:
    (shared / "theirs").mkdir()
    os.chown(shared / "theirs", 65534, 65534)
    with pytest.raises(FileRefused, match="it would be made where others can write"):
        files.folder(str(shared / "theirs/a/b"), make=True)
    assert not [*(shared / "theirs").iterdir()]
    with files.folder(str(shared / "mine/a"), make=True) as made:
        assert not made.alone
        assert not made.way


def test_no_descriptor_is_left(shared: Path, victim: Path) -> None:
    before = os.listdir("/proc/self/fd")
    put_link(shared / "out", victim)
    put_link(shared / "folder", victim.parent)
    for path in (shared / "out", shared / "folder" / "x", shared / "none" / "x", victim / "x", shared / "ok"):
        for write in (replace, append):
            with contextlib.suppress(FileRefused, OSError):
                write(path)
        with contextlib.suppress(FileRefused, OSError):
            files.stranger(str(path))
    assert os.listdir("/proc/self/fd") == before
