"""What operators may ask of the running daemon: the methods of the control socket, carried out. Runs in the supervisor."""

from __future__ import annotations

import logging
from typing import Any, Final

from hdad.clock import monotonic_ns
from hdad.config import LOG_LEVELS, RELOADABLE, changes, load, with_redis_url, with_values
from hdad.control.commands import Level, execute
from hdad.control.protocol import INVALID_PARAMS, REFUSED, Failure, Request
from hdad.errors import ConfigErrors, ExitStatus
from hdad.record import Position
from hdad.supervise.loop import Supervisor
from hdad.supervise.states import ChildState
from hdad.supervise.status import Sampler, build_status, one_line
from hdad.writer.role import Role

STATUS_LINE_NS: Final = 2_000_000_000


class DaemonOperations:
    """Implements ``control.commands.Operations``."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.sampler = Sampler(supervisor.counters)
        self._line_due_ns = 0
        supervisor.on_reload = self._reload_by_signal
        supervisor.on_tick += [self.sampler.tick, self._tick_status]

    def handle(self, request: Request, level: Level) -> dict[str, Any]:
        """For the control server. Raises Failure."""
        return execute(request, level, self)

    def _tick_status(self, now_ns: int) -> None:
        if now_ns >= self._line_due_ns and not self._supervisor.is_draining:
            self._line_due_ns = now_ns + STATUS_LINE_NS
            self._supervisor.notifier.status(one_line(build_status(self._supervisor, self.sampler, 0)))

    def status(self) -> dict[str, Any]:
        """Everything."""
        return build_status(self._supervisor, self.sampler)

    def health(self) -> str:
        """For /healthz: "" or the first thing that is wrong."""
        supervisor = self._supervisor
        if supervisor.is_draining:
            return "draining"
        down = [child.role for child in supervisor.children() if child.wanted and child.state is not ChildState.READY]
        if down:
            return f"not ready: {', '.join(down)}"
        return next((text for text, _, _ in supervisor.alarms.all().values()), "")

    # -- pause, resume, drain ----------------------------------------------------------------------------------------------------------

    def pause(self, lanes: list[str] | None) -> dict[str, Any]:
        """Stop reading, all or some lanes. What was read goes on its way."""
        self._only_while_running("pause")
        if lanes is None:
            self._supervisor.is_paused = True
            self._tell_workers({"op": "pause"})
        else:
            self._known_lanes(lanes)
            self._supervisor.paused_lanes.update(lanes)
            self._tell_workers({"op": "pause", "lanes": lanes})
        return {"paused": lanes if lanes is not None else "all"}

    def resume(self, lanes: list[str] | None) -> dict[str, Any]:
        """Read again."""
        self._only_while_running("resume")
        if lanes is None:
            self._supervisor.is_paused = False
            self._supervisor.paused_lanes.clear()
            self._tell_workers({"op": "resume"})
        else:
            self._known_lanes(lanes)
            self._supervisor.paused_lanes.difference_update(lanes)
            self._tell_workers({"op": "resume", "lanes": lanes})
        return {"resumed": lanes if lanes is not None else "all"}

    def drain(self) -> dict[str, Any]:
        """As SIGTERM."""
        self._supervisor.drain("asked by an operator")
        return {"draining": True, "timeout_s": self._supervisor.config.supervisor.drain_timeout_s}

    def accept(self, lane: str, position: Position | None) -> dict[str, Any]:
        """A halted lane goes on at ``position``; None: where it stands."""
        self._only_while_running("lane-accept")
        self._known_lanes([lane])
        if self._supervisor.writer is not None and f"halted:{lane}" not in self._supervisor.alarms.all():
            raise Failure(INVALID_PARAMS, f"lane {lane} is not halted; there is nothing to accept", "See: hdactl lanes")
        if self._supervisor.writer is None:
            writer = self._supervisor.link_report.get("writer", {}).get("address", "another host")
            raise Failure(REFUSED, f"this host has no writer; accept the lane where it is: {writer}", status=ExitStatus.FAILURE)
        if self._supervisor.writer.state is not ChildState.READY:
            raise Failure(REFUSED, "the writer is not running, try again in a moment", status=ExitStatus.FAILURE)
        message: dict[str, Any] = {"op": "accept", "lane": lane}
        if position is not None:
            message |= {"ms": position.ms, "seq": position.seq}
        self._supervisor.writer.tell(message)
        return {"accepted": lane, "from": str(position) if position is not None else "where it stands"}

    def _known_lanes(self, lanes: list[str]) -> None:
        known = {row.name.decode("utf-8", "surrogateescape") for row in self._supervisor.counters.lanes.rows()}
        for lane in lanes:
            if lane not in known:
                raise Failure(INVALID_PARAMS, f"there is no lane {lane!r}", "See: hdactl lanes")

    def _only_while_running(self, what: str) -> None:
        if self._supervisor.is_draining:
            raise Failure(REFUSED, f"{what}: the daemon is draining", status=ExitStatus.FAILURE)

    def _tell_workers(self, message: dict[str, Any]) -> None:
        for child in self._supervisor.workers:
            child.tell(message)

    def _tell_services(self, message: dict[str, Any]) -> None:
        for child in (self._supervisor.link, self._supervisor.feed):
            if child is not None:
                child.tell(message)

    # -- writer and standby ------------------------------------------------------------------------------------------------------------

    def promote(self) -> dict[str, Any]:
        """This standby takes the log over: at once if it is released, else it asks the writer for it."""
        self._only_while_running("promote")
        role = self._supervisor.node.role
        if role not in (Role.STANDBY, Role.WRITER):
            raise Failure(REFUSED, f"promote: this host is {role.value}, no standby", "See: hdactl status", ExitStatus.FAILURE)
        if role is Role.STANDBY:
            self._tell_writer({"op": "promote"})
        return {"role": role.value}

    def demote(self) -> dict[str, Any]:
        """This writer makes what is in flight durable, releases the log, and stands by."""
        self._only_while_running("demote")
        role, log = self._supervisor.node.role, self._supervisor.config.log
        if log.fence == "none" or not log.standby:
            raise Failure(REFUSED, "demote: without log.fence and log.standby this host cannot stand by", status=ExitStatus.FAILURE)
        if role not in (Role.STANDBY, Role.WRITER):
            raise Failure(REFUSED, f"demote: this host is {role.value}, not the writer", "See: hdactl status", ExitStatus.FAILURE)
        if role is Role.WRITER:
            self._tell_writer({"op": "demote"})
        return {"role": role.value}

    def _tell_writer(self, message: dict[str, Any]) -> None:
        if self._supervisor.writer is not None:
            self._supervisor.writer.tell(message)

    # -- settings ----------------------------------------------------------------------------------------------------------------------

    def log_level(self, level: str) -> dict[str, Any]:
        """Of all processes, until the next restart or reload."""
        if level not in LOG_LEVELS:
            raise Failure(INVALID_PARAMS, f"log-level: {level!r}; allowed: {', '.join(LOG_LEVELS)}")
        logging.getLogger().setLevel(level.upper())
        self._tell_workers({"op": "log-level", "level": level})
        if self._supervisor.writer is not None:
            self._supervisor.writer.tell({"op": "log-level", "level": level})
        self._tell_services({"op": "log-level", "level": level})
        return {"level": level}

    def set_workers(self, count: int) -> dict[str, Any]:
        """More or fewer workers, now; the configuration file stays as it is."""
        self._only_while_running("workers")
        limit = self._supervisor.config.workers.count_max
        if not 1 <= count <= limit:
            raise Failure(INVALID_PARAMS, f"workers: {count}; allowed: 1 to {limit} (workers.count_max)")
        supervisor = self._supervisor
        before = sum(child.wanted for child in supervisor.workers)
        for child in supervisor.workers:
            wanted = child.index < count
            if wanted:
                child.wanted = True  # started by the next tick, or when it has drained
            elif child.wanted:
                child.drain()
        return {"workers": count, "before": before}

    def reload(self) -> dict[str, Any]:
        """Validate the file, apply what can be applied, and say for each changed key what became of it."""
        self._only_while_running("reload")
        supervisor = self._supervisor
        supervisor.notifier.reloading()
        try:
            new = load(supervisor.config_path)
        except ConfigErrors as error:
            supervisor.notifier.ready()
            supervisor.errors.append((monotonic_ns(), "supervisor", f"reload refused: {error}"))
            raise Failure(REFUSED, f"nothing was changed:\n{error}", "Correct the file, check it with hdad check, reload again.",
                          ExitStatus.CONFIG) from error  # fmt: skip
        if new.redis.url == "embedded":
            new = with_redis_url(new, supervisor.config.redis.url)
        changed = changes(supervisor.config, new)
        applied = {key: value for key, value in changed.items() if key in RELOADABLE}
        self._apply(applied)
        supervisor.notifier.ready()
        report = {key: "applied" if key in applied else "needs a restart" for key in sorted(changed)}
        supervisor.logger.info("reload: %s", ", ".join(f"{key} {word}" for key, word in report.items()) or "nothing has changed")
        return {"keys": report}

    def _apply(self, applied: dict[str, Any]) -> None:
        supervisor = self._supervisor
        if "workers.count" in applied:
            limit = supervisor.config.workers.count_max
            if applied["workers.count"] > limit:
                applied.pop("workers.count")  # the slots were made at the start, with the old count_max
            else:
                self.set_workers(applied["workers.count"])
        supervisor.config = with_values(supervisor.config, applied)
        for_workers = {key: value for key, value in applied.items() if key.startswith("redis.")}
        for_services = {key: value for key, value in applied.items() if key.startswith(("link.", "feed."))}
        self._tell_services({"op": "reload", "config": for_services})  # always: certificates may be new although no key is
        if for_workers:
            supervisor.changed_values |= for_workers
            self._tell_workers({"op": "reload", "config": for_workers})
        if "logging.level" in applied:
            self.log_level(applied["logging.level"])

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except Failure as failure:
            self._supervisor.logger.error("reload: %s", failure.message)
