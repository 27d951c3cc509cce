"""The configuration: whole or not at all, and every error at once in words that help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hdad.config import RELOADABLE, Config, changes, flatten, known_keys, load, validate, with_values
from hdad.errors import ConfigErrors

SAMPLE = Path(__file__).parents[2] / "etc" / "hdad.toml"
LOG = {"log": {"device": "/d"}}


def messages(content: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        validate(content, "f.toml")
    return [str(error) for error in caught.value.errors]


def test_the_sample_holds_every_key_with_its_default_and_is_valid(tmp_path: Path) -> None:
    text = SAMPLE.read_text()
    assert load(str(SAMPLE)) == Config.model_validate({"log": {"device": "/var/lib/hdad/hdad.log"}})
    text = re.sub(r"# \[\[pipeline.route\]\]\n(# .*\n)*", "", text)
    uncommented = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    path = tmp_path / "all.toml"
    path.write_text(uncommented)
    assert load(str(path)) == load(str(SAMPLE)), "a commented key does not show its default"
    shown = {f"{table}.{key}" for table, key in keys_shown(text)}
    assert {key for key in flatten(load(str(SAMPLE))) if key != "pipeline.route"} <= shown
    assert {f"{table}.{key}" for table, key in keys_shown(text)} <= set(known_keys())


def keys_shown(text: str) -> list[tuple[str, str]]:
    table, found = "", []
    for line in text.splitlines():
        if heading := re.match(r"\[([a-z]+)\]", line):
            table = heading[1]
        elif key := re.match(r"(?:# )?([a-z_]+) = ", line):
            found.append((table, key[1]))
    return [pair for pair in found if pair not in {("pipeline", "streams")}]


def test_every_reloadable_key_is_a_key_and_is_marked_in_the_sample() -> None:
    assert set(known_keys()) >= RELOADABLE
    marked = set()
    comment, table = "", ""
    for line in SAMPLE.read_text().splitlines():
        if heading := re.match(r"\[([a-z]+)\]", line):
            table = heading[1]
        elif (key := re.match(r"# ([a-z_]+) = ", line)) is not None:
            if "(reload" in comment:
                marked.add(f"{table}.{key[1]}")
            if "(reload" in line:
                marked.add(f"{table}.{key[1]}")
        comment = comment + line if line.startswith("# ") and not re.match(r"# [a-z_]+ = ", line) else comment if line else ""
    assert marked >= RELOADABLE


def test_all_errors_come_at_once_each_with_file_key_value_and_what_is_allowed() -> None:
    found = messages(
        {
            **LOG,
            "redis": {"block_ms": 0, "trim": "sometimes", "streems": ["a"]},
            "workers": {"count": "two"},
            "metrics": {"listen": "0.0.0.0:1"},
        }
    )
    assert len(found) == 5
    assert all(text.startswith("f.toml: ") for text in found)
    joined = "\n".join(found)
    assert "redis.block_ms = 0: allowed: greater than or equal to 1" in joined
    assert "redis.trim = 'sometimes': allowed: 'off' or 'durable'" in joined
    assert "redis.streems = ['a']: unknown key; did you mean redis.streams?" in joined
    assert "workers.count = 'two'" in joined and "metrics.listen = '0.0.0.0:1': allowed: \"off\"" in joined


def test_a_missing_device_is_told() -> None:
    assert messages({"log": {}}) == ["f.toml: log.device = None: is missing, and has no default (a host without it names link.writers)"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"redis": {"url": "http://x"}}, "redis://"),
        ({"redis": {"url": "redis://u:secret@h"}}, "password_file"),
        ({"redis": {"socket_timeout_ms": 500, "block_ms": 1000}}, "must be greater than block_ms"),
        ({"redis": {"streams": []}}, "a list that is not empty"),
        ({"workers": {"count": 9, "count_max": 8}}, "workers.count (9) must be at most workers.count_max (8)"),
        ({"workers": {"ring_bytes": 65536}}, "at least 4 × log.frame_bytes_max"),
        ({"redis": {"entry_bytes_max": 2 << 20}}, "redis.entry_bytes_max"),
        ({"supervisor": {"name": "two words"}}, "supervisor.name"),
        ({"nonsense": {}}, "unknown key"),
        ({"redis": {"count_max": True}}, "redis.count_max"),
        ({"redis": {"url": "redis://h", "read_from": "replica"}}, "sentinel:// or cluster://"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(content: dict[str, Any], expected: str) -> None:
    assert expected in "\n".join(messages({**LOG, **content}))


def test_a_password_is_never_repeated_in_an_error() -> None:
    text = "\n".join(messages({**LOG, "redis": {"url": "redis://u:secret@h"}}))
    assert "secret" not in text


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[redis\n", b"a = = 1"])
def test_what_is_no_toml_is_told_with_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigErrors, match=r"bad\.toml: .*is not TOML"):
        load(str(path))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="No such file"):
        load(str(tmp_path / "none.toml"))


def test_changes_and_applying_them() -> None:
    old = validate(LOG, "f")
    new = validate({**LOG, "redis": {"streams": ["a", "b"]}, "workers": {"count": 3}}, "f")
    found = changes(old, new)
    assert found == {"redis.streams": ["a", "b"], "workers.count": 3}
    assert with_values(old, found) == new
