"""Results of deliveries: many are recorded at a time, each fenced by the claim under which it was sent."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from postrider.domain.model import Attempt, DeliveryKey, DeliveryState, Failure, Reply
from postrider.store.database import Connection
from postrider.store.last_deliveries import LastDelivery

UNWRITABLE = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, asyncpg.IntegrityConstraintViolationError)
"""Errors of `record` that come from one of the results."""


class DeliveryResult(msgspec.Struct, frozen=True):
    """The next state of a delivery, with the attempt that led to it, if one was made."""

    event_id: UUID
    endpoint_id: int
    workspace_id: str
    state: DeliveryState
    attempts: int
    due: datetime | None = None
    reason: str | None = None
    attempt: Attempt | None = None
    claim_id: int | None = None
    """The claim of its event, where this is the delivery's first result."""
    bytes: int | None = None
    """Of the event's JSON."""

    @property
    def as_last(self) -> LastDelivery:
        """Of its endpoint; an attempt was made."""
        assert self.attempt is not None
        at = self.attempt.started_at
        return LastDelivery(self.endpoint_id, self.workspace_id, self.event_id, self.state, self.reason, at)


class ClaimProgress(msgspec.Struct, frozen=True):
    """What results do to the count that the database keeps of a claim's results."""

    claim_id: int
    before: int
    """The count as it should be found; any other means that a crash undid what had been recorded."""
    after: int
    finished: bool
    """With these results the claim is complete, and ends."""


# Of a column that has one value for all results only the first is sent: the driver takes 0.3 to 0.5 µs for
# each. A moment comes in seconds since 1970, since it takes 1.3 µs for one.
_RESULTS = """
  SELECT event_id, coalesce(endpoint_id, ($3::bigint[])[1]) AS endpoint_id,
         coalesce(workspace_id, ($4::text[])[1]) AS workspace_id, coalesce(state, ($5::text[])[1]) AS state,
         coalesce(attempts, ($6::smallint[])[1]) AS attempts, due, reason,
         to_timestamp(started_at) AS started_at, duration_ms, connect_ms, status, response_headers,
         response_body{}
  FROM (
    SELECT unnest($2::uuid[]) AS event_id, unnest($3::bigint[]) AS endpoint_id,
           unnest($4::text[]) AS workspace_id, unnest($5::text[]) AS state,
           unnest($6::smallint[]) AS attempts, unnest($7::timestamptz[]) AS due,
           unnest($8::text[]) AS reason, unnest($9::float8[]) AS started_at,
           unnest($10::real[]) AS duration_ms, unnest($11::real[]) AS connect_ms,
           unnest($12::smallint[]) AS status, unnest($13::text[]) AS response_headers,
           unnest($14::text[]) AS response_body{}
  ) AS sent
"""
_FIRST_RESULTS = _RESULTS.format(
    ", coalesce(claim_id, ($15::bigint[])[1]) AS claim_id, bytes",
    ", unnest($15::bigint[]) AS claim_id, unnest($21::integer[]) AS bytes",
)
_LATER_RESULTS = _RESULTS.format("", "")

# The first result of a delivery: fenced by the claim of its event, which has to be ours, and to count as many
# results as we know of. $15: that claim, for each result; $16, $17, $18: claims with results to come, their
# count before and after; $19, $20: claims that end with these results, and their count before.
_RECORD_FIRST = f"""
WITH held AS (
  UPDATE postrider.claim AS c SET recorded = p.after
  FROM (SELECT unnest($16::bigint[]) AS id, unnest($17::integer[]) AS before,
               unnest($18::integer[]) AS after) AS p
  WHERE c.id = p.id AND c.owner = $1 AND c.recorded = p.before RETURNING c.id
), finished AS (
  DELETE FROM postrider.claim AS c
  USING (SELECT unnest($19::bigint[]) AS id, unnest($20::integer[]) AS before) AS p
  WHERE c.id = p.id AND c.owner = $1 AND c.recorded = p.before RETURNING c.id
), fence AS (
  SELECT id FROM held UNION ALL SELECT id FROM finished
), recorded AS (
  INSERT INTO postrider.delivery
    (event_id, endpoint_id, workspace_id, state, attempts, due, reason, started_at, duration_ms, connect_ms,
     status, response_headers, response_body, bytes, updated_at)
  SELECT event_id, endpoint_id, workspace_id, state, attempts, due, reason, started_at, duration_ms,
         connect_ms, status, response_headers, response_body, bytes, $22
  FROM ({_FIRST_RESULTS}) AS r
  JOIN fence ON fence.id = r.claim_id
  ON CONFLICT DO NOTHING
)
SELECT id FROM fence
"""  # noqa: S608 (constant)

# A later result: fenced by the claim of the delivery itself.
_RECORD_LATER = f"""
UPDATE postrider.delivery AS d
SET state = r.state, attempts = r.attempts, due = r.due, reason = r.reason, started_at = r.started_at,
  duration_ms = r.duration_ms, connect_ms = r.connect_ms, status = r.status,
  response_headers = r.response_headers, response_body = r.response_body, owner = NULL, updated_at = $15
FROM ({_LATER_RESULTS}) AS r
WHERE d.event_id = r.event_id AND d.endpoint_id = r.endpoint_id AND d.workspace_id = r.workspace_id
  AND d.owner = $1 AND d.state = 'sending'
RETURNING d.event_id, d.endpoint_id
"""  # noqa: S608 (constant)

_INSERT_ATTEMPTS = """
INSERT INTO postrider.attempt (event_id, endpoint_id, workspace_id, number, started_at, duration_ms,
                               connect_ms, status, error_kind, error, response_headers, response_body)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::smallint[], $5::timestamptz[], $6::real[],
                     $7::real[], $8::smallint[], $9::text[], $10::text[], $11::text[], $12::text[])
ON CONFLICT DO NOTHING
"""


def is_one_statement(
    first_results: Sequence[DeliveryResult], later_results: Sequence[DeliveryResult]
) -> bool:
    """Whether `record` needs no transaction around it, which saves two round trips."""
    return not later_results and not any(map(_failed, first_results))


async def record(
    connection: Connection,
    owner: int,
    *,
    first_results: Sequence[DeliveryResult],
    later_results: Sequence[DeliveryResult],
    claims: Sequence[ClaimProgress],
    now: datetime,
) -> tuple[set[DeliveryKey], set[int]]:
    """Write many results, in a transaction of the caller's unless it `is_one_statement`; return the
    deliveries that were written, and the claims that count them.

    The first results are of deliveries that have no row yet, of events that `owner` claimed, each of a claim
    in `claims`; later ones are of deliveries whose row it claimed. What another daemon owns by now is not
    touched, nor is a claim of which the database has another count than `claims` says, nor any result of it.
    """
    written: set[DeliveryKey] = set()
    counted: set[int] = set()
    if claims:
        held = [each for each in claims if not each.finished]
        finished = [each for each in claims if each.finished]
        rows = await connection.fetch(
            _RECORD_FIRST,
            owner,
            *_arrays(first_results),
            _sent([r.claim_id for r in first_results]),
            [each.claim_id for each in held],
            [each.before for each in held],
            [each.after for each in held],
            [each.claim_id for each in finished],
            [each.before for each in finished],
            [r.bytes for r in first_results],
            now,
        )
        counted = {row["id"] for row in rows}
        written.update((r.event_id, r.endpoint_id) for r in first_results if r.claim_id in counted)
    if later_results:
        rows = await connection.fetch(_RECORD_LATER, owner, *_arrays(later_results), now)
        written.update((row["event_id"], row["endpoint_id"]) for row in rows)
    await _insert_attempts(
        connection,
        [
            r
            for r in (*first_results, *later_results)
            if _failed(r) and (r.event_id, r.endpoint_id) in written
        ],
    )
    return written, counted


async def add_finished(connection: Connection, result: DeliveryResult, now: datetime) -> None:
    """Write a delivery that is over with its first attempt, which somebody made by hand."""
    await connection.execute(
        """INSERT INTO postrider.delivery
             (event_id, endpoint_id, workspace_id, state, attempts, due, reason, started_at,
              duration_ms, connect_ms, status, response_headers, response_body, updated_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)""",
        *(column[0] for column in _columns([result])),
        now,
    )
    await _insert_attempts(connection, [result] if _failed(result) else [])


def _failed(result: DeliveryResult) -> bool:
    """Whether there is an attempt to be written apart: one that succeeds stands in the delivery's row."""
    return result.attempt is not None and result.state is not DeliveryState.SUCCEEDED


async def _insert_attempts(connection: Connection, results: Sequence[DeliveryResult]) -> None:
    if not results:
        return
    rows = [
        (r.event_id, r.endpoint_id, r.workspace_id, *_attempt_values(r.attempt)) for r in results if r.attempt
    ]
    await connection.execute(_INSERT_ATTEMPTS, *(list(column) for column in zip(*rows, strict=True)))


def _attempt_values(attempt: Attempt) -> tuple[object, ...]:
    start = (attempt.number, attempt.started_at, attempt.result.duration_ms, attempt.result.connect_ms)
    match attempt.result:
        case Reply() as reply:
            kind = None if 200 <= reply.status < 300 else "http"
            return (*start, reply.status, kind, None, reply.headers, reply.body)
        case Failure() as failure:
            return (*start, None, failure.kind.value, failure.reason, None, None)


_NO_ATTEMPT = (None,) * 6


def _columns(results: Sequence[DeliveryResult]) -> list[tuple[object, ...]]:
    """The columns that a result has, from event to body."""
    rows = [
        (r.event_id, r.endpoint_id, r.workspace_id, r.state.value, r.attempts, r.due, r.reason, *_success(r))
        for r in results
    ]
    return list(zip(*rows, strict=True)) or [()] * 13


def _arrays(results: Sequence[DeliveryResult]) -> list[Sequence[object]]:
    """The parameters of `_RESULTS`, where `unnest` fills up with NULL what is shorter."""
    event_id, endpoint_id, workspace_id, state, attempts, due, reason, started_at, *answer = _columns(results)
    return [
        event_id,
        *map(_sent, (endpoint_id, workspace_id, state, attempts)),
        _sent_if_any(due),
        _sent_if_any(reason),
        [moment.timestamp() if isinstance(moment, datetime) else None for moment in started_at],
        *map(_sent_if_any, answer),
    ]


def _sent(column: Sequence[object]) -> Sequence[object]:
    """What is sent of a column without NULL."""
    return column[:1] if column and column.count(column[0]) == len(column) else column


def _sent_if_any(column: Sequence[object]) -> Sequence[object]:
    """What is sent of a column that may be all NULL."""
    return () if column.count(None) == len(column) else column


def _success(result: DeliveryResult) -> tuple[object, ...]:
    attempt = result.attempt
    if attempt is None or result.state is not DeliveryState.SUCCEEDED:
        return _NO_ATTEMPT
    reply = attempt.result
    assert isinstance(reply, Reply)
    return (
        attempt.started_at,
        reply.duration_ms,
        reply.connect_ms,
        reply.status,
        reply.headers,
        reply.body,
    )
