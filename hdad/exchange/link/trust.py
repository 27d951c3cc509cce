"""Who may be on the other end: TLS contexts from certificate, key and authority, and the names that a peer's certificate bears. Edge.

TLS 1.3 only, both sides show a certificate. A caller checks that the certificate is for the host it called; both sides check the names
against ``link.peers``. Files may be systemd credentials. A reload makes new contexts: connections that stand keep theirs.
"""

from __future__ import annotations

import os
import ssl
from typing import NamedTuple

from hdad.errors import HdadError


class TrustFiles(NamedTuple):
    """Paths of PEM files, or ``credential:NAME``; all empty: no TLS."""

    cert: str
    key: str
    ca: str


class Trust:
    """Both contexts. Raises HdadError when a file cannot be used."""

    def __init__(self, files: TrustFiles) -> None:
        self.listening = _context(ssl.PROTOCOL_TLS_SERVER, files)
        self.calling = _context(ssl.PROTOCOL_TLS_CLIENT, files)


def _context(protocol: int, files: TrustFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # connections are long; nobody resumes one
    for what, paths in (("certificate and key", (files.cert, files.key)), ("authority", (files.ca,))):
        try:
            names = [credential(path) for path in paths]
            if what == "authority":
                context.load_verify_locations(names[0])
            else:
                context.load_cert_chain(names[0], names[1], password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise HdadError(f"TLS {what} {', '.join(paths)}: {getattr(error, 'reason', None) or error}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; hdad cannot ask for its password")


def credential(path: str) -> str:
    """A path; ``credential:NAME`` is a systemd credential (LoadCredential=). Raises ValueError when systemd gave none."""
    if not path.startswith("credential:"):
        return path
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError("systemd gave no credentials (LoadCredential= in the unit)")
    return os.path.join(directory, path.removeprefix("credential:"))


def names_of(certificate: object) -> tuple[str, ...]:
    """DNS names and IP addresses of a certificate, as ``SSLSocket.getpeercert`` gives it."""
    if not isinstance(certificate, dict):
        return ()
    return tuple(str(value) for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
