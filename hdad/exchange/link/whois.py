"""Who writes the log: what a link answers to a host that looks for the writer. A small interface, and what is true without standbys."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from hdad.metrics.counters import RoleBlock, State


class Writer(NamedTuple):
    """``is_here``: this host's rings lead to it. ``contact``: where it is otherwise, as its lease block says; "" if nobody knows."""

    is_here: bool
    contact: str = ""
    log_uuid: bytes = bytes(16)


class WhoIsWriter(Protocol):
    """Asked often, and never waits for a device: whoever looks at lease blocks does so elsewhere."""

    def look(self) -> Writer: ...

    def told(self, contact: str) -> None:
        """The supervisor has heard where the writer is; "": nobody knows."""


class LocalWriter:
    """A host with the device. Its writer is here, dead or alive, for a dead one is forked again and finds the rings as they are; unless
    this host stands by: then the writer is where its lease block says."""

    def __init__(self, block: RoleBlock, log_uuid: bytes) -> None:
        self._block = block
        self._log_uuid = log_uuid
        self._contact = ""

    def look(self) -> Writer:
        """From the writer's counters."""
        is_here = self._block.get("state") not in (State.NONE, State.STANDBY)
        return Writer(is_here, "" if is_here else self._contact, self._log_uuid)

    def told(self, contact: str) -> None:
        """As the interface says."""
        self._contact = contact
