"""Full load on a daemon in the VM while something breaks, what was seen meanwhile, and whether the log holds it all, once, in order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self

import redis
from harness import Daemon

from hdad.control.client import call
from hdad.errors import ControlError
from hdad.log.reader import LogReader
from hdad.record import Position
from tests.vm.kernel import SLACK, until

ADD: Final = """
local first, size = tonumber(ARGV[1]), tonumber(ARGV[3])
for n = first, first + ARGV[2] - 1 do
    redis.call('XADD', KEYS[1], '*', 'n', n, 'text', string.rep(string.char(97 + n % 26), size + n % 50))
end
"""  # made by the server: the load costs the VM as little as it can
TEXT_BYTES: Final = 150
BATCH: Final = 100
ENTRY_BYTES_MAX: Final = 260  # in the log, with its share of a frame
RATE_MAX: Final = 1000  # entries a second: every one of them is also read back and compared, by the same two emulated CPUs
SAMPLE_S: Final = 0.2
BEAT_S: Final = 0.05
ANSWER_S_MAX: Final = 1.0 * SLACK  # status answers within a second, whatever the device does
ANSWER_TIMEOUT_S: Final = 30.0
RECOVERED_S: Final = 120.0


def text_of(n: int) -> bytes:
    """The text of entry ``n``."""
    return bytes([97 + n % 26]) * (TEXT_BYTES + n % 50)


class Sample(NamedTuple):
    """One look at the daemon. ``answer_s``: how long it took."""

    at: float
    answer_s: float
    entries: int
    added: int
    status: dict[str, Any]


class Load:
    """Adds to ``streams``, ``batch`` entries at a time, as fast as the daemon drains them, at most ``backlog`` entries ahead and ``rate`` a
    second, and looks at the daemon all the time.

    A context: leaving it ends the threads. ``finish`` ends the adding and waits until all is durable. What the device does not hold without
    overwriting anything is an error: the log could not be held against the load.
    """

    def __init__(
        self, daemon: Daemon, client: redis.Redis, streams: Sequence[str] = ("s:a", "s:b", "s:c", "s:d"), *, backlog: int = 4000,
        batch: int = BATCH, rate: int = RATE_MAX,
    ) -> None:  # fmt: skip
        self.daemon, self.client, self.streams = daemon, client, list(streams)
        self.backlog, self.batch, self.rate = backlog, batch, rate
        with open(daemon.device, "rb") as device:
            self.limit = device.seek(0, os.SEEK_END) // ENTRY_BYTES_MAX
        self.counts = dict.fromkeys(self.streams, 0)
        self.samples: list[Sample] = []
        self.unanswered: list[str] = []
        self._durable = 0
        self._mark = 0
        self._adding = threading.Event()
        self._looking = threading.Event()
        self._held_up: list[tuple[float, float]] = []
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._add, self._look, self._beat)]
        self._errors: list[BaseException] = []

    @property
    def added(self) -> int:
        """Entries that the server has taken."""
        return sum(self.counts.values())

    @property
    def durable(self) -> int:
        """Entries that the daemon calls durable, a moment ago."""
        return self._durable

    def __enter__(self) -> Self:
        self._adding.set()
        self._looking.set()
        for thread in self._threads:
            thread.start()
        try:
            self.wait_more(min(2000, 2 * self.rate))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._adding.clear()
        self._looking.clear()
        for thread in self._threads:
            thread.join(60)

    def _add(self) -> None:
        try:
            script = self.client.register_script(ADD)
            began = time.monotonic()
            while self._adding.is_set():
                assert self.added < self.limit, f"{self.limit} entries are more than the device holds"
                if self.added - self._durable > self.backlog or self.added > (time.monotonic() - began) * self.rate:
                    time.sleep(0.005)
                    continue
                stream = min(self.streams, key=self.counts.__getitem__)
                script(keys=[stream], args=[self.counts[stream], self.batch, TEXT_BYTES])
                self.counts[stream] += self.batch
        except BaseException as error:  # root of the thread: the test's own thread raises it
            self._errors.append(error)

    def _look(self) -> None:
        while self._looking.is_set():
            began = time.monotonic()
            try:
                status = call(self.daemon.socket, "status", timeout_s=ANSWER_TIMEOUT_S)
            except ControlError as error:
                self.unanswered.append(str(error))
                time.sleep(SAMPLE_S)
                continue
            now = time.monotonic()
            self._durable = max(self._durable, status["totals"]["entries"])
            self.samples.append(Sample(now, now - began, status["totals"]["entries"], self.added, status))
            time.sleep(SAMPLE_S)

    def _beat(self) -> None:
        """Notice when the machine itself stood still: an emulated one waits for its host."""
        last = time.monotonic()
        while self._looking.is_set():
            time.sleep(BEAT_S)
            now = time.monotonic()
            if now - last > 2 * BEAT_S:
                self._held_up.append((now, now - last - BEAT_S))
            last = now

    # -- what a test asks ----------------------------------------------------------------------------------------------------------------

    def wait_more(self, entries: int, seconds: float = RECOVERED_S) -> None:
        """Until so many more entries have become durable."""
        wanted = self._durable + entries
        until(
            lambda: self._errors or self._durable >= wanted,
            lambda: f"{entries} more entries are durable; {self.daemon.try_status()}; its log:\n{self.daemon.log()[-3000:]}", seconds,
        )  # fmt: skip
        assert not self._errors, self._errors

    def wait_status(self, condition: Any, what: str, seconds: float) -> Sample:
        """The first sample from now on that fulfils ``condition(status)``."""
        start = len(self.samples)

        def find() -> Sample | None:
            return next((sample for sample in self.samples[start:] if condition(sample.status)), None)

        found: Sample = until(find, lambda: f"{what}; last status: {self.samples[-1].status if self.samples else None}", seconds)
        return found

    def mark(self) -> None:
        """What is measured begins here."""
        self._mark = len(self.samples)
        self.unanswered.clear()

    def forget(self) -> None:
        """The daemon was ended and started again: what it said before does not count any more."""
        self.samples.clear()
        self._durable = 0
        self.mark()

    def finish_adding(self) -> None:
        """Stop adding."""
        was_adding = self._adding.is_set()
        self._adding.clear()
        self._threads[0].join(60)
        assert not self._errors, self._errors
        if was_adding:  # once: later the server may have been started again, and be reading its file
            self.assert_exact()

    def finish(self) -> None:
        """Stop adding, and wait until all is durable."""
        self.finish_adding()
        self.settle()

    def assert_exact(self) -> None:
        """The server's own count of what was ever added is this load's: whatever is wrong in the log is not the load's doing."""
        for stream, count in self.counts.items():
            added = self.client.xinfo_stream(stream)["entries-added"] if count else 0
            assert added == count, f"{stream}: the server was given {added} entries, the load counts {count}"

    def settle(self) -> dict[str, int]:
        """Wait until all that was added before now is durable. Returns it, by stream."""
        counts = dict(self.counts)
        wanted = sum(counts.values())
        until(
            lambda: self._errors or (self.samples and self._durable >= wanted),
            lambda: f"{wanted} entries are durable; {self.daemon.try_status()}; log:\n{self.daemon.log()[-3000:]}", RECOVERED_S,
        )  # fmt: skip
        assert not self._errors, self._errors
        # Lanes are drained at their own pace: so many entries in all are not yet these entries.
        until(lambda: all(self._lane_entries(name) >= count for name, count in counts.items()), "each lane is there", RECOVERED_S)
        return counts

    def _lane_entries(self, name: str) -> int:
        lanes = self.samples[-1].status["lanes"]
        return next((lane["entries"] for lane in lanes if lane["name"] == name), 0)

    def stall_s(self) -> float:
        """The longest time since ``mark`` in which nothing became durable although something waited."""
        samples = self.samples[self._mark :]
        longest, since, entries = 0.0, samples[0].at if samples else 0.0, samples[0].entries if samples else 0
        for sample in samples[1:]:
            if sample.entries != entries or sample.added <= sample.entries:
                longest = max(longest, sample.at - since)
                since, entries = sample.at, sample.entries
        return max(longest, samples[-1].at - since if samples and samples[-1].added > entries else 0.0)

    def measured(self) -> dict[str, Any]:
        """For the table of faults: stall, latency while it lasted, the slowest answer."""
        samples = self.samples[self._mark :]
        assert samples, "the daemon was never seen"
        worst = max(samples, key=lambda sample: sample.status["latency"]["p99_us"])
        return {
            "entries": samples[-1].entries - samples[0].entries,
            "stall_ms": round(self.stall_s() * 1000),
            "p50_ms": round(worst.status["latency"]["p50_us"] / 1000, 1),
            "p99_ms": round(worst.status["latency"]["p99_us"] / 1000, 1),
            "answer_ms": round(max(map(self._own_answer_s, samples)) * 1000),
        }

    def assert_answered(self) -> None:
        """Status was there within a second throughout."""
        assert not self.unanswered, self.unanswered
        slowest = max(self.samples[self._mark :], key=self._own_answer_s)
        assert self._own_answer_s(slowest) < ANSWER_S_MAX, f"status took {self._own_answer_s(slowest):.2f} s of {slowest.answer_s:.2f} s"

    def _own_answer_s(self, sample: Sample) -> float:
        """How long the daemon took for its answer, without the time in which this very process was held up."""
        began = sample.at - sample.answer_s
        return sample.answer_s - sum(length for at, length in self._held_up if began < at < sample.at + length)


class Oracle:
    """Follows the log on the device: every entry is there once, in order, byte for byte (I2, I3). A context: it keeps a reader."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._reader: LogReader | None = None
        self.forget()

    def forget(self) -> None:
        """Begin again with the first record."""
        self.close()
        self._reader = LogReader(self.device)
        self.seen: dict[str, int] = {}
        self._last: dict[str, Position] = {}

    def catch_up(self) -> None:
        """Look at everything that has become durable since. Raises AssertionError for what is there twice, out of order, or changed."""
        assert self._reader is not None
        for record in self._reader.records():
            n = self.seen.get(record.lane, 0)
            if record.fields != [(b"n", b"%d" % n), (b"text", text_of(n))]:
                found = b" ".join(record.fields[0]) if record.fields else b"nothing"
                raise AssertionError(
                    f"{record.lane} {record.position}, LSN {record.lsn}: {found!r}, not entry {n}, behind {self._last.get(record.lane)}"
                )
            self.seen[record.lane] = n + 1
            self._last[record.lane] = record.position

    def assert_holds(self, counts: dict[str, int]) -> None:
        """So many entries of each lane, at least, are there. Raises AssertionError for what is missing (I1)."""
        # A reader of the device learns a moment after the writer what is durable: by the lease.
        until(lambda: not self._missing(counts), lambda: f"lane: (wanted, in the log): {self._missing(counts)}", RECOVERED_S)

    def lost(self, counts: dict[str, int]) -> int:
        """How many of so many entries of each lane were not there when last looked at."""
        return sum(max(0, count - self.seen.get(lane, 0)) for lane, count in counts.items())

    def _missing(self, counts: dict[str, int]) -> dict[str, tuple[int, int]]:
        self.catch_up()
        return {lane: (count, self.seen.get(lane, 0)) for lane, count in counts.items() if self.seen.get(lane, 0) < count}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the device go."""
        if self._reader is not None:
            self._reader.close()


def alarm(status: dict[str, Any], key: str) -> str:
    """The text of an alarm; "" if it does not stand."""
    return next((alarm["text"] for alarm in status["alarms"] if alarm["key"] == key), "")


def is_waiting_for_device(status: dict[str, Any]) -> bool:
    """A write has been in flight for a while, and status shows it."""
    return bool(status["writer"]["oldest_write_ms"] > 300)


def close_quietly(client: redis.Redis) -> None:
    """The server may be gone already."""
    with suppress(redis.RedisError):
        client.close()
