"""Comparing lanes with their streams: losses, rewinds, deletions, wrong types (DESIGN 8). Detected and declared, never guessed.

Runs in a worker, only while no reply is on its way for the lanes looked at, so that a look and a lane's position belong together.
The rules are in source/cursor; here is what follows from a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hdad.alarms import Alarms
from hdad.metrics.counters import RoleBlock
from hdad.metrics.lanes import LaneState
from hdad.record import ORIGIN
from hdad.source.cursor import UNKNOWN_ORDINAL, Finding, StreamInfo, examine, examine_copy
from hdad.source.redis_edge import HotConnection, Missing, RedisEdge, WrongType
from hdad.worker.lane import Lane

LANES_PER_LOOK: int = 512  # LIMIT: streams in one exchange of XINFO STREAM


class Inspector:
    """``on_halt`` tells the writer to keep a lane halted; ``on_rebase`` that its ordinals begin anew; ``on_lost`` what was lost."""

    def __init__(
        self, edge: RedisEdge, alarms: Alarms, block: RoleBlock, on_halt: Callable[[Lane], None], on_rebase: Callable[[Lane], None],
        on_lost: Callable[[Lane, int], None],
    ) -> None:  # fmt: skip
        self._edge = edge
        self._alarms = alarms
        self._block = block
        self._on_halt = on_halt
        self._on_rebase = on_rebase
        self._on_lost = on_lost
        self.is_copy_behind = False  # in the last look, a replica had nothing for a lane whose master has something

    def look(self, lanes: Sequence[Lane], copy: HotConnection | None = None) -> list[Lane]:
        """Compare ``lanes`` (at most LANES_PER_LOOK) with their streams; ``copy``: they are read from this replica. Raises SourceError.

        Returns lanes whose unread entries are all gone: a frame without records must carry their count up to ``known_last``.
        """
        names = [lane.name for lane in lanes]
        copies = self._edge.copy_infos(copy, names) if copy is not None else None
        infos = self._edge.stream_infos(names)  # after the copies: what a copy has, its master has
        self.is_copy_behind = False
        to_declare = []
        for index, (lane, info) in enumerate(zip(lanes, infos, strict=True)):
            copied = copies[index] if copies is not None else info
            if isinstance(info, WrongType):
                self._wrong_type(lane)
            elif isinstance(info, Missing):
                if isinstance(copied, Missing):
                    self._gone(lane)
            elif lane.state != LaneState.HALTED_REWOUND:
                is_behind = not isinstance(copied, StreamInfo) or copied.last <= lane.read
                self.is_copy_behind |= copies is not None and is_behind and info.last > lane.read
                if self._compared(lane, info, (copied if isinstance(copied, StreamInfo) else None, copies is not None)):
                    to_declare.append(lane)
        return to_declare

    def _gone(self, lane: Lane) -> None:
        lane.anchor = lane.read
        if lane.state == LaneState.HALTED_REWOUND or (lane.read == ORIGIN and not lane.known_added):
            return  # halted is worse; and a stream that nobody made yet is no news
        lane.state = LaneState.GONE
        unread = lane.known_added - lane.ordinal if lane.ordinal != UNKNOWN_ORDINAL and lane.known_added > lane.ordinal else 0
        what = f"at least {unread} of its entries had not been read" if unread else "all its known entries had been read"
        self._alarms.set(_key(lane), f"stream {lane.stream} was deleted; {what}. It is read again when it comes back")

    def _wrong_type(self, lane: Lane) -> None:
        if lane.state != LaneState.HALTED_REWOUND:
            lane.state = LaneState.WRONG_TYPE
            self._alarms.set(_key(lane), f"key {lane.stream} is no stream; its lane waits until it is one again")

    def _compared(self, lane: Lane, info: StreamInfo, where_read: tuple[StreamInfo | None, bool]) -> bool:
        """``where_read``: the stream where it is read, and whether that is a replica. True: a frame of its own must declare a loss."""
        copied, is_copy = where_read
        if is_copy:
            said = examine_copy(lane.read, lane.ordinal, copied, info, lane.anchor)
            if said is None:
                lane.known_added = max(lane.known_added, info.entries_added)
                return False
            found = said
        else:
            found = examine(lane.read, lane.ordinal, info, lane.anchor)
        read_info = copied if copied is not None else info
        lane.anchor = lane.read
        if found.finding is Finding.REWOUND:
            lane.state = LaneState.HALTED_REWOUND
            self._alarms.tell(  # the writer raises the alarm, and keeps it as long as the lane is halted
                f"stream {lane.stream} went backwards: the log has it up to {lane.read}, its newest entry is {info.last} "
                f"({info.entries_added} entries ever added). Its lane is halted; see: hdactl lane accept --help",
            )
            self._on_halt(lane)
            return False
        lost = found.lost
        if found.finding is Finding.RESTARTED:
            lost = max(0, lane.known_added - lane.ordinal)
            self._alarms.tell(f"stream {lane.stream} began anew; all its {info.length} entries come after {lane.read}, so reading goes on")
        lane.ordinal = found.ordinal
        if found.is_exact:
            lane.is_proven, lane.mark = True, None
        elif not lane.is_proven and lane.mark is None:
            lane.mark = info.last, info.entries_added
        lane.known_added, lane.known_last = info.entries_added, max(read_info.last, lane.read)
        if lane.state in (LaneState.GONE, LaneState.WRONG_TYPE):
            lane.state = LaneState.IDLE
        self._alarms.clear(_key(lane), f"stream {lane.stream} is there again")
        if lost:
            if read_info.last == lane.read and found.finding is Finding.LOST:
                self._on_lost(lane, lost)  # no entry is left whose frame could carry the number
            else:
                lane.lost += lost
            self._block.add("lost", lost)
            self._alarms.tell(f"stream {lane.stream}: {lost} entries after {lane.read} were trimmed or deleted before they were read")
        if found.finding is Finding.RESTARTED:
            self._on_rebase(lane)
        return bool(lane.lost) and read_info.length == 0 and read_info.last > lane.read


def _key(lane: Lane) -> str:
    return f"lane:{lane.stream}"
