"""Bounds that hold everywhere (I7). A bound that an operator may move is in ``config``; these are hard."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

LANES_MAX: Final = 65_536  # LIMIT: rows of the shared lane table and of a segment head
LANE_NAME_BYTES_MAX: Final = 384  # LIMIT: a stream's name; longer ones are declared and left out
WORKERS_MAX: Final = 64  # LIMIT: ring slots made at start
REMOTE_WORKERS_MAX: Final = 256  # LIMIT: rings for workers of other hosts
LINK_CONNECTIONS_MAX: Final = 256
FEED_READERS_MAX: Final = 256
CAPACITY_MAX: Final = 10_000  # LIMIT: of one worker, 100 being the unit
SEGMENTS_MIN: Final = 3  # one written, one being reused, one to read
SEGMENT_BYTES_MIN: Final = 1 * MIB
SEGMENT_BYTES_MAX: Final = 4 * GIB
RING_BYTES_MIN: Final = 64 * KIB
RING_BYTES_MAX: Final = 1 * GIB
FRAME_BYTES_MAX: Final = 64 * MIB
CONTROL_MESSAGE_BYTES_MAX: Final = 16 * MIB  # LIMIT: one line on the control socket
CONTROL_CLIENTS_MAX: Final = 64
