"""Making a new log. Edge of ``hdactl log format``; runs in no daemon.

Refuses whatever might be somebody else's data; an old hdad log is given up only by naming its uuid. A regular file is preallocated and
written through once, since writing into unwritten extents is several times slower (DESIGN 11).
"""

from __future__ import annotations

import os
import uuid as uuid_module
from collections.abc import Callable
from pathlib import Path
from typing import Final

from crc32c import crc32c

from hdad.clock import wall_ns
from hdad.errors import ForeignDeviceError, FormatError, HdadError
from hdad.limits import MIB
from hdad.log.device import Device, aligned_buffer, device_error
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, frame_size, stamp
from hdad.log.geometry import LEASE_COUNT, LEASES_OFFSET, SEGMENTS_OFFSET, UNIT, plan
from hdad.log.lanes import encode_rows
from hdad.log.opening import copy_addresses
from hdad.log.signatures import PROBE_BYTES, find_signatures, find_users
from hdad.log.superblock import Superblock, decode_superblock, encode_superblock
from hdad.record import ORIGIN

CHUNK: Final = 4 * MIB
FILE_SIZE_MIN: Final = 4 * MIB
Progress = Callable[[int, int], None]


def format_log(
    path: str,
    *,
    size: int | None = None,
    segment_size: int = 0,
    block_size: int = 0,
    label: str = "",
    force_uuid: str | None = None,
    on_progress: Progress | None = None,
    prefill: bool = True,
) -> Superblock:
    """Make a log on ``path``. DURABLE on return. ``size`` is for files only; ``on_progress(done, total)`` in bytes.

    Raises ForeignDeviceError (it holds something else), FormatError (too small, odd sizes), DeviceError.
    """
    users = find_users(path) if Path(path).exists() else []
    if users:
        raise ForeignDeviceError(f"{path}: not formatted: it {'; it '.join(users)}")
    is_new = _make_file(path, size)
    try:
        with Device.open(path, write=True) as device:
            _refuse_foreign(device, force_uuid)
            block = block_size or max(device.logical_block_size, 512 if device.is_block else 4096)
            if block % device.logical_block_size:
                raise FormatError(f"{path}: block size {block}; the device has blocks of {device.logical_block_size} bytes")
            geometry = plan(device.size, block, segment_size)
            superblock = Superblock(uuid_module.uuid4().bytes, 1, 0, geometry, wall_ns(), label)
            if prefill and not device.is_block:
                _write_through(device, on_progress)
            lay_out(device, superblock)
    except HdadError:
        if is_new:
            os.unlink(path)
        raise
    if is_new:
        _sync_directory(path)
    return superblock


def lay_out(device: Device, superblock: Superblock) -> None:
    """Write an empty log: the superblock copies last, since they make it one. DURABLE on return. Raises DeviceError."""
    device.write(LEASES_OFFSET, [aligned_buffer(LEASE_COUNT * UNIT)])
    device.write(SEGMENTS_OFFSET, [_first_head(superblock)])
    for address in superblock.geometry.copies:
        copy = aligned_buffer(UNIT)
        copy[:] = encode_superblock(superblock)
        device.write(address, [copy])
        device.flush()


def _make_file(path: str, size: int | None) -> bool:
    """Create the file if there is none, or resize an empty one. True: it is new."""
    if Path(path).exists():
        if size is not None and Path(path).is_block_device():
            raise FormatError(f"{path}: a size is for files; a device has its own")
        if size is not None and os.stat(path).st_size not in (0, size):
            raise ForeignDeviceError(f"{path}: exists with {os.stat(path).st_size} bytes; remove it first, or name another file")
        if size is None or os.stat(path).st_size == size:
            return False
    if size is None:
        raise FormatError(f"{path}: no such device; to make a file, say how large (--size)")
    if size < FILE_SIZE_MIN:
        raise FormatError(f"{path}: size {size}; at least {FILE_SIZE_MIN} bytes")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise device_error(path, "create", error) from error
    try:
        os.posix_fallocate(fd, 0, size // UNIT * UNIT)
    except OSError as error:
        os.unlink(path)
        raise device_error(path, f"preallocate {size} bytes", error) from error
    finally:
        os.close(fd)
    return True


def _refuse_foreign(device: Device, force_uuid: str | None) -> None:
    if device.size < PROBE_BYTES:
        raise FormatError(f"{device.path}: {device.size} bytes are too small for a log")
    start = device.read(0, PROBE_BYTES)
    uuids = set()
    for address in copy_addresses(device.size):
        try:
            copy = decode_superblock(device.read(address, UNIT))
        except FormatError as error:
            raise ForeignDeviceError(f"{device.path}: not formatted: {error}") from error
        if copy is not None:
            uuids.add(str(uuid_module.UUID(bytes=copy.uuid)))
    if uuids:
        if force_uuid is None or force_uuid.lower() not in uuids:
            raise ForeignDeviceError(
                f"{device.path}: holds the hdad log {' and '.join(sorted(uuids))}; to give up all its data, name it: --force-uuid UUID"
            )
        return
    found = find_signatures(start)
    if found:
        raise ForeignDeviceError(f"{device.path}: not formatted: it bears {', '.join(found)}. If that may go, remove it first (wipefs)")
    if not device.is_block and any(start):
        raise ForeignDeviceError(f"{device.path}: not formatted: a file with something else in it")


def _first_head(superblock: Superblock) -> memoryview:
    """The head of segment 0, LSN 1: a log is whole before its first writer comes."""
    payload = encode_rows(0, [])
    view = aligned_buffer(frame_size(len(payload), superblock.geometry.block_size))
    view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + len(payload)] = payload
    build_frame_header(
        view, kind=FrameKind.SEGMENT_HEAD, lane_id=0, lane_epoch=0, from_=ORIGIN, to=ORIGIN, record_count=0, entry_count=0,
        stored_size=len(payload), payload_crc=crc32c(payload), label_ns=superblock.created_ns, lost_count=0, filtered_count=0, dead_count=0,
        worker=0,
    )  # fmt: skip
    stamp(view, uuid=superblock.uuid, lsn=1, durable_lsn=0, address=SEGMENTS_OFFSET, writer_epoch=0, predecessor_crc=0)
    return view


def _write_through(device: Device, on_progress: Progress | None) -> None:
    zeros = aligned_buffer(CHUNK)
    total = device.size // UNIT * UNIT
    for address in range(0, total, CHUNK):
        device.write(address, [zeros[: min(CHUNK, total - address)]], durable=False)
        if on_progress is not None:
            on_progress(min(address + CHUNK, total), total)
    device.flush()


def _sync_directory(path: str) -> None:
    fd = os.open(Path(path).absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
