"""The composition root: from a validated configuration to a running supervisor. The only place that knows all the parts."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import hdad
from hdad import logs
from hdad.config import Config, with_redis_url
from hdad.control.server import ControlServer
from hdad.errors import ConfigError, ExitStatus
from hdad.exchange.channel import Channel
from hdad.exchange.link.whois import LocalWriter
from hdad.exchange.slots import create_remote_slots, create_slots
from hdad.limits import LANES_MAX
from hdad.log.device import Device
from hdad.log.opening import read_superblock
from hdad.metrics.counters import Counters
from hdad.source.embedded import ServerPlan, plan_server
from hdad.supervise.cpus import near_cpus, plan_cpus
from hdad.supervise.loop import Roles, Supervisor
from hdad.supervise.operations import DaemonOperations
from hdad.supervise.paths import PathWatch, expectations, keys_of
from hdad.supervise.spawn import Forked, set_name, spawn, spawn_program

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from hdad.metrics.exposition import MetricsServer


def run(config: Config, config_path: str) -> ExitStatus:
    """Run the daemon until it is drained or failed. Raises HdadError for what is wrong before anything was started."""
    logs.set_up(config.logging.level)
    logger = logging.getLogger("hdad")
    logger.info("hdad %s, configuration %s", hdad.__version__, config_path)
    uuid = _check_device(config) if config.log.device else bytes(16)
    plan: ServerPlan | None = None
    if config.redis.url == "embedded":
        plan = plan_server(config.embedded, config.supervisor.state_directory)
        config = with_redis_url(config, plan.url)
    _raise_limits()
    set_name("hdad")
    slots = create_slots(config.workers.count_max, config.workers.ring_bytes)
    remote = create_remote_slots(slots, config.link.remote_workers_max if config.link.listen else 0, config.workers.ring_bytes)
    counters = Counters.create(config.workers.count_max, LANES_MAX)
    near = near_cpus(config.log.device) if config.log.device else set()
    cpus = plan_cpus(
        os.sched_getaffinity(0), config.workers.cpus, config.log.cpu, near, config.workers.count_max,
        config.workers.count,
    )  # fmt: skip
    for note in cpus.notes:
        logger.warning("%s", note)

    def fork_writer(_generation: int) -> Forked:
        def body(channel: Channel) -> ExitStatus:
            from hdad.writer.child import run as run_writer

            return run_writer([*slots, *remote], counters, channel, supervisor.config)

        return spawn("hdad-writer", body, cpus=cpus.writer, close_fds=supervisor.inherited_fds())

    def fork_worker(index: int) -> Callable[[int], Forked]:
        def fork(generation: int) -> Forked:
            def body(channel: Channel) -> ExitStatus:
                from hdad.worker.child import run as run_worker

                return run_worker(slots[index], generation, counters, channel, supervisor.config)

            return spawn(
                f"hdad-worker-{index}", body, cpus=cpus.workers[index], nice=config.workers.nice, close_fds=supervisor.inherited_fds()
            )

        return fork

    def fork_link(generation: int) -> Forked:
        def body(channel: Channel) -> ExitStatus:
            from hdad.exchange.link.child import run as run_link

            whois = LocalWriter(counters.writer, uuid) if config.log.device else None
            return run_link(slots, remote, generation, counters, channel, supervisor.config, whois)

        return spawn("hdad-link", body, cpus=cpus.writer, close_fds=supervisor.inherited_fds())

    def fork_feed(_generation: int) -> Forked:
        def body(channel: Channel) -> ExitStatus:
            from hdad.exchange.feed.child import run as run_feed

            return run_feed(counters, channel, supervisor.config)

        return spawn("hdad-feed", body, close_fds=supervisor.inherited_fds())

    def fork_redis(_generation: int) -> Forked:
        assert plan is not None
        return spawn_program("hdad-redis", plan.argv, close_fds=supervisor.inherited_fds())

    def is_redis_up() -> bool:
        assert plan is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(plan.socket_path) == 0

    roles = Roles(
        fork_writer if config.log.device else None, fork_worker, link=fork_link if config.link.writers or remote else None,
        feed=fork_feed if config.feed.listen else None,
    )  # fmt: skip
    if plan is not None:
        roles = roles._replace(redis=fork_redis, is_redis_up=is_redis_up)
    supervisor = Supervisor(config, config_path, counters, roles)
    operations = DaemonOperations(supervisor)
    control = ControlServer(
        config.control.socket, config.control.read_group, config.control.operate_group, supervisor.selector, operations.handle
    )
    supervisor.close_fds.append(control.fds)
    watch = _watch_paths(supervisor) if config.log.device else None
    metrics: MetricsServer | None = None
    try:
        if config.metrics.listen != "off":
            metrics = _serve_metrics(supervisor, counters, operations, watch)
            supervisor.close_fds.append(metrics.fds)
        _preload(roles)
        return supervisor.run()
    finally:
        if watch is not None:
            watch.close()
        control.close()
        if metrics is not None:
            metrics.close()


def _serve_metrics(supervisor: Supervisor, counters: Counters, operations: DaemonOperations, watch: PathWatch | None) -> MetricsServer:
    from hdad.metrics.exposition import HdadCollector, MetricsServer
    from hdad.metrics.paths import PathCollector, Watched

    collectors: list[Collector] = [HdadCollector(counters, lambda: [child.index for child in supervisor.workers if child.generation])]
    if watch is not None:
        collectors.append(PathCollector(lambda: Watched(watch.facts, watch.verdicts)))
    return MetricsServer(supervisor.config.metrics.listen, collectors, operations.health, supervisor.selector)


def _watch_paths(supervisor: Supervisor) -> PathWatch | None:
    """The path watch, if the log's device has paths."""
    device = supervisor.config.log.device

    def fork() -> Forked:
        def body(channel: Channel) -> ExitStatus:
            from hdad.fabric.survey import live_sources
            from hdad.fabric.watch import watch as watch_paths

            return watch_paths(device, live_sources()._replace(keys=keys_of(supervisor.config)), channel)

        return spawn("hdad-paths", body, close_fds=supervisor.inherited_fds())

    watch = PathWatch(device, expectations(supervisor.config), supervisor.selector, fork)
    if not watch.is_needed:
        return None
    watch.on_alarm = supervisor.set_alarm
    supervisor.describe_device = watch.describe
    supervisor.describe_paths = watch.status
    supervisor.on_tick.append(watch.tick)
    supervisor.close_fds.append(watch.fds)
    return watch


def _check_device(config: Config) -> bytes:
    """Before anything starts: is there a log of ours, and do its frames fit? Returns its uuid. Raises HdadError with what to do."""
    with Device.open(config.log.device) as device:
        superblock = read_superblock(device)
    geometry = superblock.geometry
    if config.log.frame_bytes_max > geometry.frame_size_max:
        raise ConfigError(
            "log", "log.frame_bytes_max", config.log.frame_bytes_max,
            f"allowed: at most {geometry.frame_size_max}, a quarter of a segment of {config.log.device}",
        )  # fmt: skip
    return superblock.uuid


def _preload(roles: Roles) -> None:
    """Import what children need before they are forked: their pages are shared, and a restart takes milliseconds."""
    import hdad.worker.child

    if roles.writer is not None:
        import hdad.writer.child
    if roles.link is not None:
        import hdad.exchange.link.child
    if roles.feed is not None:
        import hdad.exchange.feed.child  # noqa: F401


def _raise_limits() -> None:
    """As many open files as we may have: Cluster slots take a connection each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
