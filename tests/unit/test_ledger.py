"""The ledger: what is held, whose results count, and the bytes that it takes."""

import random
from datetime import UTC, datetime
from uuid import UUID, uuid4

from postrider.domain.model import Event
from postrider.engine.ledger import MIB, Claim, ClaimedEvent, Ledger, LedgerTuning, Share
from postrider.store.delivery_results import ClaimProgress


def event(size: int = 100, event_id: UUID | None = None) -> Event:
    return Event(
        event_id or uuid4(), "default", "a.b", "{}", size, None, None, None, None, None, datetime.now(UTC)
    )


def first(claim: Claim) -> ClaimedEvent:
    return next(iter(claim.events))


def test_a_claim_is_over_when_every_delivery_and_every_event_without_one_is_recorded() -> None:
    ledger = Ledger()
    claim = ledger.take_claim(1, [(event(), 2), (event(), 0)], missing=1)
    assert claim.results == 4
    assert ledger.progress({claim: 3}) == [ClaimProgress(1, before=0, after=3, finished=False)]
    ledger.settle({claim: 3}, {1}, [])
    assert ledger.claims() == {1: 3}
    assert ledger.progress({claim: 1}) == [ClaimProgress(1, before=3, after=4, finished=True)]
    ledger.settle({claim: 1}, {1}, [])
    assert ledger.claims() == {}


def test_an_event_that_is_claimed_again_counts_once() -> None:
    """A crash undid the first claim, and the queue has the event again."""
    ledger = Ledger()
    twice = event()
    before = first(ledger.take_claim(1, [(twice, 1)], missing=0))
    again = first(ledger.take_claim(2, [(twice, 1)], missing=0))
    assert (before.lost, again.lost) == (True, False)
    cost = ledger.bytes
    ledger.settle_event(again, 1)
    assert (cost, ledger.bytes) == (again.held.cost, 0)


def test_a_claim_that_is_not_complete_keeps_no_event_that_is() -> None:
    """One slow delivery of a batch would keep the payloads of all the others in memory, uncounted."""
    ledger = Ledger()
    claim = ledger.take_claim(1, [(event(), 1), (event(), 1)], missing=0)
    done, pending = claim.events
    assert ledger.settle({claim: 1}, {1}, [done]) == 0
    assert list(claim.events) == [pending]


def test_a_claim_that_the_database_did_not_count_is_abandoned() -> None:
    ledger = Ledger()
    claim = ledger.take_claim(1, [(event(), 2)], missing=0)
    (claimed,) = claim.events
    assert ledger.settle({claim: 1}, set(), [claimed]) == 1
    assert claimed.lost
    assert (ledger.claims(), ledger.bytes) == ({}, 0)


def test_an_event_in_memory_is_shared_by_all_its_deliveries() -> None:
    ledger = Ledger()
    large = event(MIB)
    jobs = [ledger.take_delivery(large, endpoint_id, 0, 0) for endpoint_id in range(300)]
    assert ledger.bytes == jobs[0].held.cost
    assert ledger.event(large.id) is large
    for job in jobs:
        ledger.release(job)
    assert ledger.bytes == 0
    assert ledger.event(large.id) is None


def test_what_a_crash_undid_is_abandoned() -> None:
    ledger = Ledger()
    claims = [ledger.take_claim(number, [(event(), 2)], missing=0) for number in range(3)]
    events = [first(claim) for claim in claims]
    for claim in claims:
        ledger.settle({claim: 1}, {claim.id}, [])
    known = ledger.claims()
    ledger.settle({claims[2]: 1}, {2}, [])  # recorded while the database was asked
    assert ledger.abandon_undone({0: 0, 1: 1}, known) == 1
    assert [each.lost for each in events] == [True, False, False]
    assert ledger.claims() == {1: 1}


def test_large_events_leave_memory_to_claims() -> None:
    ledger = Ledger()
    while ledger.refill_room(Share.FREE) > 0:
        ledger.take_delivery(event(MIB), 1, 0, 0)
    assert ledger.bytes >= LedgerTuning().large
    assert ledger.claim_room() > 0
    assert ledger.bytes < LedgerTuning().memory


def test_slow_lanes_leave_memory_to_others() -> None:
    ledger = Ledger()
    while ledger.refill_room(Share.SLOW) > 0:
        ledger.mark(ledger.take_delivery(event(MIB), 1, 0, 0), Share.SLOW)
    assert not ledger.admits(Share.SLOW)
    assert ledger.admits(Share.UNTRIED)
    assert ledger.refill_room(Share.UNTRIED) > 0
    assert ledger.refill_room(Share.FREE) > 0


def test_nothing_is_left_whatever_the_order() -> None:
    for seed in range(50):
        chance = random.Random(seed)
        ledger = Ledger()
        ids = [uuid4() for _ in range(6)]
        claims, jobs = [], []
        for number in range(40):
            match chance.randrange(6):
                case 0:
                    picked = chance.sample(ids, 2)
                    claims.append(
                        ledger.take_claim(number, [(event(10, i), chance.randrange(3)) for i in picked], 0)
                    )
                case 1 | 2:
                    jobs.append(
                        ledger.take_delivery(event(10, chance.choice(ids)), chance.randrange(3), 0, 0)
                    )
                    ledger.mark(jobs[-1], chance.choice(list(Share)))
                case 3 if jobs:
                    job = jobs[chance.randrange(len(jobs))]
                    ledger.keep_body(job.held, f"d{chance.randrange(3)}", b"body")
                case 4 if jobs:
                    job = jobs.pop(chance.randrange(len(jobs)))
                    ledger.unmark(job)
                    ledger.release(job)
                case 5 if claims:
                    ledger.abandon(claims.pop(chance.randrange(len(claims))))
        for job in jobs:
            ledger.unmark(job)
            ledger.release(job)
        for claim in claims:
            for claimed in list(claim.events):
                ledger.settle_event(claimed, claimed.remaining)
            ledger.settle({claim: claim.results}, {claim.id}, [])
        assert (ledger.bytes, set(ledger.share_bytes.values())) == (0, {0}), seed
        assert (ledger.claims(), ledger.delivery_keys()) == ({}, set())
