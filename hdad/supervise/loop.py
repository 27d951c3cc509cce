"""The supervisor's loop: one thread, one selector over pidfds, channels, signals, the control socket and the metrics endpoint.

Runs in the main process and never touches data: it can hang on nothing but its own bugs. Owns the children, the alarms they raise, and
when the daemon is ready, draining or done. What may restart is restarted with back-off; what a restart would only repeat ends the daemon
with that status.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from hdad.clock import monotonic_ns, wall_ns
from hdad.config import Config
from hdad.errors import ExitStatus
from hdad.metrics.counters import Counters, State
from hdad.supervise.family import Child
from hdad.supervise.notify import Notifier
from hdad.supervise.spawn import Forked
from hdad.supervise.standing import Standing
from hdad.supervise.states import ChildEvent, ChildState, judge_worker, judge_writer

TICK_S: Final = 0.1
SECOND_NS: Final = 1_000_000_000
ERRORS_KEPT: Final = 50  # LIMIT: last errors in status
FATAL: Final = frozenset(
    (ExitStatus.CONFIG, ExitStatus.DAMAGED, ExitStatus.FOREIGN, ExitStatus.FENCED, ExitStatus.BUSY, ExitStatus.USAGE)
)  # a child's end that a restart would only repeat
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Roles(NamedTuple):
    """How children are started; the composition root knows. Each is given the generation."""

    writer: Callable[[int], Forked]
    worker: Callable[[int], Callable[[int], Forked]]
    redis: Callable[[int], Forked] | None = None
    is_redis_up: Callable[[], bool] = lambda: True


class Supervisor:
    """See the module. ``run`` returns the daemon's exit status."""

    def __init__(self, config: Config, config_path: str, counters: Counters, roles: Roles) -> None:
        self.config = config
        self.config_path = config_path
        self.counters = counters
        self.notifier = Notifier()
        self.selector = selectors.DefaultSelector()
        self.logger = logging.getLogger("hdad")
        self.started_ns = monotonic_ns()
        self.started_wall_ns = wall_ns()
        self.writer = Child("writer", roles.writer)
        self.workers = [Child(f"worker-{index}", roles.worker(index), index) for index in range(config.workers.count_max)]
        for worker in self.workers:
            worker.wanted = worker.index < config.workers.count
        self.redis = Child("redis", roles.redis) if roles.redis is not None else None
        self._is_redis_up = roles.is_redis_up
        self.alarms = Standing()
        self.errors: deque[tuple[int, str, str]] = deque(maxlen=ERRORS_KEPT)
        self.is_draining = False
        self.is_paused = False
        self.paused_lanes: set[str] = set()
        self.changed_values: dict[str, Any] = {}  # keys that were reloaded: a worker that starts later is told
        self.on_reload: Callable[[], object] = lambda: None
        self.on_tick: list[Callable[[int], None]] = []
        self.close_fds: list[Callable[[], Iterable[int]]] = []
        self._is_ready = False
        self._drain_deadline_ns = 0
        self._drain_began_ns = 0
        self._exit: ExitStatus | None = None
        self._final = ExitStatus.OK
        self._watchdog_due_ns = 0
        self._interrupts = 0
        self._install_signals()

    # -- signals -----------------------------------------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        self._wakeup, writing = socket.socketpair()
        self._wakeup.setblocking(False)
        writing.setblocking(False)
        self._wakeup_writing = writing
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # the wakeup fd has it; the loop acts
        self.selector.register(self._wakeup, selectors.EVENT_READ, self._signalled)

    def _signalled(self, _mask: int) -> None:
        for number in self._wakeup.recv(256):
            if number == signal.SIGHUP:
                self.on_reload()
            elif number == signal.SIGINT and self.is_draining:
                self._interrupts += 1
                self.logger.warning("second interrupt: stopping now, without waiting for what is in flight")
                self._give_up(ExitStatus.DRAIN_INCOMPLETE)
            else:
                name = signal.Signals(number).name
                if self.is_draining:
                    self.logger.info("%s: draining already, %.0f s left", name, (self._drain_deadline_ns - monotonic_ns()) / SECOND_NS)
                self.drain(f"{name} received")

    # -- the loop ----------------------------------------------------------------------------------------------------------------------

    def run(self) -> ExitStatus:
        """Until drained or failed. Children are dead when it returns."""
        self.notifier.status("starting")
        while self._exit is None:
            for key, mask in self.selector.select(TICK_S):
                key.data(mask)
            self._tick(monotonic_ns())
        for child in self.children():
            child.kill()
            if child.is_running:
                child.wanted = False
                child.end()
        return self._exit

    def children(self) -> list[Child]:
        """All, in the order in which they are started."""
        return [*([self.redis] if self.redis is not None else []), self.writer, *self.workers]

    def inherited_fds(self) -> list[int]:
        """The supervisor's descriptors that a child has no use for."""
        fds = [self.selector.fileno(), self._wakeup.fileno(), self._wakeup_writing.fileno()]
        for child in self.children():
            if child.forked is not None:
                fds.append(child.forked.pidfd)
                if child.forked.channel is not None:
                    fds.append(child.forked.channel.fileno())
        for close in self.close_fds:
            fds += close()
        return fds

    def _tick(self, now_ns: int) -> None:
        self.counters.supervisor.set("heartbeat_ns", now_ns)
        self.counters.supervisor.set("alarms", len(self.alarms.all()))
        if self.redis is not None and self.redis.state is ChildState.STARTING and self._is_redis_up():
            self.redis.step(ChildEvent.SAID_READY)
            self._become_ready()
        if not self.is_draining:
            for child in self.children():
                if child.wanted and self._may_start(child, now_ns):
                    self._start(child)
        progress = self._check_progress(now_ns)
        if progress and self.notifier.watchdog_interval_ns and now_ns >= self._watchdog_due_ns:
            self._watchdog_due_ns = now_ns + self.notifier.watchdog_interval_ns // 2
            self.notifier.watchdog()
        for call in self.on_tick:
            call(now_ns)
        if self.is_draining:
            self._continue_draining(now_ns)

    def _may_start(self, child: Child, now_ns: int) -> bool:
        if child.state is ChildState.WAITING:
            return now_ns >= child.due_ns
        may_begin = child.index < 0 or self.redis is None or self.redis.state is not ChildState.STARTING
        return child.state is ChildState.STOPPED and may_begin  # new, or wanted again

    # -- children ----------------------------------------------------------------------------------------------------------------------

    def _start(self, child: Child) -> None:
        if child.generation:
            child.restarts += 1
            self.counters.supervisor.add("restarts")
        if child.index >= 0:
            block = self.counters.worker(child.index)
            for name in ("busy_since_ns", "heartbeat_ns"):
                block.set(name, 0)
        elif child is self.writer:
            for name in ("oldest_write_ns", "inflight", "heartbeat_ns"):
                self.counters.writer.set(name, 0)
        forked = child.start()
        self.selector.register(forked.pidfd, selectors.EVENT_READ, lambda _mask: self._ended(child))
        if forked.channel is not None:
            self.selector.register(forked.channel.fileno(), selectors.EVENT_READ, lambda _mask: self._hear(child))
        if child.index >= 0:
            if self.changed_values:
                child.tell({"op": "reload", "config": self.changed_values})
            if self.is_paused:
                child.tell({"op": "pause"})
            elif self.paused_lanes:
                child.tell({"op": "pause", "lanes": sorted(self.paused_lanes)})
        self.logger.info("%s started, pid %d", child.role, child.pid)

    def _hear(self, child: Child) -> None:
        if child.forked is None or child.forked.channel is None:
            return
        channel = child.forked.channel
        for message in channel.receive():
            self._obey(child, message)
        if channel.closed_by_peer:
            self._unwatch(channel.fileno())

    def _unwatch(self, fd: int) -> None:
        if fd in self.selector.get_map():
            self.selector.unregister(fd)

    def _obey(self, child: Child, message: dict[str, Any]) -> None:
        event, key, text = message.get("event"), str(message.get("key", "")), str(message.get("text", ""))
        if event == "ready":
            child.step(ChildEvent.SAID_READY)
            self._become_ready()
        elif event == "alarm":
            self.alarms.set(key, text, child.role, wall_ns())
        elif event == "clear":
            self.alarms.clear(key, child.role)
        elif event == "error":
            self.errors.append((wall_ns(), child.role, text))

    def _become_ready(self) -> None:
        wanted = [child for child in self.children() if child.wanted]
        if not self._is_ready and not self.is_draining and all(child.state is ChildState.READY for child in wanted):
            self._is_ready = True
            self.notifier.ready()
            self.logger.info("ready: %d workers, device %s", sum(child.index >= 0 for child in wanted), self.config.log.device)

    def _ended(self, child: Child) -> None:
        """A child's process is gone: unregister, reap, and decide."""
        assert child.forked is not None
        self._hear(child)  # its last words
        self._unwatch(child.forked.pidfd)
        if child.forked.channel is not None:
            self._unwatch(child.forked.channel.fileno())
        was_draining = child.state is ChildState.DRAINING
        code = child.end()
        child.last_end = _describe_end(code)
        block = self.counters.worker(child.index) if child.index >= 0 else self.counters.writer if child is self.writer else None
        if block is not None:
            block.set("state", State.STOPPED)
        self.alarms.ended(child.role)
        if child.index >= 0:
            self.writer.tell({"op": "worker-dead", "worker": child.index, "generation": child.generation})
        if was_draining:
            self._drained(child, code)
        else:
            self._died(child, code)

    def _drained(self, child: Child, code: int) -> None:
        if code == 0 or child is self.redis:
            self.logger.info("%s has drained and ended", child.role)
            return
        text = f"{child.role} {child.last_end} while draining"
        self.errors.append((wall_ns(), child.role, text))
        self.logger.error("%s", text)
        if child is self.writer:
            self._final = ExitStatus.DRAIN_INCOMPLETE

    def _died(self, child: Child, code: int) -> None:
        now_ns = monotonic_ns()
        supervisor = self.config.supervisor
        text = f"{child.role} {child.last_end}"
        self.errors.append((wall_ns(), child.role, text))
        self.logger.error("%s", text)
        if child is not self.redis and code in FATAL:
            self.logger.critical("%s: a restart would only repeat it; stopping", child.role)
            self._final = ExitStatus(code)
            self.drain(text)
            return
        if self.is_draining:
            child.step(ChildEvent.GIVEN_UP)
            if child is self.writer:
                self._final = ExitStatus.DRAIN_INCOMPLETE
            return
        count = child.deaths.add(now_ns, supervisor.crash_loop_window_s * SECOND_NS)
        if count > supervisor.crash_loop_limit:
            self.logger.critical("%s died %d times within %d s; stopping", child.role, count, supervisor.crash_loop_window_s)
            self._final = ExitStatus.CRASH_LOOP
            self.drain(f"crash loop of {child.role}")
            return
        backoff_ns = child.deaths.backoff_ns(supervisor.restart_backoff_ms, supervisor.restart_backoff_max_ms)
        child.due_ns = now_ns + backoff_ns
        if not child.wanted:
            child.step(ChildEvent.GIVEN_UP)
        elif backoff_ns:
            self.logger.warning("%s is started again in %.1f s", child.role, backoff_ns / SECOND_NS)

    # -- progress ----------------------------------------------------------------------------------------------------------------------

    def _check_progress(self, now_ns: int) -> bool:
        """Kill what hangs. True when every role makes progress, or is known to wait for the device."""
        config = self.config
        stall_ns = max(15, 3 * config.redis.socket_timeout_ms // 1000) * SECOND_NS
        progress = True
        for child in self.workers:
            if child.state in (ChildState.READY, ChildState.STARTING, ChildState.DRAINING) and child.is_running:
                block = self.counters.worker(child.index)
                stall = judge_worker(
                    now_ns, block.get("heartbeat_ns"), block.get("busy_since_ns"), config.pipeline.batch_timeout_ms * 1_000_000, stall_ns
                )
                progress &= stall is None
                if stall is not None:
                    self._stalled(child, self._with_lanes(child, stall.text))
            elif child.wanted and child.state is not ChildState.WAITING and not self.is_draining:
                progress = False
        if self.writer.is_running:
            block = self.counters.writer
            verdict = judge_writer(
                now_ns, block.get("heartbeat_ns"), block.get("oldest_write_ns"), block.get("state") == State.RECOVERING,
                config.supervisor.write_stuck_s * SECOND_NS, stall_ns,
            )  # fmt: skip
            if verdict is None:
                self.alarms.clear("device", "supervisor")
            elif verdict.kill:
                progress = False
                self._stalled(self.writer, verdict.text)
            else:
                text = f"device {config.log.device}: {verdict.text}; the writer {_kernel_state(self.writer.pid)}. Entries wait in Redis"
                self.alarms.set("device", text, "supervisor", wall_ns())
        return progress

    def _with_lanes(self, child: Child, text: str) -> str:
        lanes = self.counters.lanes
        names = [
            row.name.decode("utf-8", "replace") for row in lanes.rows() if row.worker == child.index and lanes.read_trial(row.lane_id)[3]
        ]
        return f"{text}, lane {', '.join(names[:3])}" if names else text

    def _stalled(self, child: Child, text: str) -> None:
        if child.stall:
            return  # killed already, the kernel is at it
        child.stall = text
        self.logger.error("%s: %s; killed", child.role, text)
        self.errors.append((wall_ns(), child.role, f"{text}; killed"))
        if child.index >= 0 and self.counters.worker(child.index).get("busy_since_ns"):
            self.counters.supervisor.add("stage_kills")
        child.kill()

    # -- draining ----------------------------------------------------------------------------------------------------------------------

    def drain(self, why: str) -> None:
        """Stop reading, let what is in flight become durable, end. Again: nothing happens."""
        if self.is_draining:
            return
        now_ns = monotonic_ns()
        self.is_draining = True
        self._drain_began_ns = now_ns
        self._drain_deadline_ns = now_ns + self.config.supervisor.drain_timeout_s * SECOND_NS
        self.logger.info("draining: %s; at most %d s", why, self.config.supervisor.drain_timeout_s)
        self.notifier.stopping("draining: workers")
        self.notifier.extend(self.config.supervisor.drain_timeout_s + 5)
        for child in self.workers:
            if child.state is not ChildState.DRAINING:
                child.drain()
        if not self.writer.is_running:
            self.writer.drain()
        self._continue_draining(now_ns)

    def _continue_draining(self, now_ns: int) -> None:
        if self._exit is not None:
            return
        if now_ns > self._drain_deadline_ns:
            late = [child.role for child in self.children() if child.is_running]
            self.logger.error("not drained within %d s: %s", self.config.supervisor.drain_timeout_s, ", ".join(late))
            self._give_up(ExitStatus.DRAIN_INCOMPLETE)
        elif any(child.is_running for child in self.workers):
            if not self.writer.is_running:  # nobody can empty the rings
                for child in self.workers:
                    child.kill()
        elif self.writer.is_running:
            if self.writer.state is not ChildState.DRAINING:
                self.notifier.stopping("draining: writer")
                self.writer.drain()
        elif self.redis is not None and self.redis.is_running:
            if self.redis.state is not ChildState.DRAINING:
                self.notifier.stopping("stopping the embedded server")
                self.redis.drain()
        else:
            self.logger.info("drained in %.2f s", (now_ns - self._drain_began_ns) / SECOND_NS)
            self._exit = self._final

    def _give_up(self, status: ExitStatus) -> None:
        self._exit = self._final if self._final is not ExitStatus.OK else status


def _describe_end(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    try:
        return f"ended with status {code} ({ExitStatus(code).name})"
    except ValueError:
        return f"ended with status {code}"


def _kernel_state(pid: int) -> str:
    """What the kernel says the writer is doing; D: it sleeps in the device and cannot even be killed."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "is gone"
    return "sleeps in the device (D state)" if letter == "D" else f"is in state {letter}"
