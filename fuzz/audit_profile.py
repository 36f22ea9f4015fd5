"""Any bytes as a profile or a sysctl.conf: a plan, or a ProfileError."""

import contextlib

from finwait.remedy.tuning import ProfileError, parse_profile, parse_sysctl_conf, plan


def seeds() -> list[bytes]:
    return [
        b"title = 'x'\n[[line]]\nkey = 'net.ipv4.tcp_fin_timeout'\nvalue = '30'\n",
        b"# c\n-net/ipv4/tcp_rfc1337 = 1\n",
    ]


def one_input(data: bytes) -> None:
    with contextlib.suppress(ProfileError):
        plan(parse_profile("fuzz.toml", data), {}, initial_netns=True, counts={})
    with contextlib.suppress(ProfileError):
        plan(parse_sysctl_conf("fuzz", data.decode("utf-8", "replace")), {}, initial_netns=True, counts={})
