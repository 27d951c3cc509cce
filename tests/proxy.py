"""What stands between two hosts in tests: a proxy that cuts, swallows and changes bytes; certificates; ports."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


class Proxy:
    """Between two links: passes bytes on, and can cut, or pass nothing."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.is_deaf = False  # bytes are taken and thrown away
        self.flips = 0  # so many bytes, one a piece, are changed on their way to who connected
        self._stop = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            sockets = [sock for pair in self._pairs for sock in pair]
            for sock in select.select([self.listener, *sockets], (), (), 0.02)[0]:
                if sock is self.listener:
                    self._accept()
                else:
                    self._pass(sock)

    def _accept(self) -> None:
        mine, _ = self.listener.accept()
        try:
            theirs = socket.create_connection(("127.0.0.1", self.target), 5)
        except OSError:
            mine.close()
            return
        self._pairs.append((mine, theirs))

    def _pass(self, sock: socket.socket) -> None:
        pair = next((pair for pair in self._pairs if sock in pair), None)
        if pair is None:
            return
        other = pair[1] if sock is pair[0] else pair[0]
        try:
            data = sock.recv(65536)
            if data and self.flips and sock is pair[1] and len(data) > 1000:
                self.flips -= 1
                data = data[:700] + bytes([data[700] ^ 1]) + data[701:]
            if data and not self.is_deaf:
                other.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._cut(pair)

    def _cut(self, pair: tuple[socket.socket, socket.socket]) -> None:
        if pair in self._pairs:
            self._pairs.remove(pair)
        for sock in pair:
            sock.close()

    def cut(self) -> int:
        """End all connections at once. Returns how many."""
        pairs = list(self._pairs)
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not a good-bye
                    sock.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self.cut()
        self.listener.close()


def need_openssl() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("SKIPPED: openssl is not installed")


def openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    openssl(
        folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}",
        "-keyout", f"{name}.key", "-out", f"{name}.crt",
    )  # fmt: skip


def make_certificate(folder: Path, authority: str, name: str, alternatives: str) -> dict[str, Any]:
    """The keys of [link] for it."""
    openssl(
        folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
        "-out", f"{name}.csr",
    )  # fmt: skip
    (folder / f"{name}.ext").write_text(f"subjectAltName={alternatives}\n")
    openssl(
        folder, "x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
        "-CAcreateserial", "-extfile", f"{name}.ext", "-out", f"{name}.crt",
    )  # fmt: skip
    return {
        "tls_cert_file": str(folder / f"{name}.crt"), "tls_key_file": str(folder / f"{name}.key"),
        "tls_ca_file": str(folder / f"{authority}.crt"),
    }  # fmt: skip
