"""Disables endpoints that have failed for too long, said 410, or exhausted a schedule, each where its dialect
disables it for that; and keeps which endpoints only fail, and since when.

Woken when an endpoint starts failing, recovers or wants no more; it looks at the database once a minute.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from postrider.domain.model import DeliveryState, endpoint_public_id
from postrider.domain.policy import AttemptNote, Outcome, RetryPolicy, should_disable
from postrider.edges.clock import Clock
from postrider.engine.recorded import Recorded
from postrider.engine.signals import Signal
from postrider.store import endpoint_health
from postrider.store.database import Database
from postrider.store.endpoint_health import Failing

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DisablerTuning:
    interval_s: float = 60.0


@dataclass(frozen=True, slots=True)
class DisablerCounts:
    failing: int
    """That began to."""
    recovered: int
    disabled: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """That an endpoint is to be disabled at once."""

    workspace_id: str
    reason: str


class OutcomeBook:
    """What became of attempts, by endpoint, since the database was told before."""

    def __init__(self) -> None:
        self.news = Signal()
        """An endpoint starts failing, recovers or wants no more."""
        self._failing: Mapping[int, Failing] = {}
        self._notes: dict[int, AttemptNote] = {}
        self._refused: dict[int, Refusal] = {}

    def __repr__(self) -> str:
        return f"<OutcomeBook endpoints={len(self._notes)} refused={len(self._refused)}>"

    @property
    def failing(self) -> Mapping[int, Failing]:
        """What the database said when it was asked last."""
        return self._failing

    def put(self, recorded: Recorded) -> None:
        for attempt in recorded.attempts:
            if attempt.outcome is not None and not attempt.job.held.event.test:
                result = attempt.result
                self._note(result.workspace_id, result.endpoint_id, attempt.outcome, recorded.at)

    def notes(self) -> dict[int, AttemptNote]:
        """Of each endpoint, what is to be held against the database."""
        return dict(self._notes)

    def refused(self) -> dict[int, Refusal]:
        """Endpoints that are to be disabled at once."""
        return dict(self._refused)

    def told(self, notes: Mapping[int, AttemptNote], failing: Mapping[int, Failing]) -> None:
        """The database knows these notes, and says which endpoints fail."""
        for endpoint_id, note in notes.items():
            if self._notes.get(endpoint_id) is note:  # else there is a newer one
                del self._notes[endpoint_id]
        self._failing = failing

    def done(self, endpoint_id: int) -> None:
        """An endpoint that was to be disabled is, or is none that can be."""
        self._refused.pop(endpoint_id, None)

    def succeeded(self, endpoint_id: int) -> bool:
        """Whether an attempt did, of which the database was not told."""
        note = self._notes.get(endpoint_id)
        return note is not None and note.succeeded_at is not None

    def _note(self, workspace_id: str, endpoint_id: int, outcome: Outcome, at: datetime) -> None:
        note = self._notes.get(endpoint_id)
        if outcome.state is DeliveryState.SUCCEEDED:
            # Kept also of one that is not known to fail: another daemon may have seen it fail before.
            self._notes[endpoint_id] = AttemptNote(workspace_id, succeeded_at=at, failing_since=None)
            changed = endpoint_id in self._failing or (note is not None and note.failing_since is not None)
        else:
            succeeded_at = note.succeeded_at if note is not None else None
            changed = note is None or note.failing_since is None
            if changed:
                self._notes[endpoint_id] = AttemptNote(workspace_id, succeeded_at, failing_since=at)
                changed = succeeded_at is not None or endpoint_id not in self._failing
            if outcome.disable_reason is not None:
                self._refused[endpoint_id] = Refusal(workspace_id, outcome.disable_reason)
                changed = True
        if changed:
            self.news.set()


class Disabler:
    def __init__(
        self,
        *,
        database: Database,
        book: OutcomeBook,
        policy_of: Callable[[str], RetryPolicy],
        clock: Clock,
        tuning: DisablerTuning | None = None,
    ) -> None:
        """`policy_of` the name of a dialect tells how long an endpoint may fail."""
        self._policy_of = policy_of
        self._database = database
        self._book = book
        self._clock = clock
        self._tuning = tuning or DisablerTuning()

    def __repr__(self) -> str:
        return f"<Disabler failing={len(self._book.failing)} {self._book}>"

    async def run(self) -> None:
        while True:
            self._book.news.clear()
            await self.run_once()
            await self._book.news.wait(self._clock, self._tuning.interval_s)

    async def run_once(self) -> DisablerCounts:
        """Note what the attempts say, take over what other daemons noted, and disable what is due."""
        book = self._book
        notes, refused, before = book.notes(), book.refused(), book.failing
        failing = await self._ask()
        changes = {each: note for each, note in notes.items() if _changes(note, failing.get(each))}
        if changes:
            async with self._database.transaction() as connection:
                await endpoint_health.note_attempts(connection, changes)
            failing = await self._ask()
        book.told(notes, failing)
        recovered = sum(each in before and each not in failing for each in changes)
        new = sum(each in failing and failing[each] != before.get(each) for each in changes)
        now = self._clock.now()
        disabled = 0
        for endpoint_id, refusal in refused.items():
            disabled += await self._disable(refusal.workspace_id, endpoint_id, refusal.reason, now)
            book.done(endpoint_id)
        for endpoint_id, (workspace_id, since, dialect) in failing.items():
            patience_s = self._policy_of(dialect).disable_after
            if endpoint_id in refused or book.succeeded(endpoint_id):
                continue
            if should_disable(since, now, patience_s):
                days = (now - since).total_seconds() / 86_400
                reason = f"every attempt failed for {days:.1f} days"
                disabled += await self._disable(workspace_id, endpoint_id, reason, now, since)
        return DisablerCounts(new, recovered, disabled)

    async def _ask(self) -> dict[int, Failing]:
        async with self._database.connection() as connection:
            return await endpoint_health.failing(connection)

    async def _disable(
        self,
        workspace_id: str,
        endpoint_id: int,
        reason: str,
        now: datetime,
        failing_since: datetime | None = None,
    ) -> bool:
        async with self._database.connection() as connection:
            if not await endpoint_health.disable(
                connection, workspace_id, endpoint_id, reason, now, failing_since=failing_since
            ):
                return False
        log.warning("endpoint.disabled", endpoint=endpoint_public_id(endpoint_id), reason=reason)
        return True


def _changes(note: AttemptNote, failing: Failing | None) -> bool:
    """Whether a note says something else than what the database knows."""
    if failing is None:
        return note.failing_since is not None
    return note.succeeded_at is not None and note.succeeded_at >= failing.since
