"""The path watch's child: surveys the device once a second and tells the supervisor. Runs in a process of its own, so that it may hang.

States come every round, what costs more (statistics of the adapters, failure counters, multipathd's configuration) every DETAILS_EVERY-th.
Decides nothing; a round that raises is a bug and ends the process, which the supervisor starts again.
"""

from __future__ import annotations

import select
from typing import Any, Final

import orjson

from hdad.clock import monotonic_ns
from hdad.errors import ExitStatus
from hdad.exchange.channel import MESSAGE_BYTES_MAX, Channel
from hdad.fabric.facts import Facts, compact, trimmed
from hdad.fabric.survey import Sources, survey

INTERVAL_NS: Final = 1_000_000_000
DETAILS_EVERY: Final = 10


def watch(device: str, sources: Sources, channel: Channel) -> ExitStatus:
    """Survey and tell, until the supervisor says ``drain`` or is gone."""
    before: Facts | None = None
    due_ns, rounds = monotonic_ns(), 0
    while True:
        for facts in survey(device, sources, before, is_detailed=rounds % DETAILS_EVERY == 0):
            if facts.has_states:  # told before the details come, which may hang
                channel.send(as_message(facts))
                before = facts
        rounds += 1
        sources.tree.forget()
        due_ns = max(due_ns + INTERVAL_NS, monotonic_ns())
        while (left_ns := due_ns - monotonic_ns()) > 0:
            if select.select([channel.fileno()], [], [], left_ns / 1e9)[0] and _is_over(channel):
                return ExitStatus.OK


def _is_over(channel: Channel) -> bool:
    return any(message.get("op") == "drain" for message in channel.receive()) or channel.closed_by_peer


def as_message(facts: Facts) -> dict[str, Any]:
    """The survey as one message; of one that is too large (I7), as many paths as fit."""
    count = len(facts.paths)
    while True:
        message = {"event": "paths", "facts": compact(facts)}
        if not count or len(orjson.dumps(message)) <= MESSAGE_BYTES_MAX:
            return message
        count //= 2
        facts = trimmed(facts, count)
