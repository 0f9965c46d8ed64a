"""What ends when retention does, and goes with no partition: a bounded number of rows at a time."""

from datetime import date
from typing import Literal

from postrider.store.database import Connection

ROWS = 2_000
"""At a time."""
Sweep = Literal["outbox", "delivery", "attempt", "idempotency", "disabled_period"]
"""What is swept of days past retention: default partitions, and tables that go with events."""

# A disabled endpoint gets nothing until a person resumes it; whoever paused one asked to keep its deliveries.
_END_DISABLED = f"""
WITH ended AS (
  SELECT d.event_id, d.endpoint_id, d.workspace_id, e.updated_at AS since
  FROM postrider.endpoint AS e CROSS JOIN LATERAL (
    SELECT event_id, endpoint_id, workspace_id FROM postrider.delivery
    WHERE endpoint_id = e.id AND workspace_id = e.workspace_id AND state = $2
      AND event_id < postrider.first_id_of($1)
    LIMIT {ROWS} FOR UPDATE SKIP LOCKED
  ) AS d
  WHERE e.state = 'disabled' LIMIT {ROWS}
)
UPDATE postrider.delivery AS d SET state = 'failed', due = NULL, updated_at = clock_timestamp(),
  reason = 'its endpoint has been disabled since ' || to_char(ended.since AT TIME ZONE 'UTC', 'YYYY-MM-DD')
           || ', and the retention of its event ended'
FROM ended WHERE d.event_id = ended.event_id AND d.endpoint_id = ended.endpoint_id
  AND d.workspace_id = ended.workspace_id
"""  # noqa: S608 (constant)

# Days without a partition went to the default one, where rows have to be deleted one by one.
_SWEEPS: dict[Sweep, str] = {
    "outbox": f"""
        DELETE FROM postrider.outbox_default WHERE ctid = ANY (ARRAY(
          SELECT o.ctid FROM postrider.outbox_default AS o WHERE o.id < postrider.first_id_of($1)
            AND NOT EXISTS (SELECT FROM postrider.pending AS p WHERE p.event_id = o.id)
            AND NOT EXISTS (SELECT FROM postrider.claim AS c WHERE o.id = ANY(c.event_ids))
            AND NOT EXISTS (SELECT FROM postrider.delivery AS d WHERE d.event_id = o.id
                            AND d.state IN ('waiting', 'sending', 'retrying'))
          LIMIT {ROWS}))""",  # noqa: S608 (constant)
    # An event that is kept for one endpoint must not look as if another had missed it.
    "delivery": f"""
        DELETE FROM postrider.delivery_default WHERE ctid = ANY (ARRAY(
          SELECT d.ctid FROM postrider.delivery_default AS d WHERE d.event_id < postrider.first_id_of($1)
            AND d.state NOT IN ('waiting', 'sending', 'retrying')
            AND NOT EXISTS (SELECT FROM postrider.outbox AS o
                            WHERE o.id = d.event_id AND o.id < postrider.first_id_of($1))
          LIMIT {ROWS}))""",  # noqa: S608 (constant)
    "attempt": f"""
        DELETE FROM postrider.attempt_default WHERE ctid = ANY (ARRAY(
          SELECT ctid FROM postrider.attempt_default WHERE event_id < postrider.first_id_of($1)
          LIMIT {ROWS}))""",  # noqa: S608 (constant)
    "idempotency": f"""
        DELETE FROM postrider.idempotency WHERE ctid = ANY (ARRAY(
          SELECT ctid FROM postrider.idempotency WHERE event_id < postrider.first_id_of($1)
          LIMIT {ROWS}))""",  # noqa: S608 (constant)
    "disabled_period": f"""
        DELETE FROM postrider.disabled_period WHERE ctid = ANY (ARRAY(
          SELECT ctid FROM postrider.disabled_period WHERE last_event < postrider.first_id_of($1)
          LIMIT {ROWS}))""",  # noqa: S608 (constant)
}


async def sweep(connection: Connection, what: Sweep, before: date) -> int:
    """Take away up to ROWS rows of days before that one; return how many there were."""
    status = await connection.execute(_SWEEPS[what], before)
    return int(status.rsplit(" ", 1)[1])


async def end_disabled(connection: Connection, before: date, state: Literal["waiting", "retrying"]) -> int:
    """Fail up to ROWS deliveries in that state of days before that one, whose endpoints are disabled;
    return how many there were."""
    status = await connection.execute(_END_DISABLED, before, state)
    return int(status.rsplit(" ", 1)[1])
