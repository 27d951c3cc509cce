"""Who takes what the local workers put into their rings: the writer, or on a standby the link, which sends it to the writer elsewhere.

Runs in the supervisor. A ring has one consumer at a time: the link has let go before the writer of this host takes hold, and is told to
forward only when that writer is none any more. A link that has just been started holds nothing.
"""

from __future__ import annotations

from typing import Any

from hdad.supervise.family import Child
from hdad.supervise.node import Node
from hdad.writer.role import Role


class Handover:
    """``is_forwarding_wanted``: the configuration names hosts that may have the writer, so a standby's workers need not be idle."""

    def __init__(self, node: Node, writer: Child | None, link: Child | None, is_forwarding_wanted: bool) -> None:
        self._node, self._writer, self._link = node, writer, link
        self._is_wanted = is_forwarding_wanted and writer is not None and link is not None
        self._claim = 0
        node.on_change.append(self._changed)

    @property
    def is_forwarding(self) -> bool:
        """True: the link empties the rings of local workers, though this host has the device."""
        return self._is_wanted and self._node.role is Role.STANDBY and self._link is not None and self._link.is_running

    def heard(self, message: dict[str, Any]) -> None:
        """The writer's process said something of its role; to be called before the node hears it."""
        self._claim = int(message.get("claim", self._claim))

    def where(self) -> None:
        """Tell the link where the writer is: hosts that look for it come here, too."""
        if self._link is not None:
            owner = self._node.owner
            self._link.tell({"op": "writer-at", "contact": owner.get("contact", "") if owner.get("is_serving") else ""})

    def _changed(self, role: Role) -> None:
        if not self._is_wanted or self._link is None:
            return
        if role is Role.STANDBY:
            self._link.tell({"op": "forward"})
        elif role is Role.TAKING_OVER:
            if self._link.is_running:
                self._link.tell({"op": "let-go"})
            else:
                self.has_let_go()

    def link_started(self) -> None:
        """A new link process: it holds no ring."""
        self.where()
        if self._is_wanted and self._node.role is Role.STANDBY and self._link is not None:
            self._link.tell({"op": "forward"})

    def has_let_go(self) -> None:
        """The link said so, or is dead: the rings are the writer's."""
        if self._is_wanted and self._writer is not None and self._node.role is Role.TAKING_OVER:
            self._writer.tell({"op": "rings-free", "claim": self._claim})
