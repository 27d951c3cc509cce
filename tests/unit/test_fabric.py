"""Path health, trends and the parsers of the fabric: every verdict is reached, and what is well has none. Values only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import orjson
import pytest

import hdad.fabric.health
from hdad.errors import PeerProtocolError
from hdad.fabric import devicemapper, multipathd
from hdad.fabric.facts import Facts, Group, HostPort, Path, RemotePort, Reservation, compact, decode, encode, from_plain, trimmed
from hdad.fabric.health import CONDITIONS, Expectations, condition, is_active, judge, queue_s, summary
from hdad.fabric.trends import SPAN_NS, History, Trends

SECOND = 1_000_000_000
CALM = Trends()


def path(name: str, host: int = 3, remote: int = 0, **changes: Any) -> Path:
    """A healthy Fibre Channel path."""
    basis = Path(
        name, number=f"8:{16 * (ord(name[2]) - 96)}", address=f"{host}:0:{remote}:0", transport="fc", host=f"host{host}",
        port=f"0x2100000{host}", remote=f"rport-{host}:0-{remote}", target=f"0x5006{host}{remote}", device_state="running",
        remote_state="Online", access="active/optimized", dm_state="active", checker="ready", failures=0, wwid="naa.6001", size=1 << 40,
        logical_block=512, physical_block=4096, max_sectors_kb=1024, write_cache="write through", has_fua=False, numa_node=0,
    )  # fmt: skip
    return replace(basis, **changes)


def healthy(**changes: Any) -> Facts:
    """A map of four paths over two adapters that nothing is wrong with."""
    paths = (path("sda", 3, 0), path("sdb", 3, 1), path("sdc", 4, 0), path("sdd", 4, 1))
    basis = Facts(
        device="/dev/mapper/hdad", kind="multipath", name="dm-3", map_name="hdad", uuid="3600", size=1 << 40, logical_block=512,
        max_sectors_kb=1024, write_cache="write through", has_fua=False, queueing="12 checks", polling_s=5,
        groups=(Group(1, "active", "service-time 0", 50, paths=("sda", "sdb", "sdc", "sdd")),), paths=paths,
        hosts=tuple(
            HostPort(f"host{n}", port_name=f"0x2100000{n}", port_state="Online", speed="16 Gbit", supported_speeds="8 Gbit, 16 Gbit",
                     numa_node=0, counters={"invalid_crc_count": 5})
            for n in (3, 4)
        ),
        remote_ports=tuple(
            RemotePort(f"rport-{n}:0-{r}", f"host{n}", f"0x5006{n}{r}", port_state="Online", dev_loss_s=600, fast_io_fail_s=5)
            for n in (3, 4)
            for r in (0, 1)
        ),
        sources=("sysfs", "multipathd"), has_states=True, is_complete=True, taken_ns=100 * SECOND,
    )  # fmt: skip
    return replace(basis, **changes)


def with_path(name: str, **changes: Any) -> Facts:
    return healthy().with_paths({name: changes})


def with_all(facts: Facts, **changes: Any) -> Facts:
    return facts.with_paths({path.name: changes for path in facts.paths})


def with_ports(**changes: Any) -> Facts:
    facts = healthy()
    return replace(facts, remote_ports=tuple(replace(port, **changes) for port in facts.remote_ports))


def with_host(**changes: Any) -> Facts:
    facts = healthy()
    return replace(facts, hosts=(replace(facts.hosts[0], **changes), facts.hosts[1]))


def only(facts: Facts, *names: str) -> Facts:
    return replace(facts, paths=tuple(path for path in facts.paths if path.name in names))


# -- conditions --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "active"),
        ({"device_state": "", "remote_state": "", "access": "", "dm_state": "", "checker": ""}, "active"),
        ({"device_state": "live"}, "active"),
        ({"remote_state": "LOGGED_IN"}, "active"),
        ({"access": "active/non-optimized"}, "active"),
        ({"in_map": False, "device_state": "offline"}, "unused"),
        ({"device_state": "offline", "dm_state": "failed"}, "offline"),
        ({"device_state": "dead"}, "offline"),
        ({"device_state": "deleting"}, "offline"),
        ({"device_state": "transport-offline"}, "lost"),
        ({"device_state": "connecting"}, "lost"),
        ({"remote_state": "Not Present"}, "lost"),
        ({"remote_state": "FAILED"}, "lost"),
        ({"device_state": "blocked"}, "blocked"),
        ({"device_state": "resetting"}, "blocked"),
        ({"remote_state": "Blocked"}, "blocked"),
        ({"dm_state": "failed"}, "failed"),
        ({"checker": "faulty"}, "failed"),
        ({"checker": "i/o timeout"}, "failed"),
        ({"checker": "shaky"}, "failed"),
        ({"checker": "ghost"}, "standby"),
        ({"access": "standby"}, "standby"),
        ({"access": "inaccessible"}, "standby"),
        ({"access": "transitioning"}, "standby"),
        ({"is_marginal": True}, "marginal"),
        ({"remote_state": "Marginal"}, "marginal"),
        ({"is_marginal": True, "dm_state": "failed"}, "failed"),
    ],
)
def test_a_path_is_told_in_one_word(changes: dict[str, Any], word: str) -> None:
    found = path("sda", **changes)
    assert condition(found) == word and word in CONDITIONS
    assert is_active(found) == (word in ("active", "marginal"))


def test_the_summary_counts_and_names() -> None:
    assert summary(healthy()) == "paths 4/4 active"
    assert summary(with_path("sdb", dm_state="failed")) == "paths 3/4 active (sdb failed)"
    assert summary(with_path("sdb", access="standby")) == "paths 3/4 active, 1 standby"
    assert summary(replace(with_path("sda", in_map=False), is_suspended=True)) == "paths 3/3 active (sda unused), map suspended"
    assert summary(with_all(healthy(queueing="40 s left"), device_state="offline")) == (
        "paths 0/4 active (sda offline, sdb offline, sdc offline, sdd offline), queueing 40 s left"
    )
    many = replace(healthy(), paths=tuple(path(f"sd{letter}", device_state="offline") for letter in "abcdefg"), queueing="")
    assert summary(many) == "paths 0/7 active (sda offline, sdb offline, sdc offline, sdd offline and 3 more)"
    assert summary(Facts("/x", "single", paths=(Path("vda", transport="virtio"),))) == ""
    assert summary(Facts("/x", "single", paths=(path("sda"),))) == "paths 1/1 active"


# -- verdicts ----------------------------------------------------------------------------------------------------------------------------

PLAIN = Facts("/dev/vda", "single", "vda", paths=(Path("vda", transport="virtio"),), write_cache="write back", has_fua=True)
NVME = Facts(
    "/dev/nvme0n1", "nvme", "nvme0n1", "nvme0n1", queueing="60 s",
    paths=(
        Path("nvme0c0n1", transport="nvme-tcp", host="", port="10.1.0.1", remote="nvme0", target="10.1.0.2", device_state="live",
             access="optimized", recovery_s=5),
        Path("nvme0c1n1", transport="nvme-tcp", host="", port="10.2.0.1", remote="nvme1", target="10.2.0.2", device_state="live",
             access="optimized", recovery_s=5),
    ),
)  # fmt: skip
RISEN = Trends(risen={"host3": {"invalid_crc_count": 7, "tx_frames": 9}}, span_s=30)
PAIR = Expectations(takeover_s=10, needs_keys=True)

CASES: list[tuple[str, str, Facts, Expectations, Trends, str]] = [
    # code, level, facts, expectations, trends, words in it
    ("no-device", "error", Facts("/dev/mapper/x"), Expectations(), CALM, "no such device"),
    ("suspended", "error", healthy(is_suspended=True), Expectations(), CALM, "every write waits"),
    ("no-multipathd", "warning", healthy(sources=("sysfs",)), Expectations(), CALM, "nobody brings a failed path back"),
    ("no-paths", "error", healthy(paths=()), Expectations(), CALM, "no path at all"),
    ("single-path", "error", Facts("/dev/sda", "single", "sda", paths=(path("sda"),)), Expectations(), CALM, "one fc path, not a map"),
    ("single-path", "error", only(healthy(), "sda"), Expectations(), CALM, "one path, sda (host3 0x21000003 → rport-3:0-0 0x500630)"),
    ("last-path", "error", with_all(healthy(), dm_state="failed").with_paths({"sdc": {"dm_state": "active"}}), Expectations(), CALM,
     "one of 4 paths is left, sdc (host4"),
    ("all-paths-down", "error", with_all(healthy(queueing="on"), dm_state="failed"), Expectations(), CALM, "writes wait, without limit"),
    ("all-paths-down", "error", with_all(healthy(queueing=""), access="standby"), Expectations(), CALM, "none of 4 paths is active"),
    ("single-port", "warning", only(healthy(), "sda", "sdb"), Expectations(), CALM, "port of this host, host3"),
    ("single-port", "warning", with_all(healthy(), target="0x50"), Expectations(), CALM, "target port, 0x50"),
    ("path-unused", "warning", with_path("sda", in_map=False), Expectations(), CALM, "the map does not use it"),
    ("path-offline", "error", with_path("sda", device_state="offline"), Expectations(), CALM, "offline"),
    ("path-lost", "error", with_path("sda", remote_state="Not Present"), Expectations(), CALM, "lost; remote port Not Present"),
    ("path-lost", "error", with_path("sda", transport="iscsi", remote_state="FAILED"), Expectations(), CALM, "lost; session FAILED"),
    ("path-blocked", "warning", with_path("sda", device_state="blocked"), Expectations(), CALM, "blocked"),
    ("path-failed", "error", with_path("sda", dm_state="failed"), Expectations(), Trends(since={"sda": 88 * SECOND}), "failed for 12 s"),
    ("path-marginal", "warning", with_path("sda", is_marginal=True), Expectations(), CALM, "marginal"),
    ("queue-forever", "warning", healthy(queueing="on"), Expectations(), CALM, "without limit"),
    ("queue-forever", "warning", replace(NVME, queueing="on"), Expectations(), CALM, "without limit"),
    ("queue-too-long", "warning", healthy(), PAIR, CALM, "wait 60 s (no_path_retry × polling_interval), longer than the takeover"),
    ("dev-loss-short", "warning", with_ports(dev_loss_s=30), Expectations(), CALM, "dev_loss_tmo is 30 s, and writes wait 60 s"),
    ("no-fast-fail", "warning", with_ports(fast_io_fail_s=None), Expectations(), CALM, "up to 600 s (dev_loss_tmo, since"),
    ("no-fast-fail", "error", with_ports(fast_io_fail_s=None), PAIR, CALM, "takes over after 10 s, though one path is left"),
    ("slow-failover", "warning", with_ports(fast_io_fail_s=15), Expectations(), CALM, "up to 15 s"),
    ("slow-failover", "warning", with_ports(fast_io_fail_s=5), Expectations(takeover_s=10, io_s=4), CALM, "io_timeout_ms allows, 4 s"),
    ("slow-failover", "error", with_ports(fast_io_fail_s=10), PAIR, CALM, "takes over after 10 s"),
    ("slow-failover", "warning", with_path("sda", transport="iscsi", remote="session1", recovery_s=120), Expectations(), CALM, "120 s"),
    ("missing-key", "error", with_path("sdb", key=""), PAIR, CALM, "no reservation key is registered through this path"),
    ("missing-key", "error", healthy(reservation=Reservation(ours="0xa", keys=("0xa", "0xb"))), PAIR, CALM, "registered 1 times, and 4"),
    ("cache-without-fua", "warning", replace(PLAIN, has_fua=False), Expectations(), CALM, "followed by a whole cache flush"),
    ("cache-mismatch", "error", with_path("sda", write_cache="write back"), Expectations(), CALM, "disagree"),
    ("size-mismatch", "error", with_path("sda", size=1 << 41), Expectations(), CALM, f"sda {1 << 41}, sdb {1 << 40}"),
    ("logical-block-mismatch", "error", with_path("sda", logical_block=4096), Expectations(), CALM, "sda 4096, sdb 512"),
    ("max-sectors-mismatch", "warning", with_path("sda", max_sectors_kb=512), Expectations(), CALM, "map 1024, paths 512, 1024"),
    ("max-sectors-mismatch", "warning", healthy(max_sectors_kb=2048), Expectations(), CALM, "map 2048, paths 1024"),
    ("log-block-size", "error", healthy(logical_block=4096), Expectations(block_size=512), CALM, "have 512 bytes, the device's 4096"),
    ("non-optimized", "warning", with_all(healthy(), access="active/non-optimized"), Expectations(), CALM, "does not own the LUN"),
    ("mixed-group", "warning", with_path("sda", access="active/non-optimized"), Expectations(), CALM, "optimized and other paths share"),
    ("link-down", "error", with_host(port_state="Linkdown"), Expectations(), CALM, "Linkdown"),
    ("link-down", "warning", healthy(hosts=(HostPort("host9", port_state="Offline"),)), Expectations(), CALM, "Offline"),
    ("slow-link", "warning", with_host(speed="8 Gbit"), Expectations(), CALM, "8 Gbit, and can do 16 Gbit"),
    ("far-adapter", "warning", with_host(numa_node=1), Expectations(writer_nodes=frozenset({0})), CALM, "node 1, the writer on 0"),
    ("errors-rising", "warning", healthy(), Expectations(), RISEN, "within 30 s: invalid_crc_count +7"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "level", "facts", "expected", "trends", "words"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_each_verdict_is_reached(code: str, level: str, facts: Facts, expected: Expectations, trends: Trends, words: str) -> None:
    found = [verdict for verdict in judge(facts, expected, trends) if verdict.code == code]
    assert found, code
    assert any(verdict.level == level and words in verdict.text for verdict in found), found
    assert all(verdict.remedy and verdict.where for verdict in found)


def test_no_verdict_is_without_a_case() -> None:
    source = File(hdad.fabric.health.__file__).read_text()
    codes = set(re.findall(r'Verdict\("\w+", "([a-z-]+)"', source)) | {f"path-{word}" for word in hdad.fabric.health.PATH_TEXTS}
    codes |= {"all-paths-down", "link-down", "no-fast-fail", "slow-failover", "size-mismatch", "logical-block-mismatch"}
    assert codes == {case[0] for case in CASES}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (healthy(), Expectations()),
        (healthy(), Expectations(takeover_s=90, needs_keys=True, block_size=4096, writer_nodes=frozenset({0, 1}))),
        (with_all(healthy(), key="0xa"), Expectations(needs_keys=True)),
        (healthy(reservation=Reservation(ours="0xa", keys=("0xa",) * 4)), Expectations(needs_keys=True)),
        (replace(with_path("sdb", access="standby"), groups=()), Expectations()),
        (healthy(queueing="off"), Expectations(takeover_s=20)),
        (PLAIN, Expectations(block_size=4096)),
        (NVME, Expectations(takeover_s=60)),
        (Facts("/var/lib/hdad.log", "file", "vda", write_cache="write back", has_fua=False), Expectations()),
        (replace(healthy(), paths=(), kind="single"), Expectations()),
    ],
)
def test_what_is_well_has_no_verdict(facts: Facts, expected: Expectations) -> None:
    assert judge(facts, expected, CALM) == []


def test_what_nobody_told_is_no_verdict() -> None:
    bare = Facts("/dev/mapper/x", "multipath", "dm-0", "x", paths=(Path("sda", host="host1"), Path("sdb", host="host2")))
    assert judge(bare, PAIR, CALM) == []


def test_errors_come_first() -> None:
    facts = replace(with_path("sda", dm_state="failed"), queueing="on")
    levels = [verdict.level for verdict in judge(facts, Expectations(), CALM)]
    assert levels == sorted(levels) and set(levels) == {"error", "warning"}


@pytest.mark.parametrize(
    ("queueing", "polling_s", "seconds"),
    [
        ("off", 5, 0), ("on", 5, None), ("", 5, None), ("12 checks", 5, 60), ("12 checks", None, None), ("600 s", None, 600),
        ("7 s left", 5, 7),
    ],
)
def test_how_long_writes_wait(queueing: str, polling_s: int | None, seconds: int | None) -> None:
    assert queue_s(healthy(queueing=queueing, polling_s=polling_s)) == seconds


# -- trends ------------------------------------------------------------------------------------------------------------------------------


def at(seconds: float, facts: Facts) -> Facts:
    return replace(facts, taken_ns=int(seconds * SECOND))


def test_since_when_is_known_only_for_what_was_seen_to_begin() -> None:
    history = History(condition)
    bad = with_path("sda", dm_state="failed")
    assert history.feed(at(1, bad)).since == {}
    assert history.feed(at(2, bad)).since == {}
    assert history.feed(at(3, healthy())).since == {"sda": 3 * SECOND}
    assert history.feed(at(4, with_path("sdb", dm_state="failed"))).since == {"sda": 3 * SECOND, "sdb": 4 * SECOND}
    trends = history.feed(at(9, with_path("sdb", dm_state="failed")))
    assert trends.age_s("sdb", 9 * SECOND) == 5 and trends.age_s("sdc", 9 * SECOND) is None
    assert trends.describe_age("sdb", 9 * SECOND) == " for 5 s" and trends.describe_age("sdc", 9 * SECOND) == ""
    assert trends.age_s("sdb", 0) == 0, "a clock that was set back makes no negative age"


def test_a_path_that_appears_later_began_then() -> None:
    history = History(condition)
    history.feed(at(1, only(healthy(), "sda")))
    assert history.feed(at(2, healthy())).since == {"sdb": 2 * SECOND, "sdc": 2 * SECOND, "sdd": 2 * SECOND}
    history.feed(at(3, only(healthy(), "sda")))
    assert "sdb" not in history.feed(at(4, only(healthy(), "sda"))).since


def counting(seconds: float, **counters: int) -> Facts:
    return at(seconds, healthy(hosts=(HostPort("host3", counters=counters),)))


def test_counters_rise_within_the_last_minute() -> None:
    history = History(condition)
    assert history.feed(counting(0, crc=5, link=1)).risen == {}
    trends = history.feed(counting(10, crc=9, link=1))
    assert trends.risen == {"host3": {"crc": 4}} and trends.span_s == 10
    assert history.feed(counting(20, crc=2, link=1)).risen == {"host3": {"crc": 2}}, "a counter that fell was reset"
    late = SPAN_NS // SECOND + 25
    trends = history.feed(counting(late, crc=3, link=1, new=8))
    assert trends.risen == {"host3": {"crc": 1}} and trends.span_s == late - 20, "older looks are forgotten, but for the last one"
    assert history.feed(at(late + 1, healthy(hosts=(HostPort("host4"),)))).risen == trends.risen, "without counters there is no news"


# -- facts -------------------------------------------------------------------------------------------------------------------------------


def test_facts_read_as_they_were_written() -> None:
    facts = healthy(reservation=Reservation("write exclusive", "0xa", ("0xa", "0xb"), "0xa"), notes=("a", "b"), is_suspended=True)
    facts = facts.with_paths({"sda": {"in_map": False, "key": "", "failures": 0, "has_fua": None, "errors": {"ioerr_cnt": 3}}})
    assert decode(encode(facts)) == facts
    assert from_plain(orjson.loads(orjson.dumps(compact(facts)))) == facts
    assert len(orjson.dumps(compact(facts))) < len(encode(facts))
    assert from_plain(orjson.loads(orjson.dumps(compact(Facts("/x"))))) == Facts("/x")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"device": 3}', b'{"device": "x", "paths": [{}]}', b'{"device": "x", "size": "many"}'])
def test_what_is_no_survey_is_refused(data: bytes) -> None:
    with pytest.raises(PeerProtocolError, match="not a survey"):
        decode(data)


def test_a_survey_too_large_keeps_the_ports_of_the_paths_it_keeps() -> None:
    small = trimmed(healthy(), 2)
    assert [path.name for path in small.paths] == ["sda", "sdb"]
    assert [host.name for host in small.hosts] == ["host3"]
    assert [port.name for port in small.remote_ports] == ["rport-3:0-0", "rport-3:0-1"]
    assert small.notes == ("only 2 of 4 paths are told",)


# -- multipathd --------------------------------------------------------------------------------------------------------------------------


def reply(**changes: Any) -> str:
    item = {
        "name": "hdad", "uuid": "3600", "sysfs": "dm-3", "queueing": "12 chk", "dm_st": "active", "features": "0", "hwhandler": "1 alua",
        "path_groups": [
            {"selector": "service-time 0", "pri": 50, "dm_st": "active", "marginal_st": "normal",
             "paths": [
                {"dev": "sda", "dm_st": "active", "chk_st": "ready", "marginal_st": "normal", "host_wwpn": "0x21", "target_wwpn": "0x50"},
                {"dev": "sdb", "dm_st": "failed", "chk_st": "faulty", "marginal_st": "marginal", "host_wwpn": "[undef]"}]},
            {"selector": "service-time 0", "pri": 10, "dm_st": "enabled", "marginal_st": "marginal",
             "paths": [{"dev": "sdc", "chk_st": "undef"}]},
        ],
    }  # fmt: skip
    return orjson.dumps({"major_version": 0, "minor_version": 1, "map": item | changes}).decode()


def test_a_reply_becomes_facts() -> None:
    report = multipathd.parse_map(reply())
    assert (report.name, report.device, report.queueing, report.hardware_handler) == ("hdad", "dm-3", "12 checks", "1 alua")
    assert [group.paths for group in report.groups] == [("sda", "sdb"), ("sdc",)] and report.groups[1].is_marginal
    facts = multipathd.merge(with_all(healthy(groups=(), queueing=""), dm_state="", checker="", port="", target=""), report)
    sdb, sdc = facts.path("sdb"), facts.path("sdc")
    assert sdb is not None and (sdb.dm_state, sdb.checker, sdb.is_marginal, sdb.port) == ("failed", "faulty", True, "")
    assert sdc is not None and sdc.checker == "", "undef is not told"
    assert facts.path("sda").port == "0x21" and facts.path("sda").target == "0x50"  # type: ignore[union-attr]
    assert facts.policy == "service-time 0" and facts.queueing == "12 checks" and len(facts.groups) == 2
    assert multipathd.parse_map(reply(dm_st="suspend")).is_suspended


@pytest.mark.parametrize(
    ("word", "told"), [("on", "on"), ("off", "off"), ("-", ""), ("24 chk", "24 checks"), ("37 sec", "37 s left"), (7, "7")]
)
def test_queueing_in_words(word: Any, told: str) -> None:
    assert multipathd.parse_map(reply(queueing=word)).queueing == told


@pytest.mark.parametrize(
    "text", ["fail\n", "timeout\n", "permission deny: need to be root\n", "{", "[]", "{}", '{"map": 3}', '{"maps": []}']
)
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(PeerProtocolError):
        multipathd.parse_map(text)


def test_odd_types_in_a_reply_are_empty() -> None:
    groups = [3, {"pri": "x", "paths": [None, {"dev": {}}, {"dev": "sd\x1bz"}]}]
    report = multipathd.parse_map(reply(name=None, uuid=["x"], path_groups=groups))
    assert (report.name, report.uuid) == ("", "") and report.groups[0].priority is None
    assert [path.name for path in report.paths] == ["", "sd?z"]
    assert multipathd.parse_map(reply(path_groups="none")).groups == ()


def test_failures_and_polling_are_read_where_they_are_told() -> None:
    assert multipathd.parse_failures("sda|0|active|ready\nsdb|12|failed|faulty\nsdc|%0|x\nodd\n") == {"sda": 0, "sdb": 12}
    assert multipathd.merge_failures(healthy(), "sdb|12").path("sdb").failures == 12  # type: ignore[union-attr]
    assert multipathd.parse_polling("defaults {\n\tpolling_interval 10\n\tmax_polling_interval 40\n}\n") == 10
    assert multipathd.parse_polling('defaults {\n\tpolling_interval "3"\n}\n') == 3
    assert multipathd.parse_polling("defaults {\n\tmax_polling_interval 40\n}\n") is None


def test_a_reply_is_framed_by_its_length() -> None:
    whole = multipathd.encode_command("show")
    assert whole == (5).to_bytes(8, "little") + b"show\0"
    assert multipathd.ReplyDecoder().feed(whole) == "show"
    for length in (0, multipathd.REPLY_BYTES_MAX + 1, 2**64 - 1):
        with pytest.raises(PeerProtocolError, match="announces"):
            multipathd.ReplyDecoder().feed(length.to_bytes(8, "little"))
    with pytest.raises(PeerProtocolError, match="more than"):
        multipathd.ReplyDecoder().feed(whole + b"x")


def test_why_multipathd_did_not_tell_is_said() -> None:
    assert multipathd.describe(TimeoutError("late")) == "multipathd does not answer: late"
    assert multipathd.describe(ConnectionRefusedError()) == "multipathd is not running"
    assert multipathd.describe(FileNotFoundError()) == "multipathd is not running"
    assert multipathd.describe(PermissionError(13, "Permission denied")) == "multipathd: Permission denied"
    assert multipathd.describe(PeerProtocolError("odd")) == "odd"


# -- device-mapper -----------------------------------------------------------------------------------------------------------------------

TABLE = "0 524288 multipath 3 queue_if_no_path queue_mode mq 1 alua 2 1 service-time 0 2 2 8:16 1 1 8:48 1 1 service-time 0 1 2 8:32 1 1"
STATUS = "0 524288 multipath 2 0 0 0 2 1 A 0 2 2 8:16 A 0 0 1 8:48 F 3 0 1 D 0 1 2 8:32 A 0 0 1"


def test_table_and_status_become_facts() -> None:
    table, status = devicemapper.parse_target(TABLE, is_status=False), devicemapper.parse_target(STATUS, is_status=True)
    assert table.features == ("queue_if_no_path", "queue_mode", "mq") and table.hardware_handler == "alua"
    assert status.states == {"8:16": ("active", 0), "8:48": ("failed", 3), "8:32": ("active", 0)}
    facts = devicemapper.merge(with_all(only(healthy(), "sda", "sdb", "sdc"), dm_state=""), table, status)
    assert [path.dm_state for path in facts.paths] == ["active", "active", "failed"] and facts.paths[2].failures == 3
    assert [(group.state, group.paths, group.selector) for group in facts.groups] == [
        ("active", ("sda", "sdc"), "service-time"), ("disabled", ("sdb",), "service-time"),
    ]  # fmt: skip
    assert facts.queueing == "on"
    without = devicemapper.parse_target(TABLE.replace("3 queue_if_no_path queue_mode mq", "2 queue_mode mq"), is_status=False)
    assert devicemapper.merge(facts, without, status).queueing == "off"
    assert devicemapper.parse_target("0 8 multipath 0 0 1 1 round-robin 0 1 1 8:0 1000", is_status=False).groups[0].state == "active"


@pytest.mark.parametrize(
    "line", ["", "0 8", "0 8 linear 8:0 0", "0 8 multipath", "0 8 multipath x", "0 8 multipath 99999999", "0 8 multipath -1 0", TABLE[:-20]]
)
def test_a_line_that_is_not_multipaths_is_refused(line: str) -> None:
    with pytest.raises(PeerProtocolError, match="dmsetup"):
        devicemapper.parse_target(line, is_status=False)
