"""Deliberate bugs: one line of the program each, and which check is to catch it first."""

from __future__ import annotations

from typing import Final, NamedTuple


class Bug(NamedTuple):
    """``old`` occurs once in ``file`` and becomes ``new``. ``first``: the check to run first; all others follow if it finds nothing."""

    name: str
    file: str
    old: str
    new: str
    first: str


BUGS: Final = (
    # -- format ------------------------------------------------------------------------------------------------------------------------
    Bug("payload CRC is not looked at", "hdad/log/format.py",
        "len(payload) == header.stored_size and crc32c(payload) == header.payload_crc", "len(payload) == header.stored_size", "crash"),
    Bug("header CRC is not looked at", "hdad/log/format.py",
        "header.reserved_end != _ZEROS or crc32c(view[4:FRAME_HEADER_SIZE]) != header.header_crc", "header.reserved_end != _ZEROS", "unit"),
    Bug("a frame of another log is taken", "hdad/log/format.py", "if header.uuid != expected.uuid:", "if False:", "unit"),
    Bug("a misdirected frame is taken", "hdad/log/format.py", "if header.address != expected.address:", "if False:", "unit"),
    Bug("LSNs may have gaps", "hdad/log/format.py", "if header.lsn != expected.lsn:", "if header.lsn < expected.lsn:", "unit"),
    Bug("the header CRC chain is not looked at", "hdad/log/format.py",
        "expected.predecessor_crc is not None and header.predecessor_crc != expected.predecessor_crc", "False", "unit"),
    Bug("frames of older writers are taken", "hdad/log/format.py",
        "if header.writer_epoch < expected.writer_epoch_min:", "if False:", "unit"),
    Bug("superblock CRC is not looked at", "hdad/log/superblock.py",
        "if magic != SUPERBLOCK_MAGIC or crc != crc32c(content[4:]) or zero:", "if magic != SUPERBLOCK_MAGIC or zero:", "unit"),
    Bug("the lease of another log is believed", "hdad/log/superblock.py",
        "crc != crc32c(content[4:]) or zero or uuid != log_uuid:", "crc != crc32c(content[4:]) or zero:", "unit"),
    # -- recovery ----------------------------------------------------------------------------------------------------------------------
    Bug("a damaged durable frame passes for a torn tail", "hdad/log/recovery.py",
        "if max(evidence_lsn, witness) < torn_lsn:\n        return", "if True:\n        return", "damage"),
    Bug("a torn tail passes for damage", "hdad/log/recovery.py",
        "if max(evidence_lsn, witness) < torn_lsn:\n        return",
        "if max(evidence_lsn, witness) < torn_lsn - 1:\n        return", "crash"),
    Bug("later frames are no witnesses", "hdad/log/recovery.py",
        "witness = max((header.durable_lsn for header, _ in survivors), default=0)", "witness = 0", "damage"),
    Bug("leases are no evidence", "hdad/log/opening.py",
        "return max((lease.durable_lsn for lease in leases if lease is not None), default=0)", "return 0", "damage"),
    Bug("the next segment is not followed", "hdad/log/recovery.py",
        "found[0].lane_epoch != log.sequence + 1:\n            break", "True:\n            break", "crash"),
    Bug("a torn newest head is not stepped back from", "hdad/log/recovery.py",
        "for sequence in (head.sequence, head.sequence - 1):", "for sequence in (head.sequence,):", "crash"),
    Bug("bisection trusts one head only", "hdad/log/recovery.py",
        "range(middle, min(middle + 2, high))", "range(middle, middle + 1)", "damage"),
    Bug("a lane's position goes back at a segment head", "hdad/log/recovery.py",
        "        lanes.update((row.id, row) for row in rows)", "        lanes.update((row.id, row) for row in rows[:-1])", "crash"),
    # -- writing -----------------------------------------------------------------------------------------------------------------------
    Bug("the writer epoch does not grow", "hdad/log/appender.py",
        "epoch = max(superblock.writer_epoch, log.writer_epoch) + 1", "epoch = max(superblock.writer_epoch, log.writer_epoch)", "unit"),
    Bug("a writer does not cut off what is behind it", "hdad/log/appender.py",
        "        appender._cut_off(bool(log.damaged))\n", "", "crash"),
    Bug("durable one frame early", "hdad/log/appender.py",
        "            self.durable_lsn = last\n", "            self.durable_lsn = min(last + 1, self.next_lsn - 1)\n", "sim"),
    Bug("durable when any write has returned", "hdad/log/appender.py",
        "while (last := self._completed.pop(self.durable_lsn + 1, None)) is not None:\n            self.durable_lsn = last",
        "while self._completed:\n            self.durable_lsn = max(self.durable_lsn, self._completed.popitem()[1])", "sim"),
    Bug("a segment begins before all before it is durable", "hdad/log/appender.py",
        "if gather.is_segment_start and self.durable_lsn < gather.first_lsn - 1:", "if False:", "crash"),
    Bug("only one superblock copy is written at takeover", "hdad/log/appender.py",
        "for address in superblock.geometry.copies:\n            device",
        "for address in superblock.geometry.copies[:1]:\n            device", "unit"),
    Bug("frames are stamped with a durable LSN that is not", "hdad/log/appender.py",
        "            durable_lsn=self.durable_lsn,\n            address",
        "            durable_lsn=self.next_lsn - 1,\n            address", "crash"),
    Bug("retention is not looked at", "hdad/log/appender.py",
        "        if not self._may_reuse(self._sequence + 1):\n            return False\n", "", "unit"),
    Bug("leases say one frame more", "hdad/log/appender.py",
        "counter=self._lease.counter + 1, durable_lsn=self.durable_lsn,",
        "counter=self._lease.counter + 1, durable_lsn=self.next_lsn,", "crash"),
    # -- admission ---------------------------------------------------------------------------------------------------------------------
    Bug("frames of lost lanes are admitted", "hdad/writer/admission.py",
        "    if frame_epoch != lane_epoch:\n        return Verdict.STALE\n", "", "unit"),
    Bug("older epochs only are stale", "hdad/writer/admission.py", "if frame_epoch != lane_epoch:", "if frame_epoch < lane_epoch:", "unit"),
    Bug("gaps are admitted", "hdad/writer/admission.py", "if from_ == lane_position:", "if from_ >= lane_position:", "unit"),
    Bug("repeats are admitted", "hdad/writer/admission.py",
        "if from_ == lane_position:", "if from_ == lane_position or to <= lane_position:", "unit"),
    Bug("rings are given back before frames are durable", "hdad/writer/intake.py",
        "held and held[0][1] <= durable_lsn:", "held:", "sim"),
    Bug("a new writer keeps what the rings hold", "hdad/writer/loop.py", "            intake.drop_all()\n", "            pass\n", "sim"),
    Bug("a dead worker's last frames are dropped", "hdad/writer/loop.py",
        "            self._admit(self._intakes[index], now_ns)  # what", "            pass  # what", "sim"),
    Bug("positions are told when admitted", "hdad/writer/members.py",
        "while self._assigned and self._assigned[0].lsn <= durable_lsn:", "while self._assigned:", "sim"),
    Bug("a lane keeps its epoch when its worker dies", "hdad/writer/members.py",
        "leave(member.slot.index):\n            self.epochs[lane_id] = self.next_epoch()\n", "leave(member.slot.index):\n", "sim"),
    Bug("lanes without an owner pile up on one worker", "hdad/writer/assignment.py",
        "            moves.append(self._give(lane, member))\n            order.update(member)\n",
        "            moves.append(self._give(lane, member))\n", "unit"),
    Bug("lanes move for any difference of rates", "hdad/writer/assignment.py",
        "SLACK_PERCENT: Final = 15", "SLACK_PERCENT: Final = 0", "unit"),
    Bug("a worker's death is heard after its successor's HELLO", "hdad/writer/members.py",
        "        if self.members[index].generation > generation:\n            return\n", "", "sim"),
    Bug("a failed write is forgotten", "hdad/writer/writes.py", "            raise self._aside_error\n        if self._aside_since_ns",
        "            pass\n        if self._aside_since_ns", "unit"),
    # -- worker ------------------------------------------------------------------------------------------------------------------------
    Bug("an assigned position is taken for durable", "hdad/worker/loop.py",
        "message.lane_epoch, start, start, ordinal=message.extra)", "message.lane_epoch, start, start, start, message.extra)", "sim"),
    Bug("messages for the worker before are obeyed", "hdad/worker/loop.py",
        "        if not self._is_welcome:\n            return", "        if False:\n            return", "sim"),
    Bug("DURABLE of an older epoch is believed", "hdad/worker/loop.py",
        "lane is not None and message.lane_epoch == lane.epoch:", "lane is not None:", "sim"),
    Bug("a reply for an older position is used", "hdad/worker/port.py",
        "if lane.read != asked_from or lane.is_dropped or lane.halted:", "if lane.is_dropped or lane.halted:", "sim"),
    Bug("trimmed one entry too far", "hdad/worker/chores.py",
        "            below = _after(durable)\n", "            below = _after(_after(durable))._replace(ms=durable.ms + 1)\n", "sim"),
    Bug("trimmed though the stream may be another", "hdad/worker/chores.py",
        "lane.durable > lane.trimmed and lane.is_proven and", "lane.durable > lane.trimmed and", "sim"),
    Bug("lost entries are not counted", "hdad/source/cursor.py", "    lost = known - ordinal\n", "    lost = 0\n", "unit"),
    Bug("a rewind is not noticed", "hdad/source/cursor.py",
        "    if info.last < position:\n        return Examination(Finding.REWOUND, 0, ordinal)\n", "", "unit"),
    Bug("suspects share a frame", "hdad/worker/harvest.py",
        "        suspect = item.lane.suspect\n", "        suspect = None\n", "sim"),
    # -- supervisor --------------------------------------------------------------------------------------------------------------------
    Bug("a worker wanted again while it drains stays away", "hdad/supervise/loop.py",
        "return child.state is ChildState.STOPPED and may_begin",
        "return child.state is ChildState.STOPPED and not child.generation and may_begin",
        "sim"),
    Bug("a hung stage is left alone", "hdad/supervise/states.py", "if age_ns > batch_timeout_ns:", "if False:", "unit"),
)  # fmt: skip
