"""The path watch's last survey as Prometheus metrics: a collector that reads memory only, so a scrape never waits for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hdad.clock import wall_ns
from hdad.fabric.facts import Facts
from hdad.fabric.health import CONDITIONS, ERROR_COUNTERS, Verdict, condition, is_active

TRAFFIC: Final = ("tx_frames", "rx_frames", "fcp_input_requests", "fcp_output_requests", "fcp_input_megabytes", "fcp_output_megabytes")


class Watched(NamedTuple):
    """What the watch knows."""

    facts: Facts
    verdicts: list[Verdict]


class PathCollector(Collector):
    """``watched`` gives the last survey."""

    def __init__(self, watched: Callable[[], Watched]) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Any]:
        """Paths by condition and one by one, adapters' ports with their counters, verdicts, and how old all this is."""
        facts, verdicts = self._watched()
        words = [condition(path) for path in facts.paths]
        paths = GaugeMetricFamily("hdad_paths", "Paths of the log's device by condition", labels=["condition"])
        for word in CONDITIONS:
            paths.add_metric([word], words.count(word))
        yield paths
        up = GaugeMetricFamily("hdad_path_active", "1 if the path carries I/O", labels=["path", "port", "target"])
        failures = CounterMetricFamily("hdad_path_failures", "Times that device-mapper failed the path", labels=["path", "port", "target"])
        for path in facts.paths:
            labels = [path.name, path.port or path.host, path.target or path.remote]
            up.add_metric(labels, is_active(path))
            if path.failures is not None:
                failures.add_metric(labels, path.failures)
        yield up
        yield failures
        yield from self._ports(facts)
        found = GaugeMetricFamily("hdad_path_findings", "What hdactl paths finds wrong", labels=["level"])
        for level in ("error", "warning"):
            found.add_metric([level], sum(verdict.level == level for verdict in verdicts))
        yield found
        age = GaugeMetricFamily("hdad_paths_age_seconds", "Age of the survey that these metrics are from")
        age.add_metric([], max(0, wall_ns() - facts.taken_ns) / 1e9 if facts.taken_ns else float("nan"))
        yield age

    def _ports(self, facts: Facts) -> Iterator[Any]:
        online = GaugeMetricFamily("hdad_fc_port_online", "1 if the Fibre Channel port is online", labels=["host", "port"])
        errors = CounterMetricFamily("hdad_fc_errors", "Error counters of the Fibre Channel port", labels=["host", "port", "counter"])
        traffic = CounterMetricFamily("hdad_fc_traffic", "Traffic counters of the Fibre Channel port", labels=["host", "port", "counter"])
        for host in facts.hosts:
            if host.port_name:
                online.add_metric([host.name, host.port_name], host.port_state == "Online")
                for family, names in ((errors, ERROR_COUNTERS), (traffic, TRAFFIC)):
                    for name in names:
                        if name in host.counters:
                            family.add_metric([host.name, host.port_name, name], host.counters[name])
        yield from (online, errors, traffic)
