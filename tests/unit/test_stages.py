"""Stages: built in and the user's; every entry becomes a record, a dead letter or is filtered, and nothing else."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from hdad import Batch, Position, Record, run_stage
from hdad._core import Ring, XReadReply, count_fitting, detach_records, encode_entry
from hdad.errors import StageError
from hdad.record import ORIGIN, RecordKind
from hdad.worker import harvest
from hdad.worker.frames import FrameBuilder
from hdad.worker.harvest import Harvester, Item
from hdad.worker.lane import Lane, Suspect
from hdad.worker.stage import DeadLetter, Outcome, Router, Stage, describe, load_stage, run_stages, shortened
from hdad.worker.trial import ATTEMPTS_MAX, Trials


def entry(data: Any) -> dict[bytes, bytes]:
    return {b"json": orjson.dumps(data)}


def values(stage: Any, *data: Any) -> list[Any]:
    records, dead = run_stage(stage, [entry(item) for item in data])
    assert not dead, dead
    return [record.data for record in records]


# -- built in ----------------------------------------------------------------------------------------------------------------------------


def test_select_keeps_only_the_fields_named_dotted_ones_too() -> None:
    assert values({"use": "select", "fields": ["id", "user.name"]}, {"id": 1, "user": {"name": "a", "mail": "b"}, "x": 2}) == [
        {"id": 1, "user": {"name": "a"}}
    ]


def test_drop_leaves_fields_out() -> None:
    assert values({"use": "drop", "fields": ["x", "user.mail", "none"]}, {"id": 1, "user": {"name": "a", "mail": "b"}, "x": 2}) == [
        {"id": 1, "user": {"name": "a"}}
    ]


def test_rename() -> None:
    assert values({"use": "rename", "fields": {"a": "b", "user.id": "id"}}, {"a": 1, "c": 2, "user": {"id": 7}}) == [
        {"b": 1, "c": 2, "user": {}, "id": 7}
    ]


def test_names_with_dots_in_them_are_found_too() -> None:
    data = {"http.method": "GET", "attributes": {"http.status": 200, "user.mail": "a@b"}}
    assert values({"use": "select", "fields": ["http.method", "attributes.http.status"]}, data) == [
        {"http.method": "GET", "attributes": {"http.status": 200}}
    ]
    assert values({"use": "drop", "fields": ["http.method", "attributes.user.mail"]}, data) == [{"attributes": {"http.status": 200}}]
    assert values({"use": "redact", "fields": ["attributes.user.mail"]}, data)[0]["attributes"]["user.mail"] == "***"
    assert values({"use": "rename", "fields": {"http.method": "method"}}, data)[0]["method"] == "GET"
    assert len(values({"use": "filter", "where": "http.method == 'GET' and attributes.http.status < 300"}, data)) == 1


@pytest.mark.parametrize("use", ["drop", "redact", "select"])
def test_what_stages_make_leaves_the_decoded_record_as_it_is(use: str) -> None:
    def look(batch: Batch) -> Iterator[Record]:
        for record in batch:
            before = orjson.dumps(record.data)
            list(load_stage({"use": use, "fields": ["a.b"]}).call(Batch("s", [record])))
            assert orjson.dumps(record.data) == before
            yield record

    assert not run_stage(look, [entry({"a": {"b": 1, "c": 2}})])[1]


def test_decode_takes_the_json_of_one_field() -> None:
    records, dead = run_stage({"use": "decode", "field": "d"}, [{b"d": b'{"a": 1}', b"other": b"x"}, {b"d": b"{no"}])
    assert [orjson.loads(record.body) for record in records] == [{"a": 1}]
    assert [(position, detail["reason"], detail["stage"]) for position, detail in dead] == [(Position(1, 1), "exception", "decode")]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("level == 'info'", [0, 2]),
        ("level != 'info' and n > 0", [1]),
        ("not flag", [1, 2]),
        ("level in ('info', 'warn')", [0, 1, 2]),
        ("user.id == 7", [2]),
        ("n % 2 == 0 or n + 1 > 100", [0, 2]),
        ("missing == 1", []),
        ("n * 2 - 1 == 1", [1]),
        ("0 < n < 2", [1]),
    ],
)
def test_filter_expressions(where: str, kept: list[int]) -> None:
    data = [
        {"i": 0, "level": "info", "n": 0, "flag": True},
        {"i": 1, "level": "warn", "n": 1, "flag": False},
        {"i": 2, "level": "info", "n": 2, "user": {"id": 7}},
    ]
    assert [item["i"] for item in values({"use": "filter", "where": where}, *data)] == kept


@pytest.mark.parametrize(
    "where",
    [
        "__import__('os').system('true')",
        "(lambda: 1)()",
        "[x for x in y]",
        "level ==",
        "f'{level}'",
        "level if a else b",
        "a := 1",
        "9 ** 9 ** 9",
        "a; b",
        "",
    ],
)
def test_a_filter_is_never_code(where: str) -> None:
    with pytest.raises(StageError):
        load_stage({"use": "filter", "where": where})


def test_redact_masks_or_hashes() -> None:
    (masked,) = values({"use": "redact", "fields": ["mail"]}, {"mail": "a@b", "n": 1})
    assert masked["n"] == 1 and "a@b" not in masked["mail"]
    (hashed,) = values({"use": "redact", "fields": ["mail"], "method": "hash", "salt": "s"}, {"mail": "a@b"})
    (again,) = values({"use": "redact", "fields": ["mail"], "method": "hash", "salt": "s"}, {"mail": "a@b"})
    (other,) = values({"use": "redact", "fields": ["mail"], "method": "hash", "salt": "t"}, {"mail": "a@b"})
    assert hashed == again != other and "a@b" not in str(hashed)
    assert hashed["mail"] != hashlib.sha256(b"a@b").hexdigest(), "a hash without its salt can be guessed"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"use": "selct", "fields": ["a"]}, "allowed: decode, drop, filter, redact, rename, select"),
        ({"use": "select"}, "'fields' is missing"),
        ({"use": "select", "fields": []}, "a list of field names"),
        ({"use": "select", "fields": "a"}, "a list of field names"),
        ({"use": "select", "fields": ["a"], "more": 1}, "unknown option 'more'"),
        ({"use": "redact", "fields": ["a"], "method": "burn"}, "mask"),
        ("nocolon", 'not of the form "module:callable"'),
        ("no_such_module_at_all:run", "cannot be imported"),
        ("os:no_such_name", "cannot be imported"),
        ("os:sep", "is a str, not a callable"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_in_words(spec: Any, words: str) -> None:
    with pytest.raises(StageError, match=words.replace("(", r"\(")):
        load_stage(spec)


# -- the user's --------------------------------------------------------------------------------------------------------------------------


def test_what_raises_is_dead_lettered_with_its_traceback_and_the_rest_goes_on_in_order() -> None:
    def picky(batch: Batch) -> Iterator[Record]:
        for record in batch:
            if record.data["n"] == 2:
                raise RuntimeError("not two")
            yield record.with_value({"n": record.data["n"] * 10})

    records, dead = run_stage(picky, [entry({"n": n}) for n in range(5)])
    assert [orjson.loads(record.body)["n"] for record in records] == [0, 10, 30, 40]
    ((position, detail),) = dead
    assert (
        position == Position(1, 2) and detail["stage"] == "picky" and "not two" in detail["error"] and "RuntimeError" in detail["traceback"]
    )


def test_a_record_that_cannot_be_encoded_is_dead_lettered() -> None:
    def bad(batch: Batch) -> Iterator[Record]:
        for record in batch:
            yield record.with_value(object() if record.data["n"] else {"fine": True})

    records, dead = run_stage(bad, [entry({"n": n}) for n in (0, 1)])
    assert len(records) == 1 and [position for position, _ in dead] == [Position(1, 1)]


def test_more_than_one_record_of_an_entry_and_records_out_of_order_come_out_in_stream_order() -> None:
    def fan(batch: Batch) -> Iterable[Record | None]:
        return [record.with_value(b"x%d" % index) for record in reversed(batch) for index in range(2)] + [None]

    records, dead = run_stage(fan, [entry(n) for n in range(3)])
    assert [record.position.seq for record in records] == [0, 0, 1, 1, 2, 2] and not dead


def test_a_record_of_another_batch_or_of_no_batch_is_refused() -> None:
    foreign = Record("s", (9, 9), RecordKind.VALUE, b"x")
    for wrong in (foreign, "text", 7):
        records, dead = run_stage(lambda batch, wrong=wrong: [wrong], [entry(1)])  # type: ignore[misc]
        assert not records and len(dead) == 1


def test_a_chain_runs_in_order_and_stops_when_nothing_is_left() -> None:
    calls: list[str] = []

    def stage(name: str, keep: bool) -> Stage:
        def run(batch: Batch) -> Iterable[Record]:
            calls.append(name)
            return list(batch) if keep else []

        return Stage(name, run)

    body = encode_entry([(b"a", b"1")])
    batch = Batch("s", [Record("s", (1, 0), RecordKind.ENTRY, body)])
    assert run_stages([stage("first", True), stage("second", False), stage("third", True)], batch) == Outcome([], [])
    assert calls == ["first", "second"]


def test_records_decode_what_they_hold() -> None:
    def look(batch: Batch) -> Iterator[Record]:
        for record in batch:
            assert record.stream == batch.stream == "test" and batch[0] is record and len(batch) == 1
            yield record.with_fields({b"n": str(record.data).encode()})

    assert run_stage(look, [{b"a": b"1", b"b": b"\xff"}])[0][0].fields == {b"n": b"{'a': '1', 'b': '\xef\xbf\xbd'}"}
    assert run_stage(look, [{b"j": b"[1, 2]"}])[0][0].fields == {b"n": b"[1, 2]"}
    assert run_stage(look, [{b"j": b"plain"}])[0][0].fields == {b"n": b"{'j': 'plain'}"}
    (value,), _ = run_stage(lambda batch: [batch[0].with_value("text")], [{b"a": b"1"}])
    assert value.value == value.body == b"text" and value.fields == {}


def test_the_first_route_that_fits_counts() -> None:
    router = Router([{"use": "select", "fields": ["d"]}], [(["a:*"], []), (["a:b", "c"], [{"use": "drop", "fields": ["x"]}])])
    assert router.stages_for("a:b") == []
    assert [stage.name for stage in router.stages_for("c")] == ["drop"]
    assert [stage.name for stage in router.stages_for("z")] == ["select"]


# -- trials ------------------------------------------------------------------------------------------------------------------------------


class Table:
    """The trial columns of the shared lane table."""

    def __init__(self) -> None:
        self.row = (Position(0, 0), Position(0, 0), 0, 0)

    def write_trial(self, lane_id: int, first: Position, last: Position, count: int, attempts: int) -> None:
        self.row = (first, last, count, attempts)

    def read_trial(self, lane_id: int) -> tuple[Position, Position, int, int]:
        return self.row


class Died(BaseException):
    """The worker."""


def test_the_entry_that_kills_workers_is_found_alone_and_dead_lettered_and_its_neighbours_live() -> None:
    table = Table()
    bad = Position(1, 13)
    records = [Record("s", (1, seq), RecordKind.ENTRY, encode_entry([])) for seq in range(20)]
    stages = [Stage("killer", lambda batch: batch)]
    done: list[Position] = []

    def call(some: Any) -> Outcome:
        if any(record.position == bad for record in some):
            raise Died
        done.extend(record.position for record in some)
        return Outcome(list(some), [])

    deaths = 0
    while True:
        lane = Lane(1, b"s", 1, Position(0, 0), Position(0, 0), stages=stages)
        trials = Trials(table)
        trials.recall(lane)
        done.clear()
        try:
            outcome = trials.run(lane, records, call)
            break
        except Died:
            deaths += 1
    assert deaths == ATTEMPTS_MAX
    assert [letter.position for letter in outcome.dead] == [bad]
    assert len(outcome.records) == 19 and lane.suspect is None and table.row[3] == 0
    assert isinstance(outcome.dead[0], DeadLetter) and b"killer" in outcome.dead[0].detail


def test_an_entry_behind_the_suspects_is_run_as_ever_and_a_suspect_range_may_go_on_in_the_next_batch() -> None:
    table = Table()
    table.row = (Position(1, 5), Position(1, 30), 4, 1)
    records = [Record("s", (1, seq), RecordKind.ENTRY, encode_entry([])) for seq in range(20)]
    lane = Lane(1, b"s", 1, Position(0, 0), Position(0, 0))
    trials = Trials(table)
    trials.recall(lane)
    sizes: list[int] = []

    def call(some: Any) -> Outcome:
        sizes.append(len(some))
        return Outcome(list(some), [])

    assert len(trials.run(lane, records, call).records) == 20
    assert sizes == [1] * 20 and lane.suspect is not None, "more suspects may come"
    later = [Record("s", (2, seq), RecordKind.ENTRY, encode_entry([])) for seq in range(5)]
    trials.run(lane, later, call)
    assert sizes[20:] == [5]


# -- what is left of the pure parts ------------------------------------------------------------------------------------------------------


def test_decode_takes_a_named_field_and_dead_letters_an_entry_without_it() -> None:
    assert values({"use": "decode"}, {"a": 1}) == [{"a": 1}]
    records, dead = run_stage({"use": "decode", "field": "b"}, [{b"a": b"1", b"b": b"[2]"}, {b"a": b"1"}, {b"b": b"{"}])
    assert [record.data for record in records] == [[2]]
    assert [detail["error"].split(":")[0] for _, detail in dead] == ["ValueError", "JSONDecodeError"]


def test_what_is_no_object_is_dead_lettered_by_stages_that_want_one() -> None:
    records, dead = run_stage({"use": "select", "fields": ["a"]}, [entry([1]), entry({"a": 1, "b": 2})])
    assert [record.data for record in records] == [{"a": 1}]
    assert "not a JSON object but list" in dead[0][1]["error"]


def test_select_of_dotted_names_leaves_out_what_is_missing() -> None:
    assert values({"use": "select", "fields": ["a.b", "c.d", "e"]}, {"a": {"b": 1, "x": 2}, "c": 3, "e": 4}) == [{"a": {"b": 1}, "e": 4}]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"use": "rename", "fields": {}}, "a table of old name = new name"),
        ({"use": "rename", "fields": {"a": 1}}, "a table of old name = new name"),
        ({"use": "rename", "fields": ["a"]}, "a table of old name = new name"),
        ({"use": "filter", "where": 1}, "an expression as text"),
        ({"use": "filter", "where": "a[0] == 1"}, "is not allowed"),
        ({"use": "filter", "where": "f(a).b == 1"}, "is not allowed"),
        (":run", 'not of the form "module:callable"'),
        ("os:", 'not of the form "module:callable"'),
    ],
)
def test_more_stages_that_cannot_be(spec: Any, words: str) -> None:
    with pytest.raises(StageError, match=words):
        load_stage(spec)


def test_a_filter_of_signs_constants_and_things_that_do_not_compare() -> None:
    data = [{"i": 0, "n": -1, "d": {"k": 1}}, {"i": 1, "n": 1}, {"i": 2, "n": "x"}, {"i": 3}]
    for where, kept in (
        ("n == -1", [0]), ("-n == 1", [0]), ("-missing == 1", []), ("True", [0, 1, 2, 3]), ("n < 1", [0]), ("n / 0 == 1", []),
        ("missing + 1 == 1", []), ("d['k'] == 1", [0]), ("missing", []), ("n not in [1]", [0, 2]), ("not n", [3]), ("d.k.z == 1", []),
    ):  # fmt: skip
        assert [item["i"] for item in values({"use": "filter", "where": where}, *data)] == kept, where


def test_a_stage_by_its_name_in_a_module_is_the_callable() -> None:
    assert load_stage("hdad.worker.builtin:build").call is __import__("hdad.worker.builtin", fromlist=["build"]).build


def test_what_comes_after_a_record_out_of_order_must_be_a_record_too() -> None:
    def twisted(batch: Batch) -> Iterable[Any]:
        return [batch[1], batch[0], "text"] if len(batch) > 1 else [batch[0]]

    records, dead = run_stage(twisted, [{b"a": b"1"}, {b"a": b"2"}])
    assert [record.seq for record in records] == [0, 1] and not dead, "run again one by one, each gives a record"


def test_what_stages_leave_of_a_batch_is_in_stream_order_also_when_several_records_of_an_entry_fail() -> None:
    def twice(batch: Batch) -> Iterable[Record]:
        return [record.with_value(record.fields[b"a"]) for record in batch for _ in range(2)]

    def picky(batch: Batch) -> Iterator[Record]:
        for record in batch:
            if record.body == b"2":
                raise ValueError(record.body)
            yield record

    body = [encode_entry([(b"a", str(number).encode())]) for number in range(4)]
    batch = Batch("s", [Record("s", (1, number), RecordKind.ENTRY, body[number]) for number in range(4)])
    outcome = run_stages([Stage("twice", twice), Stage("picky", picky)], batch)
    assert [record.body for record in outcome.records] == [b"0", b"0", b"1", b"1", b"3", b"3"]
    assert [letter.position for letter in outcome.dead] == [Position(1, 2)], "once, though both its records raise"


def test_without_stages_a_batch_is_left_as_it_is() -> None:
    body = encode_entry([(b"a", b"1")])
    batch = Batch("s", [Record("s", (1, 0), RecordKind.ENTRY, body)])
    assert run_stages([], batch).records == list(batch)


def test_records_show_themselves_and_take_any_value() -> None:
    body = encode_entry([(b"a", b"1")])
    record = Record("s", (1, 2), RecordKind.ENTRY, body)
    assert record.value is None and repr(record) == "Record('s', 1-2, ENTRY, {b'a': b'1'})"
    assert repr(record.with_value(bytearray(b"x"))) == "Record('s', 1-2, VALUE, b'x')"
    made = record.with_value({"n": 1})
    assert made.data == {"n": 1} and made.value == b'{"n":1}'
    assert record.with_value(b"[1]").data == [1]
    assert list(Batch("s", [record])[0:1]) == [record]


def test_the_json_of_a_dead_letter_is_cut_to_what_a_frame_holds() -> None:
    """A frame may be small and an exception long: it would never fit, and end the worker again and again (system seed 8)."""
    short = describe("exception", "stage", "s", "e")
    assert shortened(short, 1024) == short
    try:
        raise ValueError("\x01" * 4000)
    except ValueError as error:
        long = describe("exception", "stage", "s" * 384, error)
    for limit in (1024, 2000, 4000, 10_000):
        cut = shortened(long, limit)
        content = orjson.loads(cut)
        assert len(cut) <= limit and set(content) == {"reason", "stage", "error", "traceback", "stream"}
        assert content["error"].startswith("ValueError") and orjson.loads(long)["traceback"].endswith(content["traceback"])


def test_after_a_harvest_only_what_a_stage_has_kept_is_taken_out_of_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each entry once more: nothing of hdad refers to them any more, nor to what was made of them."""
    kept: list[Record] = []

    def stage(batch: Batch) -> Iterator[Record]:
        for record in batch:
            if record.seq == 2:
                kept.append(record)
            yield record.with_value({"n": record.seq})

    held = []

    def detach(records: list[Record]) -> None:
        held.append([sys.getrefcount(records[index]) - sys.getrefcount(object()) for index in range(len(records))])
        detach_records(records)

    monkeypatch.setattr(harvest, "detach_records", detach)
    reply = XReadReply(1 << 20)
    strings = [b"".join(b"$%d\r\n%s\r\n" % (len(text), text) for text in (b"field", b"value %d" % seq)) for seq in range(5)]
    entries = b"".join(b"*2\r\n$3\r\n1-%d\r\n*2\r\n%s" % (seq, strings[seq]) for seq in range(5))
    data = b"*1\r\n*2\r\n$1\r\ns\r\n*5\r\n" + entries
    reply.space(len(data))[: len(data)] = data
    assert reply.commit(len(data))
    lane = Lane(1, b"s", 1, ORIGIN, ORIGIN, stages=[Stage("stage", stage)])
    frames = FrameBuilder(Ring.create(1 << 20), 0, 1 << 16)
    block = SimpleNamespace(add=lambda *_: None, set=lambda *_: None)
    trials = SimpleNamespace(run=lambda _, records, call: call(records))
    harvester = Harvester(frames, block, trials, 1 << 20, lambda _: True)  # type: ignore[arg-type]
    assert harvester.step(reply, deque([Item(lane, 0, 5, len(data))])) and frames.records == 5
    assert held == [[1, 1, 2, 1, 1]], "the list, and in one case the stage"
    reply.clear()
    assert [record.fields for record in kept] == [{b"field": b"value 2"}]


def test_what_a_stage_has_kept_is_taken_out_of_the_reply_of_a_lane_that_was_taken_away_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of its harvest: each such reply would be kept otherwise."""
    detached: list[list[Record]] = []
    monkeypatch.setattr(harvest, "detach_records", detached.append)
    item = Item(Lane(1, b"s", 1, ORIGIN, ORIGIN), 0, 7, 1000)
    item.records = records = [Record("s", (1, 0), RecordKind.ENTRY, encode_entry([]))]
    harvester = Harvester(None, None, None, 1 << 20, lambda _: False)  # type: ignore[arg-type]
    assert harvester.step(XReadReply(1 << 20), deque([item])) and detached == [records]


@pytest.mark.parametrize(("room", "counts"), [(1, [1] * 7), (56, [2, 2, 2, 1]), (57, [3, 3, 1]), (10_000, [7])])
def test_a_batch_is_about_a_frame(room: int, counts: list[int]) -> None:
    """28 bytes each: the entry that fills the room is the last."""
    records = [Record("s", (ms, 0), RecordKind.ENTRY, encode_entry([])) for ms in range(1, 8)]
    found = []
    while sum(found) < len(records):
        found.append(count_fitting(records, sum(found), room))
    assert found == counts and count_fitting(records, 99, room) == 0
    with pytest.raises(IndexError):
        count_fitting(records, -1, room)


def test_an_entry_on_which_workers_died_makes_a_frame_of_its_own() -> None:
    """So that its verdict stays when the next suspect kills the worker (system seed 365)."""
    lane = Lane(1, b"s", 1, ORIGIN, ORIGIN)
    records = [Record("s", (ms, 0), RecordKind.ENTRY, encode_entry([])) for ms in range(1, 8)]
    harvester = Harvester(SimpleNamespace(payload_bytes_max=1 << 20), None, None, 1 << 20, lambda _: True)  # type: ignore[arg-type]
    lane.suspect = Suspect(Position(3, 0), Position(4, 0), 2, 1)
    batches = []
    start = 0
    while start < len(records):
        batches.append([record.ms for record in harvester._next_batch(lane, records, start)])
        start += len(batches[-1])
    assert batches == [[1, 2], [3], [4], [5, 6, 7]]
