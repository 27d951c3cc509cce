"""What a worker knows of one lane it reads. Owned by the worker's loop; plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from hdad.metrics.lanes import LaneState
from hdad.record import ORIGIN, Position
from hdad.source.cursor import UNKNOWN_ORDINAL
from hdad.source.redis_edge import encode_name
from hdad.worker.stage import Stage


@dataclass(slots=True)
class Suspect:
    """Entries on which earlier workers died: ``count`` of them from ``first`` to ``last``, ``attempts`` times."""

    first: Position
    last: Position
    count: int
    attempts: int


@dataclass(slots=True, eq=False)
class Lane:
    """One lane under one epoch. Positions: ``durable`` <= ``framed`` <= ``read``."""

    lane_id: int
    name: bytes
    epoch: int
    read: Position  # newest entry taken from Redis
    framed: Position  # end of the newest published frame
    durable: Position = ORIGIN  # newest position the writer called durable
    ordinal: int = UNKNOWN_ORDINAL  # of ``read``; see source/cursor
    durable_ordinal: int = UNKNOWN_ORDINAL
    lost: int = 0  # to declare with the next frame
    state: LaneState = LaneState.IDLE
    stages: list[Stage] = field(default_factory=list)
    suspect: Suspect | None = None
    key: bytes = b""  # the name as XREAD takes it
    busy: bool = False  # it had entries when it was read last
    known_added: int = 0  # entries-added at the last look
    known_last: Position = ORIGIN  # last-generated-id at the last look, or the newest entry read
    anchor: Position = ORIGIN  # where it stood at the last look, or when the connection was made
    is_proven: bool = False  # on this connection, the count of entries was right at some place: the stream is the one that was read
    mark: tuple[Position, int] | None = None  # last-generated-id and entries-added of a look: reading past it shall prove the lane
    is_dropped: bool = False  # no longer read here
    shown: tuple[Position, int] = (ORIGIN, UNKNOWN_ORDINAL)  # the position that Redis' group shows, and how many entries it calls read
    is_refused: bool = False  # Redis did not take it when it was told last; told again
    trimmed: Position = ORIGIN

    def __post_init__(self) -> None:
        self.key = encode_name(self.name)
        self.anchor = self.read

    @property
    def stream(self) -> str:
        """The name as text; bytes that are not UTF-8 are surrogate-escaped."""
        return self.name.decode("utf-8", "surrogateescape")

    @property
    def has_news(self) -> bool:
        """True: Redis' group does not show what is durable. The count may change alone: of losses that were found later."""
        return self.durable > ORIGIN and (self.durable, self.durable_ordinal) != self.shown

    @property
    def halted(self) -> bool:
        """True: not read until an operator or the stream itself changes something."""
        return self.state in (LaneState.HALTED_REWOUND, LaneState.WRONG_TYPE, LaneState.PAUSED)

    def doubt(self) -> None:
        """Another server may answer now: what it has before this was never ours to see, and nothing is trimmed until it is proven."""
        self.anchor = self.read
        self.is_proven, self.mark = False, None

    def advance(self, to: Position, entry_count: int) -> None:
        """``entry_count`` entries up to ``to`` were taken from Redis."""
        self.read = to
        self.known_last = max(self.known_last, to)
        if self.ordinal != UNKNOWN_ORDINAL:
            self.ordinal += entry_count
