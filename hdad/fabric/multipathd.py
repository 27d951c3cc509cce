"""multipathd: its socket's framing (pure codec), its replies as values, and asking it within a deadline (edge).

The framing is libmpathcmd's: a request and its reply are each a native size_t, then so many bytes, the last of them NUL; ``show`` commands
are answered to every user (multipathd(8), libmpathcmd/mpath_cmd.c). The daemon holds its lock while it reconfigures and then answers late,
or ``timeout``: so every question has a deadline, and nothing that must be quick asks at all. The JSON is made by templates without escaping
(libmultipath/print.c), and comes with texts that a target chose (vendor, product): it is read as untrusted (I9).
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from hdad.clock import monotonic_ns
from hdad.errors import PeerProtocolError
from hdad.fabric.facts import PATHS_MAX, Facts, Group
from hdad.fabric.tree import clean

ADDRESSES: Final = ("\0/org/kernel/linux/storage/multipathd", "/run/multipathd.socket")
REPLY_BYTES_MAX: Final = 8 << 20  # LIMIT: thousands of maps; libmpathcmd itself takes 32 MiB
GROUPS_MAX: Final = 64  # LIMIT: path groups of one map
SHOW_MAP: Final = "show map {} json"
SHOW_FAILURES: Final = "show paths raw format %d|%0|%t|%T"  # device, failures, device-mapper's state, checker's state
SHOW_CONFIG: Final = "show config local"
REFUSALS: Final = ("fail", "timeout", "permission deny: need to be root")
_LENGTH: Final = struct.Struct("@N")


def encode_command(command: str) -> bytes:
    """A request."""
    data = command.encode() + b"\0"
    return _LENGTH.pack(len(data)) + data


class ReplyDecoder:
    """Bytes in, one reply out. ``feed`` returns None until it is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> str | None:
        """The reply's text. Raises PeerProtocolError for a length that cannot be, and for more than was announced."""
        self._buffer += data
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if not 0 < length <= REPLY_BYTES_MAX:
            raise PeerProtocolError(f"multipathd announces a reply of {length} bytes; allowed: 1 to {REPLY_BYTES_MAX}")
        missing = _LENGTH.size + length - len(self._buffer)
        if missing < 0:
            raise PeerProtocolError("multipathd sends more than it announced")
        return None if missing else self._buffer[_LENGTH.size :].rstrip(b"\0").decode("utf-8", "replace")


class Multipathd:
    """Asks the daemon. ``timeout_s`` bounds a whole question, connecting included."""

    def __init__(self, timeout_s: float = 1.0, addresses: tuple[str, ...] = ADDRESSES) -> None:
        self._timeout_s = timeout_s
        self._addresses = addresses

    def ask(self, command: str) -> str:
        """The reply. Raises OSError (not running: ConnectionRefusedError, FileNotFoundError; late: TimeoutError), PeerProtocolError."""
        deadline_ns = monotonic_ns() + int(self._timeout_s * 1e9)
        with self._connect() as sock:
            sock.sendall(encode_command(command))
            decoder = ReplyDecoder()
            while True:
                left_s = (deadline_ns - monotonic_ns()) / 1e9
                if left_s <= 0:
                    raise TimeoutError(f"no whole reply within {self._timeout_s:g} s")
                sock.settimeout(left_s)
                data = sock.recv(1 << 16)
                if not data:
                    raise PeerProtocolError("multipathd closed the connection within a reply")
                reply = decoder.feed(data)
                if reply is not None:
                    return reply

    def _connect(self) -> socket.socket:
        refusal: OSError = FileNotFoundError("no socket")
        for address in self._addresses:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(self._timeout_s)
            try:
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                refusal = error
        raise refusal


def describe(error: OSError | PeerProtocolError) -> str:
    """Why it was not told, in words."""
    if isinstance(error, TimeoutError):
        return f"multipathd does not answer: {error}"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "multipathd is not running"
    return f"multipathd: {error.strerror or error}" if isinstance(error, OSError) else str(error)


# -- replies as values -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PathReport:
    """A path in a reply. States in multipathd's words."""

    name: str
    dm_state: str = ""
    checker: str = ""
    is_marginal: bool = False
    host_port: str = ""
    target_port: str = ""


@dataclass(frozen=True, slots=True)
class MapReport:
    """A map in a reply to SHOW_MAP."""

    name: str
    device: str
    uuid: str = ""
    queueing: str = ""
    is_suspended: bool = False
    features: str = ""
    hardware_handler: str = ""
    groups: tuple[Group, ...] = ()
    paths: tuple[PathReport, ...] = ()


def parse_map(reply: str) -> MapReport:
    """The map. Raises PeerProtocolError for what is not such a reply; what is missing in one is empty."""
    if reply.strip() in REFUSALS:
        raise PeerProtocolError(f"multipathd refuses to show the map: {reply.strip()}")
    try:
        content = orjson.loads(reply)
    except orjson.JSONDecodeError as error:
        raise PeerProtocolError(f"multipathd shows the map in no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("map"), dict):
        raise PeerProtocolError("multipathd's reply has no map")
    return _map(content["map"])


def _map(item: Mapping[str, Any]) -> MapReport:
    groups, paths = list[Group](), list[PathReport]()
    for index, found in enumerate(_dicts(item.get("path_groups"))[:GROUPS_MAX]):
        members = [_path(path) for path in _dicts(found.get("paths"))[: PATHS_MAX - len(paths)]]
        paths += members
        priority = found.get("pri")
        groups.append(
            Group(
                index + 1,
                state=_text(found, "dm_st"),
                selector=_text(found, "selector"),
                priority=priority if isinstance(priority, int) else None,
                is_marginal=_text(found, "marginal_st") == "marginal",
                paths=tuple(path.name for path in members),
            )
        )
    return MapReport(
        name=_text(item, "name"),
        device=_text(item, "sysfs"),
        uuid=_text(item, "uuid"),
        queueing=in_words(_text(item, "queueing")),
        is_suspended=_text(item, "dm_st") == "suspend",
        features=_text(item, "features"),
        hardware_handler=_text(item, "hwhandler"),
        groups=tuple(groups),
        paths=tuple(paths),
    )


def _path(item: Mapping[str, Any]) -> PathReport:
    return PathReport(
        _text(item, "dev"),
        dm_state=_text(item, "dm_st"),
        checker=_text(item, "chk_st"),
        is_marginal=_text(item, "marginal_st") == "marginal",
        host_port=_text(item, "host_wwpn"),
        target_port=_text(item, "target_wwpn"),
    )


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(item: Mapping[str, Any], key: str) -> str:
    """A text, cleaned; multipathd's words for "I don't know" are empty."""
    value = item.get(key)
    text = clean(str(value)[:256].encode("utf-8", "replace")) if isinstance(value, str | int) else ""
    return "" if text in ("undef", "[undef]", "[unknown]", "##", "-", "(null)") else text


def in_words(queueing: str) -> str:
    """multipathd's ``queueing`` (snprint_queueing): on, off, "12 chk" while paths are there, "40 sec" while none is."""
    match = re.fullmatch(r"(\d+) (chk|sec)", queueing)
    if not match:
        return queueing
    return f"{match[1]} checks" if match[2] == "chk" else f"{match[1]} s left"


def parse_failures(reply: str) -> dict[str, int]:
    """Device → failures, from SHOW_FAILURES; lines that are not such are left out (older versions do not know %0)."""
    found = {}
    for line in reply.splitlines()[:4096]:
        fields = [field.strip() for field in line.split("|")]
        if len(fields) >= 2 and fields[1].isdigit():
            found[fields[0]] = int(fields[1])
    return found


def parse_polling(reply: str) -> int | None:
    """``polling_interval`` of SHOW_CONFIG, seconds; its default is never left out there."""
    match = re.search(r"^\s*polling_interval\s+\"?(\d{1,6})\"?\s*$", reply, re.MULTILINE)
    return int(match[1]) if match else None


def merge(facts: Facts, report: MapReport) -> Facts:
    """What multipathd says of this map, over what is known already."""
    changes: dict[str, dict[str, Any]] = {}
    for path in report.paths:
        known = facts.path(path.name)
        changes[path.name] = {"dm_state": path.dm_state, "checker": path.checker, "is_marginal": path.is_marginal}
        if known is not None:
            changes[path.name] |= {"port": known.port or path.host_port, "target": known.target or path.target_port}
    return replace(
        facts.with_paths(changes),
        queueing=report.queueing or facts.queueing,
        features=report.features or facts.features,
        hardware_handler=report.hardware_handler or facts.hardware_handler,
        policy=next((group.selector for group in report.groups if group.selector), facts.policy),
        groups=report.groups or facts.groups,
        is_suspended=report.is_suspended or facts.is_suspended,
    )


def merge_failures(facts: Facts, reply: str) -> Facts:
    """The paths' failure counters, from a reply to SHOW_FAILURES."""
    return facts.with_paths({name: {"failures": count} for name, count in parse_failures(reply).items()})


def default_addresses() -> tuple[str, ...]:
    """Where the daemon listens; $MULTIPATH_SOCKET_NAME as its own tools have it."""
    name = os.environ.get("MULTIPATH_SOCKET_NAME", "")
    return (name.replace("@", "\0", 1) if name.startswith("@") else name,) if name else ADDRESSES
