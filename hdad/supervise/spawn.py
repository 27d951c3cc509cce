"""Forking children: the only place that forks, from a process without threads. Edge.

A child is killed by the kernel when the supervisor dies (PR_SET_PDEATHSIG), ignores the terminal's and systemd's signals (the supervisor
tells it what to do), has a name in ps, and runs on the CPUs it was given.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, NoReturn

from hdad.errors import ExitStatus
from hdad.exchange.channel import Channel, create_pair

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
SLICE_NS: Final = 100_000  # the least that the kernel takes
IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Forked(NamedTuple):
    """A child: ``pidfd`` becomes readable when it has ended. ``channel`` is None for a foreign program."""

    pid: int
    pidfd: int
    channel: Channel | None


def set_name(name: str) -> None:
    """The process' name in ps and top (at most 15 bytes, PR_SET_NAME in prctl(2))."""
    _LIBC.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def spawn(
    name: str, run: Callable[[Channel], ExitStatus], *, cpus: Iterable[int] = (), nice: int = 0, close_fds: Iterable[int] = ()
) -> Forked:
    """Fork a child that runs ``run`` and exits with its status. ``close_fds``: the supervisor's, of no concern to it. Raises OSError."""
    assert threading.active_count() == 1, "fork only from a process without threads"
    ours, theirs = create_pair()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(name, parent, cpus, nice, [*close_fds, ours.fileno()])
        _end(run, theirs)
    theirs.close()
    return Forked(pid, os.pidfd_open(pid), ours)


def spawn_program(name: str, argv: Sequence[str], *, close_fds: Iterable[int] = ()) -> Forked:
    """Fork a child and execute a foreign program in it, as SIGKILL-proof a companion as our own children. Raises OSError."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(name, parent, (), 0, close_fds)
            for number in IGNORED:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's ^C is for the supervisor
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(2, 1)
            os.execv(argv[0], list(argv))
        except BaseException as error:  # the child's root: nothing of the supervisor may go on running here
            os.write(2, f"{name}: {error}\n".encode())
            os._exit(ExitStatus.FAILURE)
    return Forked(pid, os.pidfd_open(pid), None)


def _become(name: str, parent: int, cpus: Iterable[int], nice: int, close_fds: Iterable[int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked to die with it
        os._exit(ExitStatus.FAILURE)
    set_name(name)
    for fd in close_fds:
        try:
            os.close(fd)
        except OSError:  # closed already: that is what was wanted
            pass
    wanted = set(cpus)
    try:
        if wanted:
            os.sched_setaffinity(0, wanted)
        if nice:
            os.nice(nice)
        ask_for_short_slice()
    except OSError as error:
        logging.getLogger("hdad").warning("%s: not pinned or reniced: %s", name, error)


def ask_for_short_slice() -> None:
    """Ask the scheduler for short turns and early ones (sched_setattr(2), EEVDF, Linux 6.12): a role sleeps often, has little to do when
    it wakes, and others wait for it. No privilege is needed; an older kernel ignores it."""
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is not None:
        attributes = struct.pack("<IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, SLICE_NS, 0, 0)
        _LIBC.syscall(number, 0, attributes, 0)


def _end(run: Callable[[Channel], ExitStatus], channel: Channel) -> NoReturn:
    status = ExitStatus.FAILURE
    try:
        gc.collect()
        status = run(channel)
    except BaseException:  # the child's root: whatever comes here is a bug, and must not run the supervisor's code
        logging.getLogger("hdad").exception("child: unforeseen")
    finally:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)


def has_ended(forked: Forked, seconds: float) -> bool:
    """Whether it has ended, waiting at most so long."""
    poller = select.poll()
    poller.register(forked.pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def reap(forked: Forked) -> int:
    """After the pidfd became readable: the exit status, negative for a signal. Closes the pidfd and the channel."""
    _, status = os.waitpid(forked.pid, 0)
    os.close(forked.pidfd)
    if forked.channel is not None:
        forked.channel.close()
    return os.waitstatus_to_exitcode(status)


def kill(forked: Forked, number: int = signal.SIGKILL) -> None:
    """Send a signal by pidfd: never to another process that got the same pid."""
    try:
        signal.pidfd_send_signal(forked.pidfd, number)
    except ProcessLookupError:  # it ended in this instant
        pass
