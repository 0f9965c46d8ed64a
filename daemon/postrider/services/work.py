"""What this daemon holds in memory: claimed events, claimed deliveries, and the jobs made of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from postrider.domain.model import Endpoint, Event

if TYPE_CHECKING:
    from postrider.services.lane import Lane

MAX_DATA_BYTES_IN_MEMORY = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Claim:
    """A batch of events, held in the database by one row."""

    id: int
    unsettled: int
    """Events of it that are not recorded in full."""


@dataclass(slots=True, eq=False)
class OpenEvent:
    """An event in memory, with what is still to be recorded of it."""

    event: Event
    remaining: int
    claim: Claim | None = None
    """None where deliveries of it were claimed, and not the event."""
    lost: bool = False
    """It was rescued from us, or claimed again: results of this copy no longer count."""
    bodies: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Rendered once per dialect."""


@dataclass(slots=True, eq=False)
class Job:
    """One delivery on its way to one attempt."""

    opened: OpenEvent
    endpoint: Endpoint
    attempts: int
    """Attempts made before."""
    attempt_base: int
    """Of those, attempts that don't count towards the schedule."""
    first: bool
    """Nothing of this delivery is recorded yet: it is held by the claim of its event, else by its own."""
    queued_at: float = 0.0
    taken_at: float = 0.0
    lane: "Lane | None" = None
    """The lane that holds it, or whose slot it takes."""

    @property
    def key(self) -> tuple[UUID, int]:
        return self.opened.event.id, self.endpoint.id


class Work:
    """Everything claimed by this daemon under its id `owner`, until it is recorded or given back."""

    def __init__(self) -> None:
        self.owner = 0
        self.claims: dict[int, Claim] = {}
        self.events: dict[UUID, OpenEvent] = {}
        self.deliveries: dict[tuple[UUID, int], Job] = {}
        self.data_bytes = 0
        """JSON text of all events in memory, in bytes."""
        self._typical_bytes = 0.0

    def __repr__(self) -> str:
        return f"<Work owner={self.owner} events={len(self.events)} deliveries={len(self.deliveries)}>"

    def affordable(self, wanted: int) -> int:
        """How many of `wanted` events may be claimed, going by the size of those claimed lately."""
        free = MAX_DATA_BYTES_IN_MEMORY - self.data_bytes
        return max(0, min(wanted, int(free / max(self._typical_bytes, 1.0))))

    def learn_size(self, events: Sequence[Event]) -> None:
        """Take in the sizes of events just read; large ones count at once, small ones by and by."""
        if events:
            mean = sum(event.data_bytes for event in events) / len(events)
            self._typical_bytes = max(mean, 0.8 * self._typical_bytes)

    def take(self, claim_id: int, events: int) -> Claim:
        """Hold a claim of so many events."""
        claim = self.claims[claim_id] = Claim(claim_id, events)
        return claim

    def open(self, event: Event, claim: Claim) -> OpenEvent:
        """Hold an event that was claimed."""
        if (twin := self.events.get(event.id)) is not None:
            twin.lost = True
            self._forget(twin)
        opened = OpenEvent(event, 0, claim)
        self.events[event.id] = opened
        self.data_bytes += event.data_bytes
        return opened

    def hold(self, job: Job) -> None:
        """Hold a delivery whose own row was claimed."""
        if (twin := self.deliveries.get(job.key)) is not None:
            twin.opened.lost = True
            self.release(twin)
        self.deliveries[job.key] = job
        self.data_bytes += job.opened.event.data_bytes

    def release(self, job: Job) -> None:
        """Let go of a delivery whose own row was claimed."""
        if self.deliveries.get(job.key) is job:
            del self.deliveries[job.key]
            self.data_bytes -= job.opened.event.data_bytes

    def settle(self, jobs: Iterable[Job]) -> None:
        """Their results are recorded."""
        for job in jobs:
            if job.first:
                job.opened.remaining -= 1
                self.settle_event(job.opened)
            else:
                self.release(job)

    def settle_event(self, opened: OpenEvent) -> None:
        """Forget an event of which nothing remains to be recorded."""
        if opened.remaining <= 0 and not opened.lost:
            self._forget(opened)

    def holds(self, claim: Claim) -> bool:
        return self.claims.get(claim.id) is claim

    def settle_claim(self, claim: Claim, events: int) -> None:
        """So many more events of a claim need nothing any more."""
        claim.unsettled -= events
        if claim.unsettled <= 0:
            self.claims.pop(claim.id, None)

    def abandon(self, claim: Claim) -> None:
        """Hold a claim no longer: results of its events do not count."""
        for opened in [each for each in self.events.values() if each.claim is claim]:
            opened.lost = True
            self._forget(opened)
        self.claims.pop(claim.id, None)

    def lose_everything(self) -> None:
        """Others rescued what we held: nothing of it counts any more."""
        for opened in self.events.values():
            opened.lost = True
        for job in self.deliveries.values():
            job.opened.lost = True
        self.claims.clear()
        self.events.clear()
        self.deliveries.clear()
        self.data_bytes = 0

    def _forget(self, opened: OpenEvent) -> None:
        if self.events.get(opened.event.id) is opened:
            del self.events[opened.event.id]
            self.data_bytes -= opened.event.data_bytes
            if opened.claim is not None:
                self.settle_claim(opened.claim, 1)
