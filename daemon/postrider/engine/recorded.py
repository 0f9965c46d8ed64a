"""What the recorder tells of a batch that the database took: one message for those who wait for it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from postrider.domain.policy import Outcome
from postrider.engine.ledger import Job
from postrider.engine.signals import Signal
from postrider.store.delivery_results import DeliveryResult


class Entry(msgspec.Struct, frozen=True):
    """The next state of a delivery, to be recorded."""

    job: Job
    result: DeliveryResult
    outcome: Outcome | None
    """Of the attempt that was made; None where none was."""
    bytes: int
    """Of what the receiver answered, as it lies in memory: up to two a character."""


class Recorded(msgspec.Struct, frozen=True):
    at: datetime
    attempts: Sequence[Entry]
    """Those that led to a state which the database has now. `result.attempt` is None where the attempt itself
    could not be written."""
    waiting: Sequence[tuple[int, UUID]]
    """Endpoint and event of each delivery that was left waiting."""
    earliest_due: datetime | None
    """Of the retries among them; None where there is none."""


class Reader(Protocol):
    def put(self, recorded: Recorded) -> None:
        """Take in a message, at once: it keeps events in memory."""


class LeftWaiting:
    """What the scheduler reads of the messages, added up until it does."""

    def __init__(self, wake: Signal) -> None:
        self._wake = wake
        self._by_endpoint: dict[int, tuple[UUID, int]] = {}
        self._earliest_due: datetime | None = None

    def __repr__(self) -> str:
        return f"<LeftWaiting endpoints={len(self._by_endpoint)} earliest_due={self._earliest_due}>"

    def put(self, recorded: Recorded) -> None:
        due = recorded.earliest_due
        if due is not None and (self._earliest_due is None or due < self._earliest_due):
            self._earliest_due = due
            self._wake.set()
        if recorded.waiting:
            by_endpoint = self._by_endpoint
            for endpoint_id, event_id in recorded.waiting:
                first, count = by_endpoint.get(endpoint_id, (event_id, 0))
                by_endpoint[endpoint_id] = (min(first, event_id), count + 1)
            self._wake.set()

    def take_waiting(self) -> dict[int, tuple[UUID, int]]:
        """By endpoint: the first event, and how many deliveries were left waiting since it was asked."""
        taken, self._by_endpoint = self._by_endpoint, {}
        return taken

    def take_due(self) -> datetime | None:
        """When the earliest retry is due that was recorded since this was asked last."""
        taken, self._earliest_due = self._earliest_due, None
        return taken
