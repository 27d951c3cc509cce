"""The worker's loop: messages from the writer, reads from Redis, frames into the ring, and chores at their times.

Runs in a worker, one thread. ``run_once`` does what can be done without waiting and says whether it was anything; ``wait`` sleeps until
something may have changed. Owns the lanes assigned to this worker. It never decides a lane's position: the writer's ASSIGN does, and
after an error or a refusal reading goes on from there (I2).
"""

from __future__ import annotations

import logging
import random
import select
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from hdad.alarms import Alarms
from hdad.errors import SourceError
from hdad.exchange.backring import Message, MessageType, decode
from hdad.exchange.channel import Channel
from hdad.exchange.slots import WorkerSlot, ring_bell
from hdad.metrics.counters import Counters, State
from hdad.metrics.lanes import LaneState
from hdad.source.redis_edge import RedisEdge
from hdad.worker.backoff import Backoff
from hdad.worker.chores import Chores
from hdad.worker.following import Following
from hdad.worker.frames import FrameBuilder
from hdad.worker.harvest import Harvester, dead_letter_record
from hdad.worker.lane import Lane
from hdad.worker.pace import Pace
from hdad.worker.port import Port
from hdad.worker.stage import DeadLetter, Router, describe
from hdad.worker.trial import Trials

if TYPE_CHECKING:
    from hdad.config import Config

WAIT_NS_MAX: Final = 500_000_000  # a heartbeat at least this often
HEAR_NS: Final = 1_000_000  # under load, the supervisor is listened to so often
SECOND_NS: Final = 1_000_000_000


class WorkerLoop:
    """See the module. ``slot`` is this worker's; ``generation`` grows with each process that takes the slot."""

    def __init__(self, slot: WorkerSlot, generation: int, counters: Counters, channel: Channel, config: Config, router: Router) -> None:
        self._slot = slot
        self.index = slot.index
        self.generation = generation
        self.block = counters.worker(slot.index)
        self.table = counters.lanes
        self._channel = channel
        self._config = config
        self._router = router
        self._logger = logging.getLogger("hdad.worker")
        self.alarms = Alarms(channel, self._logger)
        self.edge = RedisEdge(config.redis)
        self.lanes: dict[int, Lane] = {}
        self.ports: dict[int, Port] = {}
        self.frames = FrameBuilder(slot.data, slot.index, config.log.frame_bytes_max)
        self._trials = Trials(self.table)
        self._harvester = Harvester(self.frames, self.block, self._trials, config.redis.entry_bytes_max, self._is_current)
        self.notices: deque[dict[str, Any]] = deque()  # for the writer, as HELLOs; bounded by lanes
        self.chores = Chores(self, config)
        self._following = Following(self, config.redis)
        self._pace = Pace()
        self._is_welcome = False
        self._is_watching = False  # True: the writer rings the back bell when it has published
        self._is_spoken_to = True
        self._hear_due_ns = 0
        self._poll: select.epoll | None = None
        self.is_paused = False
        self.is_draining = False
        self._state = State.NONE
        self._backoff = Backoff()
        self.set_state(State.STARTING)
        self.chores.introduce()  # a writer that starts later asks again

    # -- what others ask -------------------------------------------------------------------------------------------------------

    @property
    def is_drained(self) -> bool:
        """True: nothing of this worker is on its way any more."""
        return self.is_draining and self._slot.data.head == self._slot.data.tail and not any(port.harvest for port in self.ports.values())

    @property
    def is_orphaned(self) -> bool:
        """True: the supervisor is gone."""
        return self._channel.closed_by_peer

    @property
    def is_source_fine(self) -> bool:
        """True: nowhere has a read failed since the last connection."""
        return not any(port.failures for port in self.ports.values())

    def set_state(self, state: State) -> None:
        """Show it in the counters."""
        if state != self._state:
            self._state = state
            self.block.set("state", state)

    def _is_current(self, lane: Lane) -> bool:
        return self.lanes.get(lane.lane_id) is lane

    # -- one round ---------------------------------------------------------------------------------------------------------------

    def run_once(self, now_ns: int) -> bool:
        """One bounded round. True when anything was done."""
        self.block.set("heartbeat_ns", now_ns)
        work = False
        if self._is_spoken_to or now_ns >= self._hear_due_ns:
            work = self._hear_supervisor(now_ns)
        work |= self._hear_writer()
        if self.notices:
            work |= self._send_hello()
        for port in list(self.ports.values()):
            work |= self._read(port, now_ns)
        if now_ns >= self.chores.due_ns:
            work |= self.chores.run(now_ns)
        if self.is_paused and not any(port.request or port.harvest for port in self.ports.values()):
            self.set_state(State.PAUSED)
        self._wake_writer()
        self.block.set("frames", self.frames.frames)
        self.block.set("records", self.frames.records)
        return work

    def _wake_writer(self) -> None:
        if self.frames.wake_writer:
            self.frames.wake_writer = False
            ring_bell(self._slot.data_bell)

    def wait(self, now_ns: int) -> None:
        """Sleep until the writer, Redis or the supervisor has something, or a chore is due."""
        due_ns = min(now_ns + WAIT_NS_MAX, self.chores.due_ns)
        poll = self._poll
        if poll is None:
            poll = self._poll = select.epoll()
            poll.register(self._slot.back_bell, select.EPOLLIN | select.EPOLLET)  # an edge for each ring: the counter is never read
            poll.register(self._channel.fileno(), select.EPOLLIN)
        for port in self.ports.values():
            if port.hot is None:
                due_ns = min(due_ns, port.retry_ns) if port.lanes else due_ns
            elif port.watched is not port.hot:
                poll.register(port.fileno(), select.EPOLLIN)  # the kernel forgets it when the connection is closed
                port.watched = port.hot
        if self._config.workers.busy_poll:
            due_ns = now_ns
        back = self._slot.back
        if self._is_watching:
            if back.tail != back.head:
                return
        else:
            self._is_watching = True
            if back.consumer_sleep(back.head):
                return
        ready = [fd for fd, _ in poll.poll(max(0, due_ns - now_ns) / SECOND_NS)]
        self._is_spoken_to = self._channel.fileno() in ready
        for port in self.ports.values():
            port.is_readable = port.hot is not None and port.fileno() in ready

    # -- what the supervisor says -----------------------------------------------------------------------------------------------------

    def _hear_supervisor(self, now_ns: int) -> bool:
        self._is_spoken_to, self._hear_due_ns = False, now_ns + HEAR_NS
        messages = self._channel.receive()
        for message in messages:
            op = message.get("op")
            if op == "drain":
                self.is_draining = True
                self.set_state(State.DRAINING)
            elif op in ("pause", "resume"):
                self._pause(op == "pause", message.get("lanes"))
            elif op == "log-level":
                logging.getLogger().setLevel(str(message.get("level", "info")).upper())
            elif op == "reload":
                self.chores.reload(message.get("config", {}))
        return bool(messages)

    def _pause(self, pause: bool, names: list[str] | None) -> None:
        if names is None:
            self.is_paused = pause
            if not pause:
                self.set_state(State.READY)
        self.chores.pause_lanes(pause, names)
        for port in self.ports.values():
            self.interrupt(port)

    # -- what the writer says ---------------------------------------------------------------------------------------------------------

    def _hear_writer(self) -> bool:
        back = self._slot.back
        if back.tail == back.head:
            return False
        if self._is_watching:
            self._is_watching = False
            back.consumer_awake()
        view = back.poll()
        size = len(view)
        messages = decode(view)
        view.release()
        if back.release(size):
            ring_bell(self._slot.data_bell)  # the writer waits for room in the back ring
        for message in messages:
            self._obey(message)
        return True

    def _obey(self, message: Message) -> None:
        if message.type is MessageType.WHO:
            for old in list(self.lanes.values()):
                self._drop_lane(old)
            self._is_welcome = False
            self.chores.introduce()
            return
        if message.type is MessageType.WELCOME:
            self._is_welcome = message.extra == self.generation
            return
        if not self._is_welcome:
            return  # it was for the worker before this one
        lane = self.lanes.get(message.lane_id)
        if message.type in (MessageType.ASSIGN, MessageType.REFUSED):
            if message.type is MessageType.REFUSED:
                self._logger.info("lane %r: the writer refused a frame; reading goes on from %s", message.name, message.position)
            self._take_lane(message)
        elif message.type is MessageType.REVOKE and lane is not None:
            self._drop_lane(lane)
        elif message.type is MessageType.DURABLE and lane is not None and message.lane_epoch == lane.epoch:
            lane.durable, lane.durable_ordinal = message.position, message.extra
            self.chores.has_news = True

    def _take_lane(self, message: Message) -> None:
        name = message.name
        old = self.lanes.get(message.lane_id)
        if old is not None:
            self._drop_lane(old)
        start = message.position
        lane = Lane(message.lane_id, name, message.lane_epoch, start, start, ordinal=message.extra)  # durable: when DURABLE says so
        lane.stages = self._router.stages_for(lane.stream)
        lane.known_last = start
        self._trials.recall(lane)
        self.lanes[lane.lane_id] = lane
        slot = self.edge.slot_of(name) if self.edge.is_cluster else 0
        port = self.port(slot, slot)
        port.take(lane)
        self.interrupt(port)

    def port(self, key: int, slot: int) -> Port:
        """The port at ``key`` (a slot, or ~slot for lanes that are ahead of it), made if need be."""
        port = self.ports.get(key)
        if port is None:
            redis = self._config.redis
            port = self.ports[key] = Port(slot, redis.reply_bytes_max, redis.count_max, redis.block_ms, redis.socket_timeout_ms)
        return port

    def interrupt(self, port: Port) -> None:
        """End a waiting read, so that a change of lanes takes effect now."""
        if port.hot is not None and port.request is not None and port.request.is_blocking and not port.is_complete:
            try:
                self.edge.unblock(port.hot, port.lanes[0].name if port.lanes else b"")
            except SourceError as error:
                self._logger.debug("%s", error)  # the read ends by itself after block_ms

    def _drop_lane(self, lane: Lane) -> None:
        lane.is_dropped = True
        if self.lanes.get(lane.lane_id) is lane:
            del self.lanes[lane.lane_id]
            self.alarms.clear(f"lane:{lane.stream}")  # whoever reads it next looks for himself
        for port in self.ports.values():
            port.leave(lane)
            if port.failures and not port.lanes:
                self._succeeded(port)

    def _send_hello(self) -> bool:
        work = False
        while self.notices:
            content = {"worker": self.index, "generation": self.generation, **self.notices[0]}
            if not self.frames.hello(content):
                break
            self.notices.popleft()
            work = True
        return work

    # -- reading --------------------------------------------------------------------------------------------------------------------

    def _read(self, port: Port, now_ns: int) -> bool:
        """Everything that one port can do now."""
        work = False
        if not port.lanes and self.edge.is_cluster and not port.harvest:
            port.close()  # a slot that is read no more needs no connection
            self.ports = {key: other for key, other in self.ports.items() if other is not port}
            return False
        try:
            work |= self._connect(port, now_ns)
            if port.hot is not None and not port.is_complete and (port.is_readable or port.is_silent(now_ns)):
                size = port.receive(now_ns)
                if size and port.has_reply and self.frames.announce():
                    ring_bell(self._slot.data_bell)  # the writer wakes up while the frames are built
                self.block.add("bytes_read", size)
                work |= bool(size)
            if port.harvest:
                work |= self._harvest(port)
            if port.is_complete and not port.harvest:
                work = True
                self._take_reply(port, now_ns)
                self._harvest(port)
                self._ask(port, now_ns)
            elif port.request is None:
                work |= self._ask(port, now_ns)
        except OverflowError:
            self._reply_too_large(port, now_ns)
            work = True
        except (SourceError, ValueError) as error:
            self._lose(port, error, now_ns)
            work = True
        return work

    def _harvest(self, port: Port) -> bool:
        before = self.frames.frames
        is_done = self._harvester.step(port.harvested, port.harvest)
        self.frames.publish()
        self._wake_writer()  # before anything else: it is what entries wait for
        self._pace.published(self._slot.data.tail)
        if not is_done:
            self.block.add("ring_full", 1)
        return is_done or self.frames.frames != before

    def _connect(self, port: Port, now_ns: int) -> bool:
        if port.hot is not None or not port.lanes or now_ns < port.retry_ns:
            return False
        if port.failures:
            self.edge.close()  # a client that failed may hold a stale address (Sentinel, Cluster)
        port.hot = self._following.connect(port)
        port.unchecked = list(port.lanes)
        for lane in port.lanes:
            lane.doubt()
        self._backoff.succeeded()
        self._succeeded(port)
        return True

    def _succeeded(self, port: Port) -> None:
        """It is connected, or needs no connection any more."""
        port.failures = 0
        if self.is_source_fine and self.chores.is_fine:
            self.alarms.clear("redis", "Redis answers again")
        if not (self.is_paused or self.is_draining):
            self.set_state(State.READY)

    def _ask(self, port: Port, now_ns: int) -> bool:
        """Send the next read, if nothing speaks against it. A look at the streams that is due comes first."""
        if port.hot is None or port.request is not None or self.is_paused or self.is_draining:
            return False
        if port.is_asking and now_ns >= port.home_due_ns and not port.harvest:
            self._following.go_home(port)
            return True
        if port.unchecked or now_ns >= port.check_due_ns:
            if port.harvest:
                return False
            self.chores.check(port, now_ns)
            if port.is_copy:
                self._following.looked(port, self.chores.is_copy_behind, now_ns)
        may_read = port.hot is not None and self._pace.may_read(self._slot.data.head, self._slot.data.tail)
        return may_read and port.send(now_ns)

    def _take_reply(self, port: Port, now_ns: int) -> None:
        reply = port.accept()
        self.block.add("reads", 1)
        kind = reply.kind
        if kind == "streams" and self.is_paused:
            port.discard()  # read again after the pause, from the same positions
            return
        if kind == "streams":
            port.redirects = 0
            self.block.add("entries_read", port.begin())
            return
        text = reply.error.decode("utf-8", "replace") if kind == "error" else ""
        asked = [lane for lane, _ in port.request.lanes.values()] if port.request is not None else []
        port.discard()
        if kind == "nil" or text.startswith("UNBLOCKED"):
            port.redirects = 0
            return
        if self.edge.is_cluster and self._following.obey(port, text, asked, now_ns):
            return
        if text.startswith("WRONGTYPE"):
            port.unchecked = list(port.lanes)
            return
        raise SourceError(f"XREAD: {text or 'an answer that is no answer to XREAD'}")

    def _reply_too_large(self, port: Port, now_ns: int) -> None:
        """Ask for less; an entry that alone is too large becomes a dead letter without its bytes."""
        found = port.grow_cautious()
        if found is not None and not port.harvest:
            lane, position = found
            error = f"the entry does not fit redis.reply_bytes_max = {self._config.redis.reply_bytes_max}"
            letter = DeadLetter(position, describe("too large", "", lane.stream, error))
            record = dead_letter_record(letter, b"", self.frames.payload_bytes_max)
            if self._is_current(lane) and self.frames.values(lane, position, [record], 1, 0, 1):
                lane.advance(position, 1)
                self.block.add("dead", 1)
                self.block.add("entries_read", 1)
        port.close()
        port.retry_ns = now_ns

    def _lose(self, port: Port, error: Exception, now_ns: int) -> None:
        """The connection failed: try again later, with growing, jittered pauses. Frames that were built before are as good as any."""
        self.frames.publish()
        port.close()
        if not port.lanes:  # an answer that nobody waits for any more
            return
        port.failures += 1
        if port.is_asking:
            self._following.go_home(port)
        self.edge.close()
        self.block.add("read_errors", 1)
        self.set_state(State.WAITING)
        port.retry_ns = self._backoff.failed(now_ns, random.random())
        text = str(error) if isinstance(error, SourceError) else f"Redis sent something that is no RESP: {error}"
        self.alarms.set("redis", f"{text}; entries wait there, tried again by itself")

    # -- what chores use --------------------------------------------------------------------------------------------------------------

    def declare(self, lane: Lane) -> None:
        """A frame without records: all entries up to the newest that Redis knows of are gone."""
        if self.frames.values(lane, lane.known_last, [], 0, 0, 0):
            lane.advance(lane.known_last, 0)

    def show_lane(self, lane: Lane, now_ns: int) -> None:
        """The worker's columns of the lane table."""
        lag = max(0, lane.known_added - lane.ordinal) if lane.known_added else 0
        state = lane.state
        if state == LaneState.IDLE and lane.busy:
            state = LaneState.READING
        self.table.write_read(lane.lane_id, position=lane.read, lag=lag, state=state, state_since_ns=now_ns)
