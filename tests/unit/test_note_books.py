"""What services keep of each recorded batch, before the database is told."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from postrider.domain.model import Attempt, DeliveryState, ErrorKind, Event, Failure, Reply
from postrider.domain.policy import AttemptNote, Outcome
from postrider.engine.disabler import OutcomeBook, Refusal
from postrider.engine.last_deliveries import LastDeliveryBook
from postrider.engine.ledger import HeldEvent, Job
from postrider.engine.recorded import Entry, Recorded
from postrider.store.delivery_results import DeliveryResult
from postrider.store.endpoint_health import Failing

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SUCCESS = Outcome(DeliveryState.SUCCEEDED, None, None, "HTTP 200", None, throttled=False)
FAILURE = Outcome(DeliveryState.RETRYING, None, ErrorKind.HTTP, "HTTP 500", None, throttled=False)
GONE = Outcome(DeliveryState.FAILED, None, ErrorKind.HTTP, "HTTP 410", "it said 410", throttled=False)


def entry(
    endpoint_id: int,
    outcome: Outcome = SUCCESS,
    *,
    attempt: bool = True,
    test: bool = False,
    at: datetime = NOON,
) -> Entry:
    event = Event(
        UUID(int=uuid4().int), "default", "a.b", "{}", 2, None, None, None, None, None, NOON, test=test
    )
    answer = Reply(200, "", "", None, None, 1.0) if outcome is SUCCESS else Failure(ErrorKind.HTTP, "no", 1.0)
    made = Attempt(1, at, answer) if attempt else None
    result = DeliveryResult(event.id, endpoint_id, "default", outcome.state, attempts=1, attempt=made)
    return Entry(Job(HeldEvent(event, cost=0), endpoint_id), result, outcome, 0)


def batch(*entries: Entry, after_s: float = 0.0) -> Recorded:
    return Recorded(NOON + timedelta(seconds=after_s), entries, [], None)


def test_the_first_failure_is_news_and_those_after_it_are_not() -> None:
    book = OutcomeBook()
    book.put(batch(entry(1, FAILURE)))
    assert book.news.take()
    book.put(batch(entry(1, FAILURE), after_s=1))
    assert not book.news.take()
    assert book.notes() == {1: AttemptNote("default", succeeded_at=None, failing_since=NOON)}


def test_a_success_is_news_where_the_endpoint_was_failing() -> None:
    book = OutcomeBook()
    book.put(batch(entry(1), entry(2)))
    assert not book.news.take()
    book.told(book.notes(), {1: Failing("default", NOON, "standard")})
    book.put(batch(entry(1), entry(2), after_s=1))
    assert book.news.take()
    assert (book.succeeded(1), book.succeeded(3)) == (True, False)


def test_a_note_that_came_while_the_database_was_told_is_kept() -> None:
    book = OutcomeBook()
    book.put(batch(entry(1, FAILURE), entry(2, FAILURE)))
    told = book.notes()
    book.put(batch(entry(2), after_s=1))
    book.told(told, {})
    assert list(book.notes()) == [2]


def test_what_asks_to_be_disabled_is_kept_until_it_is_done() -> None:
    book = OutcomeBook()
    book.put(batch(entry(1, GONE), entry(2, GONE, test=True)))
    assert book.news.take()
    assert book.refused() == {1: Refusal("default", "it said 410")}
    book.done(1)
    assert book.refused() == {}


def test_only_the_last_delivery_of_an_endpoint_is_kept() -> None:
    book = LastDeliveryBook()
    book.put(batch(entry(1), entry(2), entry(1, FAILURE)))
    assert len(book) == 2
    assert book.first(1)[1].state is DeliveryState.RETRYING
    book.put(batch(entry(3, attempt=False)))
    assert len(book) == 2


def test_the_book_is_done_when_all_of_it_is_written() -> None:
    book = LastDeliveryBook()
    book.put(batch(entry(1), entry(2)))
    first = book.first(1)
    book.put(batch(entry(1), after_s=1))
    book.written(first)
    assert (len(book), bool(book.news)) == (2, True)
    book.written(book.first(2))
    assert (len(book), bool(book.news)) == (0, False)
