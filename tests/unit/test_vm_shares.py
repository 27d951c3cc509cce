"""How the VM's tests are dealt out to two runs, and what becomes one line of JSON again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.shares import HERE, NOTHING_COLLECTED, SECONDS, choose, deal, run_shares
from tests.vm.summary import line_of, merged, page


def test_every_file_is_in_one_run_and_the_runs_are_about_as_long() -> None:
    files = sorted(f"tests/vm/{path.name}" for path in HERE.glob("test_*.py"))
    shares = deal(files)
    assert sorted(file for share in shares for file in share) == files
    unmeasured = [file for file in files if Path(file).name not in SECONDS]
    assert not unmeasured, "measure them, and write it down in tests/vm/shares.py"
    times = [sum(SECONDS[file.removeprefix("tests/vm/")] for file in share) for share in shares]
    assert len(shares) == 2 and max(times) < 0.6 * sum(times), "each file was measured, and neither run is the whole"


def test_what_is_chosen_closer_than_by_files_is_one_run_and_options_go_to_each() -> None:
    assert choose(["tests/vm/test_fc.py::test_x", "-x"]) == [["tests/vm/test_fc.py::test_x", "-x"]]
    assert choose(["tests/vm/test_fc.py"]) == [["tests/vm/test_fc.py"]]
    assert [share[-2:] for share in choose(["-k", "freeze"])] == [["-k", "freeze"]] * 2


def test_what_two_runs_found_is_one_page_and_one_line() -> None:
    fault = {"fault": "path lost", "entries": 1000, "lost": 0, "stall_ms": 70, "p50_ms": 2, "p99_ms": 30, "answer_ms": 5}
    one = {
        "outcomes": {"passed": 3, "failed": 0, "skipped": 0}, "faults": [fault], "seconds": {"a.py": 9.0}, "skipped": {},
    }  # fmt: skip
    other = {
        "outcomes": {"passed": 4, "failed": 1, "skipped": 2},
        "faults": [{"fault": "frozen", "lost": 1, "stall_ms": 80, "fenced": 3, "fc_hosts_online": 2}, {"fault": "lies", "told": 17}],
        "seconds": {"b.py": 8.0}, "skipped": {"no VM": 2},
    }  # fmt: skip
    facts = merged([one, other])
    assert line_of(facts, 9.04) == {
        "passed": 7, "failed": 1, "skipped": 2, "seconds": 9.0, "longest_stall_ms": 80, "lost": 1, "fc_hosts_online": 2, "fenced": 3,
    }  # fmt: skip
    lines = page(facts)
    assert [line.split("  ")[0] for line in lines[2:5]] == ["path lost", "frozen", "lies"] and lines[4].endswith("17 told")
    assert lines[-4:] == ["    9.0  a.py", "    8.0  b.py", "!!!! 2 TESTS DID NOT RUN !!!!", "no VM"]


CONFTEST = "def pytest_addoption(parser):\n    parser.addoption('--vm-summary')\n"


def test_a_run_that_comes_to_no_end_is_ended_and_counts_as_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_slow.py").write_text("import time\n\ndef test_it():\n    time.sleep(600)\n")
    status, facts = run_shares([[str(tmp_path), "-c", os.devnull]], tmp_path, limit_s=2.0)
    assert status != 0 and facts["outcomes"]["failed"] == 1
    assert "hdad: out of time" in capsys.readouterr().out


def test_nothing_chosen_is_told_by_the_status_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_one.py").write_text("def test_it():\n    pass\n")
    chosen, nothing = ([str(tmp_path), "-c", os.devnull, "-k", name] for name in ("test_it", "test_other"))
    assert run_shares([nothing, nothing], tmp_path, 60.0)[0] == NOTHING_COLLECTED
    assert run_shares([chosen, nothing], tmp_path, 60.0)[0] == 0
