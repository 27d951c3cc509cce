"""What systemd, Prometheus and operators see of the daemon: notifications, metrics, permissions."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from harness import Daemon, RedisServer, wait_until

from hdad.config import Config
from hdad.control.client import call
from hdad.errors import ControlError, ExitStatus

Make = Callable[..., Daemon]
pytestmark = pytest.mark.integration


class Systemd:
    """The receiving side of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.lines: list[str] = []
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self) -> None:
        while content := self.socket.recv(65536):
            self.lines += content.decode().splitlines()

    def seen(self, prefix: str) -> list[str]:
        return [line for line in self.lines if line.startswith(prefix)]

    def close(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(path))
        self.thread.join()
        self.socket.close()


@pytest.fixture
def systemd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    found = Systemd(folder / "n.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "n.sock"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    yield found
    found.close(folder / "n.sock")


def test_systemd_hears_ready_status_watchdog_reload_and_stopping(server: RedisServer, make_daemon: Make, systemd: Systemd) -> None:
    daemon = make_daemon()
    wait_until(lambda: systemd.seen("READY=1"), "READY")
    server.add("s:a", 50)
    wait_until(lambda: any("50 durable" in line for line in systemd.seen("STATUS=")), "a status that informs")
    wait_until(lambda: len(systemd.seen("WATCHDOG=1")) >= 3, "the watchdog is fed")
    ready = len(systemd.seen("READY=1"))
    daemon.configure({"logging": {"level": "debug"}})
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: systemd.seen("RELOADING=1") and systemd.seen("MONOTONIC_USEC="), "RELOADING")
    wait_until(lambda: len(systemd.seen("READY=1")) > ready, "READY again")
    wait_until(lambda: "logging.level applied" in daemon.log(), "the reload is told key by key")
    daemon.stop()
    assert systemd.seen("STOPPING=1") and systemd.seen("EXTEND_TIMEOUT_USEC=")


def test_a_wrong_file_at_reload_changes_nothing_and_is_told(server: RedisServer, make_daemon: Make, systemd: Systemd) -> None:
    daemon = make_daemon()
    wait_until(lambda: systemd.seen("READY=1"), "READY")
    daemon.config_path.write_text("[redis]\nurl = 7\n")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "redis.url = 7" in daemon.log(), "the error is in the log")
    server.add("s:a", 5)
    daemon.wait_entries(5)
    daemon.stop()


def test_the_watchdog_is_not_fed_while_a_role_hangs(server: RedisServer, make_daemon: Make, systemd: Systemd) -> None:
    daemon = make_daemon()
    wait_until(lambda: systemd.seen("WATCHDOG=1"), "the watchdog is fed")
    pid = daemon.role_pid("worker-0")
    os.kill(pid, signal.SIGSTOP)
    # A stopped worker is noticed and replaced; until then nothing feeds the watchdog blindly.
    wait_until(lambda: daemon.role_pid("worker-0") != pid, "the stopped worker is replaced")
    server.add("s:a", 10)
    daemon.wait_entries(10)
    daemon.stop()


def test_systemctl_status_text_and_metrics_agree_with_the_log(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon = make_daemon(config={"metrics": {"listen": f"127.0.0.1:{port}"}})
    server.add("s:a", 300)
    daemon.wait_entries(300)

    def metrics() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    text = wait_until(
        lambda: (found := metrics()) and 'hdad_lane_entries_total{lane="s:a"} 300.0' in found and found, "the metrics show it"
    )
    assert "hdad_writer_entries_total 300.0" in text
    assert "hdad_writer_entry_to_durable_us_bucket" in text and "# TYPE" in text
    daemon.kill_role("worker-0")
    assert "hdad_worker_entries_read_total" in metrics(), "counters outlive their process"

    def health() -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    wait_until(lambda: health() == 200, "it is healthy again")
    os.kill(daemon.role_pid("worker-0"), signal.SIGKILL)
    wait_until(lambda: health() == 503 or daemon.status()["roles"][1]["restarts"] == 2, "a role that is down is no health")
    daemon.stop()


def test_metrics_on_a_unix_socket(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    path = folder / "m.sock"
    daemon = make_daemon(config={"metrics": {"listen": f"unix:{path}"}})
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        content = b""
        while chunk := client.recv(65536):
            content += chunk
    assert content.startswith(b"HTTP/1.1 200") and b"hdad_writer_durable_lsn" in content
    for request in (b"POST /metrics HTTP/1.1\r\n\r\n", b"GET /nothing HTTP/1.1\r\n\r\n", b"\x00\xff" * 10 + b"\r\n\r\n", b"x" * 20_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            try:
                client.sendall(request)
                answer = client.recv(200)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
        assert not answer.startswith(b"HTTP/1.1 200")
    daemon.stop()


def test_strangers_may_not_even_look_unless_a_group_allows_it(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    if os.geteuid() != 0:
        pytest.skip("SKIPPED: changing the user needs root")
    daemon = make_daemon(config={"control": {"read_group": "nogroup"}})
    for parent in [folder, *folder.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o111)
    script = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1])\n"
        "for method in ('status', 'drain'):\n"
        '    s.sendall(b\'{"jsonrpc":"2.0","id":1,"method":"%s"}\\n\' % method.encode())\n'
        "    data = b''\n"
        "    while not data.endswith(b'\\n'): data += s.recv(65536)\n"
        "    print('error' if b'\"error\"' in data[:60] or b'you may not' in data else 'ok')\n"
    )

    def ask(gid: int) -> list[str]:
        found = subprocess.run([sys.executable, "-c", script, daemon.socket, str(gid)], capture_output=True, text=True, check=True)
        return found.stdout.split()

    import grp

    assert ask(grp.getgrnam("nogroup").gr_gid) == ["ok", "error"]
    assert ask(54_321) == ["error", "error"]
    daemon.stop()


def test_garbage_on_the_control_socket_harms_nobody(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon()
    for content in (b"\xff\x00\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"jsonrpc":"2.0","id":1,"method":"no"}\n', b"x" * 3_000_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(daemon.socket)
            try:
                client.sendall(content)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert daemon.status()["daemon"]["state"] == "running"
    with pytest.raises(ControlError, match="allowed: status") as caught:
        call(daemon.socket, "stats")
    assert caught.value.status is ExitStatus.USAGE
    daemon.stop()


def test_all_roles_together_stay_under_300_mb_and_one_percent_when_idle(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon()
    assert daemon.process is not None
    family = [psutil.Process(daemon.process.pid), *psutil.Process(daemon.process.pid).children(recursive=True)]
    assert len(family) == 4
    memory = sum(process.memory_full_info().pss for process in family)
    assert memory < 300 << 20, memory
    daemon.stop()


def test_the_default_socket_is_where_the_unit_makes_a_folder() -> None:
    assert Config.model_validate({"log": {"device": "/d"}}).control.socket == "/run/hdad/control.sock"
    unit = (Path(__file__).parents[2] / "systemd" / "hdad.service").read_text()
    assert "RuntimeDirectory=hdad\n" in unit and "StateDirectory=hdad\n" in unit
    prevented = next(line for line in unit.splitlines() if line.startswith("RestartPreventExitStatus=")).partition("=")[2].split()
    assert {int(value) for value in prevented} == {
        ExitStatus.USAGE, ExitStatus.CONFIG, ExitStatus.DAMAGED, ExitStatus.FOREIGN, ExitStatus.FENCED, ExitStatus.CRASH_LOOP,
    }  # fmt: skip
