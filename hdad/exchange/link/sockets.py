"""Sockets of a link: connections and listeners, plain or TLS, never waiting. Edge: a syscall a method, no policy.

A ``Stream`` becomes usable in steps (name, TCP, TLS); ``establish`` takes the next one. Received bytes land where the caller says, sent
bytes leave from where they lie. Names are looked up in a thread, since a name server may not answer; numbers are not.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Protocol

from hdad.addresses import Address
from hdad.exchange.link.trust import Trust, names_of
from hdad.exchange.slots import create_bell, ring_bell

Buffer = bytes | memoryview
SMALL_BYTES: Final = 4096  # buffers below are joined for TLS: each write is a record of its own
JOINED_BYTES_MAX: Final = 16_384  # a TLS record
BACKLOG: Final = 64


class StreamLost(Exception):
    """The connection is over, or could not be made; in words."""


class Stream(Protocol):
    """One connection."""

    @property
    def peer(self) -> str: ...  # address of the other end, for people
    @property
    def names(self) -> tuple[str, ...]: ...  # of its certificate; without TLS none
    @property
    def is_secure(self) -> bool: ...
    def fileno(self) -> int: ...
    def establish(self) -> bool: ...
    @property
    def wants_write(self) -> bool: ...
    def receive(self, spaces: Sequence[memoryview]) -> int: ...
    def send(self, buffers: Sequence[Buffer]) -> int: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class Listener(Protocol):
    """One listening socket."""

    address: Address

    def fileno(self) -> int: ...
    def accept(self) -> Stream | None: ...
    def close(self) -> None: ...


Wait = tuple[Stream | Listener, bool, bool]  # a socket to wait for; whether for reading, and for writing


class Network(Protocol):
    """What a link asks for; the simulation has its own."""

    def connect(self, address: Address) -> Stream: ...
    def listen(self, address: Address) -> Listener: ...


class SocketOptions(NamedTuple):
    """``keepalive_ms``: an idle connection that does not answer for so long is given up by the kernel; with ``limits_unread`` also one
    whose peer does not read. ``send_buffer_bytes`` 0: the kernel's own."""

    keepalive_ms: int
    send_buffer_bytes: int = 0
    limits_unread: bool = True


def _configure(sock: socket.socket, options: SocketOptions) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, options.keepalive_ms // 3000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if options.limits_unread:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, options.keepalive_ms)
    if options.send_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_bytes)


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class TcpStream:
    """A connected socket, or one that is being connected. ``context`` None: no TLS. ``host``: what the certificate must be for."""

    def __init__(self, sock: socket.socket, peer: str, context: ssl.SSLContext | None, host: str | None, is_connected: bool) -> None:
        self.peer = peer
        self.names: tuple[str, ...] = ()
        self.is_secure = context is not None
        self._socket = sock
        self._tls: ssl.SSLSocket | None = None
        self._context = context
        self._host = host
        self._is_connected = is_connected
        self._is_established = False
        self._tls_wants_write = False

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """True: it goes on when it is writable, whether or not there is something to send."""
        return not self._is_connected or self._tls_wants_write

    def establish(self) -> bool:
        """Go on with TCP's and TLS' handshakes. True: usable. Raises StreamLost."""
        if self._is_established:
            return True
        try:
            if not self._is_connected:
                poller = select.poll()
                poller.register(self._socket, select.POLLOUT)
                if not poller.poll(0):
                    return False
                number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, os.strerror(number))
                self._is_connected = True
            if self._context is not None:
                if self._tls is None:
                    self._tls = self._context.wrap_socket(
                        self._socket, server_side=self._host is None, server_hostname=self._host, do_handshake_on_connect=False
                    )
                    self._socket = self._tls
                self._tls_wants_write = False
                self._tls.do_handshake()
                self.names = names_of(self._tls.getpeercert())
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self._tls_wants_write = True
            return False
        except (OSError, ValueError) as error:
            raise StreamLost(f"{self.peer}: {_words(error)}") from error
        self._is_established = True
        return True

    def receive(self, spaces: Sequence[memoryview]) -> int:
        """Bytes that are here, into ``spaces``. Returns how many; 0: none now. Raises StreamLost, also when the peer has ended it."""
        try:
            size = self._tls.recv_into(spaces[0]) if self._tls is not None else self._socket.recvmsg_into(spaces)[0]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except (OSError, ValueError) as error:
            raise StreamLost(f"{self.peer}: {_words(error)}") from error
        if not size:
            raise StreamLost(f"{self.peer}: closed by the peer")
        return size

    def send(self, buffers: Sequence[Buffer]) -> int:
        """As much of ``buffers`` as the kernel takes. Returns how many bytes. Raises StreamLost."""
        try:
            if self._tls is None:
                return self._socket.sendmsg(buffers)
            self._tls_wants_write = False
            return self._tls.send(_joined(buffers))
        except BlockingIOError:
            return 0
        except ssl.SSLWantWriteError:
            self._tls_wants_write = True
            return 0
        except ssl.SSLWantReadError:
            return 0
        except (OSError, ValueError) as error:
            raise StreamLost(f"{self.peer}: {_words(error)}") from error

    def finish(self) -> None:
        """Nothing more will be sent: the peer reads what is on its way, and then the end."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # it is over already
            pass

    def close(self) -> None:
        """At once."""
        self._socket.close()


def _joined(buffers: Sequence[Buffer]) -> Buffer:
    """The first buffer; small ones together (a retry begins with the same bytes, as OpenSSL asks)."""
    if len(buffers[0]) >= SMALL_BYTES or len(buffers) == 1:
        return buffers[0]
    joined = bytearray()
    for buffer in buffers:
        if len(joined) + len(buffer) > JOINED_BYTES_MAX:
            joined += buffer[: JOINED_BYTES_MAX - len(joined)]
            break
        joined += buffer
    return memoryview(joined)


class PendingStream:
    """A connection to a name that is being looked up; then one to each of its addresses, until one answers."""

    def __init__(self, address: Address, found: Future[list[Any]], connect: Callable[[Any], TcpStream]) -> None:
        self.peer = str(address)
        self.is_secure = address.is_tls
        self._found = found
        self._connect = connect
        self._left: list[Any] | None = None
        self._stream: TcpStream | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of its certificate."""
        return self._stream.names if self._stream is not None else ()

    def fileno(self) -> int:
        """-1 while there is no socket."""
        return self._stream.fileno() if self._stream is not None else -1

    @property
    def wants_write(self) -> bool:
        """As TcpStream's."""
        return self._stream is not None and self._stream.wants_write

    def establish(self) -> bool:
        """Go on. True: usable. Raises StreamLost."""
        if self._left is None:
            if not self._found.done():
                return False
            try:
                self._left = list(self._found.result())
            except OSError as error:
                raise StreamLost(f"{self.peer}: {error.strerror}") from error
        while True:
            try:
                if self._stream is None:
                    self._stream = self._connect(self._left.pop(0))
                return self._stream.establish()
            except StreamLost:
                if self._stream is not None:
                    self._stream.close()
                self._stream = None
                if not self._left:
                    raise

    def receive(self, spaces: Sequence[memoryview]) -> int:
        """As TcpStream's."""
        assert self._stream is not None
        return self._stream.receive(spaces)

    def send(self, buffers: Sequence[Buffer]) -> int:
        """As TcpStream's."""
        assert self._stream is not None
        return self._stream.send(buffers)

    def finish(self) -> None:
        """As TcpStream's."""
        if self._stream is not None:
            self._stream.finish()

    def close(self) -> None:
        """As TcpStream's."""
        self._found.cancel()
        if self._stream is not None:
            self._stream.close()


class TcpListener:
    """``trust``: asked at each connection, so that a reload takes effect with the next."""

    def __init__(self, sock: socket.socket, address: Address, trust: Callable[[], Trust | None], options: SocketOptions) -> None:
        self.address = address
        self._socket = sock
        self._trust = trust
        self._options = options

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def accept(self) -> TcpStream | None:
        """A connection; None: there is none (any more)."""
        try:
            sock, name = self._socket.accept()
        except OSError:  # none is there, or it went away between the event and now, or descriptors ran out: the next look tells
            return None
        _configure(sock, self._options)
        trust = self._trust()
        peer = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
        return TcpStream(sock, peer, trust.listening if self.address.is_tls and trust is not None else None, None, True)

    def close(self) -> None:
        """Connections that were accepted stay."""
        self._socket.close()


class TcpNetwork:
    """The real one. ``bell`` is rung when a name was looked up."""

    def __init__(self, trust: Callable[[], Trust | None], options: SocketOptions) -> None:
        self.bell = create_bell()
        self._trust = trust
        self._options = options
        self._threads: ThreadPoolExecutor | None = None

    def connect(self, address: Address) -> Stream:
        """Begin a connection. Errors come from ``establish``."""
        found: Future[list[Any]] = Future()
        try:
            number = ipaddress.ip_address(address.host)
            family = socket.AF_INET if number.version == 4 else socket.AF_INET6
            found.set_result([(family, (address.host, address.port))])
        except ValueError:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, "hdad-names")
            found = self._threads.submit(_look_up, address.host, address.port)
            found.add_done_callback(lambda _: ring_bell(self.bell))
        return PendingStream(address, found, lambda place: self._begin(address, *place))

    def _begin(self, address: Address, family: socket.AddressFamily, place: Any) -> TcpStream:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _configure(sock, self._options)
            number = sock.connect_ex(place)
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
        except OSError as error:
            sock.close()
            raise StreamLost(f"{address}: {_words(error)}") from error
        trust = self._trust()
        if address.is_tls and trust is None:
            sock.close()
            raise StreamLost(f"{address}: no certificate to show")
        context = trust.calling if trust is not None and address.is_tls else None
        return TcpStream(sock, str(address), context, address.host, number == 0)

    def listen(self, address: Address) -> Listener:
        """Raises OSError."""
        is_v6 = ":" in address.host
        sock = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address.host, address.port))
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return TcpListener(sock, address._replace(port=sock.getsockname()[1]), self._trust, self._options)


def _look_up(host: str, port: int) -> list[Any]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, place) for family, _, _, _, place in found))
