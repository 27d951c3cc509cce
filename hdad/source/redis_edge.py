"""The only code that talks to Redis: one connection that serves reads, one client for the rest. Edge: one exchange a method, no policy.

redis-py makes every connection (TCP, Unix, TLS, ACL, Sentinel, Cluster) and runs all commands but XREAD. XREAD's replies are handed on
as bytes to the native parser. Runs in workers and in ``hdactl doctor``. Never retries, never waits longer than ``socket_timeout_ms``;
every failure is a SourceError. Names and patterns are bytes, as Redis has them.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from hdad.errors import SourceError
from hdad.record import ORIGIN, Position
from hdad.source.cursor import StreamInfo

if TYPE_CHECKING:
    from hdad.config import RedisConfig

CONNECTION_ERRORS: Final = (RedisError, OSError)


class Missing(NamedTuple):
    """There is no such key."""


class WrongType(NamedTuple):
    """The key is not a stream."""

    text: str


class GroupState(NamedTuple):
    """Another consumer group of a stream: nothing after ``unacknowledged_from`` may be trimmed for its sake."""

    name: bytes
    delivered: Position
    pending_first: Position | None


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    try:
        yield
    except CONNECTION_ERRORS as error:
        raise SourceError(f"{what}: {_words(error)}") from error


def _words(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


class HotConnection:
    """A connection for XREAD only. Non-blocking; ``fileno`` fits a selector."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._connection = connection
        sock = connection._get_socket() if hasattr(connection, "_get_socket") else connection._sock
        self._socket: socket.socket = sock
        self._socket.setblocking(False)
        self._timeout_s = timeout_s
        self.client_id = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Send all of ``data``; waits at most the socket timeout. Raises SourceError."""
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[self._socket.send(view) :]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    if not select.select([], [self._socket], [], self._timeout_s)[1]:
                        raise SourceError(f"Redis took no bytes for {self._timeout_s:g} s") from None
        except OSError as error:
            raise SourceError(f"Redis connection lost while sending: {_words(error)}") from error

    def receive_into(self, view: memoryview) -> int:
        """Bytes received, 0 when none are there. Raises SourceError when the connection has ended."""
        try:
            size = self._socket.recv_into(view)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return 0
        except OSError as error:
            raise SourceError(f"Redis connection lost: {_words(error)}") from error
        if not size:
            raise SourceError("Redis closed the connection")
        return size

    def close(self) -> None:
        """Close the socket, whatever state it is in."""
        self._connection.disconnect()


def encode_name(name: bytes) -> bytes:
    """A RESP bulk string, made once a lane."""
    return b"$%d\r\n%s\r\n" % (len(name), name)


def encode_xread(count: int, block_ms: int | None, names: Sequence[bytes], positions: Sequence[Position]) -> bytes:
    """The bytes of one XREAD. ``names`` as ``encode_name`` made them. ``block_ms`` None: do not wait (0 would mean for ever)."""
    parts = [b"*%d\r\n$5\r\nXREAD\r\n$5\r\nCOUNT\r\n" % ((4 if block_ms is None else 6) + 2 * len(names)), encode_name(b"%d" % count)]
    if block_ms is not None:
        parts += (b"$5\r\nBLOCK\r\n", encode_name(b"%d" % max(1, block_ms)))
    parts.append(b"$7\r\nSTREAMS\r\n")
    parts += names
    for ms, seq in positions:
        text = b"%d-%d" % (ms, seq)
        parts.append(b"$%d\r\n%s\r\n" % (len(text), text))
    return b"".join(parts)


class RedisEdge:
    """Connections to what ``[redis]`` in the configuration names. Nothing connects before the first call."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._timeout_s = config.socket_timeout_ms / 1000
        self._client: Any = None
        self.is_cluster = urlsplit(config.url).scheme == "cluster"

    @property
    def client(self) -> Any:
        """redis.Redis or redis.RedisCluster, connected at need. Raises SourceError."""
        if self._client is None:
            with _mapped(f"Redis at {self._config.url}"):
                self._client = connect(self._config)
        return self._client

    def close(self) -> None:
        """Drop all connections of the client; the next call makes new ones."""
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except CONNECTION_ERRORS:  # it was broken already: that is why it is closed
                pass

    def open_hot(self, key: bytes) -> HotConnection:
        """A new connection to the server that holds ``key``. Raises SourceError."""
        with _mapped(f"Redis at {self._config.url}"):
            if self.is_cluster:
                node = self.client.get_node_from_key(key)
                pool = self.client.get_redis_connection(node).connection_pool
            else:
                pool = self.client.connection_pool
            connection = pool.make_connection()
            connection.connect()
            hot = None
            try:
                connection.send_command("CLIENT", "ID")
                client_id = int(connection.read_response())
                hot = HotConnection(connection, self._timeout_s)
                hot.client_id = client_id
            finally:
                if hot is None:
                    connection.disconnect()
            return hot

    def slot_of(self, key: bytes) -> int:
        """The Cluster slot of a key; 0 for everything that is not a Cluster. Computed here: no server needs to be there."""
        return int(key_slot(key)) if self.is_cluster else 0

    def unblock(self, hot: HotConnection, key: bytes) -> None:
        """Make a waiting XREAD of ``hot`` return at once with nothing. Raises SourceError."""
        with _mapped("CLIENT UNBLOCK"):
            if self.is_cluster:
                node = self.client.get_node_from_key(key)
                self.client.get_redis_connection(node).client_unblock(hot.client_id)
            else:
                self.client.client_unblock(hot.client_id)

    def scan(self, cursor: int, pattern: bytes, count: int = 1000) -> tuple[int, list[bytes]]:
        """One step of SCAN for streams. In a Cluster, one call walks everything. Returns (next cursor, names)."""
        with _mapped("SCAN"):
            if self.is_cluster:
                return 0, [bytes(name) for name in self.client.scan_iter(match=pattern, count=count, _type="stream")]
            next_cursor, names = self.client.scan(cursor=cursor, match=pattern, count=count, _type="stream")
            return int(next_cursor), [bytes(name) for name in names]

    def _pipeline(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        pipeline = self.client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(pipeline.execute(raise_on_error=False))

    def stream_infos(self, names: Sequence[bytes]) -> list[StreamInfo | Missing | WrongType]:
        """XINFO STREAM of each, in one exchange. Raises SourceError."""
        with _mapped("XINFO STREAM"):
            replies = self._pipeline(("XINFO STREAM", name) for name in names)
        return [_stream_info(reply) for reply in replies]

    def other_groups(self, name: bytes, own: bytes) -> list[GroupState]:
        """What the other consumer groups of a stream still need. Raises SourceError."""
        with _mapped("XINFO GROUPS"):
            try:
                groups = [_pairs(group) for group in self.client.execute_command("XINFO GROUPS", name)]
            except ResponseError as error:
                if "no such key" in str(error):
                    return []
                raise
            groups = [group for group in groups if _get(group, "name") != own]
            pending = self._pipeline(("XPENDING", name, _get(group, "name")) for group in groups)
        states = []
        for group, summary in zip(groups, pending, strict=True):
            first: Position | None = None
            if int(_get(group, "pending")):
                text = summary.get("min") if isinstance(summary, dict) else summary[1] if isinstance(summary, list) else None
                first = Position.parse(text) if text else ORIGIN
            states.append(GroupState(_get(group, "name"), Position.parse(_get(group, "last-delivered-id")), first))
        return states

    def set_groups(self, group: bytes, lanes: Sequence[tuple[bytes, Position, int | None]]) -> dict[bytes, str]:
        """Show our position to every Redis tool: XGROUP SETID … ENTRIESREAD; makes the group where it is not. In one exchange.

        Returns the server's words by stream where it refused, for streams other than deleted ones. Raises SourceError.
        """
        replies: dict[bytes, Any] = {}
        with _mapped("XGROUP"):
            for verb in ("SETID", "CREATE"):
                wanted = [lane for lane in lanes if verb == "SETID" or str(replies[lane[0]]).startswith("NOGROUP")]
                if wanted:
                    answers = self._pipeline(_set_group(verb, group, lane) for lane in wanted)
                    replies |= {lane[0]: answer for lane, answer in zip(wanted, answers, strict=True)}
        refused = {name: str(reply) for name, reply in replies.items() if isinstance(reply, Exception)}
        return {name: text for name, text in refused.items() if "key to exist" not in text and "no such key" not in text}

    def trim(self, name: bytes, below: Position) -> int:
        """XTRIM MINID: drop entries with an ID smaller than ``below``. Returns how many. Raises SourceError."""
        with _mapped("XTRIM"):
            return int(self.client.execute_command("XTRIM", name, "MINID", str(below)))

    def add(self, name: bytes, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """XADD with a new ID. Raises SourceError."""
        with _mapped("XADD"):
            self.client.execute_command("XADD", name, "*", *(part for pair in fields for part in pair))

    def info(self) -> dict[str, Any]:
        """INFO of (one of) the server(s). Raises SourceError."""
        with _mapped(f"Redis at {self._config.url}"):
            if self.is_cluster:
                return dict(self.client.info(target_nodes=self.client.get_default_node()))
            return dict(self.client.info())

    def time_ns(self) -> int:
        """The server's wall clock. Raises SourceError."""
        with _mapped("TIME"):
            target = {"target_nodes": self.client.get_default_node()} if self.is_cluster else {}
            seconds, micros = self.client.time(**target)
            return int(seconds) * 1_000_000_000 + int(micros) * 1000

    def config_get(self, name: str) -> str | None:
        """One setting of the server; None when the server does not tell. Raises SourceError when it does not answer."""
        with _mapped("CONFIG GET"):
            try:
                target = {"target_nodes": self.client.get_default_node()} if self.is_cluster else {}
                found = self.client.config_get(name, **target)
            except ResponseError:  # renamed, or not permitted: both are common, and no fault
                return None
        value = found.get(name)
        return value.decode() if isinstance(value, bytes) else value


def _set_group(verb: str, group: bytes, lane: tuple[bytes, Position, int | None]) -> list[Any]:
    name, position, entries_read = lane
    command: list[Any] = [f"XGROUP {verb}", name, group, str(position)]
    return command if entries_read is None else [*command, "ENTRIESREAD", entries_read]


def _pairs(reply: Any) -> dict[Any, Any]:
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _get(fields: dict[Any, Any], name: str) -> Any:
    return fields[name] if name in fields else fields[name.encode()]


def _stream_info(reply: Any) -> StreamInfo | Missing | WrongType:
    if isinstance(reply, Exception):
        text = str(reply)
        if "no such key" in text:
            return Missing()
        if "WRONGTYPE" in text or "wrong kind" in text:
            return WrongType(text)
        raise SourceError(f"XINFO STREAM: {text}")
    fields = _pairs(reply)
    first = _get(fields, "first-entry")
    first_id = first[0] if first else None
    return StreamInfo(
        length=int(_get(fields, "length")),
        entries_added=int(_get(fields, "entries-added")),
        last=Position.parse(_get(fields, "last-generated-id")),
        first=Position.parse(first_id) if first_id else None,
        max_deleted=Position.parse(_get(fields, "max-deleted-entry-id")),
    )


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


def connect(config: RedisConfig) -> Any:
    """A client for ``config.url``. One try, no retry: that is the loop's. Raises SourceError, RedisError or OSError."""
    parts = urlsplit(config.url)
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


def _connect_sentinel(config: RedisConfig, options: dict[str, Any]) -> Any:
    parts = urlsplit(config.url)
    service, _, database = parts.path.strip("/").partition("/")
    query = parse_qs(parts.query)
    tls: dict[str, Any] = {"ssl": True} if config.tls_ca_file else {}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        _hosts(parts.netloc, 26379),
        sentinel_kwargs={"socket_timeout": options["socket_timeout"], "socket_connect_timeout": options["socket_timeout"]},
        db=int(database or query.get("db", ["0"])[0]),
        **tls,
        **options,
    )
    return sentinel.master_for(service or "mymaster")  # type: ignore[no-untyped-call]


def _hosts(netloc: str, port_default: int) -> list[tuple[str, int]]:
    hosts = []
    for item in netloc.rpartition("@")[2].split(","):
        host, _, port = item.rpartition(":") if ":" in item.rpartition("]")[2] else (item, "", "")
        hosts.append((host.strip("[]"), int(port or port_default)))
    return hosts
