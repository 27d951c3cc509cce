"""The edges of the fabric: sysfs trees, multipathd on a real socket, dmsetup as a program, surveys that hang, the watch, hdactl paths."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from hdad.cli.doctor import Finding, path_findings
from hdad.cli.paths import remembered
from hdad.cli.status import _old
from hdad.clock import monotonic_ns
from hdad.config import validate
from hdad.errors import DeviceError, ExitStatus, PeerProtocolError
from hdad.exchange.channel import create_pair
from hdad.fabric import multipathd
from hdad.fabric.capture import capture, recorded_sources
from hdad.fabric.deadline import survey_within
from hdad.fabric.devicemapper import DeviceMapper
from hdad.fabric.facts import Facts, Reservation, decode, encode, from_plain
from hdad.fabric.health import Expectations, condition, is_active, judge, summary
from hdad.fabric.survey import Sources, live_sources, survey
from hdad.fabric.sysfs import read_device, refresh
from hdad.fabric.tree import NOTES_MAX, Tree
from hdad.fabric.trends import Trends
from hdad.fabric.watch import as_message, watch
from hdad.metrics.paths import PathCollector, Watched
from hdad.supervise.paths import PathWatch, expectations
from hdad.supervise.spawn import Forked, reap, spawn
from hdad.writer.keys import working_paths
from tests import fabric
from tests.harness import wait_until

ROOT = Path(__file__).parents[2]
MAP = "/dev/mapper/hdad"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory, as sysfs is: what is timed here is not to wait for a disk."""
    with tempfile.TemporaryDirectory(prefix="hdad-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def qla(tmp_path: Path) -> Path:
    return fabric.unpack("fc-qla2xxx", tmp_path)


def host_of(folder: Path, name: str) -> Path:
    return (folder / "sys" / "class" / "fc_host" / name).resolve()


def device_of(folder: Path, name: str) -> Path:
    return (folder / "sys" / "block" / name / "device").resolve()


def codes(facts: Facts, expected: Expectations | None = None) -> set[str]:
    return {verdict.code for verdict in judge(facts, expected or Expectations(), Trends())}


# -- sysfs -------------------------------------------------------------------------------------------------------------------------------


def test_fibre_channel_paths_are_read_with_their_ports(qla: Path) -> None:
    facts = fabric.read(qla, MAP)
    assert (facts.kind, facts.name, facts.map_name, facts.polling_s, facts.is_complete) == ("multipath", "dm-3", "hdad", 5, True)
    assert facts.sources == ("sysfs", "multipathd", "statistics") and facts.notes == ()
    sdd = facts.path("sdd")
    assert sdd is not None
    assert (sdd.transport, sdd.host, sdd.port, sdd.remote, sdd.target) == (
        "fc", "host4", "0x21000024ff1a2b3c", "rport-4:0-0", "0x202100a098cab1ef",
    )  # fmt: skip
    assert (sdd.numa_node, sdd.size, sdd.failures, sdd.errors) == (0, 512 << 30, 0, {"ioerr_cnt": 0, "iotmo_cnt": 0})
    (host,) = [host for host in facts.hosts if host.name == "host4"]
    assert (host.driver, host.pci, host.numa_node) == ("qla2xxx", "0000:3b:00.1", 0)
    assert host.counters["invalid_crc_count"] == 0 and "fcp_control_requests" not in host.counters, "-1 is: not counted"
    port = facts.remote_port("rport-4:0-0")
    assert port is not None and (port.fast_io_fail_s, port.dev_loss_s, port.host) == (5, 2147483647, "host4")
    assert codes(facts) == set()


def test_a_fabric_in_trouble_is_seen_as_such(tmp_path: Path) -> None:
    facts = fabric.read(fabric.unpack("fc-lpfc", tmp_path), MAP)
    assert [(path.name, condition(path)) for path in facts.paths] == [
        ("sdf", "active"), ("sdg", "marginal"), ("sdh", "blocked"), ("sdi", "lost"), ("sdj", "unused"),
    ]  # fmt: skip
    assert codes(facts, Expectations(takeover_s=30, writer_nodes=frozenset({0}))) == {
        "path-marginal", "path-blocked", "path-lost", "path-unused", "single-port", "queue-forever", "no-fast-fail", "non-optimized",
        "link-down", "slow-link", "far-adapter",
    }  # fmt: skip


def test_iscsi_sessions_are_paths(tmp_path: Path) -> None:
    folder = fabric.unpack("iscsi", tmp_path)
    facts = fabric.read(folder, MAP)
    sdb = facts.path("sdb")
    assert sdb is not None and (sdb.transport, sdb.host, sdb.port, sdb.remote, sdb.recovery_s, sdb.remote_state) == (
        "iscsi", "host9", "10.10.2.21", "session2", 120, "LOGGED_IN",
    )  # fmt: skip
    assert sdb.target == "iqn.2010-06.com.purestorage:flasharray.1007a309fb52d942 10.10.2.11:3260"
    (folder / "sys/class/iscsi_session/session2/state").write_text("FAILED\n")
    assert summary(fabric.read(folder, MAP)) == "paths 1/2 active (sdb lost)"


def test_nvme_controllers_are_paths(tmp_path: Path) -> None:
    folder = fabric.unpack("nvme-fc", tmp_path)
    facts = fabric.read(folder, "/dev/nvme0n1")
    assert (facts.kind, facts.policy, facts.queueing) == ("nvme", "round-robin", "600 s")
    assert [(path.address, path.host, path.access, condition(path)) for path in facts.paths] == [
        ("nvme0", "host10", "optimized", "active"), ("nvme1", "host10", "non-optimized", "active"),
        ("nvme2", "host11", "optimized", "lost"), ("nvme3", "host11", "inaccessible", "standby"),
    ]  # fmt: skip
    assert facts.paths[0].target == "0x201700a098dfdd91" and facts.paths[0].transport == "nvme-fc"
    controllers = sorted((folder / "sys/class/nvme").iterdir())
    for controller, fast in zip(controllers, ("5", "10", "off", "off"), strict=True):
        (controller.resolve() / "fast_io_fail_tmo").write_text(fast + "\n")
    assert fabric.read(folder, "/dev/nvme0n1").queueing == "600 s"
    for name in ("ctrl_loss_tmo", "fast_io_fail_tmo"):
        (controllers[2].resolve() / name).write_text("off\n")
    assert "queue-forever" in codes(fabric.read(folder, "/dev/nvme0n1"))
    for controller in controllers:
        for name in ("ctrl_loss_tmo", "fast_io_fail_tmo"):
            (controller.resolve() / name).unlink()
    assert fabric.read(folder, "/dev/nvme0n1").queueing == "", "an older kernel does not tell"
    multipath = folder / "sys/block/nvme0n1/multipath"
    multipath.mkdir()
    (multipath / "nvme0c1n1").symlink_to("../../nvme0c1n1")
    assert [path.name for path in fabric.read(folder, "/dev/nvme0n1").paths] == ["nvme0c1n1"], "a newer kernel names them itself"


def test_without_multipathd_the_kernel_tells(tmp_path: Path) -> None:
    folder = fabric.unpack("scsi-debug", tmp_path)
    facts = fabric.read(folder, "/dev/mapper/mpatha")
    assert facts.sources == ("sysfs", "device-mapper") and facts.notes == ("multipathd is not running",)
    assert facts.queueing == "on" and facts.path("sdb").failures == 1  # type: ignore[union-attr]
    assert {"last-path", "path-offline", "no-multipathd", "queue-forever"} <= codes(facts)
    (folder / "replies" / "status-mpatha").unlink()
    facts = fabric.read(folder, "/dev/mapper/mpatha")
    assert facts.sources == ("sysfs",) and "device-mapper does not tell" in facts.notes[1]


def test_volumes_and_partitions_are_looked_through(tmp_path: Path) -> None:
    folder = fabric.unpack("plain", tmp_path)
    assert fabric.read(folder, "/dev/mapper/vg-hdad").name == "loop0"
    assert "lies on several devices" in fabric.read(folder, "/dev/mapper/vg-data").notes[0]
    assert fabric.read(folder, "/dev/vda1").name == "vda"
    assert fabric.read(folder, "/dev/nothing").kind == "missing"
    assert codes(fabric.read(folder, "/dev/nvme0n1")) == set()


def test_a_volume_on_a_map_shows_the_map(qla: Path) -> None:
    root = qla / "sys"
    fabric.write(root, "devices/virtual/block/dm-7/dm/name", "vg-hdad")
    fabric.write(root, "devices/virtual/block/dm-7/dm/uuid", "LVM-x")
    fabric.link(root, "block/dm-7", "devices/virtual/block/dm-7")
    fabric.link(root, "class/block/dm-7", "devices/virtual/block/dm-7")
    fabric.link(root, "devices/virtual/block/dm-7/slaves/dm-3", "devices/virtual/block/dm-3")
    facts = fabric.read(qla, "/dev/mapper/vg-hdad")
    assert facts.name == "dm-3" and summary(facts) == "paths 4/4 active" and "vg-hdad is dm-7, which lies on dm-3" in facts.notes[0]


def test_live_files_and_devices_are_told_by_their_number(tmp_path: Path) -> None:
    file = tmp_path / "hdad.log"
    file.write_bytes(b"x")
    assert read_device(Tree(), str(file)).kind == "file"
    facts = survey_within(str(file), live_sources(), 5)
    assert facts.kind == "file" and facts.is_complete and judge(facts, Expectations(), Trends()) == []
    assert read_device(Tree(), "/dev/null").kind in ("file", "missing"), "no block device"


def test_what_is_missing_or_odd_in_sysfs_is_empty(qla: Path) -> None:
    for file in list((qla / "sys").rglob("*")):
        if file.is_file() and not file.is_symlink() and file.name not in ("name", "uuid", "dev"):
            file.write_bytes(os.urandom(64) if file.name != "state" else b"\xff\x00\x1b[31m\n")
    facts = fabric.read(qla, MAP)
    assert facts.size is None and all(text.isprintable() for path in facts.paths for text in (path.vendor, path.device_state, path.access))
    for file in list((qla / "sys").rglob("*")):
        if file.is_file() and file.name not in ("name", "uuid"):
            file.unlink()
    facts = fabric.read(qla, MAP)
    assert len(facts.paths) == 4 and facts.remote_ports[0].dev_loss_s is None


def test_a_tree_stays_below_its_root_and_says_what_it_may_not_read(tmp_path: Path) -> None:
    root = tmp_path / "sys"
    root.mkdir()
    (tmp_path / "secret").write_text("x")
    (root / "out").symlink_to("../secret")
    (root / "in").symlink_to("file")
    (root / "file").write_text(" 7\n")
    tree = Tree(str(root))
    assert tree.real("out") == "" and tree.real("in") == "file" and tree.real("none") == ""
    assert tree.number("in") == 7 and tree.number("none") is None and tree.names("none") == [] and not tree.exists("none")
    assert tree.text("none") == "" and tree.notes == []
    (root / "file").chmod(0)
    if os.getuid() != 0:
        assert tree.text("file") == "" and tree.notes == ["file: Permission denied"]
        for _ in range(2 * NOTES_MAX):
            tree.text("file")
        assert len(tree.notes) == NOTES_MAX
    tree.forget()
    assert tree.notes == [] and tree.seen == {}


def test_states_alone_are_read_again_without_asking_anybody(qla: Path) -> None:
    tree = Tree(str(qla / "sys"))
    facts = fabric.read(qla, MAP)
    (device_of(qla, "sdb") / "state").write_text("offline\n")
    (host_of(qla, "host4") / "port_state").write_text("Linkdown\n")
    (qla / "sys/class/fc_remote_ports/rport-4:0-1/port_state").write_text("Blocked\n")
    (qla / "sys/block/dm-3/dm/suspended").write_text("1\n")
    (device_of(qla, "sdd") / "state").unlink()
    found = refresh(tree, facts)
    assert [condition(path) for path in found.paths] == ["offline", "active", "offline", "blocked"]
    assert found.is_suspended and {"link-down", "suspended"} <= codes(found)


# -- captures ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device"),
    [("fc-qla2xxx", MAP), ("fc-lpfc", MAP), ("iscsi", MAP), ("nvme-fc", "/dev/nvme0n1"), ("scsi-debug", "/dev/mapper/mpatha")],
)
def test_a_captured_survey_is_read_as_the_live_one_was(name: str, device: str, tmp_path: Path) -> None:
    folder = fabric.unpack(name, tmp_path)
    live = capture(device, recorded_sources(str(folder)), str(tmp_path / "captured"))
    again = fabric.read(tmp_path / "captured", device)
    assert live.paths and _without_time(again) == _without_time(live)
    with pytest.raises(FileExistsError):
        capture(device, recorded_sources(str(folder)), str(tmp_path / "captured"))


def _without_time(facts: Facts) -> Facts:
    return replace(facts, taken_ns=0)


# -- multipathd --------------------------------------------------------------------------------------------------------------------------


class Server:
    """A multipathd of one connection: gets a command, does what the test says."""

    def __init__(self, folder: Path, act: Callable[[socket.socket, bytes], object]) -> None:
        self.address = str(folder / "multipathd.socket")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.address)
        self._socket.listen(4)
        self._act = act
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._socket.accept()
        with sock:
            self._act(sock, sock.recv(1000))
            self.done.wait(30)

    def close(self) -> None:
        self.done.set()
        self._socket.close()
        self._thread.join(30)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket, bytes], object]], multipathd.Multipathd]]:
    servers: list[Server] = []

    def start(act: Callable[[socket.socket, bytes], object]) -> multipathd.Multipathd:
        servers.append(Server(tmp_path, act))
        return multipathd.Multipathd(0.5, ("\0hdad-no-such-socket", servers[-1].address))

    yield start
    for server in servers:
        server.close()


def test_multipathd_is_asked_on_the_socket_that_is_there(serve: Any) -> None:
    asked = []

    def act(sock: socket.socket, command: bytes) -> None:
        asked.append(command)
        for byte in multipathd.encode_command("reply"):
            sock.sendall(bytes([byte]))

    assert serve(act).ask("show map hdad json") == "reply"
    assert asked == [multipathd.encode_command("show map hdad json")]


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda _sock, _command: None, TimeoutError, "does not answer"),
        (lambda sock, _command: sock.sendall(multipathd.encode_command("reply")[:-1]), TimeoutError, "does not answer"),
        (lambda sock, _command: sock.shutdown(socket.SHUT_RDWR), PeerProtocolError, "closed the connection"),
        (lambda sock, _command: sock.sendall(b"\xff" * 8), PeerProtocolError, "announces"),
    ],
    ids=["silent", "half", "closed", "garbage"],
)
def test_a_multipathd_that_misbehaves_is_given_up_within_the_deadline(serve: Any, act: Any, error: type[Exception], words: str) -> None:
    began_ns = monotonic_ns()
    with pytest.raises(error) as caught:
        serve(act).ask("show")
    assert monotonic_ns() - began_ns < 5_000_000_000 and words in multipathd.describe(caught.value)  # type: ignore[arg-type]


def test_without_a_socket_it_is_said_that_it_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        multipathd.Multipathd(0.5, (str(tmp_path / "none"),)).ask("show")
    assert multipathd.describe(caught.value) == "multipathd is not running"


def test_its_own_tools_variable_names_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIPATH_SOCKET_NAME", raising=False)
    assert multipathd.default_addresses() == multipathd.ADDRESSES
    monkeypatch.setenv("MULTIPATH_SOCKET_NAME", "@/a/b")
    assert multipathd.default_addresses() == ("\0/a/b",)
    monkeypatch.setenv("MULTIPATH_SOCKET_NAME", "/run/x")
    assert multipathd.default_addresses() == ("/run/x",)


class Failing:
    """A multipathd that answers some questions only."""

    def __init__(self, answers: dict[str, str]) -> None:
        self._answers = answers

    def ask(self, *words: str) -> str:
        if words[0] not in self._answers:
            raise TimeoutError("late")
        return self._answers[words[0]]


def test_what_multipathd_said_stands_until_it_answers_again(qla: Path) -> None:
    sources = recorded_sources(str(qla))
    before = list(survey(MAP, sources))[-1]
    before = before.with_paths({"sdb": {"dm_state": "failed", "failures": 3}})
    silent = Sources(sources.tree, Failing({}), Failing({}))
    facts = list(survey(MAP, silent, before, is_detailed=False))[-1]
    assert condition(facts.paths[0]) == "failed" and facts.groups == before.groups
    assert facts.queueing == "12 checks" and facts.polling_s == 5
    assert "multipathd does not answer: late" in facts.notes and facts.is_complete and facts.hosts[0].counters
    short = Failing({"show map hdad json": sources.daemon.ask("show map hdad json")})
    facts = list(survey(MAP, Sources(sources.tree, short, Failing({}))))[-1]
    assert facts.groups and facts.polling_s is None and facts.notes == ("multipathd does not answer: late",)


# -- dmsetup -----------------------------------------------------------------------------------------------------------------------------


def program(folder: Path, text: str) -> DeviceMapper:
    path = folder / "dmsetup"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return DeviceMapper(0.5, str(path), str(folder))


def test_dmsetup_is_run_and_bounded(tmp_path: Path) -> None:
    assert program(tmp_path, 'echo "$@"').ask("status", "hdad") == "status --noflush hdad"
    assert program(tmp_path, 'echo "$@"').ask("table", "hdad") == "table hdad"
    with pytest.raises(PermissionError, match="no such map"):
        program(tmp_path, "echo no such map >&2; exit 1").ask("table", "hdad")
    with pytest.raises(TimeoutError):
        program(tmp_path, "exec tail -f /dev/null").ask("table", "hdad")
    with pytest.raises(PermissionError, match="root"):
        DeviceMapper(0.5, "/bin/true", str(tmp_path / "none")).ask("table", "hdad")


def test_without_dmsetup_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_options: None)
    with pytest.raises(FileNotFoundError, match="no dmsetup"):
        DeviceMapper().ask("table", "hdad")


# -- deadlines ---------------------------------------------------------------------------------------------------------------------------


class Hanging:
    """A source that never answers, as an adapter whose firmware hangs."""

    def ask(self, *_words: str) -> str:
        signal.pause()
        raise AssertionError


def test_a_survey_that_hangs_is_cut_off_with_what_is_known(qla: Path) -> None:
    sources = recorded_sources(str(qla))
    facts = survey_within(MAP, Sources(sources.tree, Hanging(), Hanging()), 0.5)
    assert len(facts.paths) == 4 and not facts.is_complete and "multipathd and device-mapper have not answered" in facts.notes[-1]
    whole = survey_within(MAP, sources, 20)
    assert whole.is_complete and _without_time(whole) == _without_time(fabric.read(qla, MAP))


def test_statistics_that_hang_cost_only_the_statistics(qla: Path) -> None:
    class Stuck(Tree):
        def text(self, path: str) -> str:
            return super().text(path) if not path.endswith("invalid_crc_count") else Hanging().ask(path)

    sources = recorded_sources(str(qla))._replace(tree=Stuck(str(qla / "sys")))
    facts = survey_within(MAP, sources, 1.0)
    assert facts.has_states and not facts.is_complete and summary(facts) == "paths 4/4 active"
    assert "statistics" in facts.notes[-1] and not facts.hosts[0].counters


def test_a_survey_that_dies_is_told_as_nothing_read(qla: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Tree):
        def real(self, path: str) -> str:
            raise RuntimeError("a bug")

    facts = survey_within(MAP, recorded_sources(str(qla))._replace(tree=Broken(str(qla / "sys"))), 20)
    assert facts.kind == "missing" and "nothing was read" in facts.notes[0]
    assert "a bug" in capfd.readouterr().err


# -- the watch ---------------------------------------------------------------------------------------------------------------------------


def test_the_child_tells_each_round_until_it_is_told_to_end(qla: Path) -> None:
    def run(channel: Any) -> ExitStatus:
        return watch(MAP, recorded_sources(str(qla)), channel)

    forked = spawn("hdad-paths", run)
    assert forked.channel is not None
    found: list[Facts] = []

    def hear() -> bool:
        assert forked.channel is not None
        found.extend(from_plain(message["facts"]) for message in forked.channel.receive())
        return any(condition(facts.paths[0]) == "offline" for facts in found)

    wait_until(lambda: hear() or found, "the first survey")
    assert found[0].has_states and condition(found[0].paths[0]) == "active"
    (device_of(qla, "sdb") / "state").write_text("offline\n")
    wait_until(hear, "the path to be told offline")
    assert found[-1].hosts[0].counters, "statistics of an earlier round stay"
    forked.channel.send({"op": "drain"})
    assert reap(forked) == ExitStatus.OK


def test_a_survey_too_large_for_a_message_loses_paths_not_itself(qla: Path) -> None:
    facts = fabric.read(qla, MAP)
    large = replace(facts, paths=tuple(replace(facts.paths[0], name=f"sd{index}") for index in range(256)))
    message = as_message(large)
    ours, theirs = create_pair()
    assert ours.send(message)
    found = from_plain(theirs.receive()[0]["facts"])
    assert 16 <= len(found.paths) < 256 and "paths are told" in found.notes[-1]
    ours.close()
    theirs.close()


class Watching:
    """A PathWatch as the supervisor drives it."""

    def __init__(self, folder: Path, source: Callable[[], Sources]) -> None:
        self.selector = selectors.DefaultSelector()
        self.alarms: dict[str, str] = {}
        self.pids: list[int] = []

        def fork() -> Forked:
            def body(channel: Any) -> ExitStatus:
                return watch(MAP, source(), channel)

            forked = spawn("hdad-paths", body, close_fds=self.watch.fds())
            self.pids.append(forked.pid)
            return forked

        self.watch = PathWatch(MAP, Expectations(), self.selector, fork, str(folder / "sys"))
        self.watch.on_alarm = self._alarm

    def _alarm(self, key: str, text: str) -> None:
        self.alarms.pop(key, None)
        if text:
            self.alarms[key] = text

    def turn(self) -> None:
        for key, mask in self.selector.select(0.05):
            key.data(mask)
        self.watch.tick(monotonic_ns())

    def until(self, true: Callable[[], Any], what: str) -> None:
        wait_until(lambda: (self.turn(), true())[1], what)


@pytest.fixture
def watching(qla: Path) -> Iterator[Watching]:
    found = Watching(qla, lambda: recorded_sources(str(qla)))
    yield found
    found.watch.close()
    assert found.watch.fds() == []
    found.selector.close()


def test_the_watch_follows_its_child_and_raises_alarms(qla: Path, watching: Watching) -> None:
    watched = watching.watch
    assert watched.is_needed and watched.describe() == "paths 4/4 active"
    watching.until(lambda: watched.facts.has_states, "a survey")
    for name in ("sdb", "sdc", "sde"):
        (device_of(qla, name) / "state").write_text("offline\n")
    watching.until(lambda: watching.alarms, "the alarm")
    assert list(watching.alarms) == ["paths:last-path"] and "sdd (host4" in watching.alarms["paths:last-path"]
    status = watched.status()
    assert status["summary"] == "paths 1/4 active (sdb offline, sdc offline, sde offline)" and status["map"] == "hdad"
    assert set(status["since_ns"]) == {"sdb", "sdc", "sde"}
    assert {"level": "error", "code": "last-path", "where": "hdad"} in status["verdicts"]
    assert 0 <= status["age_ms"] < 10_000
    (device_of(qla, "sdb") / "state").write_text("running\n")
    watching.until(lambda: not watching.alarms, "the alarm's end")


def test_a_child_that_dies_is_started_again(watching: Watching) -> None:
    watching.until(lambda: watching.watch.facts.has_states, "a survey")
    os.kill(watching.pids[0], signal.SIGKILL)
    watching.until(lambda: len(watching.pids) == 2, "another child")
    before = watching.watch.facts.taken_ns
    watching.until(lambda: watching.watch.facts.taken_ns > before and watching.watch.facts.is_complete, "its survey")


def test_while_the_child_hangs_states_come_from_sysfs(qla: Path, watching: Watching) -> None:
    watching.until(lambda: watching.watch.facts.is_complete, "a survey")
    os.kill(watching.pids[0], signal.SIGSTOP)
    (device_of(qla, "sdb") / "state").write_text("transport-offline\n")
    watching.until(lambda: watching.watch.describe() == "paths 3/4 active (sdb lost)", "what the supervisor reads itself")
    assert not watching.watch.facts.is_complete and len(watching.pids) == 1
    os.kill(watching.pids[0], signal.SIGCONT)
    watching.until(lambda: watching.watch.facts.is_complete, "the child's word")


def test_a_child_that_cannot_be_forked_is_tried_again_later(qla: Path) -> None:
    tries = []

    def fork() -> Forked:
        tries.append(monotonic_ns())
        raise OSError(11, "Resource temporarily unavailable")

    selector = selectors.DefaultSelector()
    watched = PathWatch(MAP, Expectations(), selector, fork, str(qla / "sys"))
    now_ns = monotonic_ns()
    watched.tick(now_ns)
    watched.tick(now_ns)
    assert len(tries) == 1
    watched.tick(monotonic_ns() + 2_000_000_000)
    assert len(tries) == 2 and watched.fds() == []
    watched.close()


def test_a_device_without_paths_is_not_watched(tmp_path: Path) -> None:
    folder = fabric.unpack("plain", tmp_path)

    def fork() -> Forked:
        raise AssertionError

    for device, is_needed in (("/dev/vda", False), ("/dev/nvme0n1", False), ("/dev/mapper/vg-hdad", False)):
        assert PathWatch(device, Expectations(), selectors.DefaultSelector(), fork, str(folder / "sys")).is_needed is is_needed


def test_expectations_come_from_the_configuration() -> None:
    one = expectations(validate({"log": {"device": "/dev/x", "cpu": min(os.sched_getaffinity(0))}}, "x"))
    assert one.takeover_s is None and not one.needs_keys and len(one.writer_nodes) <= 1
    assert one.writer_nodes <= expectations(validate({"log": {"device": "/dev/x"}}, "x")).writer_nodes
    assert expectations(validate({"log": {"device": "/dev/x", "cpu": 99_999}}, "x")).writer_nodes == frozenset()
    pair = {"device": "/dev/x", "takeover_timeout_ms": 5000, "io_timeout_ms": 1500}
    for fence, needs_keys in (("reservation", True), ("lease-unsafe", False)):
        fenced = expectations(validate({"log": {**pair, "fence": fence}}, "x"))
        assert (fenced.takeover_s, fenced.io_s, fenced.needs_keys) == (5.0, 1.5, needs_keys)


def test_a_survey_has_the_keys_and_a_missing_one_is_told(tmp_path: Path) -> None:
    sources = recorded_sources(str(fabric.unpack("fc-qla2xxx", tmp_path)))
    active_count = sum(map(is_active, fabric.read(tmp_path / "fc-qla2xxx", MAP).paths))
    for count, is_missing in ((active_count, False), (active_count - 1, True)):
        held = Reservation("write exclusive – registrants only", "0x48a", ("0x48a",) * count + ("0x48b",), "0x48a")
        facts = list(survey(MAP, sources._replace(keys=lambda held=held: held)))[-1]
        assert facts.reservation == held and decode(encode(facts)) == facts
        later = list(survey(MAP, sources, facts, is_detailed=False))[-1]
        assert later.reservation == held, "kept until it is asked for again"
        codes = [verdict.code for verdict in judge(facts, Expectations(needs_keys=True), Trends())]
        assert ("missing-key" in codes) is is_missing

    def refused() -> Reservation | None:
        raise DeviceError("simulated")

    assert "reservation keys cannot be read: simulated" in list(survey(MAP, sources._replace(keys=refused)))[-1].notes


def test_the_writer_registers_on_the_disks_of_a_multipath_map_that_work(tmp_path: Path) -> None:
    folder = fabric.unpack("fc-qla2xxx", tmp_path) / "sys"
    names = working_paths(MAP, str(folder))
    assert names and set(names) == {path.name for path in fabric.read(tmp_path / "fc-qla2xxx", MAP).paths if path.in_map}
    fabric.write(folder, f"block/{names[0]}/device/state", "offline")
    assert working_paths(MAP, str(folder)) == names[1:]
    plain = fabric.unpack("plain", tmp_path) / "sys"
    assert working_paths("/dev/vda", str(plain)) == [], "one path, which has the key since the claim"


# -- metrics -----------------------------------------------------------------------------------------------------------------------------


def test_metrics_tell_paths_ports_and_findings(tmp_path: Path) -> None:
    facts = fabric.read(fabric.unpack("fc-lpfc", tmp_path), MAP)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PathCollector(lambda: Watched(facts, judge(facts, Expectations(), Trends()))))
    text = generate_latest(registry).decode()
    assert 'hdad_paths{condition="active"} 1.0' in text and 'hdad_paths{condition="lost"} 1.0' in text
    assert 'hdad_path_active{path="sdg",port="0x100000109b7c4d06",target="0x500601623b24061f"} 1.0' in text
    assert 'hdad_path_failures_total{path="sdg",port="0x100000109b7c4d06",target="0x500601623b24061f"} 3.0' in text
    assert 'hdad_fc_port_online{host="host7",port="0x100000109b7c4d07"} 0.0' in text
    assert 'hdad_fc_errors_total{counter="invalid_tx_word_count",host="host6",port="0x100000109b7c4d06"} 63.0' in text
    assert 'hdad_fc_traffic_total{counter="tx_frames",host="host6",port="0x100000109b7c4d06"}' in text
    assert 'hdad_path_findings{level="error"} 2.0' in text and "hdad_paths_age_seconds" in text
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PathCollector(lambda: Watched(Facts("/x"), [])))
    assert "hdad_paths_age_seconds NaN" in generate_latest(registry).decode()


# -- hdactl ------------------------------------------------------------------------------------------------------------------------------


def run_paths(folder: Path, *args: str) -> tuple[int, str]:
    argv = [sys.executable, "-c", "from hdad.cli.hdactl import main; main()", "--socket", str(folder / "none"), "paths", *args]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    return done.returncode, done.stdout + done.stderr


def test_hdactl_paths_tells_by_its_status_whether_writes_are_in_danger(tmp_path: Path) -> None:
    good, bad = fabric.unpack("fc-qla2xxx", tmp_path), fabric.unpack("fc-lpfc", tmp_path)
    status, text = run_paths(tmp_path, MAP, "--from", str(good))
    assert status == 0 and "paths 4/4 active" in text and "nothing is wrong" in text
    status, text = run_paths(tmp_path, MAP, "--from", str(bad), "--json")
    found = orjson.loads(text)
    assert status == ExitStatus.FINDINGS and found["conditions"]["sdi"] == "lost"
    assert found["verdicts"][0]["level"] == "error" and found["facts"]["paths"][0]["port"] == "0x100000109b7c4d06"
    status, text = run_paths(tmp_path, MAP, "--from", str(bad), "--capture", str(tmp_path / "copy"))
    assert status == ExitStatus.FINDINGS and (tmp_path / "copy" / "replies" / "show-map-hdad-json").exists()
    assert run_paths(tmp_path, MAP, "--from", str(bad), "--capture", str(tmp_path / "copy"))[0] == ExitStatus.FAILURE
    status, text = run_paths(tmp_path, MAP, "--from", str(tmp_path / "copy"))
    assert status == ExitStatus.FINDINGS and "sdi (host7 0x100000109b7c4d07" in text


def test_hdactl_paths_watches(qla: Path) -> None:
    argv = [sys.executable, "-c", "from hdad.cli.hdactl import main; main()", "--socket", str(qla / "none"), "paths", MAP]
    argv += ["--from", str(qla), "--watch", "--json", "--interval", "0.05"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        assert orjson.loads(process.stdout.readline())["summary"] == "paths 4/4 active"
        (device_of(qla, "sdb") / "state").write_text("offline\n")
        while True:
            found = orjson.loads(process.stdout.readline())
            if found["conditions"]["sdb"] == "offline":
                break
        assert set(found["since_ns"]) == {"sdb"}
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_what_a_daemon_remembers_is_shown_of_paths_that_are_still_so(qla: Path) -> None:
    facts = fabric.read(qla, MAP).with_paths({"sdb": {"device_state": "offline"}})
    memory = {
        "map": "hdad", "conditions": {"sdb": "offline", "sdc": "failed"}, "since_ns": {"sdb": 7, "sdc": 8}, "risen": {},
        "risen_span_s": 3.0,
    }  # fmt: skip
    trends = remembered(facts, memory)
    assert trends is not None and trends.since == {"sdb": 7}
    assert remembered(facts, None) is None and remembered(facts, {**memory, "map": "other"}) is None


def test_doctor_tells_of_the_paths(qla: Path, tmp_path: Path) -> None:
    bad = fabric.unpack("fc-lpfc", tmp_path)
    assert list(path_findings(fabric.read(qla, MAP), Expectations())) == [Finding("paths", "ok", "hdad: paths 4/4 active")]
    found = list(path_findings(fabric.read(bad, MAP).with_note("something"), Expectations()))
    assert found[0] == Finding(
        "paths", "warning", "hdad: paths 2/4 active (sdg marginal, sdh blocked, sdi lost, sdj unused)", "see hdactl paths, and what follows"
    )
    assert found[1] == Finding("paths", "warning", "something")
    assert {finding.level for finding in found} == {"error", "warning"} and all(finding.remedy for finding in found[2:])
    assert list(path_findings(Facts("/var/hdad.log", "file"), Expectations())) == []


def test_the_status_page_says_how_old_its_word_is() -> None:
    assert _old({"age_ms": 100}) == "" and _old({"age_ms": None}) == "" and _old({"age_ms": 9000}) == ", as of 9 s ago"
