"""The whole way with a million entries: what Redis has is what the log has, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest

import orjson
import pytest
from harness import Daemon, RedisServer

from hdad import LogReader
from hdad.log.inspect import verify
from hdad.record import RecordKind

Make = Callable[..., Daemon]
pytestmark = [pytest.mark.integration, pytest.mark.slow]
STREAMS, EACH = 8, 125_000
STAGED = ("s:5", "s:6", "s:7")


def in_redis(server: RedisServer, stream: str) -> Iterator[tuple[str, list[tuple[bytes, bytes]]]]:
    start = "-"
    while found := server.client.xrange(stream, start, "+", 10_000):
        for entry_id, fields in found:
            yield entry_id.decode(), list(fields.items())
        start = "(" + found[-1][0].decode()


def test_a_million_entries_in_eight_streams_three_with_a_stage(server: RedisServer, make_daemon: Make) -> None:
    for index in range(STREAMS):
        for begin in range(0, EACH, 5000):
            pipeline = server.client.pipeline(transaction=False)
            for n in range(begin, begin + 5000):
                text = orjson.dumps({"n": n, "level": "debug" if n % 4 == 0 else "info", "text": "x" * (n % 300)})
                pipeline.xadd(f"s:{index}", {b"d": b"{broken" if n == 77_777 else text})
            pipeline.execute()
    daemon = make_daemon(start=False, size=1 << 30)
    route = '[[pipeline.route]]\nstreams = ["s:5", "s:6", "s:7"]\nstages = [{use = "filter", where = "level != \'debug\'"}, '
    daemon.config_path.write_text(daemon.config_path.read_text() + route + '{use = "select", fields = ["n"]}]\n')
    daemon.start()
    daemon.wait_entries(STREAMS * EACH, 240)
    daemon.stop()
    report = verify(daemon.device)
    assert report.ok, report.violations
    assert (report.entries, report.lost) == (STREAMS * EACH, 0)
    assert report.dead_lettered == len(STAGED) and report.filtered == len(STAGED) * EACH // 4
    for index in range(STREAMS):
        stream = f"s:{index}"
        with LogReader(daemon.device, lane=stream) as reader:
            if stream in STAGED:
                numbers = [orjson.loads(record.body)["n"] for record in reader.records() if record.kind is RecordKind.VALUE]
                assert numbers == [n for n in range(EACH) if n % 4 and n != 77_777]
            else:
                logged = ((str(record.position), record.fields) for record in reader.records())
                assert all(left == right for left, right in zip_longest(logged, in_redis(server, stream)))
