"""The hand-written loop that hdad is measured against, at its best: redis-py with hiredis, big batches, one fdatasync a batch.

XREADGROUP of all streams, [parse, filter, project with orjson], one write, fdatasync, XACK of each stream in one pipeline. A
program of its own (programs.Peer). Arguments: address, prefix, streams, entries, file, consumer, mode, samples, seconds, count.

mode: raw | stage. entries: it ends when it has seen so many; 0: when nothing came for half a second. samples: a file that gets, for each
entry, the time in its field t and how long it took from then until it was durable, i64 ns each; "" for none. seconds: it ends then at the
latest. count: entries of a stream in one reply, at most.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import hiredis  # noqa: F401 - redis-py takes it when it is there
import orjson
import redis

GROUP = "loop"
STAMP_DIGITS = 19  # as native/produce.c makes them


def connect(address: str) -> Any:
    """A client for unix:PATH or tcp:PORT."""
    kind, _, place = address.partition(":")
    return redis.Redis(unix_socket_path=place) if kind == "unix" else redis.Redis(port=int(place))


def project(fields: dict[bytes, bytes], out: list[bytes]) -> None:
    """The stage: parse, filter, project. The same as daemon.STAGE."""
    data = orjson.loads(fields[b"d"])
    if data["level"] != "debug":
        out.append(orjson.dumps({"id": data["id"], "host": data["host"], "value": data["value"]}))


class Loop:
    """See the module."""

    def __init__(self, address: str, prefix: str, streams: int, path: str, consumer: str, count: int) -> None:
        self.client = connect(address)
        self.client.ping()
        self.consumer, self.count = consumer, count
        self.wanted: Any = dict.fromkeys((f"{prefix}{index}" for index in range(streams)), ">")
        self.fd = os.open(path, os.O_WRONLY)
        self.size = os.fstat(self.fd).st_size
        self.offset = 0
        self.ended = 0.0  # when the last batch was acknowledged
        self.write_max_ns = 0
        self.durable: list[tuple[int, bytes]] = []  # when which stamps were durable, if samples are wanted

    def run(self, entries: int, mode: str, keep: bool, deadline: float) -> int:
        """Until ``entries`` were seen or nothing more comes. Returns how many were."""
        done = 0
        while (not entries or done < entries) and time.monotonic() < deadline:
            found = self.client.xreadgroup(GROUP, self.consumer, self.wanted, count=self.count, block=500)
            if not found:
                if entries:
                    continue
                break
            lines: list[bytes] = []
            acks = []
            for name, items in found:
                if mode == "stage":
                    for _, fields in items:
                        project(fields, lines)
                else:
                    lines += [fields[b"d"] for _, fields in items]
                acks.append((name, [entry_id for entry_id, _ in items]))
                done += len(items)
            self._write(b"\n".join(lines) + b"\n")
            if keep:
                now = time.monotonic_ns()  # only stamps are kept, as one object: replies would be a burden to the garbage collector
                self.durable.append((now, b"".join([fields[b"t"] for _, items in found for _, fields in items])))
            pipeline = self.client.pipeline(transaction=False)
            for name, ids in acks:
                pipeline.xack(name, GROUP, *ids)
            pipeline.execute()
            self.ended = time.perf_counter()
        return done

    def _write(self, data: bytes) -> None:
        if self.offset + len(data) > self.size:
            self.offset = 0  # over and over the same file, which was written before
        began = time.monotonic_ns()
        self.offset += os.pwrite(self.fd, data, self.offset)
        os.fdatasync(self.fd)
        self.write_max_ns = max(self.write_max_ns, time.monotonic_ns() - began)

    def samples(self) -> array[int]:
        """(stamp, ns until durable) of each entry, flat."""
        values = array("q")
        for at_ns, stamps in self.durable:
            for start in range(0, len(stamps), STAMP_DIGITS):
                stamp = int(stamps[start : start + STAMP_DIGITS])
                values.append(stamp)
                values.append(at_ns - stamp)
        return values


def main() -> None:
    """See the module."""
    address, prefix, streams, entries, path, consumer, mode, samples, seconds, count = sys.argv[1:]
    loop = Loop(address, prefix, int(streams), path, consumer, int(count))
    gc.collect()
    gc.freeze()  # a full collection would look at all imported modules: 25 ms in which nothing is read
    print("READY", flush=True)
    sys.stdin.readline()
    started, cpu = time.perf_counter(), time.process_time()
    done = loop.run(int(entries), mode, bool(samples), time.monotonic() + float(seconds))
    elapsed, cpu = loop.ended - started, time.process_time() - cpu
    if samples:
        Path(samples).write_bytes(loop.samples().tobytes())
    print(json.dumps({"entries": done, "seconds": elapsed, "cpu_s": cpu, "write_max_us": loop.write_max_ns / 1e3}))


if __name__ == "__main__":
    main()
