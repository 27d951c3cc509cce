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
from hdad.metrics.counters import Counters, RoleBlock, State
from hdad.supervise.family import Child, describe_end, kernel_state
from hdad.supervise.handover import Handover
from hdad.supervise.node import Node
from hdad.supervise.notify import Notifier
from hdad.supervise.progress import Progress
from hdad.supervise.spawn import Forked, has_ended
from hdad.supervise.standing import Standing
from hdad.supervise.states import ChildEvent, ChildState
from hdad.writer.role import Role

TICK_S: Final = 0.1
DEVICE_FAILED: Final = "device-failed"  # an alarm's key
SECOND_NS: Final = 1_000_000_000
KILLED_WITHIN_NS: Final = 2 * SECOND_NS  # SIGKILL takes milliseconds, unless the kernel waits for a device
ERRORS_KEPT: Final = 50  # LIMIT: last errors in status
FATAL: Final = frozenset(
    (ExitStatus.CONFIG, ExitStatus.DAMAGED, ExitStatus.FOREIGN, ExitStatus.FENCED, ExitStatus.BUSY, ExitStatus.USAGE)
)  # a child's end that a restart would only repeat
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Roles(NamedTuple):
    """How children are started; the composition root knows. Each is given the generation. Without ``writer`` a ``link`` is in its place."""

    writer: Callable[[int], Forked] | None
    worker: Callable[[int], Callable[[int], Forked]]
    redis: Callable[[int], Forked] | None = None
    is_redis_up: Callable[[], bool] = lambda: True
    link: Callable[[int], Forked] | None = None
    feed: Callable[[int], Forked] | None = None


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
        self.writer = Child("writer", roles.writer) if roles.writer is not None else None
        self.link = Child("link", roles.link) if roles.link is not None else None
        self.feed = Child("feed", roles.feed) if roles.feed is not None else None
        taker = self.writer or self.link
        assert taker is not None, "the configuration was checked: a device, or a writer elsewhere"
        self.taker = taker  # where the rings of local workers end
        self.link_report: dict[str, Any] = {}  # the link's newest
        self.workers = [Child(f"worker-{index}", roles.worker(index), index) for index in range(config.workers.count_max)]
        for worker in self.workers:
            worker.wanted = worker.index < config.workers.count
        self.redis = Child("redis", roles.redis) if roles.redis is not None else None
        self._is_redis_up = roles.is_redis_up
        self.node = Node()
        self.handover = Handover(self.node, self.writer, self.link, bool(config.link.writers))
        self.alarms = Standing()
        self.errors: deque[tuple[int, str, str]] = deque(maxlen=ERRORS_KEPT)
        self.is_draining = False
        self.is_paused = False
        self.paused_lanes: set[str] = set()
        self.changed_values: dict[str, Any] = {}  # keys that were reloaded: a worker that starts later is told
        self.on_reload: Callable[[], object] = lambda: None
        self.describe_device: Callable[[], str] = lambda: ""  # how its paths are, for an alarm; must not wait
        self.describe_paths: Callable[[], dict[str, Any] | None] = lambda: None  # the same for the status page; None: it has none
        self.on_tick: list[Callable[[int], None]] = []
        self.close_fds: list[Callable[[], Iterable[int]]] = []
        self._is_ready = False
        self._drain_deadline_ns = 0
        self._drain_began_ns = 0
        self._exit: ExitStatus | None = None
        self._final = ExitStatus.OK
        self._watchdog_due_ns = 0
        self._interrupts = 0
        self._progress = Progress(self)
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
        """Until drained or failed. Children are dead when it returns, or cannot be before the device answers."""
        self.notifier.status("starting")
        while self._exit is None:
            for key, mask in self.selector.select(TICK_S):
                key.data(mask)
            self._tick(monotonic_ns())
        self._end_children()
        return self._exit

    def _end_children(self) -> None:
        """Kill and reap what still runs. What the kernel holds in the device (D state) dies when the device answers: it is left to that."""
        running = [child for child in self.children() if child.is_running]
        for child in running:
            child.wanted = False
            child.kill()
        deadline_ns = monotonic_ns() + KILLED_WITHIN_NS
        for child in running:
            assert child.forked is not None
            if has_ended(child.forked, max(0, deadline_ns - monotonic_ns()) / SECOND_NS):
                child.end()
            else:
                self.logger.error(
                    "%s (pid %d) is killed, but %s: it holds the device until that answers", child.role, child.pid, kernel_state(child.pid)
                )

    def children(self) -> list[Child]:
        """All, in the order in which they are started."""
        return [child for child in (self.redis, self.writer, self.link, self.feed, *self.workers) if child is not None]

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
        progress = self._progress.check(now_ns)
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
        elif (block_of := self.block_of(child)) is not None:
            block_of.set("heartbeat_ns", 0)
        forked = child.start()
        self.selector.register(forked.pidfd, selectors.EVENT_READ, lambda _mask: self._ended(child))
        if forked.channel is not None:
            self.selector.register(forked.channel.fileno(), selectors.EVENT_READ, lambda _mask: self._hear(child))
        if child is self.link:
            self.handover.link_started()
        if child.index >= 0:
            if self.changed_values:
                child.tell({"op": "reload", "config": self.changed_values})
            if self.is_paused:
                child.tell({"op": "pause"})
            elif self.paused_lanes:
                child.tell({"op": "pause", "lanes": sorted(self.paused_lanes)})
        self.logger.info("%s started, pid %d", child.role, child.pid)

    def block_of(self, child: Child) -> RoleBlock | None:
        """Its counters; a foreign program has none."""
        if child.index >= 0:
            return self.counters.worker(child.index)
        blocks = {"writer": self.counters.writer, "link": self.counters.link, "feed": self.counters.feed}
        return blocks.get(child.role)

    def beat_of(self, child: Child) -> int:
        """Monotonic time of its last round; 0: none yet, or a foreign program."""
        block = self.block_of(child)
        return block.get("heartbeat_ns") if block is not None else 0

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
            if child is self.writer:
                self.set_alarm(DEVICE_FAILED, "")
            self._become_ready()
        elif event == "role":
            self.handover.heard(message)
            self.node.heard(message)
            self.handover.where()
        elif event == "has-let-go":
            self.handover.has_let_go()
        elif event == "alarm":
            self.set_alarm(key, text, child.role)
        elif event == "clear":
            self.alarms.clear(key, child.role)
        elif event == "error":
            self.errors.append((wall_ns(), child.role, text))
        elif event == "link":
            self.link_report = message

    def set_alarm(self, key: str, text: str, role: str = "supervisor") -> None:
        """Raise an alarm, change its text, or end it with an empty one."""
        if text:
            self.alarms.set(key, text, role, wall_ns())
        else:
            self.alarms.clear(key, role)

    def _become_ready(self) -> None:
        wanted = [child for child in self.children() if child.wanted]
        if not self._is_ready and not self.is_draining and all(child.state is ChildState.READY for child in wanted):
            self._is_ready = True
            self.notifier.ready()
            end = f"device {self.config.log.device}" if self.writer is not None else f"writer at {', '.join(self.config.link.writers)}"
            self.logger.info("ready: %d workers, %s", sum(child.index >= 0 for child in wanted), end)

    def _ended(self, child: Child) -> None:
        """A child's process is gone: unregister, reap, and decide."""
        assert child.forked is not None
        self._hear(child)  # its last words
        self._unwatch(child.forked.pidfd)
        if child.forked.channel is not None:
            self._unwatch(child.forked.channel.fileno())
        was_draining = child.state is ChildState.DRAINING
        code = child.end()
        child.last_end = describe_end(code)
        block = self.block_of(child)
        if block is not None:
            block.set("state", State.STOPPED)
        if child is self.writer:
            self.node.ended(code)
        elif child is self.link:
            self.handover.has_let_go()
        self.alarms.ended(child.role)
        if child.index >= 0:
            for taker in (self.writer, self.link):
                if taker is not None:
                    taker.tell({"op": "worker-dead", "worker": child.index, "generation": child.generation})
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
        if child is self.taker:
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
            if child is self.taker:
                self._final = ExitStatus.DRAIN_INCOMPLETE
            return
        # A device that is away is no crash loop: it is tried again until it is back, as long as that takes.
        is_away = child is self.writer and self._is_ready and code == ExitStatus.DEVICE
        deaths = child.failures if is_away else child.deaths
        count = deaths.add(now_ns, supervisor.crash_loop_window_s * SECOND_NS)
        if count > supervisor.crash_loop_limit and not is_away:
            self.logger.critical("%s died %d times within %d s; stopping", child.role, count, supervisor.crash_loop_window_s)
            # A device that fails again and again may be well by the next start (systemd tries); what else dies again and again will not be.
            self._final = ExitStatus.DEVICE if code == ExitStatus.DEVICE else ExitStatus.CRASH_LOOP
            self.drain(f"crash loop of {child.role}")
            return
        backoff_ns = deaths.backoff_ns(supervisor.restart_backoff_ms, supervisor.restart_backoff_max_ms)
        child.due_ns = now_ns + backoff_ns
        if is_away:
            self._device_failed()
        if not child.wanted:
            child.step(ChildEvent.GIVEN_UP)
        elif backoff_ns:
            self.logger.warning("%s is started again in %.1f s", child.role, backoff_ns / SECOND_NS)

    def _device_failed(self) -> None:
        said = next((text for _, role, text in reversed(self.errors) if role == "writer" and text != self.errors[-1][2]), "")
        how = ": ".join(filter(None, (f"device {self.config.log.device}", self.describe_device())))
        self.set_alarm(DEVICE_FAILED, f"{how} fails, and is tried again until it is back; entries wait in Redis. {said}")

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
        for service in (self.link, self.feed):
            if service is not None and service is not self.taker:
                service.drain()  # remote workers finish while the local ones do
        if not self.taker.is_running:
            self.taker.drain()
        self._continue_draining(now_ns)

    def _continue_draining(self, now_ns: int) -> None:
        if self._exit is not None:
            return
        if now_ns > self._drain_deadline_ns:
            late = [child.role for child in self.children() if child.is_running]
            self.logger.error("not drained within %d s: %s", self.config.supervisor.drain_timeout_s, ", ".join(late))
            self._give_up(ExitStatus.DRAIN_INCOMPLETE)
        elif any(child.is_running for child in self.workers):
            is_idle = self.node.role is Role.STANDBY and not self.handover.is_forwarding
            if not self.taker.is_running or is_idle:  # nobody empties the rings
                for child in self.workers:
                    child.kill()
        elif self.link is not None and self.link is not self.taker and self.link.is_running:
            if not self.taker.is_running:  # nor those of remote workers
                self.link.kill()
        elif self.taker.is_running:
            if self.taker.state is not ChildState.DRAINING:
                self.notifier.stopping(f"draining: {self.taker.role}")
                self.taker.drain()
        elif self.feed is not None and self.feed.is_running:
            pass  # told already; it has nothing to finish
        elif self.redis is not None and self.redis.is_running:
            if self.redis.state is not ChildState.DRAINING:
                self.notifier.stopping("stopping the embedded server")
                self.redis.drain()
        else:
            self.logger.info("drained in %.2f s", (now_ns - self._drain_began_ns) / SECOND_NS)
            self._exit = self._final

    def _give_up(self, status: ExitStatus) -> None:
        self._exit = self._final if self._final is not ExitStatus.OK else status
