"""From Redis to the log and back: what goes in comes out, once, in order, byte-identical."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import orjson
import pytest
from harness import Daemon, RedisServer, assert_same, wait_until

from hdad.log.inspect import verify
from hdad.record import RecordKind

Make = Callable[..., Daemon]
pytestmark = pytest.mark.integration


def test_entries_of_several_streams_are_in_the_log_once_in_order_identical(server: RedisServer, make_daemon: Make) -> None:
    streams = [f"s:{index}" for index in range(5)]
    for stream in streams[:3]:
        server.add(stream, 3000, text="x" * 50)
    daemon = make_daemon()
    for stream in streams:
        server.add(stream, 2000, start=3000, text="y" * 50)  # two streams are found while running
    daemon.wait_entries(3 * 3000 + 5 * 2000)
    daemon.stop()
    report = daemon.verify()
    assert report.entries == report.committed == 19_000 and report.lost == 0
    assert_same(daemon, server, streams)


def test_binary_names_and_values_survive(server: RedisServer, make_daemon: Make) -> None:
    pairs = {bytes(range(256)): b"\x00\xff\r\n$5\r\n", b"": b"", b"f" * 300: bytes(1000)}
    for _ in range(50):
        server.client.xadd("s:bin", pairs)
    server.client.xadd(b"s:\xff\xfe", {b"a": b"1"})
    daemon = make_daemon()
    daemon.wait_entries(51)
    daemon.stop()
    records = daemon.records()
    assert [dict(record.fields) for record in records if record.lane == "s:bin"] == [pairs] * 50
    assert [record.lane for record in records if record.lane != "s:bin"] == [b"s:\xff\xfe".decode("utf-8", "surrogateescape")]


def test_an_entry_with_one_field_twice_keeps_both(server: RedisServer, make_daemon: Make) -> None:
    server.client.execute_command("XADD", "s:a", "*", "f", "1", "f", "2")
    daemon = make_daemon()
    daemon.wait_entries(1)
    daemon.stop()
    assert daemon.records()[0].fields == [(b"f", b"1"), (b"f", b"2")]


def test_stages_filter_change_and_dead_letter_and_every_entry_is_accounted_for(server: RedisServer, make_daemon: Make) -> None:
    for index in range(1000):
        text = b"no json{" if index % 100 == 0 else orjson.dumps({"n": index, "keep": index % 4 != 1, "extra": "x"})
        server.client.xadd("s:json", {"d": text})
    stages = [{"use": "decode", "field": "d"}, {"use": "filter", "where": "keep"}, {"use": "select", "fields": ["n"]}]
    daemon = make_daemon(config={"pipeline": {"stages": stages}})
    daemon.wait_entries(1000)
    lane = daemon.lane("s:json")
    daemon.stop()
    report = daemon.verify()
    assert (report.entries, report.dead_lettered, report.filtered, report.committed) == (1000, 10, 250, 740)
    assert lane is not None and (lane["dead_lettered"], lane["filtered"], lane["committed"]) == (10, 250, 740)
    records = daemon.records()
    values = [orjson.loads(record.body)["n"] for record in records if record.kind is RecordKind.VALUE]
    assert values == [index for index in range(1000) if index % 100 and index % 4 != 1]
    letters = [record.dead_letter for record in records if record.kind is RecordKind.DEAD_LETTER]
    assert len(letters) == 10
    assert letters[0] is not None and letters[0][0]["stage"] == "decode" and letters[0][1] == [(b"d", b"no json{")]
    assert "JSONDecodeError" in letters[0][0]["error"] and "Traceback" in letters[0][0]["traceback"]


def test_a_drained_daemon_goes_on_where_it_stood(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon()
    for round_ in range(3):
        server.add("s:a", 500, start=500 * round_)
        daemon.wait_entries(500 * (round_ + 1))
        daemon.stop()
        if round_ < 2:
            daemon.start()
    assert_same(daemon, server, ["s:a"])
    assert daemon.verify().entries == 1500


def test_redis_tools_show_the_position_and_trimming_respects_other_groups(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 1000)
    server.add("s:b", 1000)
    server.client.xgroup_create("s:b", "other", "0")
    server.client.xreadgroup("other", "c", {"s:b": ">"}, count=300)
    server.client.xack("s:b", "other", *[entry_id for entry_id, _ in server.client.xrange("s:b", count=100)])
    daemon = make_daemon(config={"redis": {"trim": "durable"}})
    daemon.wait_entries(2000)
    wait_until(lambda: server.client.xlen("s:a") == 0, "s:a is trimmed to its durable position")
    wait_until(lambda: server.client.xlen("s:b") == 900, "s:b is trimmed to what the other group has not acknowledged")
    groups = {group["name"]: group for group in server.client.xinfo_groups("s:a")}
    assert groups[b"hdad"]["lag"] == 0 and groups[b"hdad"]["entries-read"] == 1000
    server.client.xgroup_setid("s:a", "hdad", "0", entries_read=0)
    wait_until(lambda: server.client.xinfo_groups("s:a")[0]["lag"] == 0, "a position that somebody set back is shown again")
    server.client.xack("s:b", "other", *[entry_id for entry_id, _ in server.client.xrange("s:b", count=200)])
    server.add("s:b", 1, start=1000)
    wait_until(lambda: server.client.xlen("s:b") == 701, "the rest of what was delivered but read by nobody stays")
    daemon.stop()
    assert daemon.verify().lost == 0


def test_start_at_the_end_skips_what_was_there_but_not_later_streams(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:old", 100)
    daemon = make_daemon(config={"redis": {"start": "$"}})
    wait_until(
        lambda: all(row["frames"] >= 2 for row in daemon.status()["roles"] if "frames" in row), "both workers have said what they see"
    )
    wait_until(lambda: daemon.lane("s:old"), "the lane is there")
    server.add("s:old", 10, start=100)
    server.add("s:new", 5)
    daemon.wait_entries(15)
    daemon.stop()
    assert [int(dict(record.fields)[b"n"]) for record in daemon.records() if record.lane == "s:old"] == list(range(100, 110))
    assert daemon.verify().lost == 0


@pytest.mark.parametrize("block_size", [512, 4096])
def test_both_block_sizes_wrap_around_and_stay_right(server: RedisServer, make_daemon: Make, block_size: int) -> None:
    daemon = make_daemon(size=16 << 20, segment_size=4 << 20, block_size=block_size)
    total = 0
    for _ in range(6):
        server.client.delete("s:w")
        server.add(f"s:w{total}", 20_000, start=total, text="z" * 200)
        total += 20_000
        daemon.wait_entries(total)
    daemon.stop()
    report = verify(daemon.device)
    assert report.ok, report.violations
    assert report.first_lsn > 1, "the log went around"
    assert 0 < report.entries < total
    assert sum(lane["entries"] for lane in report.lanes) == total


def test_a_full_log_that_may_not_be_overwritten_stops_the_flow_and_loses_nothing(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon(size=16 << 20, segment_size=4 << 20, config={"log": {"on_full": "block"}})
    server.add("s:a", 60_000, text="z" * 200)
    wait_until(lambda: any(alarm["key"] == "full" for alarm in daemon.status()["alarms"]), "an alarm tells that the log is full")
    daemon.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    daemon.wait_end(10)
    report = verify(daemon.device)
    assert report.ok and report.first_lsn == 1 and 0 < report.entries < 60_000
    numbers = [int(dict(record.fields)[b"n"]) for record in daemon.records()]
    assert numbers == list(range(len(numbers))), "what is there is the beginning, whole"


def test_an_entry_larger_than_the_limit_is_a_dead_letter_and_the_lane_goes_on(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 3)
    server.client.xadd("s:a", {"big": b"x" * 600_000})
    server.add("s:a", 3, start=3)
    daemon = make_daemon()
    daemon.wait_entries(7)
    daemon.stop()
    report = daemon.verify()
    assert (report.committed, report.dead_lettered) == (6, 1)
    letter = next(record.dead_letter for record in daemon.records() if record.kind is RecordKind.DEAD_LETTER)
    assert letter is not None and letter[0]["reason"] == "too large"


def test_an_entry_larger_than_a_whole_reply_may_be_is_a_dead_letter(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 2)
    server.client.xadd("s:a", {"big": b"x" * 3_000_000})
    server.add("s:a", 2, start=2)
    server.add("s:b", 10)
    daemon = make_daemon(config={"redis": {"reply_bytes_max": 1 << 20}})
    daemon.wait_entries(15)
    daemon.stop()
    report = daemon.verify()
    assert (report.committed, report.dead_lettered) == (14, 1)


def test_ten_thousand_streams_are_all_read(server: RedisServer, make_daemon: Make) -> None:
    pipeline = server.client.pipeline(transaction=False)
    for index in range(10_000):
        pipeline.xadd(f"s:{index}", {"n": "0"})
    pipeline.execute()
    daemon = make_daemon()
    daemon.wait_entries(10_000, 120)
    pipeline = server.client.pipeline(transaction=False)
    for index in range(0, 10_000, 100):
        pipeline.xadd(f"s:{index}", {"n": "1"})
    pipeline.execute()
    daemon.wait_entries(10_100)
    assert len(daemon.status()["lanes"]) == 10_000
    wait_until(lambda: all(lane["state"] == "idle" for lane in daemon.status()["lanes"]), "no lane is called busy any more")
    daemon.stop()
    assert daemon.verify().entries == 10_100


def test_memory_does_not_grow_with_the_backlog(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 200_000, text="t" * 200)
    daemon = make_daemon(size=256 << 20)
    daemon.wait_entries(200_000)
    total = 0
    for row in daemon.status()["roles"]:
        with open(f"/proc/{row['pid']}/smaps_rollup", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
    with open(f"/proc/{daemon.process.pid}/smaps_rollup", encoding="ascii") as file:  # type: ignore[union-attr]
        total += next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
    daemon.stop()
    assert total < 300 << 20, f"{total} bytes"


def test_children_have_names_and_die_with_the_supervisor(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon()
    names = {}
    for row in daemon.status()["roles"]:
        with open(f"/proc/{row['pid']}/comm", encoding="ascii") as file:
            names[row["role"]] = file.read().strip()
    assert names == {"writer": "hdad-writer", "worker-0": "hdad-worker-0", "worker-1": "hdad-worker-1"}
    daemon.kill()  # waits until all are gone
    assert not os.path.exists(f"/proc/{daemon.process.pid}/exe")  # type: ignore[union-attr]
