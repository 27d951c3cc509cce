"""What a reader knows to be durable: the highest LSN that lease blocks, or later frames, call so.

Runs in readers. Frames of one write all carry what was durable before it, so at the end of the log the newest frames prove nothing of each
other: the first frame of the next write does, and until it comes the lease, which is written at intervals. A frame is proof of what it
calls durable, be it durable itself or not (I1).
"""

from __future__ import annotations

from collections.abc import Callable

from hdad.log.device import BlockDevice
from hdad.log.format import FrameHeader, is_of_log, occupied
from hdad.log.opening import durable_evidence, read_leases
from hdad.log.superblock import Lease, Superblock

Probe = Callable[[int, bool], memoryview]  # address, whether what was read before will not do → the bytes of a header


class Horizon:
    """One per reader. ``lsn`` never falls."""

    def __init__(self, device: BlockDevice, superblock: Superblock) -> None:
        self.lsn = 0
        self._device = device
        self._uuid = superblock.uuid
        self._block_size = superblock.geometry.block_size
        self._last: FrameHeader | None = None  # where the last look at frames came to
        self.look_at_leases()

    def learn(self, lsn: int) -> None:
        """Somebody who may be believed calls it durable."""
        self.lsn = max(self.lsn, lsn)

    def look_at_leases(self) -> list[Lease | None]:
        """Returns them. Raises DeviceError."""
        leases = read_leases(self._device, self._uuid)
        self.learn(durable_evidence(leases))
        return leases

    def scout(self, header: FrameHeader, end: int, probe: Probe) -> bool:
        """Look at the frames behind ``header`` until one calls it durable, from where the last look ended. True: they fill the segment,
        which ends at ``end``, and none does. Raises DeviceError."""
        last = self._last
        if last is None or not header.address < last.address < end or last.lsn < header.lsn:
            last = header
        while header.lsn > self.lsn:
            address = self._end_of(last)
            if address >= end:
                break
            following = self._behind(last, address, probe)
            if following is None:
                break
            self.learn(following.durable_lsn)
            last = following
        self._last = last
        return header.lsn > self.lsn and self._end_of(last) >= end

    def _end_of(self, header: FrameHeader) -> int:
        return header.address + max(occupied(header, self._block_size), self._block_size)  # I9: a padding may call itself nothing

    def _behind(self, last: FrameHeader, address: int, probe: Probe) -> FrameHeader | None:
        """The header of the frame behind ``last``, if it is there: the chain of header CRCs tells it from one of an older lap."""
        for is_fresh in (False, True):
            following = is_of_log(probe(address, is_fresh), self._uuid, address)
            if following is not None and following.predecessor_crc == last.header_crc:
                return following
        return None
