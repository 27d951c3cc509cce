"""Load and its proof: a producer that knows what it added, and a tailing reader that remembers what it was shown.

Both are threads of the test, survive the death of the server and of the daemon, and are stopped at the end. An entry is
XADD STREAM MS-N n N … with N from 0 on: an XADD whose reply was lost is sent again with the same ID, so it is in the stream once whatever
happens, and the log can be proven from the numbers alone, also when Redis has been trimmed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Self

import redis

from hdad.errors import HdadError
from hdad.log.reader import LogReader

BATCH_S = 0.005  # a batch of XADDs this often
RETRY_S = 0.02


class Seen(NamedTuple):
    """A record that a reader was shown. ``n``: its number in its stream."""

    lsn: int
    stream: str
    n: int


class Background:
    """A thread that is stopped at the end, and whose failure is not lost."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # root of the thread: ``stop`` raises it
            self._error = error

    def _run(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; again: nothing happens. Raises what ended it."""
        self._stopped.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        error, self._error = self._error, None
        if error is not None:
            raise error


class Producer(Background):
    """Adds to ``streams`` in turns, at ``rate`` entries a second, all together; ``rate`` may be changed. ``added``: by stream."""

    def __init__(self, socket_path: str, streams: Sequence[str], rate: float, text_bytes: int = 100) -> None:
        super().__init__()
        self._path = socket_path
        self.rate = rate
        self.added = dict.fromkeys(streams, 0)
        self.retried = 0
        self._ms = 0
        self._texts = ["x" * (index * text_bytes // 10) for index in range(11)]

    @property
    def total(self) -> int:
        """Entries that are in their streams."""
        return sum(self.added.values())

    def _run(self) -> None:
        due, owed, streams, turn = time.monotonic(), 0.0, list(self.added), 0
        client = redis.Redis(unix_socket_path=self._path, socket_timeout=2)
        while not self._stopped.is_set():
            owed = min(owed + self.rate * BATCH_S, self.rate)  # after a pause no more than a second's worth at once
            stream, count = streams[turn % len(streams)], int(owed)
            turn += 1
            if count:
                self._add(client, stream, count)
                owed -= count
            due = max(due + BATCH_S, time.monotonic() - BATCH_S)
            self._stopped.wait(max(0.0, due - time.monotonic()))
        client.close()

    def _add(self, client: redis.Redis, stream: str, count: int) -> None:
        """Until they are there: a reply may be lost and the entry be there, then its ID is taken."""
        first, self._ms = self.added[stream], max(self._ms, time.time_ns() // 1_000_000)
        while True:
            try:
                pipeline = client.pipeline(transaction=False)
                for n in range(first, first + count):
                    pipeline.execute_command("XADD", stream, f"{self._ms}-{n}", "n", n, "t", self._texts[n % 11])
                answers = pipeline.execute(raise_on_error=False)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                answers = [error]
            wrong = [answer for answer in answers if isinstance(answer, Exception) and "equal or smaller" not in str(answer)]
            if not wrong:
                self.added[stream] = first + count
                return
            self.retried += 1
            if self._stopped.wait(RETRY_S):
                raise AssertionError(f"stopped while {stream} {first}..{first + count} may or may not be there: {wrong[0]!r}")


class Tail(Background):
    """Reads the log beside its writer. Devices that fail are opened again, where it stood; what it was shown must be whole and in order."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.seen: list[Seen] = []
        self.next_n: dict[str, int] = {}
        self.errors = 0
        self._is_again = False

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with LogReader(self._device, self.seen[-1].lsn if self.seen else None) as reader:
                    self._is_again = True
                    while not self._stopped.is_set():
                        self._take(reader)
            except (HdadError, OSError):  # the device is away for a while: tests of devices that fail
                self.errors += 1
                self._stopped.wait(RETRY_S)

    def _take(self, reader: LogReader) -> None:
        for record in reader.records(follow=True, timeout_s=0.05):
            n, expected = int(dict(record.fields)[b"n"]), self.next_n.get(record.lane, 0)
            if self._is_again and self.seen and record.lsn == self.seen[-1].lsn and n < expected:
                continue  # the frame at which it stood is read again
            assert n == expected, f"a reader was shown {record.lane} {n} at LSN {record.lsn} where {expected} comes next"
            self.next_n[record.lane] = n + 1
            self.seen.append(Seen(record.lsn, record.lane, n))
            if self._stopped.is_set():
                return


def assert_everything_once(device: str, producer: Producer, tail: Tail | None = None) -> None:
    """The log holds each number of each stream once and in order, and at the very LSN at which a reader was shown it."""
    final: list[Seen] = []
    with LogReader(device) as reader:
        final = [Seen(record.lsn, record.lane, int(dict(record.fields)[b"n"])) for record in reader.records()]
    by_stream: dict[str, list[int]] = {stream: [] for stream in producer.added}
    for record in final:
        by_stream[record.stream].append(record.n)
    for stream, count in producer.added.items():
        assert by_stream[stream] == list(range(count)), f"{stream}: {_first_difference(by_stream[stream], count)}"
    if tail is not None:
        here = {(seen.stream, seen.n): seen.lsn for seen in final}
        gone = [seen for seen in tail.seen if here.get((seen.stream, seen.n)) != seen.lsn]
        assert not gone, f"a reader was shown what is not there any more, or elsewhere: {gone[:5]}"


def _first_difference(numbers: Sequence[int], count: int) -> str:
    index = next((index for index, (found, wanted) in enumerate(zip(numbers, range(count), strict=False)) if found != wanted), None)
    if index is None:
        return f"{len(numbers)} entries instead of {count}"
    return f"entry {numbers[index]} where {index} comes next; {len(numbers)} entries, {count} were added"

