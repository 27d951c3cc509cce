"""Counters as Prometheus metrics: a collector, and a small HTTP endpoint that the supervisor's selector drives. Edge.

Reads shared memory only, so it answers after any role died. Serves GET /metrics and /healthz, one request a connection.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from hdad.errors import ControlError, ExitStatus
from hdad.metrics.counters import HISTOGRAMS, METRICS, Counters, RoleBlock

REQUEST_BYTES_MAX: Final = 8192
CLIENTS_MAX: Final = 32
LANES_SHOWN_MAX: Final = 2000  # LIMIT: series per lane metric
_LANE_METRICS: Final = (
    ("entries", "Entries of the lane in the log"), ("committed", "Entries committed"), ("dead", "Entries dead-lettered"),
    ("filtered", "Entries filtered"), ("lost", "Entries lost before they were read"), ("frames", "Frames of the lane"),
)  # fmt: skip


class HdadCollector(Collector):
    """``workers``: indexes of the slots that are in use. ``alarm_count``: alarms standing."""

    def __init__(self, counters: Counters, workers: Callable[[], Iterable[int]]) -> None:
        self._counters = counters
        self._workers = workers

    def collect(self) -> Iterator[Any]:
        """Everything in the METRICS table, the histograms, and the lanes."""
        counters = self._counters
        blocks: dict[str, list[tuple[list[str], RoleBlock]]] = {
            "writer": [([], counters.writer)],
            "supervisor": [([], counters.supervisor)],
            "link": [([], counters.link)],
            "feed": [([], counters.feed)],
            "worker": [([str(index)], counters.worker(index)) for index in self._workers()],
        }
        for metric in METRICS:
            if metric.kind == "internal":
                continue
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            labels = ["worker"] if metric.role == "worker" else []
            found = family(f"hdad_{metric.role}_{metric.name}", metric.meaning, labels=labels)
            for values, block in blocks[metric.role]:
                found.add_metric(values, block.get(metric.name))
            yield found
        for metric in HISTOGRAMS:
            snapshot = counters.writer.histogram(metric.name).snapshot()
            seen, buckets = 0, []
            for bound, count in snapshot.buckets:
                seen += count
                buckets.append((str(float(bound)), seen))
            histogram = HistogramMetricFamily(f"hdad_{metric.role}_{metric.name}", metric.meaning)
            histogram.add_metric([], [*buckets, ("+Inf", seen)], snapshot.total)
            yield histogram
        yield from self._lanes()

    def _lanes(self) -> Iterator[Any]:
        rows = self._counters.lanes.rows(LANES_SHOWN_MAX)
        for name, meaning in _LANE_METRICS:
            family = CounterMetricFamily(f"hdad_lane_{name}", meaning, labels=["lane"])
            for row in rows:
                family.add_metric([row.name.decode("utf-8", "backslashreplace")], getattr(row, name))
            yield family
        lag = GaugeMetricFamily("hdad_lane_lag", "Entries in the stream that were not read yet, at the last look", labels=["lane"])
        state = GaugeMetricFamily("hdad_lane_state", "0 idle 1 reading 2 halted 3 wrong type 4 gone 5 too large 6 paused", labels=["lane"])
        for row in rows:
            text = row.name.decode("utf-8", "backslashreplace")
            lag.add_metric([text], row.lag)
            state.add_metric([text], row.state)
        yield lag
        yield state


class MetricsServer:
    """Listens on loopback or a Unix socket. ``health`` gives "" or what is wrong."""

    def __init__(
        self, listen: str, collectors: Iterable[Collector], health: Callable[[], str], selector: selectors.BaseSelector
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in collectors:
            self._registry.register(collector)
        self._health = health
        self._selector = selector
        self._clients: dict[int, tuple[socket.socket, bytearray, bytearray]] = {}
        self._path = listen.removeprefix("unix:") if listen.startswith("unix:") else ""
        try:
            self._socket = self._listen(listen)
        except OSError as error:
            raise ControlError(
                f"metrics.listen = {listen!r}: {error.strerror}", 'Choose another address, or "off".', ExitStatus.CONFIG
            ) from error
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def _listen(self, listen: str) -> socket.socket:
        if self._path:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            Path(self._path).unlink(missing_ok=True)
            sock.bind(self._path)
            os.chmod(self._path, 0o666)
        else:
            host, _, port = listen.rpartition(":")
            family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host.strip("[]"), int(port)))
        sock.listen(16)
        sock.setblocking(False)
        return sock

    @property
    def port(self) -> int:
        """The TCP port; 0 on a Unix socket."""
        return 0 if self._path else int(self._socket.getsockname()[1])

    def fds(self) -> Iterable[int]:
        """For a child to close."""
        return [self._socket.fileno(), *self._clients]

    def _accept(self, _mask: int) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError:  # gone already
            return
        if len(self._clients) >= CLIENTS_MAX:
            sock.close()  # LIMIT
            return
        sock.setblocking(False)
        fd = sock.fileno()
        self._clients[fd] = (sock, bytearray(), bytearray())
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._ready(fd, mask))

    def _ready(self, fd: int, mask: int) -> None:
        sock, request, answer = self._clients[fd]
        try:
            if mask & selectors.EVENT_READ:
                data = sock.recv(REQUEST_BYTES_MAX)
                request += data
                if not data or len(request) > REQUEST_BYTES_MAX:
                    self._drop(fd)
                    return
                if b"\r\n\r\n" not in request:
                    return
                answer += self._answer(bytes(request))
            del answer[: sock.send(answer)]
        except BlockingIOError:
            pass
        except OSError:  # the scraper went away
            self._drop(fd)
            return
        if answer:
            self._selector.modify(sock, selectors.EVENT_WRITE, lambda mask: self._ready(fd, mask))
        else:
            self._drop(fd)

    def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain", b"GET only\n"
        elif path == b"/metrics":
            status, kind, body = "200 OK", "text/plain; version=0.0.4; charset=utf-8", generate_latest(self._registry)
        elif path == b"/healthz":
            wrong = self._health()
            status, kind, body = ("503 Service Unavailable" if wrong else "200 OK"), "text/plain", (wrong or "ok").encode() + b"\n"
        else:
            status, kind, body = "404 Not Found", "text/plain", b"see /metrics and /healthz\n"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + (b"" if method == b"HEAD" else body)

    def _drop(self, fd: int) -> None:
        sock, _, _ = self._clients.pop(fd)
        self._selector.unregister(sock)
        sock.close()

    def close(self) -> None:
        """Close everything."""
        for fd in list(self._clients):
            self._drop(fd)
        self._selector.unregister(self._socket)
        self._socket.close()
        if self._path:
            Path(self._path).unlink(missing_ok=True)
