"""How the VM's tests are dealt out to two runs, and what becomes one line of JSON again."""

from __future__ import annotations

from tests.vm.shares import HERE, SECONDS, choose, deal, merge


def test_every_file_is_in_one_run_and_the_runs_are_about_as_long() -> None:
    files = sorted(f"tests/vm/{path.name}" for path in HERE.glob("test_*.py"))
    shares = deal(files)
    assert sorted(file for share in shares for file in share) == files
    times = [sum(SECONDS[file.removeprefix("tests/vm/")] for file in share) for share in shares]
    assert len(shares) == 2 and max(times) < 0.6 * sum(times), "each file was measured, and neither run is the whole"


def test_what_is_chosen_closer_than_by_files_is_one_run_and_options_go_to_each() -> None:
    assert choose(["tests/vm/test_fc.py::test_x", "-x"]) == [["tests/vm/test_fc.py::test_x", "-x"]]
    assert choose(["tests/vm/test_fc.py"]) == [["tests/vm/test_fc.py"]]
    assert [share[-2:] for share in choose(["-k", "freeze"])] == [["-k", "freeze"]] * 2


def test_counts_of_two_runs_are_added_and_of_times_the_longest_counts() -> None:
    one = {"passed": 3, "failed": 0, "skipped": 0, "seconds": 9.0, "longest_stall_ms": 70, "lost": 0, "fc_hosts_online": 2, "fenced": 0}
    other = {"passed": 4, "failed": 1, "skipped": 0, "seconds": 8.0, "longest_stall_ms": 80, "lost": 1, "fc_hosts_online": 0, "fenced": 3}
    assert merge([one, other]) == {
        "passed": 7, "failed": 1, "skipped": 0, "seconds": 9.0, "longest_stall_ms": 80, "lost": 1, "fc_hosts_online": 2, "fenced": 3,
    }  # fmt: skip
