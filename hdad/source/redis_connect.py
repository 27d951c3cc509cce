"""Clients for what ``[redis]`` in the configuration names: one server, TLS, Unix socket, Sentinel, Cluster, and single nodes of those.

Edge, used by source/redis_edge. Makes clients and nothing else: one try, no retry.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from hdad.errors import SourceError
from hdad.source.redirect import Address

if TYPE_CHECKING:
    from hdad.config import RedisConfig


def read_password(config: RedisConfig) -> str | None:
    """The password from ``password_file``; ``credential:NAME`` is a systemd credential. Raises SourceError."""
    source = config.password_file
    if not source:
        return None
    if source.startswith("credential:"):
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise SourceError(f"redis.password_file = {source!r}, but systemd gave no credentials (LoadCredential= in the unit)")
        path = Path(directory) / source.removeprefix("credential:")
    else:
        path = Path(source)
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise SourceError(f"redis.password_file {path}: {error.strerror}") from error


def _options(config: RedisConfig) -> dict[str, Any]:
    timeout_s = config.socket_timeout_ms / 1000
    options: dict[str, Any] = {
        "username": config.username or None,
        "password": read_password(config),
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "hdad",
    }
    if config.tls_ca_file:
        options["ssl_ca_certs"] = config.tls_ca_file
    if config.tls_cert_file:
        options |= {"ssl_certfile": config.tls_cert_file, "ssl_keyfile": config.tls_key_file or None}
    return options


def connect(config: RedisConfig) -> Any:
    """A client for ``config.url``. One try, no retry: that is the loop's. Raises SourceError, RedisError or OSError."""
    parts = urlsplit(config.url)
    options = _options(config)
    if parts.scheme == "sentinel":
        return _connect_sentinel(config, options)
    if parts.scheme == "cluster":
        nodes = [
            redis.cluster.ClusterNode(host, port)  # type: ignore[no-untyped-call]
            for host, port in _hosts(parts.netloc, 6379)
        ]
        options.pop("retry")
        tls: dict[str, Any] = {"ssl": True} if config.tls_ca_file else {}
        return redis.RedisCluster(startup_nodes=nodes, cluster_error_retry_attempts=0, **tls, **options)
    if parts.scheme != "rediss":
        options = {key: value for key, value in options.items() if not key.startswith("ssl_")}
    return redis.Redis.from_url(config.url, **{key: value for key, value in options.items() if value is not None})


def connect_node(config: RedisConfig, address: Address, is_readonly: bool) -> Any:
    """A client for one node of a Sentinel or Cluster. ``is_readonly``: a Cluster's replica answers, too. Connects at the first command."""
    tls: dict[str, Any] = {"ssl": True} if config.tls_ca_file else {}
    if is_readonly:
        tls["redis_connect_func"] = _read_only
    return redis.Redis(host=address[0], port=address[1], db=_database(config), **tls, **_options(config))


def _read_only(connection: Any) -> None:
    connection.on_connect()
    connection.send_command("READONLY")
    connection.read_response()


def _connect_sentinel(config: RedisConfig, options: dict[str, Any]) -> Any:
    parts = urlsplit(config.url)
    service = parts.path.strip("/").partition("/")[0]
    tls: dict[str, Any] = {"ssl": True} if config.tls_ca_file else {}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        _hosts(parts.netloc, 26379),
        sentinel_kwargs={"socket_timeout": options["socket_timeout"], "socket_connect_timeout": options["socket_timeout"]},
        db=_database(config),
        **tls,
        **options,
    )
    return sentinel.master_for(service or "mymaster")  # type: ignore[no-untyped-call]


def _database(config: RedisConfig) -> int:
    parts = urlsplit(config.url)
    database = parts.path.strip("/").partition("/")[2] if parts.scheme == "sentinel" else ""
    return int(database or parse_qs(parts.query).get("db", ["0"])[0])


def _hosts(netloc: str, port_default: int) -> list[tuple[str, int]]:
    hosts = []
    for item in netloc.rpartition("@")[2].split(","):
        host, _, port = item.rpartition(":") if ":" in item.rpartition("]")[2] else (item, "", "")
        hosts.append((host.strip("[]"), int(port or port_default)))
    return hosts
