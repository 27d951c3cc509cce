"""A survey within a deadline, whatever hangs: run in a forked child, and left behind when it is late. Edge, for hdactl.

A process that the kernel holds in a driver (D state) cannot be killed, nor can one of its threads be; so it is another process that reads,
and the last stage that came in time is what is shown. The daemon has its path watch (supervise/paths) for the same, and never calls this.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import traceback
from typing import Final, NoReturn

from hdad.clock import monotonic_ns
from hdad.errors import ExitStatus
from hdad.fabric.facts import Facts, decode, encode
from hdad.fabric.survey import Sources, survey

SURVEY_BYTES_MAX: Final = 4 << 20  # LIMIT: one stage on the pipe
_HEAD: Final = struct.Struct("<I")


def survey_within(device: str, sources: Sources, timeout_s: float) -> Facts:
    """The last stage that was whole within ``timeout_s``. Only from a process without threads, since it forks."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _send_and_exit(device, sources, writing)
    os.close(writing)
    try:
        stages = _receive(reading, timeout_s)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)  # one that the kernel holds is left to init
    if not stages:
        return Facts(device).with_note(f"nothing was read within {timeout_s:g} s, not even from sysfs")
    facts = stages[-1]
    return facts if facts.is_complete else facts.with_note(f"cut off after {timeout_s:g} s: {_missing(facts)}")


def _missing(facts: Facts) -> str:
    if not facts.has_states:
        return "multipathd and device-mapper have not answered"
    return "the adapters have not answered with their statistics"


def _send_and_exit(device: str, sources: Sources, pipe: int) -> NoReturn:
    try:
        for facts in survey(device, sources):
            data = encode(facts)
            data = _HEAD.pack(len(data)) + data
            while data:
                data = data[os.write(pipe, data) :]
    except BaseException:  # the child's root: nothing of the parent may go on running here
        traceback.print_exc()
        os._exit(ExitStatus.FAILURE)
    os._exit(ExitStatus.OK)


def _receive(pipe: int, timeout_s: float) -> list[Facts]:
    deadline_ns = monotonic_ns() + int(timeout_s * 1e9)
    buffer, stages = bytearray(), list[Facts]()
    while not (stages and stages[-1].is_complete):
        left_s = (deadline_ns - monotonic_ns()) / 1e9
        if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
            break
        data = os.read(pipe, 1 << 16)
        if not data:
            break
        buffer += data
        while len(buffer) >= _HEAD.size and len(buffer) >= _HEAD.size + (size := _HEAD.unpack_from(buffer)[0]):
            if size > SURVEY_BYTES_MAX:
                return stages
            stages.append(decode(bytes(buffer[_HEAD.size : _HEAD.size + size])))
            del buffer[: _HEAD.size + size]
    return stages
