"""Which sources may connect, in every form in which an address can be written."""

from __future__ import annotations

from typing import Any

import pytest

from finwait.errors import DecodeError
from finwait.relay import proxy_protocol
from finwait.relay.acl import Acl, parse_network, plain, source_network
from finwait.relay.config.model import ConfigError
from finwait.relay.config.parsing import parse
from finwait.relay.route import Route

SERVICE = {"name": "a", "listen": ["*:1"], "backend": [{"address": "10.0.0.1:1"}]}


def service(**changed: Any) -> dict[str, Any]:
    return {"service": [{**SERVICE, **changed}]}


@pytest.mark.parametrize(
    ("network", "same"),
    [
        ("::ffff:127.0.0.0/104", "127.0.0.0/8"),
        ("::ffff:10.1.0.0/112", "10.1.0.0/16"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:192.0.2.1/128", "192.0.2.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
    ],
)
def test_a_network_of_mapped_addresses_is_the_ipv4_network(network: str, same: str) -> None:
    assert str(parse_network(network)) == same


@pytest.mark.parametrize(
    "network", ["::/64", "::/80", "::fffe:0:0/95", "fe80::%eth0/64", "10.0.0.1/8", "x", ""]
)
def test_what_could_mean_either_is_refused(network: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_network(network)
    with pytest.raises(ConfigError):
        parse(service(deny=[network]))


@pytest.mark.parametrize("source", ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "127.9.9.9"])
@pytest.mark.parametrize("network", ["127.0.0.0/8", "::ffff:127.0.0.0/104"])
def test_deny_matches_every_form_of_an_address(network: str, source: str) -> None:
    assert not Acl((), [network]).admits(source)
    assert Acl([network], ()).admits(source)
    assert not Acl([network], ()).admits("192.0.2.1")


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.0.0.0/24", "10.0.0.255", "10.0.1.0"),
        ("10.0.0.255", "10.0.0.255", "10.0.0.254"),
        ("10.255.0.0/16", "10.255.255.255", "11.0.0.0"),
        ("255.255.255.255/32", "255.255.255.255", "255.255.255.254"),
    ],
)
def test_the_last_address_of_a_network_is_in_it(network: str, inside: str, outside: str) -> None:
    acl = Acl([network], ())
    assert acl.admits(inside)
    assert acl.admits(f"::ffff:{inside}")
    assert not acl.admits(outside)


@pytest.mark.parametrize(
    ("allow", "deny", "admitted"),
    [
        ([], [], True),
        (["10.0.0.0/8"], [], False),
        (["10.0.0.0/8", "unix"], [], True),
        ([], ["10.0.0.0/8"], True),
        ([], ["unix"], False),
        (["unix"], ["unix"], False),
    ],
)
def test_unix_clients_are_admitted_by_their_word(allow: list[str], deny: list[str], admitted: bool) -> None:
    assert Acl(allow, deny).admits_unix is admitted


def test_the_word_alone_admits_no_address() -> None:
    assert not Acl(["unix"], ()).admits("10.0.0.1")
    assert Acl((), ["unix"]).admits("10.0.0.1")


def test_a_unix_listener_that_nobody_could_use_is_refused() -> None:
    for wrong in ({"allow": ["10.0.0.0/8"]}, {"deny": ["unix"]}):
        with pytest.raises(ConfigError, match="nobody could connect to the Unix listener"):
            parse(service(listen=["unix:/run/x.sock"], **wrong))
    parse(service(listen=["unix:/run/x.sock"], allow=["unix"]))


@pytest.mark.parametrize("scope", [b"%eth0", b"%\x1b[31m", b"%a\nb", b"%1"])
def test_a_scope_in_a_header_is_refused(scope: bytes) -> None:
    """Each would be another client to `max_per_source`, and a line of its own on a terminal."""
    for line in (b"PROXY TCP6 fe80::1%s ::1 1 2\r\n", b"PROXY TCP6 ::1 fe80::1%s 1 2\r\n"):
        with pytest.raises(DecodeError):
            proxy_protocol.parse(line % scope)


def test_a_client_has_one_name_in_every_header() -> None:
    found = {
        header.source
        for data in (
            b"PROXY TCP4 192.0.2.1 10.0.0.1 1 2\r\n",
            b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n",
            b"PROXY TCP6 ::ffff:c000:201 ::ffff:10.0.0.1 1 2\r\n",
            proxy_protocol.encode("v2", ("::ffff:192.0.2.1", 1), ("10.0.0.1", 2)),
            proxy_protocol.encode("v2", ("::ffff:192.0.2.1", 1), ("2001:db8::1", 2)),
        )
        if (header := proxy_protocol.parse(data)) is not None
    }
    assert found == {("192.0.2.1", 1)}


def test_an_address_in_its_plain_form() -> None:
    assert [plain(text) for text in ("fe80::1%eth0", "::ffff:10.0.0.1", "10.0.0.1")] == [
        "fe80::1", "10.0.0.1", "10.0.0.1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["a..b", ".a", "x" * 64, "a." * 127 + "b", "a b", "a\x1b[31m", "ü" * 64, "a/b", "..", "."]
)
def test_what_the_dns_could_not_have_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be a DNS name"):
        parse(service(backend=[{"address": f"dns:{name}:80"}]))


@pytest.mark.parametrize("name", ["a.b", "a.b.", "_x._tcp.a", "bücher.example", "10.0.0.1", "x" * 63])
def test_what_the_dns_could_have_is_a_name(name: str) -> None:
    parse(service(backend=[{"address": f"dns:{name}:80"}]))


@pytest.mark.parametrize(
    ("source", "counted"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
        ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("fe80::2%eth0", "fe80::2%eth0"),
        ("::1", "::"),
        ("no address", "no address"),
    ],
)
def test_what_a_client_is_counted_as(source: str, counted: str) -> None:
    assert source_network(source, 32, 64) == counted


@pytest.mark.parametrize(("v4", "v6", "counted"), [(24, 48, ["192.0.2.0", "2001:db8:1::"]), (32, 128, None)])
def test_the_prefixes_are_settings(v4: int, v6: int, counted: list[str] | None) -> None:
    sources = ["192.0.2.9", "2001:db8:1:2::5"]
    assert [source_network(one, v4, v6) for one in sources] == (counted or sources)


def test_a_client_cannot_evade_the_limit_with_another_address_of_its_network() -> None:
    config = parse(service(max_per_source=1))
    route = Route(config.service[0], 1)
    assert not route.is_crowded("2001:db8::1")
    route.sources[source_network("2001:db8::1", *route.prefixes)] = 1
    assert route.is_crowded("2001:db8::2")
    assert not route.is_crowded("2001:db8:0:1::2")
    route.sources[source_network("192.0.2.1", *route.prefixes)] = 1
    assert [route.is_crowded(one) for one in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2")] == [
        True,
        True,
        False,
    ]
    route.set(parse(service(max_per_source=1, source_prefix_v6=128)).service[0], 1)
    assert not route.is_crowded("2001:db8::2")
    route.set(parse(service()).service[0], 1)
    assert not route.is_crowded("192.0.2.1")


@pytest.mark.parametrize(
    "wrong", [{"source_prefix_v4": 33}, {"source_prefix_v6": 0}, {"source_prefix_v6": 129}]
)
def test_a_prefix_that_no_address_has_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        parse(service(**wrong))
