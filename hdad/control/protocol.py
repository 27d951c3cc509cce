"""JSON-RPC 2.0, one object a line: bytes ↔ requests, results, errors. Formats only; no sockets, no meaning of methods.

Errors carry ``data`` = {"status": exit status for the caller, "hint": what to do}.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

from hdad.errors import ControlError, ExitStatus, PeerProtocolError
from hdad.limits import CONTROL_MESSAGE_BYTES_MAX

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
REFUSED: Final = -32000  # the daemon understood, and says no


class Request(NamedTuple):
    """``id`` None: a notification, which gets no answer."""

    id: int | str | None
    method: str
    params: dict[str, Any]


class Failure(Exception):
    """What goes back instead of a result."""

    def __init__(self, code: int, message: str, hint: str = "", status: int = ExitStatus.USAGE) -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.status = code, message, hint, status


def split_lines(buffer: bytearray) -> list[bytes]:
    """Take the whole lines out of ``buffer``. Raises PeerProtocolError when a line is too long (I9)."""
    end = buffer.rfind(b"\n") + 1
    if len(buffer) - end > CONTROL_MESSAGE_BYTES_MAX:
        raise PeerProtocolError(f"control: a line longer than {CONTROL_MESSAGE_BYTES_MAX} bytes")
    lines = bytes(buffer[:end]).splitlines()
    del buffer[:end]
    return [line for line in lines if line.strip()]


def decode_request(line: bytes) -> Request:
    """One line. Raises Failure."""
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise Failure(PARSE_ERROR, f"not JSON: {error}") from error
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0" or not isinstance(message.get("method"), str):
        raise Failure(INVALID_REQUEST, 'not a JSON-RPC 2.0 request: {"jsonrpc": "2.0", "id": 1, "method": "status", "params": {}}')
    params = message.get("params", {})
    if not isinstance(params, dict):
        raise Failure(INVALID_PARAMS, "params must be an object")
    return Request(message.get("id"), message["method"], params)


def encode_request(id_: int, method: str, params: dict[str, Any]) -> bytes:
    """One line."""
    return orjson.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}) + b"\n"


def encode_result(id_: int | str | None, result: Any) -> bytes:
    """One line."""
    return orjson.dumps({"jsonrpc": "2.0", "id": id_, "result": result}, option=orjson.OPT_NON_STR_KEYS) + b"\n"


def encode_failure(id_: int | str | None, failure: Failure) -> bytes:
    """One line."""
    data = {"status": int(failure.status), "hint": failure.hint}
    return orjson.dumps({"jsonrpc": "2.0", "id": id_, "error": {"code": failure.code, "message": failure.message, "data": data}}) + b"\n"


def decode_answer(line: bytes) -> Any:
    """The result. Raises ControlError with what the daemon said, PeerProtocolError for what is no answer."""
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise PeerProtocolError(f"control: the daemon's answer is not JSON: {error}") from error
    if isinstance(message, dict) and "result" in message:
        return message["result"]
    error_object = message.get("error") if isinstance(message, dict) else None
    if not isinstance(error_object, dict):
        raise PeerProtocolError("control: neither result nor error in the daemon's answer")
    data = error_object.get("data") or {}
    raise ControlError(str(error_object.get("message")), str(data.get("hint", "")), ExitStatus(data.get("status", ExitStatus.FAILURE)))
