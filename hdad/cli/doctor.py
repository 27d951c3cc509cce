"""``hdactl doctor``: what might hurt tonight, each finding with its remedy. Looks at files, device, Redis and daemon; changes nothing."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hdad
from hdad.addresses import Address
from hdad.config import Config, load, with_redis_url
from hdad.control.client import call
from hdad.errors import ConfigErrors, ControlError, ExitStatus, HdadError
from hdad.exchange.link.probe import probe
from hdad.exchange.link.trust import Trust, TrustFiles
from hdad.fabric.deadline import survey_within
from hdad.fabric.facts import Facts
from hdad.fabric.health import Expectations, judge, summary
from hdad.fabric.survey import live_sources
from hdad.fabric.trends import Trends
from hdad.log.device import Device, has_volatile_cache
from hdad.log.inspect import inspect
from hdad.log.signatures import find_users
from hdad.supervise.paths import expectations, keys_of

SKEW_MS_MAX = 500
PATHS_S_MAX = 5.0


class Finding(NamedTuple):
    """``level``: ok, warning or error. ``remedy``: empty when nothing is to be done."""

    subject: str
    level: str
    text: str
    remedy: str = ""


def examine(config_path: str, socket: str) -> list[Finding]:
    """All findings, the good ones too. Never raises for what it finds."""
    try:
        config = load(config_path)
    except ConfigErrors as error:
        return [Finding("configuration", "error", str(error), f"correct {config_path}, then: hdad check {config_path}")]
    findings = [Finding("configuration", "ok", f"{config_path} is valid")]
    for part in (_stages, _device, _paths, _links, _machine, _redis, _permissions):
        try:
            findings += part(config)
        except HdadError as error:
            findings.append(Finding(part.__name__.strip("_"), "error", str(error)))
    findings += _daemon(config.control.socket if socket == "/run/hdad/control.sock" else socket)
    return findings


def _stages(config: Config) -> Iterator[Finding]:
    from hdad.worker.child import build_router

    try:
        build_router(config)
    except HdadError as error:
        yield Finding("pipeline", "error", str(error), "install the module where hdad's Python finds it (PYTHONPATH in the unit)")
        return
    count = len(config.pipeline.stages) + sum(len(route.stages) for route in config.pipeline.route)
    yield Finding("pipeline", "ok", f"{count} stages can be imported" if count else "no stages: raw archive")


def _device(config: Config) -> Iterator[Finding]:
    path = config.log.device
    if not path:
        return  # frames go to another host
    if not Path(path).exists():
        yield Finding("device", "error", f"{path} does not exist", "connect it, or make a log: hdactl log format")
        return
    try:
        with Device.open(path) as device:
            is_block = device.is_block
        found = inspect(path)
    except HdadError as error:
        yield Finding("device", "error", str(error), "make a log: hdactl log format" if error.status == ExitStatus.FOREIGN else "")
        return
    if found["damaged"]:
        yield Finding("device", "error", found["damaged"], "read hdactl log verify; then decide: log.accept_damage = true, or a copy")
    else:
        yield Finding("device", "ok", f"{path}: log {found['uuid']}, next LSN {found['next_lsn']}, direct I/O works")
    for user in find_users(path):
        yield Finding("device", "error", f"{path} {user}", "use the multipath map or the whole device, and nothing else on it")
    if not is_block:
        yield Finding("device", "warning", f"{path} is a file", "fine for trying; in production use a block device")
    cache = has_volatile_cache(path)
    if cache is None:
        yield Finding("cache", "warning", "the kernel does not tell whether the device's write cache is volatile")
    else:
        yield Finding("cache", "ok", "volatile: every write is forced through (FUA)" if cache else "not volatile")
    if path.startswith("/dev/sd"):
        yield Finding("device", "warning", f"{path} is a name that changes", "use /dev/disk/by-id/… or /dev/mapper/…")


def _paths(config: Config) -> Iterator[Finding]:
    """What hdactl paths finds wrong; read within a deadline, since an adapter may hang."""
    if not config.log.device or not Path(config.log.device).exists():
        return  # there is none here, or it was said already
    sources = live_sources()._replace(keys=keys_of(config))
    yield from path_findings(survey_within(config.log.device, sources, PATHS_S_MAX), expectations(config))


def path_findings(facts: Facts, expected: Expectations) -> Iterator[Finding]:
    """A survey as findings: its summary, what could not be read, each verdict."""
    verdicts = judge(facts, expected, Trends())
    text = summary(facts)
    if text and not verdicts:
        yield Finding("paths", "ok", f"{facts.map_name or facts.name}: {text}")
    elif text:
        yield Finding("paths", "warning", f"{facts.map_name or facts.name}: {text}", "see hdactl paths, and what follows")
    for note in facts.notes:
        yield Finding("paths", "warning", note)
    for verdict in verdicts:
        yield Finding("paths", verdict.level, f"{verdict.where}: {verdict.text}", verdict.remedy)
def _links(config: Config) -> Iterator[Finding]:
    """Certificates that can be used, and which of the candidates is the writer."""
    link = config.link
    if not (link.writers or link.listen or config.feed.listen):
        return
    trust = Trust(TrustFiles(link.tls_cert_file, link.tls_key_file, link.tls_ca_file)) if link.has_tls else None
    if trust is not None:
        yield Finding("link", "ok", f"{link.tls_cert_file} and its key fit, {link.tls_ca_file} can be read")
    if link.insecure:
        yield Finding("link", "warning", "link.insecure allows connections without TLS from anywhere", "certificates, and tls:// addresses")
    answers = {address: probe(address, trust, config.log.frame_bytes_max) for address in map(Address.parse, link.writers)}
    for address, found in answers.items():
        level = "ok" if found.is_writer is not None else "warning"
        yield Finding("link", level, f"{address}: {found.text}", "" if level == "ok" else "start hdad there, or correct link.writers")
    if answers and not any(found.is_writer for found in answers.values()):
        yield Finding("link", "error", "none of link.writers is the writer", "start hdad on a host with the device; entries wait in Redis")


def _machine(config: Config) -> Iterator[Finding]:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < config.workers.count + 1:
        yield Finding("cpus", "warning", f"{len(allowed)} CPUs for {config.workers.count} workers and the writer",
                      "lower workers.count or widen the cpuset (AllowedCPUs=)")  # fmt: skip
    else:
        yield Finding("cpus", "ok", f"{len(allowed)} CPUs")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        yield Finding("limits", "warning", f"at most {hard} open files", "LimitNOFILE=65536 in the unit")
    year = time.gmtime().tm_year
    if year < 2024:
        yield Finding("clock", "error", f"the wall clock says {year}", "set it, and run chrony")


def _redis(config: Config) -> Iterator[Finding]:
    from hdad.source.embedded import plan_server
    from hdad.source.redis_edge import RedisEdge

    if config.redis.url == "embedded":
        plan = plan_server(config.embedded, config.supervisor.state_directory)
        yield Finding("redis", "ok", f"embedded server: {plan.argv[0]}")
        if not Path(plan.socket_path).exists():
            yield Finding("redis", "warning", "the embedded server is not running", "it starts with the daemon")
            return
        config = with_redis_url(config, plan.url)
    edge = RedisEdge(config.redis)
    try:
        info = edge.info()
    except HdadError as error:
        yield Finding("redis", "error", str(error), "start it, or correct redis.url, redis.username and redis.password_file")
        return
    name = (info.get("valkey_version") and f"Valkey {info['valkey_version']}") or f"Redis {info.get('redis_version')}"
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])
    if version < (7, 0):
        yield Finding("redis", "error", f"{name}: lost entries cannot be counted", "Redis 7.0 or newer, or Valkey")
    else:
        yield Finding("redis", "ok", f"{name} answers")
    policy = edge.config_get("maxmemory-policy")
    if policy not in (None, "noeviction") and info.get("maxmemory"):
        yield Finding(
            "redis", "error", f"maxmemory-policy is {policy}: streams may vanish unread", "CONFIG SET maxmemory-policy noeviction"
        )
    if not info.get("aof_enabled"):
        yield Finding(
            "redis", "warning", "appendonly is off: a crash of Redis loses what hdad has not read yet", "CONFIG SET appendonly yes"
        )
    elif edge.config_get("appendfsync") == "no":
        yield Finding("redis", "warning", "appendfsync is no", "CONFIG SET appendfsync everysec")
    if info.get("role") in ("slave", "replica"):
        yield Finding(
            "redis", "warning", "this is a replica: positions cannot be shown, nothing can be trimmed", "name the primary in redis.url"
        )
    before_ns, theirs_ns = time.time_ns(), edge.time_ns()
    skew_ms = skew_ns(before_ns, theirs_ns, time.time_ns()) // 1_000_000
    level = "warning" if skew_ms > SKEW_MS_MAX else "ok"
    yield Finding("clock", level, f"{skew_ms} ms between this host and Redis", "run chrony on both" if level == "warning" else "")


def skew_ns(before_ns: int, theirs_ns: int, after_ns: int) -> int:
    """How far a clock that was asked between two looks at ours is from ours, at least: a slow answer is no skew."""
    return max(0, before_ns - theirs_ns, theirs_ns - after_ns)


def _permissions(config: Config) -> Iterator[Finding]:
    for key, path in (("supervisor.state_directory", config.supervisor.state_directory), ("control.socket", config.control.socket)):
        folder = Path(path) if key.endswith("directory") else Path(path).parent
        existing = folder
        while not existing.exists():
            existing = existing.parent
        if not os.access(existing, os.W_OK):
            yield Finding("permissions", "warning", f"{key}: {existing} is not writable for uid {os.getuid()}",
                          "run this as the daemon's user, or correct the folder (tmpfiles.d/hdad.conf)")  # fmt: skip
    if config.log.device and Path(config.log.device).exists() and not os.access(config.log.device, os.R_OK | os.W_OK):
        yield Finding("permissions", "warning", f"{config.log.device} may not be read and written by uid {os.getuid()}",
                      "run this as the daemon's user; the unit's DeviceAllow= and the group of the device decide there")  # fmt: skip


def _daemon(socket: str) -> Iterator[Finding]:
    try:
        status = call(socket, "status", timeout_s=3)
    except ControlError as error:
        level = "warning" if error.status == ExitStatus.UNREACHABLE else "error"
        yield Finding("daemon", level, str(error), error.hint)
        return
    version = status["daemon"]["version"]
    yield Finding("daemon", "ok", f"hdad {version}, pid {status['daemon']['pid']}, {status['daemon']['state']}")
    if version != hdad.__version__:
        yield Finding("daemon", "warning", f"runs {version}, installed is {hdad.__version__}", "systemctl restart hdad")
    for alarm in status["alarms"]:
        yield Finding("daemon", "error", alarm["text"], "see hdactl status")
    if status["totals"]["lost"]:
        yield Finding("daemon", "warning", f"{status['totals']['lost']} entries were trimmed before they were read",
                      "trim later (MAXLEN, MINID of producers), or use redis.trim = \"durable\" alone")  # fmt: skip
