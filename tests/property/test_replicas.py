"""Reading a replica: whatever it lags behind by, nothing is taken for a rewind, and what was lost is counted to the number."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from hdad.record import ORIGIN, Position
from hdad.source.cursor import Finding, StreamInfo, examine_copy


@dataclass
class Copy:
    """A stream as one server has it: what was added, and what of it is left. ``done``: operations it has seen."""

    added: int = 0
    left: list[Position] = field(default_factory=list)
    done: int = 0

    def apply(self, operations: list[tuple[str, int]], until: int) -> None:
        """Replication: operations come in order, each once."""
        for what, number in operations[self.done : until]:
            if what == "add":
                for _ in range(number):
                    self.added += 1
                    self.left.append(Position(self.added, 0))
            elif what == "trim":
                del self.left[: min(number, len(self.left))]
        self.done = max(self.done, until)

    @property
    def info(self) -> StreamInfo | None:
        if not self.done:
            return None
        return StreamInfo(len(self.left), self.added, Position(self.added, 0), self.left[0] if self.left else None)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5)),
        st.tuples(st.just("trim"), st.integers(1, 5)),
        st.tuples(st.just("replicate"), st.integers(1, 4)),
        st.tuples(st.just("switch"), st.integers(0, 1)),
        st.tuples(st.just("read"), st.integers(1, 6)),
        st.tuples(st.just("look"), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_a_lagging_replica_halts_nothing_and_losses_are_exact(happened: list[tuple[str, int]]) -> None:
    primary, copies = Copy(), [Copy(), Copy()]
    operations: list[tuple[str, int]] = []
    at, position, ordinal, read, lost = 0, ORIGIN, 0, list[Position](), 0

    def look() -> None:
        nonlocal ordinal, lost
        found = examine_copy(position, ordinal, copies[at].info, primary.info)
        if found is None:
            return
        assert found.finding in (Finding.FINE, Finding.LOST)
        ordinal, lost = found.ordinal, lost + found.lost
        if found.is_exact:
            gone = [number for number in range(position.ms + 1, ordinal + 1) if Position(number, 0) in primary.left]
            assert ordinal >= position.ms and not gone, "proven, and wrong"

    def take(count: int) -> None:
        nonlocal position, ordinal
        for entry in [entry for entry in copies[at].left if entry > position][:count]:
            read.append(entry)
            position, ordinal = entry, ordinal + 1

    for what, number in happened:
        if what in ("add", "trim"):
            operations.append((what, number))
            primary.apply(operations, len(operations))
        elif what == "replicate":
            copies[at].apply(operations, min(len(operations), copies[at].done + number))
        elif what == "switch":
            at = number
            look()
        elif what == "read":
            take(number)
        else:
            look()
    for copy in copies:
        copy.apply(operations, len(operations))
    look()
    take(1000)
    look()
    assert read == sorted(set(read))
    assert len(read) + lost == primary.added or (not primary.left and position < Position(primary.added, 0))
    assert len(read) + lost <= primary.added
    assert set(primary.left) <= set(read)


@given(steps, st.integers(1, 10))
def test_what_the_master_lost_halts_the_lane_whatever_its_replica_says(happened: list[tuple[str, int]], gone: int) -> None:
    copy = Copy()
    operations = [(what, number) for what, number in [*happened, ("add", gone)] if what in ("add", "trim")]
    copy.apply(operations, len(operations))
    position = Position(copy.added, 0)
    older = StreamInfo(0, copy.added - gone, Position(copy.added - gone, 0), None)
    for seen in (copy.info, older, None):
        found = examine_copy(position, copy.added, seen, older)
        assert found is not None and found.finding is Finding.REWOUND
