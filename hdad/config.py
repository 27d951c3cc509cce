"""The configuration: its keys, defaults and ranges, and loading it whole or not at all. A noun for everybody; touches nothing but its file.

``load`` finds everything that is wrong at once. ``RELOADABLE`` are the keys that change in a running daemon; the rest need a restart.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from hdad.addresses import FEED_PORT_DEFAULT, PORT_DEFAULT, Address
from hdad.errors import ConfigError, ConfigErrors
from hdad.limits import (
    CAPACITY_MAX,
    FEED_READERS_MAX,
    FRAME_BYTES_MAX,
    KIB,
    LINK_CONNECTIONS_MAX,
    MIB,
    REMOTE_WORKERS_MAX,
    RING_BYTES_MAX,
    RING_BYTES_MIN,
    WORKERS_MAX,
)
from hdad.timing import TAKEOVER_MS_MAX, TAKEOVER_MS_MIN, Timing

FRAME_HEAD_BYTES: Final = 256  # frame and record header, rounded up
SCHEMES: Final = ("redis", "rediss", "unix", "sentinel", "cluster")
LogLevel = Literal["debug", "info", "warning", "error"]
RELOADABLE: Final = frozenset(
    {"redis.streams", "redis.trim", "workers.count", "logging.level", "supervisor.drain_timeout_s", "pipeline.batch_timeout_ms",
     "supervisor.crash_loop_limit", "supervisor.crash_loop_window_s", "supervisor.write_stuck_s", "supervisor.restart_backoff_ms",
     "supervisor.restart_backoff_max_ms", "link.peers", "feed.peers"}
)  # fmt: skip


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


StageSpec = str | dict[str, Any]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Stages = Annotated[tuple[StageSpec, ...], BeforeValidator(_listed)]


class Section(BaseModel):
    """A table of the file: frozen, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)  # the whole is built once, when it is used


class RedisConfig(Section):
    """[redis]"""

    url: str = "embedded"
    username: str = ""
    password_file: str = ""
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    streams: Texts = Field(("telemetry:*",), min_length=1)
    start: Literal["0", "$"] = "0"
    read_from: Literal["master", "replica"] = "master"
    group: str = "hdad"
    trim: Literal["off", "durable"] = "off"
    count_max: int = Field(2000, ge=1, le=100_000)
    block_ms: int = Field(1000, ge=1, le=60_000)
    socket_timeout_ms: int = Field(5000, ge=100, le=600_000)
    scan_interval_ms: int = Field(1000, ge=10, le=3_600_000)
    reply_bytes_max: int = Field(32 * MIB, ge=64 * KIB, le=1024 * MIB)
    entry_bytes_max: int = Field(512 * KIB, ge=KIB, le=FRAME_BYTES_MAX)
    group_interval_ms: int = Field(1000, ge=10, le=3_600_000)

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value != "embedded" and (urlsplit(value).scheme not in SCHEMES or "://" not in value):
            raise ValueError('"embedded", or a URL that begins with ' + ", ".join(f"{scheme}://" for scheme in SCHEMES))
        if value != "embedded" and urlsplit(value).password:
            raise ValueError("a URL without a password; the password goes into redis.password_file")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> RedisConfig:
        if self.socket_timeout_ms <= self.block_ms:
            raise ValueError(f"socket_timeout_ms ({self.socket_timeout_ms}) must be greater than block_ms ({self.block_ms})")
        if self.read_from == "replica" and urlsplit(self.url).scheme not in ("sentinel", "cluster"):
            raise ValueError('read_from = "replica" needs a url that tells the replicas: sentinel:// or cluster://')
        return self


class EmbeddedConfig(Section):
    """[embedded]"""

    directory: str = ""
    appendonly: bool = True
    maxmemory_bytes: int = Field(0, ge=0)
    executable: str = ""


class RouteConfig(Section):
    """[[pipeline.route]]"""

    streams: Texts = Field(min_length=1)
    stages: Stages = ()


class PipelineConfig(Section):
    """[pipeline]"""

    stages: Stages = ()
    batch_timeout_ms: int = Field(30_000, ge=10, le=86_400_000)
    route: Annotated[tuple[RouteConfig, ...], BeforeValidator(_listed)] = ()


class WorkersConfig(Section):
    """[workers]"""

    count: int = Field(2, ge=1, le=WORKERS_MAX)
    count_max: int = Field(16, ge=1, le=WORKERS_MAX)
    cpus: Annotated[tuple[int, ...], BeforeValidator(_listed)] = ()
    ring_bytes: int = Field(16 * MIB, ge=RING_BYTES_MIN, le=RING_BYTES_MAX)
    busy_poll: bool = False
    nice: int = Field(0, ge=-20, le=19)
    capacity: int = Field(100, ge=1, le=CAPACITY_MAX)


class LogConfig(Section):
    """[log]"""

    device: str = ""
    frame_bytes_max: int = Field(MIB, ge=8 * KIB, le=FRAME_BYTES_MAX, multiple_of=4 * KIB)
    inflight_max: int = Field(4, ge=1, le=64)
    write_bytes_max: int = Field(4 * MIB, ge=64 * KIB, le=256 * MIB)
    on_full: Literal["overwrite", "block"] = "overwrite"
    retain_min_s: int = Field(0, ge=0)
    lease_interval_ms: int = Field(100, ge=10, le=10_000)
    cpu: int = Field(-1, ge=-1)
    accept_damage: bool = False
    fence: Literal["none", "reservation", "lease-unsafe"] = "none"
    standby: bool = True
    takeover_timeout_ms: int = Field(10_000, ge=TAKEOVER_MS_MIN, le=TAKEOVER_MS_MAX)
    io_timeout_ms: int = Field(4000, ge=50, le=50_000)

    @property
    def timing(self) -> Timing:
        """The lease's timeline."""
        return Timing(self.takeover_timeout_ms, self.io_timeout_ms, self.lease_interval_ms)

    @model_validator(mode="after")
    def _fit_together(self) -> LogConfig:
        if self.fence != "none" and (wrong := self.timing.wrong()):
            raise ValueError(wrong)
        return self


def _addresses(texts: tuple[str, ...], port: int) -> tuple[str, ...]:
    """Whole addresses, with the port that was left out."""
    return tuple(str(Address.parse(text, port)) for text in texts)


class LinkConfig(Section):
    """[link]"""

    writers: Texts = ()
    listen: Texts = ()
    advertise: str = ""
    peers: Texts = ()
    tls_cert_file: str = ""
    tls_key_file: str = ""
    tls_ca_file: str = ""
    insecure: bool = False
    silence_ms: int = Field(3000, ge=300, le=10_000)
    remote_workers_max: int = Field(32, ge=1, le=REMOTE_WORKERS_MAX)
    connections_max: int = Field(64, ge=1, le=LINK_CONNECTIONS_MAX)
    send_buffer_bytes: int = Field(0, ge=0, le=1024 * MIB)

    @field_validator("writers", "listen")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _addresses(value, PORT_DEFAULT)

    @field_validator("advertise")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return str(Address.parse(value)) if value else value

    @property
    def has_tls(self) -> bool:
        """True: there is a certificate to show."""
        return bool(self.tls_cert_file and self.tls_key_file and self.tls_ca_file)


class FeedConfig(Section):
    """[feed]"""

    listen: Texts = ()
    peers: Texts = ()
    readers_max: int = Field(32, ge=1, le=FEED_READERS_MAX)

    @field_validator("listen")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _addresses(value, FEED_PORT_DEFAULT)


class SupervisorConfig(Section):
    """[supervisor]"""

    name: str = Field("hdad", pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    state_directory: str = "/var/lib/hdad"
    node_id: str = Field("", pattern=r"^$|^[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$")
    drain_timeout_s: int = Field(30, ge=1, le=86_400)
    restart_backoff_ms: int = Field(100, ge=1, le=60_000)
    restart_backoff_max_ms: int = Field(5000, ge=1, le=600_000)
    crash_loop_limit: int = Field(10, ge=1, le=10_000)
    crash_loop_window_s: int = Field(60, ge=1, le=86_400)
    write_stuck_s: int = Field(10, ge=1, le=3600)


class ControlConfig(Section):
    """[control]"""

    socket: str = "/run/hdad/control.sock"
    read_group: str = ""
    operate_group: str = ""


class MetricsConfig(Section):
    """[metrics]"""

    listen: str = "127.0.0.1:9464"

    @field_validator("listen")
    @classmethod
    def _loopback_only(cls, value: str) -> str:
        if value == "off" or value.startswith("unix:/"):
            return value
        host, _, port = value.rpartition(":")
        if host not in ("127.0.0.1", "[::1]", "localhost") or not port.isdigit() or not 0 <= int(port) <= 65535:
            raise ValueError('"off", "unix:/path", or a loopback address with a port such as "127.0.0.1:9464"')
        return value


class LoggingConfig(Section):
    """[logging]"""

    level: LogLevel = "info"


class Config(Section):
    """The whole file."""

    redis: RedisConfig = RedisConfig()
    embedded: EmbeddedConfig = EmbeddedConfig()
    pipeline: PipelineConfig = PipelineConfig()
    workers: WorkersConfig = WorkersConfig()
    log: LogConfig = LogConfig()
    link: LinkConfig = LinkConfig()
    feed: FeedConfig = FeedConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    control: ControlConfig = ControlConfig()
    metrics: MetricsConfig = MetricsConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> Config:
        wrong = []
        if self.redis.entry_bytes_max > self.log.frame_bytes_max - FRAME_HEAD_BYTES:
            wrong.append(f"redis.entry_bytes_max ({self.redis.entry_bytes_max}) must be at most log.frame_bytes_max - {FRAME_HEAD_BYTES}")
        if self.workers.count > self.workers.count_max:
            wrong.append(f"workers.count ({self.workers.count}) must be at most workers.count_max ({self.workers.count_max})")
        if 4 * self.log.frame_bytes_max > self.workers.ring_bytes:
            wrong.append(
                f"workers.ring_bytes ({self.workers.ring_bytes}) must be at least 4 × log.frame_bytes_max ({self.log.frame_bytes_max})"
            )
        wrong += self._wrong_in_links()
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _wrong_in_links(self) -> list[str]:
        link, wrong = self.link, []
        for key, texts in (("link.writers", link.writers), ("link.listen", link.listen), ("feed.listen", self.feed.listen)):
            for address in map(Address.parse, texts):
                if address.is_tls and not link.has_tls:
                    wrong.append(f"{key} {address} needs link.tls_cert_file, link.tls_key_file and link.tls_ca_file")
                if not (address.is_tls or address.is_loopback or link.insecure):
                    wrong.append(f"{key} {address} would let anybody write and read: use tls://, or say link.insecure = true")
            if key != "link.writers" and texts and not self.log.device:
                wrong.append(f"{key} needs log.device: only a host that has the log can take frames and serve readers")
        return wrong


def load(path: str) -> Config:
    """Read and validate a file. Raises ConfigErrors with everything that is wrong."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigErrors([ConfigError(path, "(file)", path, f"cannot be read: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigErrors([ConfigError(path, "(file)", path, f"is not TOML: {error}")]) from error
    return validate(content, path)


def validate(content: Mapping[str, Any], file: str) -> Config:
    """A configuration from tables. Raises ConfigErrors."""
    errors: list[ConfigError] = []
    log, link = content.get("log", {}), content.get("link", {})
    if isinstance(log, Mapping) and isinstance(link, Mapping) and not log.get("device") and not link.get("writers"):
        allowed = "is missing, and has no default (a host without it names link.writers)"
        errors.append(ConfigError(file, "log.device", log.get("device"), allowed))
    try:
        config = Config.model_validate(dict(content))
    except ValidationError as error:
        raise ConfigErrors(errors + [_config_error(file, item) for item in error.errors()]) from error
    if errors:
        raise ConfigErrors(errors)
    return config


def _config_error(file: str, item: Any) -> ConfigError:
    location = [part for part in item["loc"] if not (isinstance(part, str) and part in ("str", "dict[str,any]"))]
    key = ".".join(str(part) for part in location) or "(file)"
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(key, known_keys(), 1, 0.6)
        allowed = f"unknown key; did you mean {near[0]}?" if near else f"unknown key; allowed here: {', '.join(_siblings(location))}"
        return ConfigError(file, key, value, allowed)
    if kind == "missing":
        return ConfigError(file, key, None, "is missing, and has no default")
    text = item["msg"].removeprefix("Value error, ")
    if isinstance(value, str):
        value = re.sub(r"(://[^/@]*:)[^/@]*@", r"\1***@", value)  # errors end up in journals: no passwords there
    if kind == "value_error" and isinstance(value, Mapping):
        value = "…"
    return ConfigError(file, key, value, f"allowed: {text}" if kind == "value_error" else f"allowed: {_in_words(text)}")


def _in_words(text: str) -> str:
    return text.replace("Input should be ", "").replace(
        "Tuple should have at least 1 item after validation, not 0", "a list that is not empty"
    )


def _siblings(location: list[Any]) -> list[str]:
    prefix = ".".join(str(part) for part in location[:-1])
    depth = len(location)
    return [key for key in known_keys() if key.startswith(prefix) and key.count(".") + 1 == depth] or sorted(Config.model_fields)


def known_keys() -> list[str]:
    """All keys, dotted, tables first."""
    keys = list(Config.model_fields)
    for name, info in Config.model_fields.items():
        section: Any = info.annotation
        keys += [f"{name}.{key}" for key in section.model_fields]
    return keys


def flatten(config: Config) -> dict[str, Any]:
    """Dotted keys and values; for comparing two configurations."""
    tables = config.model_dump(mode="json")
    return {f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()}


def changes(old: Config, new: Config) -> dict[str, Any]:
    """Dotted keys whose values differ, with the new ones."""
    before = flatten(old)
    return {key: value for key, value in flatten(new).items() if before[key] != value}


def with_redis_url(config: Config, url: str) -> Config:
    """The same with another ``redis.url``; for the embedded server."""
    return config.model_copy(update={"redis": config.redis.model_copy(update={"url": url})})


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The same with some dotted keys changed. The values were validated before."""
    result = config
    for dotted, value in values.items():
        table, _, key = dotted.partition(".")
        section: Section = getattr(result, table)
        shaped = tuple(value) if isinstance(value, list) else value
        result = result.model_copy(update={table: section.model_copy(update={key: shaped})})
    return result


LOG_LEVELS: Final = get_args(LogLevel)
