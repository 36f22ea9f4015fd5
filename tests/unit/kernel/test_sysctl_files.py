import pytest

from finwait.errors import FileRefused, KernelError
from finwait.kernel import sysctl


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.tcp_fin_timeout", "/proc/sys/net/ipv4/tcp_fin_timeout"),
        ("net.ipv4.conf.eth0/1.rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"),
    ],
)
def test_a_sysctl_is_a_file_under_proc_sys(key, path):
    assert str(sysctl.key_path(key)) == path


@pytest.mark.parametrize(
    "key", ["", "net", "net..x", "../../etc/passwd", "net.ipv4./././x", "a.b\n", "net. x", "a/../b.c"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(key):
    with pytest.raises(ValueError, match="not the name"):
        sysctl.key_path(key)


def test_a_drop_in_is_written_whole_and_put_back(tmp_path):
    first = sysctl.write_drop_in("90-finwait-x.conf", "a.b = 1\n", folder=tmp_path)
    assert first.before is None
    second = sysctl.write_drop_in("90-finwait-x.conf", "a.b = 2\n", folder=tmp_path)
    assert second.before == "a.b = 1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["90-finwait-x.conf"]
    assert (tmp_path / "90-finwait-x.conf").stat().st_mode & 0o777 == 0o644
    sysctl.remove_drop_in(second, folder=tmp_path)
    assert sysctl.read_drop_in("90-finwait-x.conf", folder=tmp_path) == "a.b = 1\n"
    sysctl.remove_drop_in(second, folder=tmp_path)
    sysctl.remove_drop_in(first, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_drop_in_that_somebody_edited_is_left_alone(tmp_path):
    written = sysctl.write_drop_in("x.conf", "a.b = 1\n", folder=tmp_path)
    (tmp_path / "x.conf").write_text("mine\n")
    with pytest.raises(KernelError, match="changed since"):
        sysctl.remove_drop_in(written, folder=tmp_path)
    assert (tmp_path / "x.conf").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["../x.conf", "a/b.conf", ".conf", "x.txt", "x.conf\n"])
def test_a_drop_in_stays_in_its_folder(name, tmp_path):
    with pytest.raises(ValueError, match=r"sysctl\.d"):
        sysctl.write_drop_in(name, "", folder=tmp_path)


def test_a_file_of_settings_is_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("secret")
    (tmp_path / "d").mkdir()
    link = tmp_path / "d" / "90-finwait-x.conf"
    link.symlink_to(victim)
    for act in (
        lambda: sysctl.write_drop_in(link.name, "a.b = 1\n", folder=link.parent),
        lambda: sysctl.read_drop_in(link.name, folder=link.parent),
        lambda: sysctl.remove_drop_in(sysctl.DropIn(str(link), None, "secret"), folder=link.parent),
    ):
        with pytest.raises(FileRefused, match="link"):
            act()
    assert victim.read_text() == "secret"
    assert link.is_symlink()


def test_a_file_of_settings_is_not_written_where_others_could_replace_it(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(FileRefused, match="others can write"):
        sysctl.write_drop_in("90-finwait-x.conf", "a.b = 1\n", folder=folder)
    assert list(folder.iterdir()) == []
