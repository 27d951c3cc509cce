"""A device that fails or lies about writes (dm-flakey), under full load: errors stop the writer, lies are told, never read as data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hdad.errors import ExitStatus
from hdad.log.inspect import verify
from hdad.log.reader import LogReader
from tests.vm.flakey import Flakey
from tests.vm.kernel import until
from tests.vm.load import Load, Oracle, text_of
from tests.vm.proof import Bench

pytestmark = pytest.mark.guest


@pytest.fixture
def device() -> Iterator[Flakey]:
    with Flakey() as made:
        yield made


def test_failing_writes_end_the_writer_and_dropped_ones_are_read_again_from_redis(bench: Bench, device: Flakey) -> None:
    daemon = bench.daemon(device.path)
    with bench.load(daemon) as load, Oracle(device.path) as oracle:
        with bench.fault(load, oracle, "every write fails for a while"):
            with device.failing("error_writes"):
                until(lambda: "ended with status 4 (DEVICE)" in daemon.log(), "the writer has ended (I8)")
                before = load.durable
                load.wait_status(lambda status: status["roles"][1]["restarts"] >= 3, "it is tried again", 30.0)
                assert load.durable == before, "I1"
            load.wait_more(1_000)
        # A device that lost what it had called durable, and nothing later shows it: the log's position is older, and Redis has the rest.
        with bench.fault(load, oracle, "writes dropped, then a kill"):
            with device.failing("drop_writes"):
                load.wait_more(1_000)
                load.finish_adding()
                daemon.kill()
            oracle.forget()
            daemon.start()
            load.forget()  # it was killed
        bench.prove(load, oracle)


@pytest.mark.parametrize("lie", ["drop_writes", "corrupt_bio_byte 2000 w 165 0"])
def test_a_lie_about_writes_in_the_middle_is_damage_for_everybody(bench: Bench, device: Flakey, lie: str) -> None:
    """I5's other side: data that was called durable and is not there is never skipped in silence, and never read as something else."""
    daemon = bench.daemon(device.path)
    with bench.load(daemon) as load:
        load.mark()
        with device.failing(lie):
            load.wait_more(1_000)
        load.wait_more(2_000)
        load.finish()
    daemon.stop()
    report = verify(device.path)
    assert not report.ok and any("not valid" in text or "I5" in text for text in report.violations), report
    seen, damaged = _read(device.path, load)
    assert damaged, "the reader told it"
    missing = load.added - seen
    assert missing > 0, "what the device lost is not there"
    daemon.start(wait=False)
    daemon.wait_end(ExitStatus.DAMAGED)
    daemon.configure({"log": {"accept_damage": True}})
    daemon.start()
    bench.client().xadd("s:after", {"n": "0"})
    until(
        lambda: (daemon.lane("s:after") or {"entries": 0})["entries"] == 1, lambda: f"it goes on behind the damage: {daemon.log()[-2000:]}"
    )
    daemon.stop()
    bench.record({"fault": f"device lies: {lie.split(maxsplit=1)[0]}", "told": missing, **load.measured()})


def _read(path: str, load: Load) -> tuple[int, int]:
    """Entries that are there, each right, in order, at most once; and how many places were told as damaged."""
    seen = dict.fromkeys(load.counts, -1)
    count = 0
    with LogReader(path, on_damage="skip") as reader:
        for record in reader.records():
            n = int(dict(record.fields)[b"n"])
            assert n > seen[record.lane] and record.fields == [(b"n", b"%d" % n), (b"text", text_of(n))], record
            seen[record.lane] = n
            count += 1
        return count, len(reader.damaged)
