"""Where a link listens or connects to: ``tls://host:port`` or ``tcp://host:port``. Pure; knows no sockets and resolves nothing."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple, Self

PORT_DEFAULT: Final = 7411
FEED_PORT_DEFAULT: Final = 7412
SCHEMES: Final = ("tls", "tcp")


class Address(NamedTuple):
    """``host``: a name, or an IPv4 or IPv6 address without brackets."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, port: int = PORT_DEFAULT) -> Self:
        """``port``: where none is named. Raises ValueError with what is allowed."""
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "tls", text
        if scheme not in SCHEMES:
            raise ValueError(f"{text!r}: allowed: tls://HOST:PORT, tcp://HOST:PORT; an IPv6 address in brackets")
        if rest.startswith("["):
            host, bracket, tail = rest[1:].partition("]")
            if not bracket or (tail and not tail.startswith(":")) or not _is_ip(host):
                raise ValueError(f"{text!r}: not an IPv6 address in brackets")
            number = tail[1:]
            has_port = bool(tail)
        else:
            host, colon, number = rest.partition(":")
            has_port = bool(colon)
        if not host or (any(sign in " /@[]:" for sign in host) and not _is_ip(host)):
            raise ValueError(f"{text!r}: allowed: tls://HOST:PORT, tcp://HOST:PORT; an IPv6 address in brackets")
        if has_port:
            if not (number.isascii() and number.isdigit()) or int(number) > 65_535:
                raise ValueError(f"{text!r}: a port is a number up to 65535")
            port = int(number)
        return cls(scheme, host, port)

    @property
    def is_tls(self) -> bool:
        """True: mutual TLS."""
        return self.scheme == "tls"

    @property
    def is_loopback(self) -> bool:
        """True: it cannot leave this host, whatever a name server says."""
        if self.host == "localhost":
            return True
        return _is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_peer_allowed(names: tuple[str, ...], allowed: tuple[str, ...]) -> bool:
    """Whether one of a certificate's ``names`` (DNS names and IP addresses) is among the ``allowed``; none named: all are.

    ``*.example`` allows one label before ``.example``, as in certificates (RFC 6125, 6.4.3).
    """
    if not allowed:
        return True
    wanted = {text.lower() for text in allowed}
    for name in names:
        lower = name.lower()
        label, dot, rest = lower.partition(".")
        if lower in wanted or (dot and label and f"*.{rest}" in wanted):
            return True
    return False
