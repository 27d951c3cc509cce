"""The only code that talks to Redis: one connection that serves reads, one client for the rest. Edge: one exchange a method, no policy.

redis-py makes every connection (TCP, Unix, TLS, ACL, Sentinel, Cluster) and runs all commands but XREAD. XREAD's replies are handed on
as bytes to the native parser. Runs in workers and in ``hdactl doctor``. Never retries, never waits longer than ``socket_timeout_ms``;
every failure is a SourceError. Names and patterns are bytes, as Redis has them.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from redis.crc import key_slot
from redis.exceptions import MovedError, RedisError, ResponseError

from hdad.errors import SourceError
from hdad.record import ORIGIN, Position
from hdad.source.cursor import StreamInfo
from hdad.source.redirect import Address, Redirect
from hdad.source.redis_connect import connect, connect_node

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
    """A connection for XREAD only. Non-blocking; ``fileno`` fits a selector. ``address``: of the node, where there are several."""

    def __init__(self, connection: Any, timeout_s: float, address: Address | None, is_asking: bool) -> None:
        self._connection = connection
        sock = connection._get_socket() if hasattr(connection, "_get_socket") else connection._sock
        self._socket: socket.socket = sock
        self._socket.setblocking(False)
        self._timeout_s = timeout_s
        self.address = address
        self._is_asking = is_asking
        self.client_id = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Send all of ``data``, one command; waits at most the socket timeout (twice that when ASKING comes first). Raises SourceError."""
        if self._is_asking:
            self._ask_first()
        self._send(data)

    def _send(self, data: bytes) -> None:
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

    def _ask_first(self) -> None:
        """ASKING holds for one command, and has an answer of its own."""
        self._send(b"*1\r\n$6\r\nASKING\r\n")
        answer = bytearray(5)
        size, deadline = 0, time.monotonic() + self._timeout_s
        while size < len(answer):
            received = self.receive_into(memoryview(answer)[size:])
            size += received
            if not received and not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SourceError(f"no answer to ASKING for {self._timeout_s:g} s")
        if answer != b"+OK\r\n":
            raise SourceError(f"ASKING was answered by {bytes(answer)!r}")

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
        self._nodes: dict[tuple[Address, bool], Any] = {}  # LIMIT: nodes; all are dropped by ``close``
        self.is_cluster = urlsplit(config.url).scheme == "cluster"
        self._has_nodes = urlsplit(config.url).scheme in ("cluster", "sentinel")

    @property
    def client(self) -> Any:
        """redis.Redis or redis.RedisCluster, connected at need. Raises SourceError."""
        if self._client is None:
            with _mapped(f"Redis at {self._config.url}"):
                self._client = connect(self._config)
        return self._client

    def _node(self, address: Address, is_readonly: bool = False) -> Any:
        key = (address, is_readonly)
        if key not in self._nodes:
            self._nodes[key] = connect_node(self._config, address, is_readonly)
        return self._nodes[key]

    def close(self) -> None:
        """Drop all connections of the clients; the next call makes new ones."""
        clients = [self._client, *self._nodes.values()]
        self._client, self._nodes = None, {}
        for client in clients:
            if client is None:
                continue
            try:
                client.close()
            except CONNECTION_ERRORS:  # it was broken already: that is why it is closed
                pass

    def open_hot(self, key: bytes, at: Address | None = None, *, is_copy: bool = False, is_asking: bool = False) -> HotConnection:
        """A new connection to the server that holds ``key``, or to the node ``at``, which may be a replica (``is_copy``).

        ``is_asking``: the slot is still on its way to that node. Raises SourceError.
        """
        with _mapped(f"Redis at {f'{at[0]}:{at[1]}' if at is not None else self._config.url}"):
            if at is not None:
                pool = self._node(at, is_copy and self.is_cluster).connection_pool
            elif self.is_cluster:
                node = self.client.get_node_from_key(key)
                at = (node.host, int(node.port))
                pool = self.client.get_redis_connection(node).connection_pool
            else:
                pool = self.client.connection_pool
            connection = pool.make_connection()
            connection.connect()
            hot = None
            try:
                connection.send_command("CLIENT", "ID")
                client_id = int(connection.read_response())
                if at is None and getattr(connection, "host", None):
                    at = (str(connection.host), int(connection.port))
                hot = HotConnection(connection, self._timeout_s, at, is_asking)
                hot.client_id = client_id
            finally:
                if hot is None:
                    connection.disconnect()
            return hot

    def copies_of(self, key: bytes) -> list[Address]:
        """The replicas that hold ``key``, in a lasting order. Raises SourceError."""
        with _mapped(f"Redis at {self._config.url}"):
            if self.is_cluster:
                nodes = self.client.nodes_manager.slots_cache.get(self.client.keyslot(key), [])
                return sorted((str(node.host), int(node.port)) for node in nodes[1:])
            pool = self.client.connection_pool
            found = pool.sentinel_manager.discover_slaves(pool.service_name)
            return sorted((str(host), int(port)) for host, port in found)

    def moved(self, redirect: Redirect) -> None:
        """A node has said that a slot is served elsewhere: ask there from now on."""
        with _mapped("MOVED"):
            host, port = redirect.address
            self.client.nodes_manager.move_slot(MovedError(f"{redirect.slot} {host}:{port}"))

    def slot_of(self, key: bytes) -> int:
        """The Cluster slot of a key; 0 for everything that is not a Cluster. Computed here: no server needs to be there."""
        return int(key_slot(key)) if self.is_cluster else 0

    def unblock(self, hot: HotConnection, key: bytes) -> None:
        """Make a waiting XREAD of ``hot`` return at once with nothing. Raises SourceError."""
        with _mapped("CLIENT UNBLOCK"):
            client = self._node(hot.address) if self._has_nodes and hot.address is not None else self.client
            client.client_unblock(hot.client_id)  # an ID means something on its own node only

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

    def copy_infos(self, hot: HotConnection, names: Sequence[bytes]) -> list[StreamInfo | Missing | WrongType]:
        """XINFO STREAM of each, as the replica has them that ``hot`` reads from. Raises SourceError."""
        assert hot.address is not None
        with _mapped("XINFO STREAM of a replica"):
            pipeline = self._node(hot.address, self.is_cluster).pipeline(transaction=False)
            for name in names:
                pipeline.execute_command("XINFO STREAM", name)
            replies = pipeline.execute(raise_on_error=False)
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

    def group_positions(self, group: bytes, names: Sequence[bytes]) -> dict[bytes, Position]:
        """What our group shows, by stream, where it is; XINFO GROUPS in one exchange. Raises SourceError."""
        with _mapped("XINFO GROUPS"):
            replies = self._pipeline(("XINFO GROUPS", name) for name in names)
        return {
            name: Position.parse(_get(found, "last-delivered-id"))
            for name, reply in zip(names, replies, strict=True)
            if not isinstance(reply, Exception)
            for found in map(_pairs, reply)
            if _get(found, "name") == group
        }

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
