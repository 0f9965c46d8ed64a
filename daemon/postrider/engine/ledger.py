"""What this daemon holds in memory: claimed events, claimed deliveries, and the bytes that they take.

The ledger alone changes any of it and alone does the arithmetic. Events and bodies take a
bounded `memory`: a part is kept free of large events, so that claims never wait for them; lanes that are slow
have a part together, and lanes that never answered yet another one, so that their payloads don't keep those
of others out.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

import msgspec

from postrider.domain.model import DeliveryKey, Event
from postrider.store.delivery_results import ClaimProgress

MIB = 1024 * 1024
_OVERHEAD_BYTES = 1024


class Share(Enum):
    """Of memory: whose deliveries are counted together."""

    FREE = "free"  # of lanes that answer: bounded by all memory
    SLOW = "slow"
    UNTRIED = "untried"


@dataclass(frozen=True, slots=True)
class LedgerTuning:
    """All of it in bytes."""

    memory: int = 64 * MIB
    """For events and the bodies made of them."""
    large: int = 48 * MIB
    """Of it for all but claims."""
    slow: int = 16 * MIB
    """Of it for lanes that are slow."""
    untried: int = 8 * MIB
    """Of it for lanes that never answered yet."""
    claim: int = 4 * MIB
    """JSON that one claim reads at most."""
    refill: int = 4 * MIB
    """JSON that one look for waiting deliveries takes on at most, its first delivery excepted."""


class Claim(msgspec.Struct, eq=False):
    """A batch of events, held in the database by one row."""

    id: int
    results: int
    """What it takes to complete it: one result for each delivery, and one for an event that has none."""
    recorded: int = 0
    """Results that are committed, as far as we were told. The database has a count of its own."""
    events: "dict[ClaimedEvent, None]" = {}
    """Those that are in memory for it."""

    def __repr__(self) -> str:
        return f"<Claim {self.id} recorded={self.recorded}/{self.results}>"


class HeldEvent(msgspec.Struct, eq=False):
    """An event in memory, shared by all that needs it."""

    event: Event
    cost: int
    """Bytes for its JSON and a body made of it."""
    holders: int = 0
    bodies: dict[str, bytes] = {}
    """Rendered once per dialect."""
    shares: dict[Share, int] = {}
    """How many of its deliveries count to each share."""


class ClaimedEvent(msgspec.Struct, eq=False):
    """An event of a claim, with what is still to be recorded of it."""

    held: HeldEvent
    claim: Claim
    remaining: int
    """Results to come."""
    lost: bool = False
    """The claim is ours no more, or the event was claimed again: results of this copy don't count."""


class Job(msgspec.Struct, eq=False):
    """One delivery on its way to one attempt."""

    held: HeldEvent
    endpoint_id: int
    attempts: int = 0
    """Attempts made before."""
    attempt_base: int = 0
    """Of those, attempts that don't count towards the schedule."""
    source: ClaimedEvent | None = None
    """Set while nothing of this delivery is recorded: its event's claim holds it, and later its own row."""
    withdrawn: bool = False
    """Its own row is ours no more."""
    share: Share | None = None
    """That of memory to which it counts while a lane holds it."""
    queued_at: float = 0.0
    taken_at: float = 0.0

    @property
    def key(self) -> DeliveryKey:
        return self.held.event.id, self.endpoint_id

    @property
    def unproven(self) -> bool:
        """Whether its lane is slow, or never answered."""
        return self.share is not None and self.share is not Share.FREE

    @property
    def lost(self) -> bool:
        return self.withdrawn if self.source is None else self.source.lost


class Ledger:
    """Everything held under the id `owner`, until it is recorded or given back."""

    def __init__(self, tuning: LedgerTuning | None = None, *, owner: int = 0) -> None:
        self._tuning = tuning or LedgerTuning()
        self._most = {Share.SLOW: self._tuning.slow, Share.UNTRIED: self._tuning.untried}
        self._owner = owner
        self.bytes = 0
        self.share_bytes = dict.fromkeys(Share, 0)
        self._claims: dict[int, Claim] = {}
        self._claimed: dict[UUID, ClaimedEvent] = {}
        self._held: dict[UUID, HeldEvent] = {}
        self._deliveries: dict[DeliveryKey, Job] = {}

    def __repr__(self) -> str:
        return (
            f"<Ledger owner={self._owner} events={len(self._claimed)} deliveries={len(self._deliveries)} "
            f"bytes={self.bytes} slow={self.share_bytes[Share.SLOW]} "
            f"untried={self.share_bytes[Share.UNTRIED]}>"
        )

    @property
    def owner(self) -> int:
        """This daemon's id, which everything is held under; 0 before it has one."""
        return self._owner

    def begin_as(self, owner: int) -> None:
        """Hold what comes from now on under that id."""
        self._owner = owner

    # What there is room for, in bytes of JSON.

    def claim_room(self) -> int:
        """For one claim; 0 while it has to wait."""
        return min(self._tuning.claim, (self._tuning.memory - self.bytes) // 2)

    def refill_room(self, share: Share) -> int:
        """For deliveries of lanes of one kind; less than 1 while they have to wait."""
        free = self._tuning.large - self.bytes
        if share is not Share.FREE:
            free = min(free, self._most[share] - self.share_bytes[share])
        return min(self._tuning.refill, free // 2)

    def admits(self, share: Share) -> bool:
        """Whether a lane of that kind may take on more."""
        return share is Share.FREE or self.share_bytes[share] < self._most[share]

    # Claims of events.

    def claims(self) -> dict[int, int]:
        """The claims, each with the results that are recorded of it."""
        return {claim.id: claim.recorded for claim in self._claims.values()}

    def holds(self, claim: Claim) -> bool:
        return self._claims.get(claim.id) is claim

    def take_claim(self, claim_id: int, events: Iterable[tuple[Event, int]], missing: int) -> Claim:
        """Hold a claim: its events with the number of their deliveries, and how many the outbox lacks."""
        claim = self._claims[claim_id] = Claim(claim_id, missing)
        for event, deliveries in events:
            if (twin := self._claimed.get(event.id)) is not None:
                self._lose(twin)
            claimed = ClaimedEvent(self._hold(event), claim, deliveries)
            self._claimed[event.id] = claimed
            claim.events[claimed] = None
            claim.results += max(1, deliveries)
        return claim

    @staticmethod
    def progress(results: Mapping[Claim, int]) -> list[ClaimProgress]:
        """What so many more results of each claim do to the counts that the database keeps."""
        progress = []
        for claim, count in results.items():
            after = claim.recorded + count
            progress.append(ClaimProgress(claim.id, claim.recorded, after, after >= claim.results))
        return progress

    def settle(
        self, results: Mapping[Claim, int], counted: Container[int], events: Iterable[ClaimedEvent]
    ) -> int:
        """Results are recorded: so many of each claim, and one of each event, where an event may come several
        times. Abandon the claims whose ids the database did not count; return how many those are."""
        abandoned = 0
        for claim, count in results.items():
            if claim.id not in counted:
                self.abandon(claim)
                abandoned += 1
                continue
            claim.recorded += count
            if claim.recorded >= claim.results and self.holds(claim):
                del self._claims[claim.id]
        for claimed in events:
            if not claimed.lost:
                claimed.remaining -= 1
                if claimed.remaining <= 0:
                    self._forget(claimed)
        return abandoned

    def settle_event(self, claimed: ClaimedEvent, results: int) -> None:
        """So many more results of an event are recorded; with the last one it is forgotten."""
        claimed.remaining -= results
        if claimed.remaining <= 0 and not claimed.lost:
            self._forget(claimed)

    def abandon(self, claim: Claim) -> None:
        """Hold a claim no longer: results of its events do not count."""
        for claimed in list(claim.events):
            self._lose(claimed)
        if self.holds(claim):
            del self._claims[claim.id]

    def abandon_undone(self, recorded: dict[int, int], known: dict[int, int]) -> int:
        """Abandon the claims of which the database has `recorded` less than we had `known` before it was
        asked: a crash undid the rest. Return how many."""
        undone = [
            claim
            for claim_id, results in known.items()
            if recorded.get(claim_id, results) < results and (claim := self._claims.get(claim_id)) is not None
        ]
        for claim in undone:
            self.abandon(claim)
        return len(undone)

    # Claims of deliveries.

    def delivery_keys(self) -> set[DeliveryKey]:
        return set(self._deliveries)

    def event(self, event_id: UUID) -> Event | None:
        """An event that is in memory already."""
        held = self._held.get(event_id)
        return held.event if held is not None else None

    def take_delivery(self, event: Event, endpoint_id: int, attempts: int, attempt_base: int) -> Job:
        """Hold a delivery whose own row was claimed."""
        job = Job(self._hold(event), endpoint_id, attempts, attempt_base)
        if (twin := self._deliveries.get(job.key)) is not None:
            twin.withdrawn = True
            self.release(twin)
        self._deliveries[job.key] = job
        return job

    def release(self, job: Job) -> None:
        """Let go of a delivery whose own row was claimed."""
        if self._deliveries.get(job.key) is job:
            del self._deliveries[job.key]
            self._let_go(job.held)

    # Whose bytes they are.

    def mark(self, job: Job, share: Share) -> None:
        """Count a job, or rather its event, to a share, and no longer to the one before."""
        self.unmark(job)
        job.share, held = share, job.held
        count = held.shares.get(share, 0)
        held.shares[share] = count + 1
        if not count:
            self.share_bytes[share] += held.cost

    def unmark(self, job: Job) -> None:
        """Count a job to no share: its lane holds it no more."""
        share, job.share, held = job.share, None, job.held
        if share is None:
            return
        held.shares[share] -= 1
        if not held.shares[share]:
            self.share_bytes[share] -= held.cost

    def keep_body(self, held: HeldEvent, dialect: str, body: bytes) -> None:
        """Keep a rendered body; the first one is in the event's cost already."""
        if held.bodies and self._held.get(held.event.id) is held:
            self._grow(held, len(body))
        held.bodies[dialect] = body

    def lose_everything(self) -> None:
        """Others rescued what we held: nothing of it counts any more."""
        for claimed in self._claimed.values():
            claimed.lost = True
        for job in self._deliveries.values():
            job.withdrawn = True
        self._claims.clear()
        self._claimed.clear()
        self._deliveries.clear()
        self._held.clear()
        self.bytes = 0

    def _hold(self, event: Event) -> HeldEvent:
        held = self._held.get(event.id)
        if held is None:
            held = self._held[event.id] = HeldEvent(event, 2 * _stored_bytes(event) + _OVERHEAD_BYTES)
            self.bytes += held.cost
        elif held.event.data is None and (event.data is not None or event.problem is not None):
            held.event = event
            self._grow(held, 2 * _stored_bytes(event))
        held.holders += 1
        return held

    def _grow(self, held: HeldEvent, by: int) -> None:
        held.cost += by
        self.bytes += by
        for share, count in held.shares.items():
            if count:
                self.share_bytes[share] += by

    def _let_go(self, held: HeldEvent) -> None:
        held.holders -= 1
        if held.holders <= 0 and self._held.get(held.event.id) is held:
            del self._held[held.event.id]
            self.bytes -= held.cost

    def _lose(self, claimed: ClaimedEvent) -> None:
        if not claimed.lost:
            claimed.lost = True
            self._forget(claimed)

    def _forget(self, claimed: ClaimedEvent) -> None:
        if self._claimed.get(claimed.held.event.id) is claimed:
            del self._claimed[claimed.held.event.id]
            self._let_go(claimed.held)
        claimed.claim.events.pop(claimed, None)


def _stored_bytes(event: Event) -> int:
    return event.data_bytes if event.data is not None else 0
