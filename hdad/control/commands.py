"""The methods of the control socket: who may call them, which parameters they take. Pure; the supervisor carries them out.

Two levels: ``read`` looks, ``operate`` changes. The socket's owner (the daemon's user) and root may do both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

from hdad.control.protocol import INVALID_PARAMS, METHOD_NOT_FOUND, REFUSED, Failure, Request
from hdad.errors import ExitStatus
from hdad.record import Position


class Level(IntEnum):
    """What a peer may do."""

    NONE = 0
    READ = 1
    OPERATE = 2


class Operations(Protocol):
    """What the supervisor offers. Each may raise Failure."""

    def status(self) -> dict[str, Any]: ...
    def pause(self, lanes: list[str] | None) -> dict[str, Any]: ...
    def resume(self, lanes: list[str] | None) -> dict[str, Any]: ...
    def drain(self) -> dict[str, Any]: ...
    def accept(self, lane: str, position: Position | None) -> dict[str, Any]: ...
    def reload(self) -> dict[str, Any]: ...
    def log_level(self, level: str) -> dict[str, Any]: ...
    def set_workers(self, count: int) -> dict[str, Any]: ...
    def promote(self) -> dict[str, Any]: ...
    def demote(self) -> dict[str, Any]: ...


class Command(NamedTuple):
    """A method. ``params``: names and types, those ending in "?" may be missing."""

    level: Level
    params: Mapping[str, type]
    call: Callable[[Operations, Mapping[str, Any]], dict[str, Any]]


def _position(params: Mapping[str, Any]) -> Position | None:
    text = params.get("from")
    if text is None:
        return None
    try:
        return Position.parse(text)
    except ValueError as error:
        raise Failure(INVALID_PARAMS, str(error)) from error


COMMANDS: Final[dict[str, Command]] = {
    "status": Command(Level.READ, {}, lambda daemon, _: daemon.status()),
    "pause": Command(Level.OPERATE, {"lanes?": list}, lambda daemon, params: daemon.pause(params.get("lanes"))),
    "resume": Command(Level.OPERATE, {"lanes?": list}, lambda daemon, params: daemon.resume(params.get("lanes"))),
    "drain": Command(Level.OPERATE, {}, lambda daemon, _: daemon.drain()),
    "lane-accept": Command(
        Level.OPERATE, {"lane": str, "from?": str}, lambda daemon, params: daemon.accept(params["lane"], _position(params))
    ),
    "reload": Command(Level.OPERATE, {}, lambda daemon, _: daemon.reload()),
    "log-level": Command(Level.OPERATE, {"level": str}, lambda daemon, params: daemon.log_level(params["level"])),
    "promote": Command(Level.OPERATE, {}, lambda daemon, _: daemon.promote()),
    "demote": Command(Level.OPERATE, {}, lambda daemon, _: daemon.demote()),
    "workers": Command(Level.OPERATE, {"count": int}, lambda daemon, params: daemon.set_workers(params["count"])),
}


def execute(request: Request, level: Level, daemon: Operations) -> dict[str, Any]:
    """Check and carry out. Raises Failure."""
    command = COMMANDS.get(request.method)
    if command is None:
        raise Failure(METHOD_NOT_FOUND, f"no method {request.method!r}; allowed: {', '.join(COMMANDS)}")
    if level < command.level:
        need = "control.operate_group" if command.level is Level.OPERATE else "control.read_group"
        hint = f"Become the daemon's user or root, or a member of {need}."
        raise Failure(REFUSED, f"you may not {request.method}", hint, ExitStatus.PERMISSION)
    for name in request.params:
        if name not in command.params and name + "?" not in command.params:
            raise Failure(INVALID_PARAMS, f"{request.method}: unknown parameter {name!r}; allowed: {', '.join(command.params) or 'none'}")
    for name, kind in command.params.items():
        value = request.params.get(name.rstrip("?"))
        if value is None and name.endswith("?"):
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise Failure(INVALID_PARAMS, f"{request.method}: {name.rstrip('?')} = {value!r}; allowed: a {kind.__name__}")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise Failure(INVALID_PARAMS, f"{request.method}: {name.rstrip('?')}: allowed: a list of texts")
    return command.call(daemon, request.params)
