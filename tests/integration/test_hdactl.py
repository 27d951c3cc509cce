"""hdactl as an operator uses it: words, JSON, exit statuses; with a daemon that runs, hangs or is dead."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from harness import Daemon, RedisServer, wait_until

from hdad.errors import ExitStatus
from hdad.log.create import format_log
from hdad.log.layout import markdown

Make = Callable[..., Daemon]
pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def hdactl(*args: str, expect: int = 0, env: dict[str, str] | None = None, program: str = "hdactl") -> str:
    """Run it; the output, standard error behind standard output."""
    module = "hdad.cli.daemon" if program == "hdad" else f"hdad.cli.{program}"
    found = subprocess.run(
        [sys.executable, "-c", f"from {module} import main; main()", *args], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )  # fmt: skip
    assert found.returncode == expect, f"status {found.returncode}: {found.stdout}{found.stderr}"
    assert "Traceback" not in found.stderr
    return found.stdout + found.stderr


def as_json(*args: str, expect: int = 0) -> Any:
    return orjson.loads(hdactl("--json", *args, expect=expect).splitlines()[0])


def test_top_is_live_in_a_terminal_of_80_by_24_and_q_ends_it(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 100)
    daemon = make_daemon()
    daemon.wait_entries(100)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    argv = [sys.executable, "-c", "from hdad.cli.hdactl import main; main()", "-s", daemon.socket, "top", "--interval", "0.1"]
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "LANG": "C.UTF-8"})
    seen = bytearray()

    def drawn(text: bytes) -> bool:
        while select.select([ours], [], [], 0)[0]:
            seen.extend(os.read(ours, 65536))
        return text in seen

    try:
        wait_until(lambda: drawn(b"worker-1") and drawn(b"s:a"), lambda: f"a picture: {bytes(seen[-2000:])!r}")
        seen.clear()
        wait_until(lambda: drawn(b"worker-1"), "another picture")
        os.write(ours, b"q")
        wait_until(lambda: drawn(b"\x1b[?1049l") and process.poll() is not None, "the screen is given back, and the command ends")
        assert process.returncode == 0
        assert termios.tcgetattr(theirs)[3] == before[3], "the terminal is as before"
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_looking_and_operating(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 100)
    server.add("s:b", 50)
    daemon = make_daemon()
    daemon.wait_entries(150)
    to = ("--socket", daemon.socket)
    page = hdactl(*to, "status")
    for word in (
        "running",
        "worker-0",
        "writer",
        "s:a",
        "durable",
        "latency",
        "lag",
        "no alarms",
        str(daemon.device),
        "segment",
        "reaches back",
    ):
        assert word in page, word
    assert "\x1b" not in page, "colours only on a terminal"
    status = as_json(*to, "status")
    assert status["totals"]["entries"] == 150 and {lane["name"] for lane in status["lanes"]} == {"s:a", "s:b"}
    assert "s:b" in hdactl(*to, "lanes") and len(as_json(*to, "lanes")) == 2
    assert "worker-1" in hdactl(*to, "workers")
    picture = hdactl(*to, "top", "--once", "--interval", "0.2")
    assert "2 streams → 2 workers → writer ready" in picture and "DURABLE/S" in picture and "\x1b" not in picture
    flow = as_json(*to, "top", "--once", "--interval", "0.2")
    assert set(flow["workers"]) == {"worker-0", "worker-1"} and {lane["name"] for lane in flow["lanes"]} == {"s:a", "s:b"}
    assert as_json(*to, "workers", "3") == {"workers": 3, "before": 2}
    assert "paused: s:a" in hdactl(*to, "pause", "s:a")
    wait_until(lambda: (daemon.lane("s:a") or {}).get("state") == "paused", "the lane is paused")
    assert "resumed: s:a" in hdactl(*to, "resume", "s:a")
    wait_until(lambda: (daemon.lane("s:a") or {}).get("state") == "idle", "the lane goes on")
    assert "no lane" in hdactl(*to, "pause", "nope", expect=ExitStatus.USAGE)
    assert "nothing has changed" in hdactl(*to, "reload")
    assert "log level: debug" in hdactl(*to, "log-level", "debug")
    assert "Invalid value" in hdactl(*to, "log-level", "loud", expect=ExitStatus.USAGE)
    assert "not halted" in hdactl(*to, "lane", "accept", "s:a", "--from", "0-0", expect=ExitStatus.USAGE)
    assert "count" in hdactl(*to, "workers", "99", expect=ExitStatus.USAGE)
    assert "the daemon has ended" in hdactl(*to, "drain")
    daemon.wait_end(0)
    assert "no daemon" in hdactl(*to, "status", expect=ExitStatus.UNREACHABLE)


def test_a_daemon_that_hangs_and_one_that_is_dead_are_told_apart(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        words = hdactl("-s", daemon.socket, "--timeout", "0.3", "status", expect=ExitStatus.UNREACHABLE)
        assert "hangs" in words
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    daemon.kill()
    words = hdactl("-s", daemon.socket, "status", expect=ExitStatus.UNREACHABLE)
    assert "is dead" in words and "hangs" not in words


def test_watch_prints_again_and_again(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon()
    argv = [
        sys.executable,
        "-c",
        "from hdad.cli.hdactl import main; main()",
        "-s",
        daemon.socket,
        "--json",
        "status",
        "--watch",
        "--interval",
        "0.05",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        pages = [orjson.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert pages[0]["daemon"]["uptime_s"] <= pages[2]["daemon"]["uptime_s"]
    daemon.stop()


def test_reading_the_log(server: RedisServer, make_daemon: Make) -> None:
    server.client.xadd("s:a", {"n": "1", b"bin\xff": b"\x00\xfe"}, id="5-1")
    server.client.xadd("s:a", {"n": "2"}, id="6-1")
    server.client.xadd("s:b", {"n": "3"}, id="7-1")
    daemon = make_daemon()
    daemon.wait_entries(3)
    lines = [orjson.loads(line) for line in hdactl("log", "read", daemon.device, "--lane", "s:a").splitlines()]
    assert [(line["id"], line["kind"], line["fields"]["n"]) for line in lines] == [("5-1", "entry", "1"), ("6-1", "entry", "2")]
    assert lines[0]["fields"]["bin\\xff"] == "\x00\\xfe"
    assert hdactl("log", "read", daemon.device, "--lane", "s:b", "--format", "raw") == "3\n"
    assert len(hdactl("log", "read", daemon.device, "--limit", "2").splitlines()) == 2
    assert orjson.loads(hdactl("log", "read", daemon.device, "--lane", "s:a", "--after", "5-1"))["id"] == "6-1"
    assert hdactl("log", "read", daemon.device, "--from", "2100-01-01T00:00:00") == ""
    assert "allowed: an LSN, a time" in hdactl("log", "read", daemon.device, "--from", "yesterday", expect=ExitStatus.USAGE)
    assert "--after needs --lane" in hdactl("log", "read", daemon.device, "--after", "5-1", expect=ExitStatus.USAGE)
    assert "lane" in hdactl("log", "read", daemon.device, "--lane", "nope", expect=ExitStatus.USAGE)
    lapped = hdactl("log", "read", daemon.device, "--from", "0", expect=ExitStatus.LAPPED)
    assert "--from 1" in lapped

    argv = [sys.executable, "-c", "from hdad.cli.hdactl import main; main()", "log", "tail", daemon.device]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as tail:
        assert tail.stdout is not None
        os.set_blocking(tail.stdout.fileno(), False)
        output, added = bytearray(), []

        def two_lines_after_one_more() -> bool:  # nobody can see from outside since when tail follows
            added.append(f"{8 + len(added)}-1")
            server.client.xadd("s:a", {"n": "4"}, id=added[-1])
            output.extend(tail.stdout.read() or b"")
            return output.count(b"\n") >= 2

        wait_until(two_lines_after_one_more, "tail shows what comes")
        found = [orjson.loads(line)["id"] for line in output.splitlines()[:2]]
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 0
    first = added.index(found[0])
    assert found == added[first : first + 2]
    daemon.stop()



def test_making_inspecting_and_verifying_a_log(folder: Path) -> None:
    path = str(folder / "l")
    made = as_json("log", "format", path, "--size", "16M", "--segment-size", "1M", "--block-size", "512", "--label", "of mine")
    assert (made["size"], made["block_size"], made["segment_size"]) == (16 << 20, 512, 1 << 20)
    assert "--force-uuid" in hdactl("log", "format", path, expect=ExitStatus.FOREIGN)
    assert hdactl("log", "format", path, "--force-uuid", made["uuid"]).startswith(path)
    page = hdactl("log", "inspect", path)
    assert "segment count" in page and "next lsn" in page
    assert as_json("log", "inspect", path)["damaged"] == ""
    assert "verified" in hdactl("log", "verify", path) and as_json("verify", path)["ok"] is True
    with Path(path).open("r+b") as file:
        file.seek((1 << 20) + 30)
        file.write(b"\xff")
    broken = hdactl("log", "verify", path, expect=ExitStatus.FINDINGS)
    assert "the head of a segment" in broken and "do not format" in broken
    for size in ("1Q", "-5", "M"):
        assert "allowed: a number of bytes" in hdactl("log", "format", str(folder / "x"), "--size", size, expect=ExitStatus.USAGE)
    assert "too small" in hdactl("log", "format", str(folder / "x"), "--size", "5M", "--segment-size", "4M", expect=ExitStatus.FOREIGN)
    assert not (folder / "x").exists(), "a file that could not become a log is not left behind"


def test_layout_is_what_the_packaged_description_says() -> None:
    assert hdactl("log", "layout", "--markdown") == markdown() == (ROOT / "hdad" / "log" / "FORMAT.md").read_text()
    assert "predecessor_crc" in hdactl("log", "layout")


def test_dead_letters_are_listed_shown_and_replayed(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    (folder / "picky.py").write_text(
        "import os\ndef run(batch):\n    for record in batch:\n"
        "        if record.fields[b'n'] == b'3' and not os.path.exists(__file__ + '.mended'):\n"
        "            raise ValueError('three')\n        yield record\n"
    )
    server.add("s:a", 5)
    daemon = make_daemon(config={"pipeline": {"stages": ["picky:run"]}})
    daemon.wait_entries(5)
    listed = hdactl("deadletters", "list", daemon.device)
    assert "1 x exception in stage picky:run" in listed and "three" in listed
    found = as_json("deadletters", "list", daemon.device)
    assert found["total"] == 1
    letter = found["letters"][0]
    shown = hdactl("deadletters", "show", daemon.device, "s:a", letter["id"])
    assert "Traceback" in shown and "ValueError: three" in shown and "n = 3" in shown
    assert "no dead letter" in hdactl("deadletters", "show", daemon.device, "s:a", "9-9", expect=ExitStatus.FAILURE)
    config = ("-c", str(daemon.config_path))
    assert "1 entries would be added" in hdactl("deadletters", "replay", daemon.device, *config, "--dry-run")
    (folder / "picky.py.mended").touch()
    assert "1 entries added" in hdactl("deadletters", "replay", daemon.device, *config)
    daemon.wait_entries(6)
    daemon.stop()
    report = daemon.verify()
    assert (report.committed, report.dead_lettered) == (5, 1)


def test_doctor_finds_what_may_hurt_and_tells_the_remedy(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon()
    config = ("doctor", "-c", str(daemon.config_path))
    page = hdactl("-s", daemon.socket, *config)
    assert "is valid" in page and "direct I/O works" in page and "answers" in page and "warn device" in page
    server.client.config_set("maxmemory", "100mb")
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    page = hdactl("-s", daemon.socket, *config, expect=ExitStatus.FINDINGS)
    assert "streams may vanish unread" in page and "-> CONFIG SET maxmemory-policy noeviction" in page
    found = as_json("-s", daemon.socket, *config, expect=ExitStatus.FINDINGS)
    assert any(finding["level"] == "error" and finding["remedy"] for finding in found)
    daemon.stop()
    server.kill()
    page = hdactl("-s", daemon.socket, *config, expect=ExitStatus.FINDINGS)
    assert "start it, or correct redis.url" in page and "no daemon" in page
    (folder / "bad.toml").write_text("[log]\n")
    assert "log.device" in hdactl("doctor", "-c", str(folder / "bad.toml"), expect=ExitStatus.FINDINGS)


def test_hdad_check_and_help_and_completion(folder: Path) -> None:
    good = folder / "good.toml"
    good.write_text('[log]\ndevice = "/d"\n[pipeline]\nstages = ["hdad.worker.testing:run_stage"]\n')
    assert "valid" in hdactl("check", str(good), program="hdad")
    good.write_text('[log]\ndevice = "/d"\n[pipeline]\nstages = ["nowhere:run"]\n')
    assert "nowhere" in hdactl("check", str(good), program="hdad", expect=ExitStatus.CONFIG)
    good.write_text('[log]\n[redis]\nurll = "x"\nblock_ms = 0\n')
    words = hdactl("check", str(good), program="hdad", expect=ExitStatus.CONFIG)
    assert words.count(str(good)) == 3 and "did you mean redis.url?" in words
    assert hdactl("check", env={"HDAD_CONFIG": str(folder / "none")}, program="hdad", expect=ExitStatus.CONFIG).count("No such file") == 1
    for program in ("hdad", "hdactl"):
        assert "Exit statuses" in hdactl("--help", program=program)
        assert "No such command" in hdactl("frobnicate", program=program, expect=ExitStatus.USAGE)
        assert "version" in hdactl("--version", program=program)
    for shell in ("bash", "zsh", "fish"):
        assert "_HDACTL_COMPLETE" in hdactl("completion", shell)
    completed = hdactl(env={"_HDACTL_COMPLETE": "bash_complete", "COMP_WORDS": "hdactl dead", "COMP_CWORD": "1"})
    assert "deadletters" in completed


@pytest.mark.parametrize("args", [["log", "inspect"], ["log", "verify"], ["log", "read"], ["verify"], ["deadletters", "list"]])
def test_a_device_that_is_none_is_told_with_its_name(folder: Path, args: list[str]) -> None:
    missing = str(folder / "none")
    assert missing in hdactl(*args, missing, expect=ExitStatus.DEVICE)
    empty = folder / "empty"
    empty.write_bytes(bytes(8 << 20))
    assert "no hdad log here" in hdactl(*args, str(empty), expect=ExitStatus.FOREIGN)


def test_output_that_is_cut_off_by_head_is_no_error(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 3000, text="x" * 200)
    daemon = make_daemon()
    daemon.wait_entries(3000)
    daemon.stop()
    line = f'"{sys.executable}" -c "from hdad.cli.hdactl import main; main()" log read "{daemon.device}" | head -1; exit ${{PIPESTATUS[0]}}'
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert found.returncode == 0 and found.stderr == "" and len(found.stdout.splitlines()) == 1


def test_a_log_is_not_made_twice_by_accident(folder: Path) -> None:
    path = str(folder / "l")
    format_log(path, size=16 << 20)
    assert "holds the hdad log" in hdactl("log", "format", path, "--size", "16M", expect=ExitStatus.FOREIGN)
