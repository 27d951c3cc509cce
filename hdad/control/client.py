"""The caller's side of the control socket: one request, one answer, with a deadline. Edge; used by hdactl."""

from __future__ import annotations

import errno
import socket
from typing import Any

from hdad.control.protocol import decode_answer, encode_request
from hdad.errors import ControlError, ExitStatus


def call(path: str, method: str, params: dict[str, Any] | None = None, timeout_s: float = 5.0) -> Any:
    """The result. Raises ControlError: refused, or UNREACHABLE with whether the daemon is dead or hangs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(path)
            sock.sendall(encode_request(1, method, params or {}))
            buffer = bytearray()
            while not buffer.endswith(b"\n"):
                data = sock.recv(1 << 20)
                if not data:
                    raise ControlError(f"the daemon at {path} closed the connection without an answer", "See its log: journalctl -u hdad",
                                       ExitStatus.UNREACHABLE)  # fmt: skip
                buffer += data
        except TimeoutError as error:
            raise ControlError(
                f"the daemon at {path} accepts connections and does not answer within {timeout_s:g} s: it hangs",
                "See systemctl status hdad; its supervisor may be stopped (SIGSTOP) or out of CPU.",
                ExitStatus.UNREACHABLE,
            ) from error
        except OSError as error:
            raise _unreachable(path, error) from error
    return decode_answer(bytes(buffer))


def _unreachable(path: str, error: OSError) -> ControlError:
    if error.errno == errno.ENOENT:
        text, hint = f"no daemon: there is no socket {path}", "Start it: systemctl start hdad; or name its socket: --socket PATH"
    elif error.errno == errno.ECONNREFUSED:
        text, hint = f"the daemon that made {path} is dead", "Start it: systemctl start hdad; why it died: journalctl -u hdad"
    elif error.errno in (errno.EACCES, errno.EPERM):
        return ControlError(
            f"{path}: permission denied", "Become the daemon's user, or a member of control.read_group.", ExitStatus.PERMISSION
        )
    else:
        text, hint = f"{path}: {error.strerror or error}", ""
    return ControlError(text, hint, ExitStatus.UNREACHABLE)
