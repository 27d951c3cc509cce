"""The pure rules of links: addresses, names, limits, who may say what; and how a horizon and a link's status are made."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hdad.addresses import Address, is_peer_allowed
from hdad.config import validate
from hdad.errors import ConfigErrors
from hdad.exchange.link.machine import HEARD, State
from hdad.exchange.link.timeline import BACKOFF_MAX_NS, MS, Timeline, backoff_ns
from hdad.exchange.link.trust import names_of
from hdad.exchange.link.wire import Kind, Role
from hdad.writer.child import contact_of


@pytest.mark.parametrize(
    ("text", "expected", "loopback"),
    [
        ("tls://host-a:7000", Address("tls", "host-a", 7000), False),
        ("tcp://127.0.0.9:1", Address("tcp", "127.0.0.9", 1), True),
        ("host-a", Address("tls", "host-a", 7411), False),
        ("host-a:5", Address("tls", "host-a", 5), False),
        ("tls://[::1]:7411", Address("tls", "::1", 7411), True),
        ("tls://[fd00::7]", Address("tls", "fd00::7", 7411), False),
        ("tcp://localhost", Address("tcp", "localhost", 7411), True),
        ("tls://0.0.0.0:1", Address("tls", "0.0.0.0", 1), False),
    ],
)
def test_an_address_reads_as_it_is_meant_and_writes_as_it_reads(text: str, expected: Address, loopback: bool) -> None:
    found = Address.parse(text)
    assert found == expected and found.is_loopback is loopback
    assert Address.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["", "tls://", "http://a:1", "tls://a:99999", "tls://a:-1", "tls://a:x", "tls://[::1", "tls://[a]:1", "tls://a b:1", "tls://u@a:1",
     "tls://[::1]x:5", "tls://a:1/path"],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|port|IPv6"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("names", "allowed", "expected"),
    [
        (("a.example",), (), True),
        ((), (), True),
        (("a.example", "10.0.0.1"), ("10.0.0.1",), True),
        (("A.Example",), ("a.example",), True),
        (("b.example",), ("a.example",), False),
        (("b.example",), ("*.example",), True),
        (("x.b.example",), ("*.example",), False),
        (("example",), ("*.example",), False),
        ((".example",), ("*.example",), False),
        ((), ("a",), False),
    ],
)
def test_peers_are_allowed_by_name(names: tuple[str, ...], allowed: tuple[str, ...], expected: bool) -> None:
    assert is_peer_allowed(names, allowed) is expected


def test_names_of_a_certificate_are_those_it_is_for() -> None:
    certificate = {"subjectAltName": (("DNS", "a"), ("IP Address", "10.0.0.1"), ("URI", "x")), "subject": ((("commonName", "never"),),)}
    assert names_of(certificate) == ("a", "10.0.0.1")
    assert names_of(None) == names_of({}) == ()


def test_the_limits_follow_from_silence_and_leave_room_for_what_a_living_peer_may_need() -> None:
    """The sums of timeline.py's docstring."""
    line = Timeline(3000 * MS, 3000 * MS)
    assert line.ping_ns == 500 * MS
    assert line.ping_ns + 200 * MS + (200 + 400 + 800) * MS < line.silence_ns
    assert line.stall_ns == 12_000 * MS and line.connect_ns <= line.silence_ns
    assert Timeline(3000 * MS, 600 * MS).ping_ns == 100 * MS, "a peer with less patience is heard from more often"


def test_pauses_double_from_50_to_500_ms_and_jitter_halves_them_at_most() -> None:
    assert [backoff_ns(failures, 0) // MS for failures in range(1, 7)] == [50, 100, 200, 400, 500, 500]
    assert backoff_ns(3, 1) == 100 * MS and backoff_ns(1000, 0) == BACKOFF_MAX_NS


def test_every_kind_is_said_by_somebody_and_nobody_is_listened_to_after_the_end() -> None:
    assert set(itertools.chain.from_iterable(HEARD.values())) == set(Kind)
    assert {(role, state) for role in Role for state in State} == set(HEARD)
    assert all(not HEARD[role, State.ENDED] for role in Role)
    for role in Role:
        assert Kind.BYE in HEARD[role, State.OPEN] and Kind.PING in HEARD[role, State.OPEN]
        assert Kind.PING not in HEARD[role, State.GREETING], "a greeting comes first"


TLS = {"tls_cert_file": "c", "tls_key_file": "k", "tls_ca_file": "a"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"link": {"writers": ["tls://a"]}}, "link.writers tls://a:7411 needs link.tls_cert_file"),
        ({"link": {"writers": ["tcp://10.0.0.1"]}}, "link.insecure = true"),
        ({"log": {"device": "/d"}, "link": {"listen": ["tcp://0.0.0.0"]}}, "link.insecure = true"),
        ({"log": {"device": "/d"}, "feed": {"listen": ["tcp://[::]"]}}, "feed.listen tcp://[::]:7412 would let anybody"),
        ({"link": {"writers": ["tcp://localhost"], "listen": ["tcp://localhost"]}}, "link.listen needs log.device"),
        ({"link": {"writers": ["tcp://localhost"]}, "feed": {"listen": ["tcp://localhost"]}}, "feed.listen needs log.device"),
        ({"link": {"writers": ["nonsense://x"]}}, "allowed: tls://HOST:PORT"),
        ({"link": {"silence_ms": 10, "writers": ["tcp://localhost"]}}, "link.silence_ms = 10"),
        ({"link": {}}, "log.device = None: is missing"),
    ],
)
def test_links_that_cannot_work_or_are_open_to_anybody_are_refused(content: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        validate(content, "f")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"link": {"writers": ["tls://a", "b:5"], **TLS}},
        {"link": {"writers": ["tcp://10.0.0.1"], "insecure": True}},
        {"log": {"device": "/d"}, "link": {"listen": ["tls://[::]:7411"], **TLS}, "feed": {"listen": ["tcp://127.0.0.1"]}},
        {"log": {"device": "/d"}, "link": {"listen": ["tcp://127.0.0.1"], "writers": ["tcp://localhost"]}},
    ],
)
def test_links_that_can_work_are_taken(content: dict[str, Any]) -> None:
    validate(content, "f")


def test_the_lease_tells_worker_hosts_where_the_writers_link_is() -> None:
    assert contact_of("tls://a:1", ["tls://b:2"]) == "tls://a:1"
    assert contact_of("", ["tls://10.0.0.1:2"]) == "tls://10.0.0.1:2"
    wildcard = Address.parse(contact_of("", ["tls://0.0.0.0:2"]))
    assert wildcard.port == 2 and wildcard.host != "0.0.0.0"
    assert "://" not in contact_of("", [])
