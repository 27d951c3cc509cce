"""The control socket's server: accepts, reads lines, asks who the peer is (SO_PEERCRED), writes answers. Edge, driven by the supervisor.

Never blocks: a client that does not read its answers is closed when they pile up. Knows nothing of what methods do.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import selectors
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from hdad.control.commands import Level
from hdad.control.protocol import INVALID_REQUEST, Failure, Request, decode_request, encode_failure, encode_result, split_lines
from hdad.errors import ControlError, ExitStatus, PeerProtocolError
from hdad.limits import CONTROL_CLIENTS_MAX, CONTROL_MESSAGE_BYTES_MAX

_UCRED: Final = struct.Struct("3i")
Handler = Callable[[Request, Level], object]


class ControlServer:
    """One listening socket and its clients. ``handle`` returns a result or raises Failure."""

    def __init__(self, path: str, read_group: str, operate_group: str, selector: selectors.BaseSelector, handle: Handler) -> None:
        self._path = Path(path)
        self._selector = selector
        self._handle = handle
        self._levels = {_group_id(read_group, "control.read_group"): Level.READ}
        self._levels[_group_id(operate_group, "control.operate_group")] = Level.OPERATE
        self._levels.pop(-1, None)
        self._clients: dict[int, Client] = {}
        self._lock = _claim(self._path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._path.unlink(missing_ok=True)  # the lock is ours: whoever made this socket is gone
        try:
            self._socket.bind(str(self._path))
            self._path.chmod(0o666 if self._levels else 0o600)  # who may do what is asked of the kernel, not of the file's mode
            self._socket.listen(16)
        except OSError as error:
            raise ControlError(f"control.socket {path}: {error.strerror}", status=ExitStatus.CONFIG) from error
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def fds(self) -> Iterable[int]:
        """For a child to close."""
        return [self._socket.fileno(), self._lock, *self._clients]

    def _accept(self, _mask: int) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError:  # it went away between the event and now
            return
        if len(self._clients) >= CONTROL_CLIENTS_MAX:
            sock.close()  # LIMIT
            return
        sock.setblocking(False)
        client = Client(sock, self._level_of(sock), self)
        self._clients[sock.fileno()] = client
        self._selector.register(sock, selectors.EVENT_READ, client.ready)

    def _level_of(self, sock: socket.socket) -> Level:
        _, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid in (0, os.getuid()):
            return Level.OPERATE
        groups = {gid}
        try:
            groups.update(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
        except (KeyError, OSError):  # a uid without a name has its one group
            pass
        return max((level for group, level in self._levels.items() if group in groups), default=Level.NONE)

    def answer(self, client: Client, line: bytes) -> bytes:
        """The answer to one line; empty for a notification."""
        request_id: int | str | None = None
        try:
            request = decode_request(line)
            request_id = request.id
            answer = encode_result(request_id, self._handle(request, client.level))
        except Failure as failure:
            answer = encode_failure(request_id, failure)
        return answer

    def interest(self, client: Client, events: int) -> None:
        """Change what is waited for."""
        self._selector.modify(client.socket, events, client.ready)

    def drop(self, client: Client) -> None:
        """Close one client."""
        self._clients.pop(client.socket.fileno(), None)
        self._selector.unregister(client.socket)
        client.socket.close()

    def close(self) -> None:
        """Close everything and remove the socket."""
        for client in list(self._clients.values()):
            client.flush()
            self.drop(client)
        self._selector.unregister(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        os.close(self._lock)


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket, level: Level, server: ControlServer) -> None:
        self.socket = sock
        self.level = level
        self._server = server
        self._in = bytearray()
        self._out = bytearray()

    def ready(self, mask: int) -> None:
        """The selector's callback."""
        try:
            if mask & selectors.EVENT_READ:
                data = self.socket.recv(65536)
                if not data:
                    self._server.drop(self)
                    return
                self._in += data
                for line in split_lines(self._in):
                    self._out += self._server.answer(self, line)
            self.flush()
        except BlockingIOError:
            pass
        except (OSError, PeerProtocolError) as error:
            if isinstance(error, PeerProtocolError):
                self._out += encode_failure(None, Failure(INVALID_REQUEST, str(error)))
                self.flush()
            self._server.drop(self)
            return
        if len(self._out) > 2 * CONTROL_MESSAGE_BYTES_MAX:
            self._server.drop(self)  # LIMIT: it asks and does not listen
            return
        self._server.interest(self, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0))

    def flush(self) -> None:
        """Send what the kernel takes."""
        try:
            while self._out:
                del self._out[: self.socket.send(self._out)]
        except OSError:  # full: the selector tells when to go on; gone: the next read tells
            pass


def _claim(path: Path) -> int:
    """A lock beside the socket, so that two daemons never share one. Raises ControlError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ControlError(
            f"control.socket {path}: {error.strerror}", "Name a folder this user may write to.", ExitStatus.CONFIG
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ControlError(f"control.socket {path}: another daemon serves it", "See: hdactl status", ExitStatus.BUSY) from error
    return fd


def _group_id(name: str, key: str) -> int:
    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ControlError(f"{key} = {name!r}: there is no such group", status=ExitStatus.CONFIG) from error
